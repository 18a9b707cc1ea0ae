"""What the recurrent layers have in common: a stack of one cell, in one or both directions.

`Recurrent` knows no cell. A cell is a subclass in layers.py with its equations as docstring, its name in the kernels'
registry and the names of its states.

Letters: T steps, B batch, I input, H hidden, G gates (a weight has G·H rows), L layers, D = 1 or 2 directions.
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self, TypedDict, Unpack

import numpy as np

from rnnfast import _kernels, checkpointing, checks, init, planning
from rnnfast.checkpointing import Checkpoint, Checkpoints
from rnnfast.checks import Array
from rnnfast.module import Masks, Module, State, Tape
from rnnfast.planning import Plan
from rnnfast.recording import RecurrentTape
from rnnfast.stack import MOST_LAYERS, Run, Scan, Stack, Watch
from rnnfast.streaming import Stream

__all__ = ["CommonOptions", "Dense", "DenseOptions", "Recurrent"]

_CELLS = _kernels.cells()
NORMS = ("ln_ih_weight", "ln_ih_bias", "ln_hh_weight", "ln_hh_bias")  # parameters of layer norm, (G·H,) each


class CommonOptions(TypedDict, total=False):
    """The keywords of every recurrent layer."""

    bias: bool
    batch_first: bool
    dropout: float
    bidirectional: bool
    zoneout: float | tuple[float, ...]
    grad_clip: float | None
    train_initial_state: bool
    compute_dtype: Literal["bfloat16"] | None
    dtype: Any
    seed: int | None


class DenseOptions(CommonOptions, total=False):
    """The keywords of the layers whose h goes through a product."""

    layer_norm: bool
    recurrent_dropout: float


class Recurrent(Module):
    """A stack of one cell: what RNN, LSTM and GRU have in common.

    Args:
        input_size: I, the features of x.
        hidden_size: H, the units of a layer and direction.
        num_layers: L, the layers of the stack; each reads the output of the one below.
        bias: whether there are bias vectors: `bias_ih` and, where there is a `weight_hh` that multiplies h, `bias_hh`.
        batch_first: whether x and y are (B, T, ·) instead of (T, B, ·). States always are (L·D, B, H).
        dropout: the probability that a value between two layers is dropped in training (the others are scaled by
            1 / (1 − p)). The masks depend on the seed, the number of the training call, layer, step, row and feature
            alone, so they don't vary with the number of threads.
        bidirectional: whether every layer also has a second set of weights that reads the sequence from its end; y is
            the two outputs side by side.
        zoneout: the probability, one for all states or one each, that a unit keeps its state in training (Krueger et
            al., 2017): ``s_t = m ∘ s_{t−1} + (1 − m) ∘ s̃_t`` with a mask m drawn anew at each step. At inference and
            in evaluation mode m is the probability itself.
        grad_clip: a bound g for each element of ∂L/∂h_t in backward, or None: at every step it is clamped to −g … g
            before it goes back through the cell, so that a gradient can't grow from step to step (Graves, 2013,
            "Generating sequences with recurrent neural networks"). It is the gradient that comes from y and from the
            steps after; the gradients of the other states, of x and of the initial state are not clamped.
        train_initial_state: whether the state that stands for ``state=None`` is trained: parameters `initial_h` (and
            `initial_c`) (L·D, H), zeros at first, the same for every row of a batch. Their gradient is that of the
            initial state, summed over the rows in a fixed order; a call that is given a state leaves it alone.
            `resets` restore zeros all the same.
        compute_dtype: "bfloat16" rounds what products multiply (weights, x, h, and dz on the way back) to 16 bits;
            arrays, parameters, sums and the cells' equations stay float32. Twice as fast where the processor has
            AVX512-BF16; elsewhere the same rounding, without the speed.
        dtype: float32 or float64, of the parameters and of all arrays in and out.
        seed: of the initial values and of the masks; None draws one from the system.

    Shapes:
        x (T, B, I), y (T, B, D·H), each state (L·D, B, H), D = 2 if bidirectional, else 1.
        `weight_ih_l{k}` (G·H, I or D·H), `weight_hh_l{k}` (G·H, H), `bias_ih_l{k}`, `bias_hh_l{k}` (G·H,), but for what
        is said otherwise above, and the same with `_reverse` for the second direction: PyTorch's names, shapes, order
        and initial distribution, U(−1/√H, 1/√H).

    Raises:
        TypeError: an argument has another dtype or type than it should.
        ValueError: a shape or a value is wrong. Both name the argument, what was expected and what came.
        AttributeError: an argument that has made parameters, masks or kernels is set once the layer is there.
    """

    _state_names: ClassVar[tuple[str, ...]] = ("h",)
    _weight_names: ClassVar[tuple[str, ...]] = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr", *NORMS)
    # Parameters of one number a unit, or of several blocks of such; a property if an option decides.
    _unit_weights: ClassVar[tuple[str, ...]] = ()
    # What an option may add to every cell.
    proj_size = 0
    num_heads = 1
    layer_norm = False
    recurrent_dropout = 0.0
    # The other options have made parameters, masks and kernels.
    _settable = frozenset({"batch_first", "dropout", "zoneout", "recurrent_dropout", "grad_clip"})
    _takes_checkpoint = True
    _masks: Masks
    batch_first: bool
    _cell: ClassVar[str]  # the cell's name in the kernels' registry; a property where it depends on an option

    def __init_subclass__(cls) -> None:
        """Put the common arguments into every cell's signature and, after its equations, into its docstring."""
        own, common = inspect.signature(cls.__init__).parameters, inspect.signature(cls.__mro__[1]).parameters
        named = {name: parameter for name, parameter in own.items() if parameter.kind is not parameter.VAR_KEYWORD}
        hands_on = len(named) < len(own)
        del named["self"]
        tail = [parameter for name, parameter in common.items() if name not in own] if hands_on else []
        cls.__signature__ = inspect.Signature([*named.values(), *tail])  # type: ignore[attr-defined]
        cls._arguments = tuple(inspect.signature(cls).parameters)
        common_doc = cls.__mro__[1].__doc__
        if cls.__doc__ and common_doc:
            cls.__doc__ += common_doc.partition("\n")[2]

    def __new__(cls, *arguments: Any, **options: Any) -> Self:
        """Refuse an option by its name, and say whose it is."""
        for name in options:
            if name not in cls._arguments:
                hint = _owners(name) or f"; it has {', '.join(cls._arguments)}"
                raise TypeError(f"{name}: {cls.__name__} has no such option{hint}")
        return super().__new__(cls)

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
        zoneout: float | tuple[float, ...] = 0.0,
        grad_clip: float | None = None,
        train_initial_state: bool = False,
        compute_dtype: Literal["bfloat16"] | None = None,
        dtype: Any = np.float32,
        seed: int | None = None,
    ) -> None:
        self.input_size = checks.size("input_size", input_size)
        self.hidden_size = checks.size("hidden_size", hidden_size)
        self.num_layers = checks.size("num_layers", num_layers, maximum=MOST_LAYERS)
        self.bias = checks.flag("bias", bias)
        self.batch_first = batch_first
        self.dropout = dropout
        self.bidirectional = checks.flag("bidirectional", bidirectional)
        self.zoneout = zoneout
        self.grad_clip = grad_clip
        self.train_initial_state = checks.flag("train_initial_state", train_initial_state)
        self.seed = init.choose_seed(seed)
        if self.dropout and self.num_layers == 1:
            depth = sum(issubclass(cls, Recurrent) and "__init__" in vars(cls) for cls in type(self).__mro__)
            warnings.warn("dropout acts between layers: with num_layers=1 it does nothing", stacklevel=depth + 1)
        self._masks = Masks(self.seed)
        real = checks.float_dtype(dtype)
        if compute_dtype not in (None, "bfloat16"):
            raise ValueError(f"compute_dtype: expected None or 'bfloat16', got {compute_dtype!r}")
        if compute_dtype and real != np.float32:
            raise ValueError(f"compute_dtype: expected None with dtype {real}, got {compute_dtype!r}")
        self.compute_dtype = compute_dtype
        super().__init__(self._parameter_shapes(), real)
        self._stack = Stack(
            [[self._scan(layer, d) for d in range(self._directions)] for layer in range(self.num_layers)],
            self._widths,
            self.hidden_size,
            real,
            heads=self.num_heads,
            layer_norm=self.layer_norm,
            bfloat16=compute_dtype is not None,
        )
        self._start_parameters()

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_") and name not in self._arguments and (hint := _owners(name)):
            raise AttributeError(f"{name}: {type(self).__name__} has no such option{hint}")
        super().__setattr__(name, value)

    def _check_argument(self, name: str, value: Any) -> Any:
        if name in ("dropout", "recurrent_dropout"):
            return checks.real(name, value, 0.0, 1.0)
        if name == "zoneout":
            return self._check_zoneout(value)
        if name == "grad_clip":
            return None if value is None else checks.real(name, value, open_low=True)
        return super()._check_argument(name, value)

    def _start_parameters(self) -> None:
        """The initial values: drawn, but for gains, their biases and initial states."""
        constants = {name: self._constant(init.kind_of(name)) for name in self.params}
        drawn = {name: array for name, array in self.params.items() if constants[name] is None}
        init.uniform(drawn, self.hidden_size**-0.5, self.seed)
        for name, value in constants.items():
            if value is not None:
                self.params[name][...] = value

    def _constant(self, kind: str) -> float | None:
        """What a parameter begins with everywhere, by its name without layer and direction; None if it is drawn."""
        if kind in self._initial_names():
            initial: float = _CELLS[self._cell_of(0)]["initial"][self._initial_names().index(kind)]
            return initial
        return float(kind.endswith("weight")) if kind in NORMS else None

    # ---- the cell ----------------------------------------------------------------------------------------------------
    def _cell_of(self, layer: int) -> str:
        """The name of a layer's cell in the kernels' registry."""
        return self._cell

    def _cell_shapes(self, layer: int) -> dict[str, tuple[int, ...]]:
        """The parameters of one direction of a layer."""
        cell = _CELLS[self._cell_of(layer)]
        rows, H = cell["gates"] * self.hidden_size, self.hidden_size
        shapes: dict[str, tuple[int, ...]] = {"weight_ih": (rows, self._inputs_of(layer))}
        if cell["recurrent"]:
            shapes["weight_hh"] = (rows, self.output_size // self.num_heads)
        for name in self._unit_weights:
            shapes[name] = (cell["unit_weights"] // len(self._unit_weights) * H,)
        if self.bias:
            shapes["bias_ih"] = (rows,)
            if cell["recurrent"]:
                shapes["bias_hh"] = (rows,)
        if self.proj_size:
            shapes["weight_hr"] = (self.proj_size, H)
        if self.layer_norm:
            shapes |= dict.fromkeys(NORMS, (rows,))
        return shapes

    # ---- the stack ---------------------------------------------------------------------------------------------------
    @property
    def _directions(self) -> int:
        return 2 if self.bidirectional else 1

    @property
    def output_size(self) -> int:
        """The features of h, and of y in one direction: H, or `proj_size`."""
        return self.proj_size or self.hidden_size

    def _inputs_of(self, layer: int) -> int:
        return self._directions * self.output_size if layer else self.input_size

    def _suffix(self, layer: int, direction: int) -> str:
        return f"_l{layer}{'_reverse' if direction else ''}"

    def _parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        shapes = {}
        for layer in range(self.num_layers):
            for direction in range(self._directions):
                for name, shape in self._cell_shapes(layer).items():
                    shapes[name + self._suffix(layer, direction)] = shape
        for name, width in zip(self._initial_names(), self._widths, strict=False):
            shapes[name] = (self.num_layers * self._directions, width)
        return shapes

    def _scan(self, layer: int, direction: int) -> Scan:
        end = self._suffix(layer, direction)
        of_units = [name + end for name in self._unit_weights]
        names = {name: name + end for name in self._weight_names}
        return Scan(
            layer * self._directions + direction,
            layer,
            direction == 1,
            self._cell_of(layer),
            self._inputs_of(layer),
            {name: full for name, full in names.items() if full in self._shapes and full not in of_units},
            of_units,
        )

    @property
    def _widths(self) -> list[int]:
        """The features of each state."""
        return [self.output_size] + [self.hidden_size] * (len(self._state_names) - 1)

    def _initial_names(self) -> tuple[str, ...]:
        """The parameters that stand for a state that isn't given; none where that is zeros."""
        return tuple(f"initial_{name}" for name in self._state_names) if self.train_initial_state else ()

    def _initial_states(self, batch: int) -> tuple[Array, ...] | None:
        """The states of a call that is given none, (L·D, B, H) each; None for zeros."""
        names = self._initial_names()
        return tuple(np.repeat(self.params[name][:, None], batch, axis=1) for name in names) if names else None

    def _check_states(
        self, what: str, value: State, batch: int, prefix: str = "", suffix: str = ""
    ) -> tuple[Array, ...] | None:
        """The states as they are called with prefix and suffix; None for None."""
        if value is None:
            return None
        names = tuple(f"{prefix}{name}{suffix}" for name in self._state_names)
        return checks.states(what, value, names, self._stack.state_shapes(batch), self.dtype)

    def _state(self, arrays: tuple[Array, ...]) -> State:
        return arrays[0] if len(arrays) == 1 else arrays

    def _new_output(self, steps: int, batch: int, width: int) -> tuple[Array, Array]:
        """A new array in the caller's layout, and its time-major view."""
        array = checks.empty("y", (batch, steps, width) if self.batch_first else (steps, batch, width), self.dtype)
        return array, checks.time_major(array, self.batch_first)

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

        With `checkpoint`, the steps of a segment or True for 3√T, the tape keeps the states at the ends of segments
        alone, and backward computes the rest again, segment by segment: O(√T) memory instead of O(T), for the time of
        one more forward pass, or less while you hold y. Every gradient has the same bits. ValueError for a
        bidirectional layer, whose second direction comes from the end; `hidden`, `cell` and `gates` of the tape raise
        RuntimeError.
        """
        y, state, tape = self._forward(x, state, lengths, resets, record=True, checkpoint=checkpoint)
        assert tape is not None
        return self._read_only(y), state, tape

    def plan(self, steps: int, batch: int) -> Plan:
        """How a forward pass over (steps, batch) would be laid out on the present number of threads.

        A plan changes the time that a call takes and no bit of its result. Printed, it is a line a layer, with the
        share of the multiply-add peak to expect.

            >>> import rnnfast as rf
            >>> layer = rf.LSTM(64, 128, num_layers=2, seed=0)
            >>> len(layer.plan(100, 32).layers)
            2
        """
        return planning.plan(self._stack, steps, batch)

    def stream(self, batch_size: int = 1) -> Stream:
        """The layer one step a call, with packed weights and a state of its own; see `Stream`.

        ValueError if the layer is bidirectional.
        """
        if self.bidirectional:
            raise ValueError(
                "bidirectional: expected False for a stream, got True: the second direction starts at the end"
            )
        batch = checks.size("batch_size", batch_size)
        return Stream(self._stack, self.params, self._state_names, batch, self._initial_states(batch), self._zoneouts)

    def _forward(
        self, x: Any, state: State, lengths: Any, resets: Any, record: bool, checkpoint: Checkpoint = None
    ) -> tuple[Array, State, RecurrentTape | None]:
        shape = (*checks.leading(self.batch_first), self.input_size)
        x = checks.time_major(checks.features("x", x, shape, self.dtype), self.batch_first)
        steps, batch = x.shape[:2]
        segment = checkpointing.segment_steps(checkpoint, steps)
        if segment is not None and self.bidirectional:
            raise ValueError("checkpoint: expected None for a bidirectional layer, whose second direction starts last")
        initial = self._check_states("state", state, batch, suffix="0")
        if initial is None:
            initial = self._initial_states(batch)
        elif record:
            initial = tuple(array.copy() for array in initial)
        run = Run(
            initial,
            checks.lengths(lengths, steps, batch),
            checks.resets(resets, steps, batch, self.batch_first),
            own_initial=state is None and self.train_initial_state,
            zoneouts=self._zoneouts,
        )
        random = (self.dropout and self.num_layers > 1) or run.zoneouts or self.recurrent_dropout
        if random and record and self.training:
            run.masks = self._masks.next_key(self.dropout)
            if self.recurrent_dropout:
                run.scales = self._stack.draw_scales(self.recurrent_dropout, batch, run.masks)
        final = self._stack.new_states(batch)
        y, seq = self._new_output(steps, batch, self._directions * self.output_size)
        kept: Run | Checkpoints = run
        if segment is None:
            self._stack.forward(self.params, x, seq, final, run, record)
        else:
            kept = checkpointing.forward(self._stack, self.params, x, seq, final, run, segment)
            kept.y = checkpointing.while_held(y)
        return y, self._state(final), RecurrentTape(self, self._stack, kept, y) if record else None

    def _check_zoneout(self, value: Any) -> float | tuple[float, ...]:
        if not isinstance(value, tuple | list):
            return checks.real("zoneout", value, 0.0, 1.0)
        if len(value) != len(self._state_names):
            raise ValueError(f"zoneout: expected a number or {len(self._state_names)}, one a state, got {len(value)}")
        return tuple(checks.real(f"zoneout[{k}]", p, 0.0, 1.0) for k, p in enumerate(value))

    @property
    def _zoneouts(self) -> list[float]:
        """The probability of each state; empty where none is kept."""
        if not self.zoneout:
            return []
        each = self.zoneout if isinstance(self.zoneout, tuple) else (self.zoneout,) * len(self._state_names)
        return list(each) if any(each) else []

    def _check_dstate(self, tape: Tape[Any], dstate: State) -> tuple[Array, ...] | None:
        batch = tape.shape[0 if self.batch_first else 1]
        return self._check_states("dstate", dstate, batch, prefix="d")

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
        dinitial = self._stack.new_states(batch)
        dseq = None if dy is None else checks.time_major(dy, self.batch_first)
        dx = dx_seq = None
        if need_dx:
            dx, dx_seq = self._new_output(steps, batch, self.input_size)
        clip = math.inf if self.grad_clip is None else self.grad_clip
        if isinstance(record, Checkpoints):
            y = record.y() if record.y else None
            known = None if y is None else checks.time_major(y, self.batch_first)
            checkpointing.backward(
                self._stack, self.params, grads, record, known, dseq, dstate, dx_seq, dinitial, clip=clip, watch=watch
            )
            run = record.run
        else:
            run = record
            self._stack.backward(self.params, grads, run, dseq, dstate, dx_seq, dinitial, clip=clip, watch=watch)
        if run.own_initial:
            for name, gradient in zip(self._initial_names(), dinitial, strict=True):
                grads[name][...] += gradient.sum(axis=1)
        return dx, self._state(dinitial)


# `__new__`, which takes anything, would be asked instead.
_, *_PARAMETERS = inspect.signature(Recurrent.__init__).parameters.values()
Recurrent.__signature__ = inspect.Signature(_PARAMETERS)  # type: ignore[attr-defined]


class Dense(Recurrent):
    """A cell whose h goes through a product.

    Options:
        layer_norm: LN(W x) and LN(R h) in the place of W x and R h, each gate's H numbers apart, before the biases (Ba,
            Kiros & Hinton, 2016): ``LN(a) = γ ∘ (a − mean a) / √(var a + 1e-5) + β`` with `ln_ih_weight`, `ln_ih_bias`,
            `ln_hh_weight`, `ln_hh_bias` (G·H,). The cell state isn't normalised.
        recurrent_dropout: the probability that a feature of h is dropped on its way to weight_hh in training, the same
            ones in the whole sequence (Gal & Ghahramani, 2016); the others are scaled by 1 / (1 − p).
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        layer_norm: bool = False,
        recurrent_dropout: float = 0.0,
        **common: Unpack[CommonOptions],
    ) -> None:
        self.layer_norm = checks.flag("layer_norm", layer_norm)
        self.recurrent_dropout = recurrent_dropout
        super().__init__(input_size, hidden_size, num_layers, **common)


def _owners(name: str) -> str:
    """The layers that have an option, as a part of a message; nothing if none has."""
    owners = [kind.__name__ for kind in _below(Recurrent) if name in kind._arguments and kind is not Dense]
    return f"; it is one of {', '.join(owners)}" if owners else ""


def _below(kind: type[Recurrent]) -> list[type[Recurrent]]:
    """All its subclasses, in the order in which they were made."""
    return [below for child in kind.__subclasses__() for below in (child, *_below(child))]
