"""What the recurrent layers have in common: a stack of one cell, in one or both directions.

`Recurrent` knows no cell. A cell is a subclass in layers.py with its equations as docstring, its name in the kernels'
registry and the names of its states.

Letters: T steps, B batch, I input, H hidden, G gates (a weight has G·H rows), L layers, D = 1 or 2 directions.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeAlias

import numpy as np

from rnnfast import _kernels, checkpointing, checks, init, threads
from rnnfast.checkpointing import Checkpoint, Checkpoints
from rnnfast.checks import Array
from rnnfast.module import NO_MASKS, Key, Masks, Module, State, Tape
from rnnfast.streaming import Stream

__all__ = ["Recurrent", "RecurrentTape"]

_CELLS = _kernels.cells()


@dataclass(slots=True)
class Run:
    """What a forward call of a stack keeps. All arrays are time-major views or arrays; k = layer·D + direction."""

    initial: tuple[Array, ...] | None  # the states before the first step, (L·D, B, H) each
    lengths: Array | None  # of the whole sequences
    resets: Array | None
    own_initial: bool = False  # the initial states are the layer's parameters
    masks: Key = NO_MASKS  # of the dropout between layers
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

    __slots__ = ("_gates", "_width")

    def __init__(self, module: Recurrent, record: Run | Checkpoints, y: Array) -> None:
        super().__init__(module, record, y)
        self._gates, self._width = _CELLS[module._cell]["gates"], module.hidden_size

    @property
    def nbytes(self) -> int:
        """The bytes of all arrays that the tape keeps alive, y among them, without x."""
        record = self.record
        run = record.run if isinstance(record, Checkpoints) else record
        groups: list[Any] = [run.initial or (), (run.lengths, run.resets), run.inputs[1:], run.outputs, run.saved]
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
        """Every h_t: (L·D, T, B, H)."""
        width = self._width
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
    def gates(self) -> Array:
        """Every gate after its activation, in the order of the weights' rows: (L·D, T, B, G, H)."""
        run = self._run("gates")
        of_gates = self._gates * self._width
        saved = [values[..., :of_gates] for values in run.saved if values is not None]
        saved = [values.reshape(*values.shape[:2], self._gates, self._width) for values in saved]
        return self._blank(run, np.stack(saved)) if saved else self.hidden[..., None, :]  # an RNN's gate is h itself

    @staticmethod
    def _blank(run: Run, array: Array) -> Array:
        if run.lengths is not None:
            array[:, checks.past(run.lengths, array.shape[1])] = 0
        return array


