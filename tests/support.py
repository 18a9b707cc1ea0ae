"""What the tests of the recurrent layers share: problems, their solutions by a layer and by the reference, and bounds.

A problem is everything that goes into a forward and a backward pass; a solution is everything that comes out, by name.
Its values are float32 numbers, so that one float64 solution of the reference judges both dtypes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

import rnnfast as rf
from rnnfast import _kernels, reference, stack
from shapes import Shape

Array = npt.NDArray[Any]
Solution = dict[str, Array]

CELLS = tuple(reference.CELLS)
DTYPES = (np.float32, np.float64)


def new_layer(cell: str, input_size: int, hidden_size: int, **options: Any) -> Any:
    """The public layer of a cell of the registry."""
    for kind, prefix in ((rf.RNN, "rnn_"), (rf.IndRNN, "ind_rnn_")):
        if cell.startswith(prefix):
            return kind(input_size, hidden_size, nonlinearity=cell.removeprefix(prefix), **options)
    if cell.startswith("lstm"):
        options |= {
            "peephole": "peephole" in cell,
            "coupled": "coupled" in cell,
            "forget_gate": "no_forget" not in cell,
        }
        return rf.LSTM(input_size, hidden_size, **options)
    if cell.startswith("gru"):
        return rf.GRU(input_size, hidden_size, reset_after=cell == "gru", **options)
    others = {"min_gru": rf.MinGRU, "min_lstm": rf.MinLSTM, "sru": rf.SRU, "sru_skip": rf.SRU, "slstm": rf.SLSTM}
    return others[cell](input_size, hidden_size, **options)


def fitting(cell: str, shape: Shape) -> Shape:
    """The shape with an input that makes the layer's first cell the one of this name."""
    if cell == "sru":
        return shape._replace(input=shape.hidden)
    if cell == "sru_skip" and shape.input == shape.hidden:
        return shape._replace(input=shape.hidden + 1)
    return shape


def initial_states(cell: str, size: tuple[int, ...]) -> tuple[Array, ...]:
    """What a sequence of the cell starts from: zeros mostly, of the size of h."""
    return tuple(np.full(size, value, np.float32) for value in reference.CELLS[cell].initial)


def as_tuple(state: Any) -> tuple[Any, ...]:
    return state if isinstance(state, tuple) else (state,)


def as_state(arrays: tuple[Any, ...]) -> Any:
    return arrays[0] if len(arrays) == 1 else arrays


@contextmanager
def threads(number: int) -> Iterator[None]:
    before = rf.get_num_threads()
    rf.set_num_threads(number)
    try:
        yield
    finally:
        rf.set_num_threads(before)


# ---- problems --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Problem:
    cell: str
    shape: Shape
    params: Mapping[str, Array]
    x: Array  # (T, B, I)
    dy: Array  # (T, B, D·H)
    state: tuple[Array, ...] | None  # (L·D, B, H) each
    dstate: tuple[Array, ...]
    lengths: Array | None = None
    resets: Array | None = None  # (T, B)
    options: Mapping[str, Any] = field(default_factory=dict)  # of the layer
    training: bool = True  # masks are drawn, or their expectation stands for them

    def layer(self, dtype: npt.DTypeLike, **options: Any) -> Any:
        """The layer with the problem's parameters; its first training call always draws the same masks."""
        layer = new_layer(
            self.cell, self.shape.input, self.shape.hidden, **{"seed": 5, **self.options, **options}, dtype=dtype
        )
        layer.load_state_dict(self.params)
        return layer.train(self.training)

    @property
    def cells(self) -> tuple[str, ...]:
        """The cell of each layer, by the reference's names."""
        layer = self.layer(np.float32)
        return tuple(layer._cell_of(k) for k in range(layer.num_layers))

    def rows(self, rows: slice) -> Problem:
        """The same for some rows of the batch."""
        return replace(
            self,
            x=self.x[:, rows],
            dy=self.dy[:, rows],
            state=None if self.state is None else tuple(s[:, rows] for s in self.state),
            dstate=tuple(s[:, rows] for s in self.dstate),
            lengths=None if self.lengths is None else self.lengths[rows],
            resets=None if self.resets is None else self.resets[:, rows],
        )


