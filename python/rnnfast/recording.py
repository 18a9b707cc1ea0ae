"""What a forward pass of recurrent layers records for backward, and the tape that shows it.

Letters: T steps, B batch, H hidden, G gates, L layers, D = 1 or 2 directions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from rnnfast import _kernels, checks
from rnnfast.checkpointing import Checkpoints
from rnnfast.checks import Array
from rnnfast.module import NO_MASKS, Key, Tape

if TYPE_CHECKING:
    from rnnfast.recurrent import Recurrent

__all__ = ["RecurrentTape", "Run", "Watch"]

_CELLS = _kernels.cells()


@dataclass(slots=True)
class Run:
    """What a forward call of a stack keeps. All arrays are time-major views or arrays; k = layer·D + direction."""

    initial: tuple[Array, ...] | None  # the states before the first step, (L·D, B, H) each
    lengths: Array | None  # of the whole sequences
    resets: Array | None
    own_initial: bool = False  # the initial states are the layer's parameters
    masks: Key = NO_MASKS  # of the call's random masks; none at inference
    scales: tuple[Array, ...] | None = None  # recurrent dropout: by k, what h is multiplied by, (B, ·)
    begin: int = 0  # the first step, where the run has a segment of longer sequences
    inputs: list[Array] = field(default_factory=list)  # by layer, (T, B, ·)
    outputs: list[Array] = field(default_factory=list)  # by layer, (T, B, D·H), before dropout
    states: list[tuple[Array, ...]] = field(default_factory=list)  # by k, the states beside h, (T, B, H) each
    saved: list[Array | None] = field(default_factory=list)  # by k, (T, B, ·): a step's values, the gates (G·H) first


# Sees what backward finds on its way: k, the run and the whole gradient of each state at each step, (T, B, H) each and
# zero past a row's length.
Watch: TypeAlias = Callable[[int, Run, tuple[Array, ...]], None]


class RecurrentTape(Tape[Run | Checkpoints]):
    """The tape of a recurrent layer. Its arrays are copies, made on access, zero past a row's length.

    They are time-major whatever the layer's `batch_first`; layer l in direction d stands at l·D + d. The tape of a
    forward pass with `checkpoint` has none of them: RuntimeError.
    """

    __slots__ = ("_gate_is_h", "_gates", "_output", "_width")
    module: Recurrent

    def __init__(self, module: Recurrent, record: Run | Checkpoints, y: Array) -> None:
        super().__init__(module, record, y)
        cells = [module._cell_of(layer) for layer in range(module.num_layers)]
        self._gates, self._width = min(_CELLS[cell]["gates"] for cell in cells), module.hidden_size
        self._output = module.output_size
        self._gate_is_h = _CELLS[cells[0]]["saved"] == 0  # of an RNN

    @property
    def nbytes(self) -> int:
        """The bytes of all arrays that the tape keeps alive, without x; y is among them but with `checkpoint`."""
        record = self.record
        run = record.run if isinstance(record, Checkpoints) else record
        groups: list[Any] = [
            run.initial or (),
            run.scales or (),
            (run.lengths, run.resets),
            run.inputs[1:],
            run.outputs,
            run.saved,
        ]
        groups += record.states
        arrays = {id(array): array for group in groups for array in group if array is not None}
        return sum(array.nbytes for array in arrays.values())

    def _run(self, name: str) -> Run:
        """The record, for the property `name`."""
        record = self.record
        if isinstance(record, Checkpoints):
            raise RuntimeError(f"{name}: not kept by forward(checkpoint={record.steps}), which computes it anew")
        return record

    @property
    def hidden(self) -> Array:
        """Every h_t: (L·D, T, B, H), or proj_size in the place of H."""
        width = self._output
        outputs = self._run("hidden").outputs
        return np.stack([y[..., k : k + width] for y in outputs for k in range(0, y.shape[-1], width)])

    @property
    def cell(self) -> Array:
        """Every c_t: (L·D, T, B, H). AttributeError if the cell has no state but h."""
        run = self._run("cell")
        if not run.states[0]:
            raise AttributeError("cell: this layer has no state but h")
        return self._blank(run, np.stack([states[0] for states in run.states]))

    @property
    def states(self) -> tuple[Array, ...]:
        """Every state after every step, in the order of the layer's state: (L·D, T, B, ·) each."""
        run = self._run("states")
        others = [np.stack(arrays) for arrays in zip(*run.states, strict=True)]
        return self.hidden, *(self._blank(run, array) for array in others)

    @property
    def gates(self) -> Array:
        """Every gate after its activation, in the order of the weights' rows: (L·D, T, B, G, H)."""
        run = self._run("gates")
        begin, end = 0, self._gates * self._width
        if self._gate_is_h:
            if not self.module._zoneouts:
                return self.hidden[..., None, :]
            begin, end = end, 2 * end  # beside the share of the old h that stays: h as the cell made it
        saved = [values[..., begin:end] for values in run.saved if values is not None]
        return self._blank(run, np.stack([a.reshape(*a.shape[:2], self._gates, self._width) for a in saved]))

    @staticmethod
    def _blank(run: Run, array: Array) -> Array:
        if run.lengths is not None:
            array[:, checks.past(run.lengths, array.shape[1])] = 0
        return array
