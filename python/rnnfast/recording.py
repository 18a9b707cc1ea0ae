"""The tape of recurrent layers: what a forward pass has recorded, to be looked at.

Letters: T steps, B batch, H hidden, G gates, L layers, D = 1 or 2 directions.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from rnnfast import _kernels, checks
from rnnfast.checkpointing import Checkpoints
from rnnfast.checks import Array
from rnnfast.module import Module, Tape
from rnnfast.stack import Run, Stack

__all__ = ["RecurrentTape"]

_CELLS = _kernels.cells()


class RecurrentTape(Tape[Run | Checkpoints]):
    """The tape of a recurrent layer. Its arrays are copies, made on access, zero past a row's length.

    They are time-major whatever the layer's `batch_first`; layer l in direction d stands at l·D + d. The tape of a
    forward pass with `checkpoint` has none of them: RuntimeError.
    """

    __slots__ = ("_stack",)

    def __init__(self, module: Module, stack: Stack, record: Run | Checkpoints, y: Array) -> None:
        super().__init__(module, record, y)
        self._stack = stack

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
        width = self._stack.widths[0]
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
        cells = [_CELLS[scan.cell] for scan in self._stack.scans]
        gates, width = min(cell["gates"] for cell in cells), self._stack.hidden
        begin, end = 0, gates * width
        if cells[0]["saved"] == 0:  # of an RNN, whose gate is h
            if not run.zoneouts:
                return self.hidden[..., None, :]
            begin, end = end, 2 * end  # beside the share of the old h that stays: h as the cell made it
        saved = [values[..., begin:end] for values in run.saved if values is not None]
        return self._blank(run, np.stack([a.reshape(*a.shape[:2], gates, width) for a in saved]))

    @staticmethod
    def _blank(run: Run, array: Array) -> Array:
        if run.lengths is not None:
            array[:, checks.past(run.lengths, array.shape[1])] = 0
        return array