def make_problem(
    cell: str,
    shape: Shape,
    *,
    num_layers: int = 1,
    bidirectional: bool = False,
    bias: bool = True,
    given: bool = True,
    ragged: bool = False,
    cut: bool = False,
    seed: int = 0,
    **of_cell: Any,
) -> Problem:
    """`given`: a state; `ragged`: lengths from 0 to T, NaN in x and dy past them; `cut`: resets, some at t = 0.

    `of_cell`: options that not every cell has; training draws the masks of those that have masks.
    """
    shape = fitting(cell, shape)
    random = np.random.default_rng(seed)
    options = {"num_layers": num_layers, "bidirectional": bidirectional, "bias": bias, **of_cell}
    layer = new_layer(cell, shape.input, shape.hidden, dtype=np.float32, seed=seed, **options)
    params = layer.state_dict()

    def normal(*sizes: int) -> Array:
        return random.standard_normal(sizes, np.float32)

    def states() -> tuple[Array, ...]:
        return tuple(normal(*size) for size in layer._stack.state_shapes(shape.batch))

    def given_states() -> tuple[Array, ...]:
        if cell != "slstm":
            return states()
        h, c, n, m = states()
        return h, c, 1 + np.abs(n), m  # n is a sum of positive numbers; h is divided by it

    x = normal(shape.steps, shape.batch, shape.input)
    dy = normal(shape.steps, shape.batch, layer._directions * layer.output_size)
    lengths = resets = None
    if ragged:
        lengths = random.integers(0, shape.steps, shape.batch, endpoint=True)
        lengths[: shape.batch // 3] = shape.steps
        lengths[shape.batch - shape.batch // 4 :] = 0
        random.shuffle(lengths)
        padding = np.arange(shape.steps)[:, None] >= lengths
        x[padding], dy[padding] = np.nan, np.nan
    if cut:
        resets = random.random((shape.steps, shape.batch)) < 0.3
        resets[:1, ::2] = True
    given_state, dstate = given_states() if given else None, states()
    for name, array in params.items():
        if name.startswith("ln_"):  # else gains are one and biases zero
            array += 0.3 * normal(*array.shape)
    return Problem(cell, shape, params, x, dy, given_state, dstate, lengths, resets, options)


def masks(problem: Problem) -> tuple[tuple[Array, ...], Array | None]:
    """What the first call of the problem's layer keeps of each state, and what it multiplies h by, for the reference.

    A word of a stream below p · 2³² is a zero of dropout, and an old state that stays in zoneout.
    """
    layer = problem.layer(np.float64)
    seed, call = layer.rng_state["seed"], layer.rng_state["call"]
    scans, batch = layer.num_layers * layer._directions, problem.shape.batch

    def draw(first: int, number: int, steps: int, width: int, p: float) -> Array:
        ones = np.ones((steps, batch, width))
        out = np.empty_like(ones)
        _kernels.dropout(ones, out, p, seed, call, first + number, None, 1)
        return out

    shares: list[Array] = []
    probabilities = layer._zoneouts or [0.0] * len(problem.dstate)
    for k, p in enumerate(probabilities):
        width = problem.dstate[k].shape[-1]
        if not (p and problem.training):
            shares.append(np.full(width, p))
            continue
        streams = [j * len(probabilities) + k for j in range(scans)]
        drawn = [draw(stack.ZONEOUT, n, problem.shape.steps, width, p) for n in streams]
        shares.append((np.stack(drawn) == 0).astype(np.float64))
    scale = None
    if layer.recurrent_dropout and problem.training:
        width = problem.dstate[0].shape[-1]
        drawn = [draw(stack.SCALES, j, 1, width, layer.recurrent_dropout)[0] for j in range(scans)]
        scale = np.stack(drawn)
    return tuple(shares), scale


# ---- solutions -------------------------------------------------------------------------------------------------------


def solve(problem: Problem, dtype: npt.DTypeLike, *, batch_first: bool = False) -> Solution:
    """Forward, backward and everything that they return, by the layer; sequences with time first."""
    layer = problem.layer(dtype, batch_first=batch_first)

    def outer(sequence: Array) -> Array:
        return sequence.swapaxes(0, 1) if batch_first else sequence

    state = None if problem.state is None else as_state(tuple(s.astype(dtype) for s in problem.state))
    dstate = as_state(tuple(s.astype(dtype) for s in problem.dstate))
    resets = None if problem.resets is None else outer(problem.resets)
    y, final, tape = layer.forward(outer(problem.x.astype(dtype)), state, problem.lengths, resets)
    every_state, gates = tape.states, tape.gates
    dx, dinitial = layer.backward(tape, outer(problem.dy.astype(dtype)), dstate)
    return _solution(outer(y), final, np.concatenate(every_state, axis=-1), gates, outer(dx), dinitial, layer.grads)


def solve_by_reference(problem: Problem, dtype: npt.DTypeLike = np.float64) -> Solution:
    """The same by the reference, which computes in `dtype`."""
    state = None if problem.state is None else as_state(problem.state)
    keep, scale = masks(problem)
    y, final, tape = reference.forward(
        problem.cells,
        problem.params,
        problem.x,
        state,
        problem.lengths,
        problem.resets,
        dtype,
        keep=as_state(keep) if any(share.any() for share in keep) else None,
        recurrent_scale=scale,
    )
    clip = problem.options.get("grad_clip") or np.inf
    dx, dinitial, grads = reference.backward(tape, problem.dy, as_state(problem.dstate), clip=clip)
    states = np.concatenate([tape.state(k) for k in range(len(problem.dstate))], axis=-1)
    return _solution(y, final, states, reference_gates(tape), dx, dinitial, grads)


def reference_gates(tape: reference.Tape) -> Array:
    """(L·D, T, B, G, H), of layers whose cells differ in G those that all of them have."""
    count = min(len(cell.gates) for cell in tape.cells)
    hidden = tape.state(len(tape.cells[0].initial) - 1).shape[-1]
    return tape._collect(lambda step: np.stack(step.gates[:count]), count, hidden)


def _solution(
    y: Array, final: Any, states: Array, gates: Array, dx: Array, dinitial: Any, grads: Mapping[str, Array]
) -> Solution:
    return {
        "y": y,
        **{f"final state {k}": s for k, s in enumerate(as_tuple(final))},
        "tape's states": states,
        "tape's gates": gates,
        "dx": dx,
        **{f"gradient of state {k}": s for k, s in enumerate(as_tuple(dinitial))},
        **{f"gradient of {name}": gradient.copy() for name, gradient in grads.items()},
    }


def solve_in_single(problem: Problem, exact: Solution) -> Solution:
    """The reference's solution in float32: how much is lost.

    Layer norm may magnify a rounding a hundredfold, where a row varies little. One sample tells too little then: each
    array is the worst of three, two of them with all numbers of x and of the parameters moved to a neighbour.
    """
    samples = [solve_by_reference(problem, np.float32)]
    if problem.options.get("layer_norm"):
        random = np.random.default_rng(0)

        def nudged(a: Array) -> Array:
            return np.nextafter(a, np.where(random.random(a.shape) < 0.5, np.inf, -np.inf).astype(np.float32))

        for _ in range(2):
            params = {name: nudged(array) for name, array in problem.params.items()}
            samples.append(solve_by_reference(replace(problem, x=nudged(problem.x), params=params), np.float32))
    return {name: max((s[name] for s in samples), key=lambda a: worst(a, exact[name])) for name in exact}


@lru_cache(maxsize=4)
def cached_problem(
    cell: str, shape: Shape, *, training: bool = True, **options: Any
) -> tuple[Problem, Solution, Solution]:
    """A problem with the reference's solutions in float64 and in float32."""
    problem = replace(make_problem(cell, shape, **options), training=training)
    exact = solve_by_reference(problem)
    return problem, exact, solve_in_single(problem, exact)


# ---- bounds ----------------------------------------------------------------------------------------------------------


def worst(a: Array, b: Array) -> float:
    """The largest distance of two elements; infinite where one is NaN."""
    wide = a.astype(np.float64)
    distance = float(np.max(np.abs(np.where(wide == b, 0, wide) - np.where(wide == b, 0, b)), initial=0))
    return distance if distance == distance else np.inf


def largest(a: Array) -> float:
    return float(np.max(np.abs(a), initial=0))


def assert_accurate(got: Solution, exact: Solution, single: Solution) -> None:
    """Hold a whole solution to its bound.

    float64: 1e-12 of an array's largest value. float32: four times the largest error that the reference makes when it
    runs in float32 itself. Where that is so much that it tells of a difference of nearly equal numbers, which float64
    loses alike (layer norm of two units), it counts there too, by the ratio of the units in the last place.

    What a state has lost may show anywhere else: a cell that forgets nothing loses a rounding of a large c at each
    step, and h, where c happens to be small, just as much; and 1 - h², where h is almost 1, loses what h does. So the
    error of the states is the least that counts.

    Luck needs a floor. The reference's errors may happen to be zero; they count as two units in the last place of the
    largest value at least. And a few sums may all come out far below their terms, which reach about four in these
    problems: in an array of few elements four is the least that counts as its largest value.
    """
    assert got.keys() == exact.keys()
    ulps, states = 2 * float(np.finfo(np.float32).eps), exact["tape's states"]
    of_states = max(worst(single["tape's states"], states), ulps * largest(states))
    for name, array in got.items():
        assert array.shape == exact[name].shape, name
        size = max(largest(exact[name]), 4.0 if array.size <= 16 else 0.0)
        bound = 4 * max(worst(single[name], exact[name]), of_states, ulps * size)
        if array.dtype == np.float64:
            bound = max(bound * 2.0**-29, 1e-12 * size)
        error = worst(array, exact[name])
        assert error <= bound, f"{name}: error {error:.3g}, bound {bound:.3g}, largest value {size:.3g}"


def bits(array: Array) -> bytes:
    return np.ascontiguousarray(array).tobytes()


def misaligned(array: Array) -> Array:
    buffer = np.empty(array.nbytes + 1, np.uint8)
    copy = buffer[1:].view(array.dtype).reshape(array.shape)
    copy[...] = array
    assert not copy.flags.aligned
    return copy


def read_only(array: Array) -> Array:
    copy = array.copy()
    copy.flags.writeable = False
    return copy


def assert_same_bits(got: Any, expected: Any, what: str = "") -> None:
    """Arrays, or tuples or mappings of arrays, that agree in shape, dtype and every bit."""
    if isinstance(expected, Mapping):
        assert got.keys() == expected.keys()
        for name in expected:
            assert_same_bits(got[name], expected[name], f"{what} {name}")
    elif isinstance(expected, tuple):
        assert len(got) == len(expected)
        for k, (a, b) in enumerate(zip(got, expected, strict=True)):
            assert_same_bits(a, b, f"{what} {k}")
    else:
        assert (got.shape, got.dtype) == (expected.shape, expected.dtype), what
        assert bits(got) == bits(expected), f"{what}: differ by up to {worst(got, expected):.3g}"


class Taped:
    """A layer that has been forward once, and what its backward needs."""

    def __init__(self, shape: Shape, cell: str = "lstm") -> None:
        problem = make_problem(cell, shape, num_layers=2)
        self.layer = problem.layer(np.float32)
        self.x, self.dy = problem.x, problem.dy
        self.dstate = as_state(problem.dstate)
        self.y, self.state, self.tape = self.layer.forward(problem.x, as_state(problem.state or ()))

    def backward(self, **options: Any) -> Any:
        return self.layer.backward(self.tape, self.dy, self.dstate, **options)
