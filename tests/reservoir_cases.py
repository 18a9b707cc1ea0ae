"""Echo state networks with everything that a call may take, and the reference's answers: what their tests share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import rnnfast as rf
from rnnfast.reference.reservoir import Reservoir, reservoir_scan
from shapes import Shape
from support import DTYPES, Array, assert_same_bits, largest, worst

each_dtype = pytest.mark.parametrize("dtype", DTYPES)

# Rows as lanes and units as lanes, full and with tails; weights in windows and gathered.
SMALL = {
    "one_unit": Shape(4, 2, 1, 1),
    "one_row": Shape(9, 1, 3, 40),
    "unit_tail": Shape(5, 2, 2, 37),
    "few_rows": Shape(6, 5, 2, 70),
    "row_lanes": Shape(5, 16, 3, 33),
    "row_tail": Shape(4, 29, 2, 20),
    "long": Shape(200, 2, 1, 30),
    "empty_batch": Shape(4, 0, 2, 20),
    "empty_sequence": Shape(0, 3, 2, 20),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "leaky": {"leak": 0.3},
    "sparse": {"density": 0.01},
    "dense": {"density": 1.0},
    "no_bias": {"bias_scaling": 0.0},
    "feedback": {"feedback_scaling": 0.5, "leak": 0.7},
}
# More: where a step is shared by units, or a thread has several blocks of rows.
EXACT: dict[str, tuple[Shape, float]] = {
    "one_row": (Shape(20, 1, 3, 48), 0.1),
    "units_for_two_threads": (Shape(7, 1, 2, 1100), 0.1),
    "lanes_for_two_threads": (Shape(5, 16, 2, 600), 0.1),
    "few_rows": (Shape(8, 5, 2, 100), 0.2),
    "hidden_130": (Shape(6, 67, 3, 130), 0.05),
    "tiny": (Shape(7, 3, 1, 5), 0.5),
}


def weights_of(network: rf.EchoState) -> Reservoir:
    """The reservoir as the reference takes it."""
    b = {
        name: np.asarray(array, np.int64 if array.dtype.kind == "i" else np.float64) for name, array in buffers(network)
    }
    data, indices, indptr = b["weight_hh_data"], b["weight_hh_indices"], b["weight_hh_indptr"]
    hh = np.zeros((network.hidden_size, network.hidden_size))
    hh[np.repeat(np.arange(network.hidden_size), np.diff(indptr)), indices] = data
    return Reservoir(b["weight_ih"], hh, b["bias"], network.leak, b.get("weight_fb"))


def buffers(network: rf.EchoState) -> Any:
    return network.buffers.items()


@dataclass
class Problem:
    """A network with a random readout, and everything that a call may take."""

    network: rf.EchoState
    x: Array
    state: tuple[Array, Array]  # h (B, H), y (B, O)
    teacher: Array
    lengths: Array | None
    resets: Array | None

    def given_state(self, rows: slice = slice(None)) -> Any:
        h, y = (array[None, rows] for array in self.state)
        return (h, y) if self.network.feedback else h

    def harvest(self, rows: slice = slice(None), steps: slice = slice(None), state: Any = None, **more: Any) -> Any:
        """States and the last state of some rows and steps, from the problem's state if None is given."""
        begin, end, _ = steps.indices(len(self.x))
        lengths = None if self.lengths is None else np.clip(self.lengths[rows] - begin, 0, end - begin)
        resets = None if self.resets is None else self.resets[steps, rows]
        if self.network.feedback:
            more["teacher"] = self.teacher[steps, rows]
        state = self.given_state(rows) if state is None else state
        return self.network.harvest(self.x[steps, rows], state, lengths, resets, **more)

    def outputs(self) -> Any:
        return self.network(self.x, self.given_state(), self.lengths, self.resets)

    def reference(self, dtype: Any, closed: bool = False) -> tuple[Array, Array, Array]:
        params = self.network.params
        h0, y0 = self.state
        return reservoir_scan(
            weights_of(self.network),
            self.x,
            h0,
            out=(params["readout_weight"], params["readout_bias"]) if closed else None,
            teacher=None if closed or not self.network.feedback else self.teacher,
            y0=y0 if self.network.feedback else None,
            lengths=self.lengths,
            resets=self.resets,
            dtype=dtype,
        )