class Recurrent(Module):
    """A stack of one cell: what RNN, LSTM and GRU have in common.

    Args:
        input_size: I, the features of x.
        hidden_size: H, the units of a layer and direction.
        num_layers: L, the layers of the stack; each reads the output of the one below.
        bias: whether there are the two bias vectors `bias_ih` and `bias_hh`.
        batch_first: whether x and y are (B, T, ·) instead of (T, B, ·). States always are (L·D, B, H).
        dropout: the probability that a value between two layers is dropped in training (the others are scaled by
            1 / (1 − p)). The masks depend on the seed, the number of the training call, layer, step, row and feature
            alone, so they don't vary with the number of threads.
        bidirectional: whether every layer also has a second set of weights that reads the sequence from its end; y is
            the two outputs side by side.
        grad_clip: a bound g for each element of ∂L/∂h_t in backward, or None: at every step it is clamped to −g … g
            before it goes back through the cell, so that a gradient can't grow from step to step (Graves, 2013,
            "Generating sequences with recurrent neural networks"). It is the gradient that comes from y and from the
            steps after; the gradients of the other states, of x and of the initial state are not clamped.
        train_initial_state: whether the state that stands for ``state=None`` is trained: parameters `initial_h` (and
            `initial_c`) (L·D, H), zeros at first, the same for every row of a batch. Their gradient is that of the
            initial state, summed over the rows in a fixed order; a call that is given a state leaves it alone.
            `resets` restore zeros all the same.
        dtype: float32 or float64, of the parameters and of all arrays in and out.
        seed: of the initial values and of the masks; None draws one from the system.

    Shapes:
        x (T, B, I), y (T, B, D·H), each state (L·D, B, H), D = 2 if bidirectional, else 1.
        `weight_ih_l{k}` (G·H, I or D·H), `weight_hh_l{k}` (G·H, H), `bias_ih_l{k}`, `bias_hh_l{k}` (G·H,), and the
        same with `_reverse` for the second direction: PyTorch's names, shapes, order and initial distribution,
        U(−1/√H, 1/√H).

    Raises:
        TypeError: an argument has another dtype or type than it should.
        ValueError: a shape or a value is wrong. Both name the argument, what was expected and what came.
    """

    _arguments: ClassVar[tuple[str, ...]] = (
        "input_size",
        "hidden_size",
        "num_layers",
        "bias",
        "batch_first",
        "dropout",
        "bidirectional",
        "grad_clip",
        "train_initial_state",
        "dtype",
        "seed",
    )
    _state_names: ClassVar[tuple[str, ...]] = ("h",)
    _weight_names: ClassVar[tuple[str, ...]] = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    _unit_weights: ClassVar[tuple[str, ...]] = ()  # parameters (H,): one number a unit; a property if an option decides
    _masks: Masks
    batch_first: bool
    _cell: ClassVar[str]  # the cell's name in the kernels' registry; a property where it depends on an option

    def __init_subclass__(cls) -> None:
        """Put the common arguments into every cell's docstring, after its equations."""
        if cls.__doc__ and Recurrent.__doc__:
            cls.__doc__ += Recurrent.__doc__.partition("\n")[2]

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        grad_clip: float | None = None,
        train_initial_state: bool = False,
        dtype: Any = np.float32,
        seed: int | None = None,
    ) -> None:
        self.input_size = checks.size("input_size", input_size)
        self.hidden_size = checks.size("hidden_size", hidden_size)
        self.num_layers = checks.size("num_layers", num_layers)
        self.bias = checks.flag("bias", bias)
        self.batch_first = checks.flag("batch_first", batch_first)
        self.dropout = checks.real("dropout", dropout, 0.0, 1.0)
        self.bidirectional = checks.flag("bidirectional", bidirectional)
        self.grad_clip = None if grad_clip is None else checks.real("grad_clip", grad_clip, open_low=True)
        self.train_initial_state = checks.flag("train_initial_state", train_initial_state)
        self.seed = init.choose_seed(seed)
        if self.dropout and self.num_layers == 1:
            warnings.warn("dropout acts between layers: with num_layers=1 it does nothing", stacklevel=2)
        self._masks = Masks(self.seed)
        super().__init__(self._parameter_shapes(), checks.float_dtype(dtype))
        states = self._initial_names()
        drawn = {name: array for name, array in self.params.items() if name not in states}
        init.uniform(drawn, self.hidden_size**-0.5, self.seed)
        for name in states:
            self.params[name][...] = 0

    # ---- the cell ----------------------------------------------------------------------------------------------------
    def _cell_shapes(self, inputs: int) -> dict[str, tuple[int, ...]]:
        """The parameters of one layer and direction that reads `inputs` features."""
        cell = _CELLS[self._cell]
        rows = cell["gates"] * self.hidden_size
        shapes: dict[str, tuple[int, ...]] = {"weight_ih": (rows, inputs)}
        if cell["recurrent"]:
            shapes["weight_hh"] = (rows, self.hidden_size)
        shapes |= {name: (self.hidden_size,) for name in self._unit_weights}
        if self.bias:
            shapes["bias_ih"] = (rows,)
            if cell["recurrent"]:
                shapes["bias_hh"] = (rows,)
        return shapes

    # ---- the stack ---------------------------------------------------------------------------------------------------
    @property
    def _directions(self) -> int:
        return 2 if self.bidirectional else 1

    def _suffix(self, layer: int, direction: int) -> str:
        return f"_l{layer}{'_reverse' if direction else ''}"

    def _parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        shapes = {}
        for layer in range(self.num_layers):
            inputs = self._directions * self.hidden_size if layer else self.input_size
            for direction in range(self._directions):
                for name, shape in self._cell_shapes(inputs).items():
                    shapes[name + self._suffix(layer, direction)] = shape
        states = self.num_layers * self._directions, self.hidden_size
        return shapes | dict.fromkeys(self._initial_names(), states)

    def _initial_names(self) -> tuple[str, ...]:
        """The parameters that stand for a state that isn't given; none where that is zeros."""
        return tuple(f"initial_{name}" for name in self._state_names) if self.train_initial_state else ()

    def _initial_states(self, batch: int) -> tuple[Array, ...] | None:
        """The states of a call that is given none, (L·D, B, H) each; None for zeros."""
        names = self._initial_names()
        return tuple(np.repeat(self.params[name][:, None], batch, axis=1) for name in names) if names else None

    def _half(self, array: Array, direction: int) -> Array:
        """The features of one direction: a view (T, B, H) of (T, B, D·H)."""
        return array[..., direction * self.hidden_size : (direction + 1) * self.hidden_size]

    def _check_states(self, value: State, batch: int, names: tuple[str, ...], what: str) -> tuple[Array, ...] | None:
        shape = (self.num_layers * self._directions, batch, self.hidden_size)
        return checks.states(what, value, names, shape, self.dtype)

    def _new_states(self, batch: int) -> tuple[Array, ...]:
        shape = (self.num_layers * self._directions, batch, self.hidden_size)
        return tuple(checks.empty("state", shape, self.dtype) for _ in self._state_names)

    def _state(self, arrays: tuple[Array, ...]) -> State:
        return arrays[0] if len(arrays) == 1 else arrays

    def _new_sequence(self, steps: int, batch: int, width: int) -> Array:
        return checks.empty("y", (steps, batch, width), self.dtype)

    def _new_output(self, steps: int, batch: int, width: int) -> tuple[Array, Array]:
        """A new array in the caller's layout, and its time-major view."""
        array = checks.empty("y", (batch, steps, width) if self.batch_first else (steps, batch, width), self.dtype)
        return array, checks.time_major(array, self.batch_first)

    def _drop(self, x: Array, layer: int, run: Run) -> Array:
        """The output of `layer`, or its gradient, with the call's mask applied."""
        if run.masks is NO_MASKS:
            return x
        dropped = self._new_sequence(*x.shape)
        _kernels.dropout(x, dropped, *run.masks, layer, run.lengths, threads.resolve(), run.begin)
        return dropped

    def forward(
        self,
        x: Any,
        state: State = None,
        lengths: Any = None,
        resets: Any = None,
        *,
        checkpoint: Checkpoint = None,
    ) -> tuple[Array, State, RecurrentTape]:
        """Training: (y, state, tape); see `Module.forward`. The tape has `hidden`, `cell` and `gates`.

        With `checkpoint`, the steps of a segment or True for 2√T, the tape keeps the states at the ends of segments
        alone, and backward computes the rest again, segment by segment: O(√T) memory instead of O(T), for the time of
        one more forward pass. Every gradient has the same bits. ValueError for a bidirectional layer, whose second
        direction comes from the end; `hidden`, `cell` and `gates` of the tape raise RuntimeError.
        """
        y, state, tape = self._forward(x, state, lengths, resets, record=True, checkpoint=checkpoint)
        assert tape is not None
        return self._read_only(y), state, tape

    def stream(self, batch_size: int = 1) -> Stream:
        """The layer one step a call, with packed weights and a state of its own; see `Stream`.

        ValueError if the layer is bidirectional.
        """
        return Stream(self, batch_size)

    def _forward(
        self, x: Any, state: State, lengths: Any, resets: Any, record: bool, checkpoint: Checkpoint = None
    ) -> tuple[Array, State, RecurrentTape | None]:
        shape = (*checks.leading(self.batch_first), self.input_size)
        x = checks.time_major(checks.features("x", x, shape, self.dtype), self.batch_first)
        steps, batch = x.shape[:2]
        segment = checkpointing.segment_steps(checkpoint, steps)
        if segment is not None and self.bidirectional:
            raise ValueError("checkpoint: expected None for a bidirectional layer, whose second direction starts last")
        initial = self._check_states(state, batch, tuple(f"{name}0" for name in self._state_names), "state")
        if initial is None:
            initial = self._initial_states(batch)
        elif record:
            initial = tuple(array.copy() for array in initial)
        run = Run(
            initial,
            checks.lengths(lengths, steps, batch),
            checks.resets(resets, steps, batch, self.batch_first),
            own_initial=state is None and self.train_initial_state,
        )
        if record and self.training and self.dropout and self.num_layers > 1:
            run.masks = self._masks.next_key(self.dropout)
        final = self._new_states(batch)
        y, seq = self._new_output(steps, batch, self._directions * self.hidden_size)
        kept: Run | Checkpoints = run
        if segment is None:
            self._forward_stack(x, seq, final, run, record)
        else:
            kept = checkpointing.forward(self, x, seq, final, run, segment)
        return y, self._state(final), RecurrentTape(self, kept, y) if record else None

    def _forward_stack(self, x: Array, y: Array, final: tuple[Array, ...], run: Run, record: bool) -> None:
        """Run the layers one after another; record them in `run`."""
        for layer in range(self.num_layers - 1):
            between = self._new_sequence(*y.shape)
            self._forward_layer(layer, x, between, final, run, record)
            x = self._drop(between, layer, run)
        self._forward_layer(self.num_layers - 1, x, y, final, run, record)

    def _forward_layer(self, layer: int, x: Array, y: Array, final: tuple[Array, ...], run: Run, record: bool) -> None:
        """Run one layer in its directions; record it in `run`."""
        steps, batch = x.shape[:2]
        if record:
            run.inputs.append(x)
            run.outputs.append(y)
        for direction in range(self._directions):
            k = layer * self._directions + direction
            states: tuple[Array, ...] = ()
            saved = None
            if record:
                states = tuple(checks.empty("c", (steps, batch, self.hidden_size), self.dtype) for _ in final[1:])
                values = _kernels.saved_size(self._cell, self.hidden_size, False, False, False)
                if values:
                    saved = checks.empty("gates", (steps, batch, values), self.dtype)
                run.states.append(states)
                run.saved.append(saved)
            _kernels.forward(
                self._cell,
                x,
                self._weights(self.params, layer, direction),
                None if run.initial is None else tuple(array[k] for array in run.initial),
                self._half(y, direction),
                states,
                saved,
                tuple(array[k] for array in final),
                run.lengths,
                run.resets,
                direction == 1,
                threads.resolve(),
                begin=run.begin,
            )

    def _weights(self, source: Mapping[str, Array], layer: int, direction: int) -> dict[str, Any]:
        """What a layer and direction has, parameters or gradients, by the kernels' names."""
        end = self._suffix(layer, direction)
        names = [name for name in self._weight_names if name + end in source and name not in self._unit_weights]
        of_layer: dict[str, Any] = {name: source[name + end] for name in names}
        of_layer["unit_weights"] = tuple(source[name + end] for name in self._unit_weights)
        return of_layer

    def _check_dstate(self, tape: Tape[Any], dstate: State) -> tuple[Array, ...] | None:
        batch = tape.shape[0 if self.batch_first else 1]
        return self._check_states(dstate, batch, tuple(f"d{name}" for name in self._state_names), "dstate")

    def _backward(
        self,
        tape: Tape[Any],
        dy: Array | None,
        dstate: State,
        need_dx: bool,
        grads: Mapping[str, Array],
        watch: Watch | None = None,
    ) -> tuple[Array | None, State]:
        record: Run | Checkpoints = tape.record
        batch, steps = tape.shape[:2] if self.batch_first else tape.shape[1::-1]
        dinitial = self._new_states(batch)
        dseq = None if dy is None else checks.time_major(dy, self.batch_first)
        dx = dx_seq = None
        if need_dx:
            dx, dx_seq = self._new_output(steps, batch, self.input_size)
        if isinstance(record, Checkpoints):
            checkpointing.backward(self, record, dseq, dstate, dx_seq, dinitial, grads, watch)
            run = record.run
        else:
            self._backward_stack(record, dseq, dstate, dx_seq, dinitial, grads, watch=watch)
            run = record
        if run.own_initial:
            for name, gradient in zip(self._initial_names(), dinitial, strict=True):
                grads[name][...] += gradient.sum(axis=1)
        return dx, self._state(dinitial)

    def _backward_stack(
        self,
        run: Run,
        dy: Array | None,
        dstate: tuple[Array, ...] | None,
        dx: Array | None,
        dinitial: tuple[Array, ...],
        grads: Mapping[str, Array],
        *,
        resume: bool = False,
        watch: Watch | None = None,
    ) -> None:
        """Backpropagate through the layers, last one first."""
        for layer in reversed(range(self.num_layers)):
            x = run.inputs[layer]
            to = self._new_sequence(*x.shape) if layer else dx
            self._backward_layer(layer, run, dy, dstate, to, dinitial, grads, resume, watch)
            if layer and to is not None:
                dy = self._drop(to, layer - 1, run)

    def _backward_layer(
        self,
        layer: int,
        run: Run,
        dy: Array | None,
        dfinal: tuple[Array, ...] | None,
        dx: Array | None,
        dinitial: tuple[Array, ...],
        grads: Mapping[str, Array],
        resume: bool,
        watch: Watch | None,
    ) -> None:
        """Backpropagate through one layer; its second direction adds into dx."""
        for direction in range(self._directions):
            k = layer * self._directions + direction
            y = self._half(run.outputs[layer], direction)
            over_time = tuple(np.zeros(y.shape, self.dtype) for _ in dinitial) if watch else None
            _kernels.backward(
                self._cell,
                run.inputs[layer],
                self._weights(self.params, layer, direction),
                None if run.initial is None else tuple(array[k] for array in run.initial),
                y,
                run.states[k],
                run.saved[k],
                None if dy is None else self._half(dy, direction),
                None if dfinal is None else tuple(array[k] for array in dfinal),
                dx,
                direction == 1,
                tuple(array[k] for array in dinitial),
                self._weights(grads, layer, direction),
                run.lengths,
                run.resets,
                direction == 1,
                threads.resolve(),
                begin=run.begin,
                resume=resume,
                clip=math.inf if self.grad_clip is None else self.grad_clip,
                over_time=over_time,
            )
            if watch and over_time is not None:
                watch(k, run, over_time)