def make_problem(
    shape: Shape, dtype: Any, *, ragged: bool = False, cut: bool = False, seed: int = 0, **options: Any
) -> Problem:
    """float32 numbers all of them; `ragged`: NaN past the lengths; `cut`: resets, some at t = 0."""
    random = np.random.default_rng(seed)
    steps, batch, inputs, hidden = shape
    network = rf.EchoState(inputs, hidden, 2, dtype=np.float32, seed=seed, **options)

    def normal(*sizes: int) -> Array:
        return random.standard_normal(sizes, np.float32)

    network.flat_params[...] = 0.3 * normal(network.flat_params.size)
    weights = network.state_dict()
    network = rf.EchoState(inputs, hidden, 2, dtype=dtype, seed=seed, **options)
    network.load_state_dict(weights)
    x, teacher = normal(steps, batch, inputs), normal(steps, batch, 2)
    lengths = resets = None
    if ragged:
        lengths = random.integers(0, steps, batch, endpoint=True)
        padding = np.arange(steps)[:, None] >= lengths
        x[padding], teacher[padding] = np.nan, np.nan
    if cut:
        resets = random.random((steps, batch)) < 0.3
        resets[:1, ::2] = True
    state = np.tanh(normal(batch, hidden)), normal(batch, 2)
    h, y = (array.astype(dtype) for array in state)
    return Problem(network, x.astype(dtype), (h, y), teacher.astype(dtype), lengths, resets)


def irregular(kind: str, hidden: int, random: np.random.Generator) -> Array:
    """Matrices that the generator wouldn't draw."""
    dense = random.standard_normal((hidden, hidden), np.float32) * np.float32(hidden**-0.5)
    if kind == "no_weights":
        return np.zeros_like(dense)
    if kind == "ring":
        return np.roll(np.eye(hidden, dtype=np.float32), 1, axis=0)
    if kind == "scattered":  # windows don't pay
        return dense * (random.random((hidden, hidden)) < 3 / hidden)
    counts = random.integers(0, hidden, hidden, endpoint=True)  # rows of any length, some empty
    counts[::5] = 0
    return dense * (random.random((hidden, hidden)).argsort(axis=1) < counts[:, None])


def load_matrix(network: rf.EchoState, matrix: Array) -> None:
    rows, columns = np.nonzero(matrix)
    network.load_state_dict(
        network.state_dict()
        | {
            "weight_hh_data": matrix[rows, columns],
            "weight_hh_indices": columns,
            "weight_hh_indptr": np.searchsorted(rows, np.arange(len(matrix) + 1)),
        }
    )


def assert_close(got: Array, exact: Array, single: Array, what: str) -> None:
    """float64: 1e-12 of the largest value. float32: four times the error of the reference in float32, and a floor."""
    assert got.shape == exact.shape, what
    size = max(largest(exact), 1.0)
    bound = 1e-12 * size
    if got.dtype == np.float32:
        bound = 4 * max(worst(single, exact), 2 * float(np.finfo(np.float32).eps) * size)
    assert worst(got, exact) <= bound, f"{what}: error {worst(got, exact):.3g}, bound {bound:.3g}"


def assert_states_match(problem: Problem) -> None:
    exact, single = problem.reference(np.float64), problem.reference(np.float32)
    states, final = problem.harvest()
    last = final[0] if problem.network.feedback else final
    assert_close(states, exact[0], single[0], "states")
    assert_close(last[0], exact[2], single[2], "last state")


def assert_outputs_match(problem: Problem) -> None:
    exact, single = problem.reference(np.float64, closed=True), problem.reference(np.float32, closed=True)
    assert_close(problem.outputs()[0], exact[1], single[1], "y")
    if problem.network.feedback:  # without a teacher, the states of the loop
        loop, (last, said) = problem.network.harvest(problem.x, problem.given_state(), problem.lengths, problem.resets)
        assert_close(loop, exact[0], single[0], "states of the loop")
        assert_close(last[0], exact[2], single[2], "last state of the loop")
        assert_same_bits(said, problem.outputs()[1][1])
