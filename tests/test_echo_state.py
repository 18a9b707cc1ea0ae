"""The echo state network: its states and outputs against the reference, what never changes a bit, the reservoir it
draws, the readout it solves for, and its refusals."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rnnfast as rf
from rnnfast import echo_state, reservoir
from rnnfast.reference.reservoir import Reservoir, reservoir_scan
from shapes import Shape
from support import DTYPES, Array, assert_same_bits, largest, threads, worst

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


# ---- the equations ---------------------------------------------------------------------------------------------------
@pytest.mark.kernel
@each_dtype
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("shape", SMALL)
def test_states_match_the_reference(shape: str, options: str, dtype: type) -> None:
    assert_states_match(make_problem(SMALL[shape], dtype, **OPTIONS[options]))


@pytest.mark.kernel
@each_dtype
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("shape", ["few_rows", "row_tail"])
def test_ragged_batches_with_resets_match_the_reference(shape: str, options: str, dtype: type) -> None:
    problem = make_problem(SMALL[shape], dtype, ragged=True, cut=True, **OPTIONS[options])
    assert_states_match(problem)
    assert_outputs_match(problem)


@each_dtype
@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("options", OPTIONS)
def test_outputs_match_the_reference(options: str, skip: bool, dtype: type) -> None:
    assert_outputs_match(make_problem(SMALL["few_rows"], dtype, skip=skip, **OPTIONS[options]))


@settings(max_examples=60)
@given(
    dtype=st.sampled_from(DTYPES),
    shape=st.builds(Shape, st.integers(0, 6), st.integers(0, 20), st.integers(1, 5), st.integers(1, 90)),
    density=st.floats(0.01, 1.0),
    leak=st.floats(0.05, 1.0),
    feedback_scaling=st.sampled_from([0.0, 0.4]),
    skip=st.booleans(),
    ragged=st.booleans(),
    cut=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_any_network_matches_the_reference_on_any_shape(dtype: type, shape: Shape, **options: Any) -> None:
    problem = make_problem(shape, dtype, **options)
    assert_states_match(problem)
    assert_outputs_match(problem)


@pytest.mark.kernel
@each_dtype
@pytest.mark.parametrize("gain", [0.1, 1.0, 8.0], ids=["linear", "usual", "saturated"])
@pytest.mark.parametrize("batch", [1, 64])
def test_one_step_errs_by_no_more_than_its_terms_allow(batch: int, gain: float, dtype: type) -> None:
    """|error| ≤ k·eps·√length·Σ|terms| with k = 1, where 8 is promised."""
    problem = make_problem(Shape(1, batch, 24, 200), dtype, input_scaling=gain, bias_scaling=gain)
    r, (h, _) = weights_of(problem.network), problem.state
    terms = np.abs(problem.x[0]) @ np.abs(r.weight_ih).T + np.abs(h) @ np.abs(r.weight_hh).T + np.abs(r.bias)
    bound = np.finfo(dtype).eps * np.sqrt(24 + 20 + 1) * (1 + terms)
    states, _ = problem.harvest()
    assert np.all(np.abs(states[0] - problem.reference(np.float64)[0][0]) <= bound)


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


@pytest.mark.kernel
@each_dtype
@pytest.mark.parametrize("batch", [1, 3, 20])
@pytest.mark.parametrize("kind", ["no_weights", "ring", "scattered", "ragged_rows"])
def test_any_sparse_matrix_may_be_loaded(kind: str, batch: int, dtype: type) -> None:
    for hidden in (7, 150):
        problem = make_problem(Shape(5, batch, 2, hidden), dtype, leak=0.6)
        load_matrix(problem.network, irregular(kind, hidden, np.random.default_rng(3)))
        assert_states_match(problem)
        states, _ = problem.harvest()
        alone, _ = problem.harvest(rows=slice(0, 1))
        assert_same_bits(alone, states[:, :1])


# ---- what never changes a bit ----------------------------------------------------------------------------------------
each_exact = pytest.mark.parametrize("shape", EXACT)


def exact_problem(shape: str, dtype: Any, **options: Any) -> Problem:
    size, density = EXACT[shape]
    return make_problem(size, dtype, density=density, leak=0.8, **options)


@pytest.mark.kernel
@each_dtype
@pytest.mark.parametrize("feedback", [0.0, 0.3])
@each_exact
def test_threads_do_not_change_a_bit(shape: str, feedback: float, dtype: type) -> None:
    """Of states and outputs, whatever goes round in the loop."""
    for rough in (False, True):
        problem = exact_problem(shape, dtype, feedback_scaling=feedback, ragged=rough, cut=rough)
        with threads(1):
            expected = problem.harvest(), problem.outputs()
        for number in (2, 3, 7):
            with threads(number):
                assert_same_bits((problem.harvest(), problem.outputs()), expected, f"{number} threads:")


@pytest.mark.kernel
@each_dtype
@each_exact
def test_a_row_is_the_same_alone_and_in_any_batch(shape: str, dtype: type) -> None:
    problem = exact_problem(shape, dtype, ragged=True, cut=True)
    states, final = problem.harvest()
    batch = states.shape[1]
    for rows in (slice(0, 1), slice(batch - 1, batch), slice(0, 2), slice(1, 6), slice(0, 17), slice(None, None, -1)):
        part, last = problem.harvest(rows)
        assert_same_bits(part, np.ascontiguousarray(states[:, rows]), f"rows {rows}")
        assert_same_bits(last, np.ascontiguousarray(final[:, rows]), f"rows {rows}")


@each_dtype
@pytest.mark.parametrize("feedback", [0.0, 0.3])
@each_exact
def test_a_sequence_is_the_same_whole_and_in_pieces(shape: str, feedback: float, dtype: type) -> None:
    problem = exact_problem(shape, dtype, feedback_scaling=feedback, ragged=True, cut=True)
    states, final = problem.harvest()
    steps = len(states)
    for cuts in [(1,), (2, 3), tuple(range(1, steps))]:
        state, pieces = problem.given_state(), []
        for begin, end in zip((0, *cuts), (*cuts, steps), strict=True):
            piece, state = problem.harvest(steps=slice(begin, end), state=state)
            pieces.append(piece)
        assert_same_bits(np.concatenate(pieces), states, f"cut at {cuts}")
        assert_same_bits(state, final, f"cut at {cuts}")


@each_dtype
def test_a_call_is_the_same_however_it_is_cut_into_windows(dtype: type, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = exact_problem("few_rows", dtype, ragged=True, cut=True)
    expected = problem.outputs()
    monkeypatch.setattr(echo_state, "_NUMBERS_AT_ONCE", 1)
    assert_same_bits(problem.outputs(), expected)


@each_dtype
def test_inference_training_and_batch_first_give_the_same_bits(dtype: type) -> None:
    problem = exact_problem("hidden_130", dtype, ragged=True, cut=True)
    y, final = problem.outputs()
    trained, last, _ = problem.network.forward(problem.x, problem.given_state(), problem.lengths, problem.resets)
    assert_same_bits((trained, last), (y, final))
    assert problem.resets is not None
    network = rf.EchoState(**problem.network.config | {"batch_first": True})
    network.load_state_dict(problem.network.state_dict())
    swapped = np.ascontiguousarray(problem.x.swapaxes(0, 1)), problem.given_state(), problem.lengths, problem.resets.T
    assert_same_bits(network(*swapped)[0].swapaxes(0, 1), y)
    assert_same_bits(network.harvest(*swapped)[0].swapaxes(0, 1), problem.harvest()[0])


def test_concurrent_calls_do_not_disturb_each_other() -> None:
    """Also while the kernels' copy of the weights is being made."""
    problem = exact_problem("few_rows", np.float32, feedback_scaling=0.3)
    expected = problem.harvest(), problem.outputs()
    for _ in range(5):
        network = copy.deepcopy(problem.network)
        other = replace(problem, network=network)
        with ThreadPoolExecutor(4) as pool:
            results = [pool.submit(lambda other=other: (other.harvest(), other.outputs())) for _ in range(8)]
        for result in results:
            assert_same_bits(result.result(), expected)


def test_no_state_given_is_a_state_of_zeros() -> None:
    for feedback in (0.0, 0.4):
        problem = exact_problem("few_rows", np.float32, feedback_scaling=feedback)
        zeros = tuple(np.zeros_like(array)[None] for array in problem.state)
        expected = problem.network(problem.x, zeros if feedback else zeros[0])
        assert_same_bits(problem.network(problem.x), expected)


def test_past_a_length_zeros_are_written_and_the_state_stays() -> None:
    problem = exact_problem("hidden_130", np.float32, ragged=True)
    assert problem.lengths is not None and np.isnan(problem.x).any()
    states, final = problem.harvest()
    y, _ = problem.outputs()
    padding = np.arange(len(states))[:, None] >= problem.lengths
    assert not states[padding].any() and not y[padding].any()
    for b, length in enumerate(problem.lengths):
        assert_same_bits(final[0, b], states[length - 1, b] if length else problem.state[0][b])


@each_dtype
def test_a_reset_makes_two_sequences_of_one(dtype: type) -> None:
    for feedback in (0.0, 0.3):
        problem = exact_problem("few_rows", dtype, feedback_scaling=feedback)
        problem.resets = np.zeros(problem.x.shape[:2], np.bool_)
        problem.resets[3] = True
        states, y = problem.harvest()[0], problem.outputs()[0]
        problem.resets = None
        nothing = {"teacher": problem.teacher[3:]} if feedback else {}
        assert_same_bits(states[:3], problem.harvest(steps=slice(0, 3))[0])
        assert_same_bits(states[3:], problem.network.harvest(problem.x[3:], **nothing)[0])
        assert_same_bits(y[3:], problem.network(problem.x[3:])[0])


@each_dtype
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("argument", ["x", "state"])
def test_nan_and_infinity_stay_in_their_own_row(argument: str, value: float, dtype: type) -> None:
    for shape in ("few_rows", "hidden_130"):
        problem = exact_problem(shape, dtype)
        clean = problem.harvest()[0]
        if argument == "x":
            problem.x[2, 3, 1] = value
        else:
            problem.state[0][3, 5] = value
        spoilt = problem.harvest()[0]
        assert_same_bits(np.delete(spoilt, 3, axis=1), np.delete(clean, 3, axis=1))
        assert not np.array_equal(spoilt[:, 3], clean[:, 3])


def test_takes_arrays_of_every_form_and_leaves_them_as_they_were() -> None:
    problem = exact_problem("few_rows", np.float32, cut=True)
    expected = problem.harvest()
    before = problem.x.copy()
    assert problem.resets is not None
    forms: list[Callable[[Array], Array]] = [
        np.asfortranarray,
        lambda a: np.ascontiguousarray(a.swapaxes(0, 1)).swapaxes(0, 1),
        lambda a: np.flip(np.flip(a, 0).copy(), 0),
        lambda a: a.astype(a.dtype.newbyteorder()),
        lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
    ]
    for form in forms:
        got = problem.network.harvest(form(problem.x), form(problem.given_state()), None, form(problem.resets))
        assert_same_bits(got, expected)
    assert_same_bits(problem.x, before)


@pytest.mark.parametrize("number", [1, 2])
def test_the_callers_floating_point_mode_stays_as_it_is(number: int) -> None:
    tiny = np.full(64, np.finfo(np.float64).smallest_subnormal)
    with threads(number):
        rf.EchoState(1, 300, dtype=np.float64, seed=0).harvest(np.zeros((5, 40, 1)))
        assert (tiny * 1.0).all()


# ---- the reservoir ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("hidden", "density"),
    [(1, 0.1), (9, 0.5), (60, 0.02), (90, 0.1), (300, 0.02), pytest.param(1000, 0.1, marks=pytest.mark.long)],
)
def test_the_spectral_radius_is_what_was_asked_for(hidden: int, density: float) -> None:
    for radius in (0.3, 1.4):
        network = rf.EchoState(1, hidden, spectral_radius=radius, density=density, dtype=np.float64, seed=hidden)
        assert radius_of(weights_of(network).weight_hh) == pytest.approx(radius, rel=2e-7)


def radius_of(matrix: Array) -> float:
    return float(np.abs(np.linalg.eigvals(matrix)).max())


def test_a_spectral_radius_of_zero_leaves_no_recurrence() -> None:
    assert not weights_of(rf.EchoState(1, 20, spectral_radius=0.0)).weight_hh.any()


@pytest.mark.parametrize("hidden", [65, 80, 130])
def test_the_iteration_finds_what_all_eigenvalues_tell(hidden: int) -> None:
    for seed in range(10):
        random = np.random.default_rng(seed)
        columns = reservoir.draw_columns(hidden, 2 + seed, random)
        weights = random.uniform(-1, 1, columns.shape)
        dense = np.zeros((hidden, hidden))
        np.put_along_axis(dense, columns, weights, axis=1)
        assert reservoir.spectral_radius(weights, columns) == pytest.approx(radius_of(dense), rel=1e-7)


def test_where_the_iteration_does_not_converge_all_eigenvalues_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ring has H eigenvalues of modulus 1."""
    columns = np.roll(np.arange(150), 1)[:, None]
    monkeypatch.setattr(reservoir, "_MOST_PRODUCTS", 100)
    assert reservoir.spectral_radius(np.ones((150, 1)), columns) == pytest.approx(1.0, rel=1e-7)


@settings(max_examples=40)
@given(hidden=st.integers(1, 400), density=st.floats(0.001, 1.0), seed=st.integers(0, 100))
def test_each_unit_has_as_many_connections_to_different_units(hidden: int, density: float, seed: int) -> None:
    count = reservoir.connections(hidden, density)
    columns = reservoir.draw_columns(hidden, count, np.random.default_rng(seed))
    assert count == min(hidden, max(2, round(density * hidden)))
    assert columns.shape == (hidden, count)
    assert columns.min() >= 0 and columns.max() < hidden
    assert (np.diff(columns, axis=1) > 0).all()


@pytest.mark.parametrize(("hidden", "density"), [(100, 0.03), (100, 0.1), (90, 0.4), (1000, 0.01)])
def test_all_connections_are_equally_likely(hidden: int, density: float) -> None:
    """From every unit as many, within six deviations of so many draws, and to every unit alike."""
    draws, count = 300, reservoir.connections(hidden, density)
    heard = np.zeros(hidden)
    for seed in range(draws):
        columns = reservoir.draw_columns(hidden, count, np.random.default_rng(seed))
        heard += np.bincount(columns.ravel(), minlength=hidden)
    assert np.abs(heard - draws * count).max() < 6 * np.sqrt(2 * draws * count)


@pytest.mark.parametrize(("hidden", "density"), [(96, 0.1), (200, 0.05), (300, 0.02)])
def test_no_direction_of_the_state_is_lost(hidden: int, density: float) -> None:
    """As in a matrix whose connections are all independent, few units are heard by none."""
    matrix = weights_of(rf.EchoState(1, hidden, density=density, seed=0)).weight_hh
    assert np.linalg.matrix_rank(matrix) > 0.95 * hidden


def test_a_seed_tells_the_reservoir() -> None:
    first, again, other = (rf.EchoState(2, 50, seed=seed).buffers for seed in (1, 1, 2))
    assert_same_bits(dict(first), dict(again))
    assert not np.array_equal(first["weight_hh_indices"], other["weight_hh_indices"])
    assert rf.EchoState(2, 50).seed != rf.EchoState(2, 50).seed


def test_a_float32_reservoir_is_the_rounded_float64_one_and_no_matter_of_the_inputs() -> None:
    double = rf.EchoState(2, 300, feedback_scaling=0.5, dtype=np.float64, seed=5).buffers
    single = rf.EchoState(2, 300, feedback_scaling=0.5, seed=5).buffers
    for name, array in double.items():
        assert_same_bits(single[name], array.astype(single[name].dtype))
    wider = rf.EchoState(7, 300, input_scaling=3.0, seed=5).buffers
    for name in ("bias", "weight_hh_data", "weight_hh_indices"):
        assert_same_bits(wider[name], single[name])


def test_the_scalings_bound_the_weights() -> None:
    network = rf.EchoState(
        3, 200, 2, input_scaling=0.1, bias_scaling=2.0, feedback_scaling=0.5, spectral_radius=0.9, seed=0
    )
    for name, bound in (("weight_ih", 0.1), ("bias", 2.0), ("weight_fb", 0.5)):
        array = network.buffers[name]
        assert 0.95 * bound < np.abs(array).max() <= bound
    assert "weight_fb" not in rf.EchoState(3, 20).buffers


def test_buffers_cannot_be_written_to() -> None:
    network = rf.EchoState(1, 20, seed=0)
    for made in (network, copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        with pytest.raises(ValueError, match="read-only"):
            made.buffers["bias"][0] = 1


# ---- echoes ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("leak", [1.0, 0.4])
def test_the_reservoir_forgets_its_first_state(leak: float) -> None:
    """The echo state property: under the same input, two states become one."""
    network = rf.EchoState(1, 200, spectral_radius=0.9, leak=leak, dtype=np.float64, seed=0)
    random = np.random.default_rng(0)
    x = np.broadcast_to(random.uniform(-1, 1, (600, 1, 1)), (600, 2, 1))
    states, _ = network.harvest(x, random.uniform(-1, 1, (1, 2, 200)))
    distance = np.linalg.norm(states[:, 0] - states[:, 1], axis=1)
    assert distance[0] > 1 and distance[300] < 1e-3 * distance[0] and distance[-1] < 1e-9


def test_without_input_a_reservoir_dies_away_below_one_and_lives_above() -> None:
    for radius, alive in ((0.9, False), (1.3, True)):
        network = rf.EchoState(1, 200, spectral_radius=radius, bias_scaling=0.0, dtype=np.float64, seed=0)
        states, _ = network.harvest(np.zeros((500, 1, 1)), np.full((1, 1, 200), 0.5))
        assert (np.abs(states[-1]).max() > 1e-3) == alive


# ---- the readout -----------------------------------------------------------------------------------------------------
def test_fit_recovers_a_linear_teacher() -> None:
    random = np.random.default_rng(0)
    network = rf.EchoState(2, 40, 3, dtype=np.float64, seed=0)
    x = random.standard_normal((500, 4, 2))
    states, _ = network.harvest(x)
    weight, bias = random.standard_normal((3, 42)), random.standard_normal(3)
    y = np.concatenate([states, x], axis=-1) @ weight.T + bias
    assert network.fit(x, y, washout=10, ridge=1e-12) is network
    assert np.abs(network.params["readout_weight"] - weight).max() < 1e-8
    assert np.abs(network.params["readout_bias"] - bias).max() < 1e-8
    assert np.abs(network.predict(x) - y).max() < 1e-8


@pytest.mark.parametrize("ridge", [1e-4, 1.0, 100.0])
def test_fit_is_scikit_learns_ridge(ridge: float) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model", reason="scikit-learn isn't here to judge")
    random = np.random.default_rng(1)
    network = rf.EchoState(1, 30, 2, dtype=np.float64, seed=0)
    x, y = random.standard_normal((200, 3, 1)), random.standard_normal((200, 3, 2)) + 5
    states, _ = network.harvest(x)
    features = np.concatenate([states, x], axis=-1)[20:].reshape(-1, 31)
    judge = linear_model.Ridge(alpha=ridge).fit(features, y[20:].reshape(-1, 2))
    network.fit(x, y, washout=20, ridge=ridge)
    assert np.abs(network.params["readout_weight"] - judge.coef_).max() < 1e-9
    assert np.abs(network.params["readout_bias"] - judge.intercept_).max() < 1e-9


def test_without_a_penalty_the_solution_has_the_least_norm() -> None:
    """Of a problem with more unknowns than steps."""
    random = np.random.default_rng(2)
    network = rf.EchoState(1, 50, dtype=np.float64, seed=0)
    x, y = random.standard_normal((20, 1, 1)), random.standard_normal((20, 1, 1))
    network.fit(x, y, ridge=0.0)
    assert np.abs(network.predict(x) - y).max() < 1e-10
    features = np.concatenate([np.ones((20, 1)), network.harvest(x)[0][:, 0], x[:, 0]], axis=1)
    expected = np.linalg.pinv(features) @ y[:, 0]
    assert np.abs(network.params["readout_weight"] - expected[1:].T).max() < 1e-10


@pytest.mark.parametrize("feedback", [0.0, 0.3])
def test_steps_that_do_not_count_change_nothing(feedback: float) -> None:
    """A fit on ragged, cut sequences is the fit on their pieces, each washed out; targets elsewhere may be NaN."""
    random = np.random.default_rng(3)
    options = {"dtype": np.float64, "seed": 0, "feedback_scaling": feedback}
    x, y = random.standard_normal((60, 2, 1)), random.standard_normal((60, 2, 1))
    resets = np.zeros((60, 2), np.bool_)
    resets[25, 1] = True
    whole = rf.EchoState(1, 20, **options)
    told = y.copy()
    told[40:, 0] = np.nan
    if not feedback:
        told[:5] = told[25:30, 1] = np.nan
    whole.fit(x, told, lengths=[40, 60], resets=resets, washout=5)
    pieces = rf.EchoState(1, 20, **options)
    begins = [(x[:40, 0], y[:40, 0]), (x[:25, 1], y[:25, 1]), (x[25:, 1], y[25:, 1])]
    padded = [np.zeros((40, 3, 1)) for _ in range(2)]
    for b, piece in enumerate(begins):
        for to, part in zip(padded, piece, strict=True):
            to[: len(part), b] = part
    pieces.fit(*padded, lengths=[40, 25, 35], washout=5)
    assert np.abs(whole.flat_params - pieces.flat_params).max() < 1e-9


def test_fit_in_windows_is_the_fit_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(4)
    x, y = random.standard_normal((300, 2, 1)), random.standard_normal((300, 2, 1))
    fits = []
    for rows in (10_000, 1):
        monkeypatch.setattr(echo_state, "_ROWS_AT_ONCE", rows)
        network = rf.EchoState(1, 20, feedback_scaling=0.2, dtype=np.float64, seed=0)
        fits.append(network.fit(x, y, lengths=[300, 120], washout=30).flat_params.copy())
    assert np.abs(fits[0] - fits[1]).max() < 1e-9


def test_a_network_with_feedback_is_fitted_under_its_teacher() -> None:
    random = np.random.default_rng(5)
    network = rf.EchoState(1, 30, 2, feedback_scaling=0.5, skip=False, dtype=np.float64, seed=0)
    x = random.standard_normal((200, 1, 1))
    y = np.cumsum(0.1 * random.standard_normal((200, 1, 2)), axis=0)
    states, (_, last) = network.harvest(x, teacher=y)
    network.fit(x, y, ridge=1e-3)
    features = np.concatenate([np.ones((200, 1)), states[:, 0]], axis=1)
    penalty = 1e-3 * np.diag([0.0] + [1.0] * 30)
    expected = np.linalg.solve(features.T @ features + penalty, features.T @ y[:, 0])
    assert np.abs(network.params["readout_weight"] - expected[1:].T).max() < 1e-8
    assert_same_bits(last[0], y[-1])


def test_a_network_learns_to_oscillate_by_its_feedback() -> None:
    """At the frequency that its input says, which the teacher showed it."""
    t = np.arange(2000)
    x = np.where(t // 500 % 2, 0.3, -0.3)[:, None, None]
    phase = np.cumsum(np.where(x[:, 0, 0] > 0, 2 * np.pi / 20, 2 * np.pi / 40))
    y = 0.5 * np.sin(phase)[:, None, None]
    network = rf.EchoState(1, 200, 1, spectral_radius=0.8, feedback_scaling=1.0, skip=False, dtype=np.float64, seed=1)
    network.fit(x, y, washout=100, ridge=1e-8)
    state = network.harvest(x[:1300], teacher=y[:1300])[1]
    free, _ = network(x[1300:1480], state)
    assert np.abs(free - y[1300:1480]).max() < 0.05


# ---- free run --------------------------------------------------------------------------------------------------------
@each_dtype
@pytest.mark.parametrize("batch", [1, 3, 20])
@pytest.mark.parametrize("options", [{}, {"skip": False, "leak": 0.5}, {"feedback_scaling": 0.3}])
def test_a_free_run_is_the_network_fed_by_hand(options: dict[str, Any], batch: int, dtype: type) -> None:
    random = np.random.default_rng(0)
    network = rf.EchoState(2, 60, dtype=dtype, seed=0, **options)
    network.flat_params[...] = 0.3 * random.standard_normal(network.flat_params.size)
    h = random.uniform(-1, 1, (1, batch, 60)).astype(dtype)
    start = random.standard_normal((batch, 2)).astype(dtype)
    state: Any = (h, start[None]) if network.feedback else h
    for number in (1, 2):
        with threads(number):
            y, last = network.free_run(30, start, state)
        by_hand, fed, given = [], start, state
        for _ in range(30):
            out, given = network(fed[None], given)
            by_hand.append(out)
            fed = out[0]
        assert_same_bits(y, np.concatenate(by_hand))
        assert_same_bits(last, given)
    first, middle = network.free_run(12, start, state)
    second, end = network.free_run(18, first[-1], middle)
    assert_same_bits(np.concatenate([first, second]), y)
    assert_same_bits(end, last)


@each_dtype
def test_a_free_run_matches_the_reference(dtype: type) -> None:
    problem = make_problem(Shape(0, 4, 2, 50), dtype, leak=0.7)
    h, y0 = problem.state
    params = problem.network.params
    out = params["readout_weight"], params["readout_bias"]
    exact, single = (
        reservoir_scan(weights_of(problem.network), None, h, out=out, y0=y0, steps=25, dtype=kind)[1]
        for kind in (np.float64, np.float32)
    )
    assert_close(problem.network.free_run(25, y0, h[None])[0], exact, single, "y")


def test_with_feedback_the_state_knows_how_a_free_run_begins() -> None:
    network = rf.EchoState(1, 20, feedback_scaling=0.4, seed=0)
    network.flat_params[...] = 0.1
    _, state = network(np.ones((5, 3, 1), np.float32))
    assert_same_bits(network.free_run(4, None, state), network.free_run(4, state[1][0], state))


def test_many_outputs_and_a_run_of_no_steps() -> None:
    network = rf.EchoState(37, 40, seed=0)
    network.flat_params[...] = np.random.default_rng(0).normal(0, 0.1, network.flat_params.size)
    start = np.random.default_rng(1).standard_normal((1, 37), np.float32)
    y, state = network.free_run(3, start)
    assert_same_bits(y[:1], network(start[None])[0])
    nothing, same = network.free_run(0, start, state)
    assert nothing.shape == (0, 1, 37)
    assert_same_bits(same, state)


# ---- as a module -----------------------------------------------------------------------------------------------------
def fitted(**options: Any) -> rf.EchoState:
    random = np.random.default_rng(0)
    network = rf.EchoState(2, 30, 1, seed=0, **options)
    x, y = (random.standard_normal((50, 2, width)).astype(network.dtype) for width in (2, 1))
    return network.fit(x, y)


@pytest.mark.parametrize("feedback", [0.0, 0.4])
def test_copies_and_files_hold_the_same_network(feedback: float, tmp_path: Path) -> None:
    network = fitted(feedback_scaling=feedback, leak=0.5, dtype=np.float64)
    rf.save(network, tmp_path / "model.safetensors")
    x = np.random.default_rng(1).standard_normal((9, 3, 2))
    expected = network(x)
    for other in (copy.deepcopy(network), pickle.loads(pickle.dumps(network)), rf.load(tmp_path / "model.safetensors")):
        assert isinstance(other, rf.EchoState)
        assert repr(other) == repr(network) and other.config == network.config
        assert_same_bits(other(x), expected)
        assert_same_bits(other.state_dict(), network.state_dict())


def test_a_file_keeps_the_reservoir_that_was_used(tmp_path: Path) -> None:
    """Not the one that the seed would give."""
    network = fitted()
    load_matrix(network, irregular("ring", 30, np.random.default_rng(0)))
    model = rf.Sequential(network, rf.Linear(1, 2, seed=0))
    rf.save(model, tmp_path / "model.safetensors")
    x = np.ones((6, 2, 2), np.float32)
    loaded = rf.load(tmp_path / "model.safetensors")
    assert_same_bits(loaded(x)[0], model(x)[0])
    assert loaded.buffers["0.weight_hh_data"].size == 30


def test_a_loaded_network_draws_no_other_reservoir_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = fitted()
    rf.save(network, tmp_path / "model.safetensors")
    monkeypatch.setattr(rf.EchoState, "_draw", lambda self: pytest.fail("drawn"))
    assert_same_bits(rf.load(tmp_path / "model.safetensors").state_dict(), network.state_dict())


Change = Callable[[dict[str, Array]], Any]
FAULTS: dict[str, tuple[Change, str]] = {
    "missing": (lambda d: d.pop("weight_hh_indptr"), "missing weight_hh_indptr"),
    "unexpected": (lambda d: d.update(weight_fb=d["bias"]), "unexpected weight_fb"),
    "shape": (lambda d: d.update(bias=np.zeros(29)), "bias: expected (30,), got (29,)"),
    "too_few": (lambda d: d.update(weight_hh_indices=np.arange(3)), "weight_hh_indices: expected (90,), got (3,)"),
    "floats": (lambda d: d.update(weight_hh_indptr=np.zeros(31)), "weight_hh_indptr: expected integers, got float64"),
    "begins_late": (
        lambda d: d["weight_hh_indptr"].__setitem__(0, 1),
        "weight_hh_indptr: expected 0 at first, got 1 at 0",
    ),
    "descends": (
        lambda d: d["weight_hh_indptr"].__setitem__(5, 2),
        "weight_hh_indptr: expected values that ascend to 90, got 2 at 5",
    ),
    "ends_early": (
        lambda d: d["weight_hh_indptr"].__setitem__(30, 87),
        "weight_hh_indptr: expected 90 at last, got 87 at 30",
    ),
    "outside": (
        lambda d: d["weight_hh_indices"].__setitem__(89, 30),
        "weight_hh_indices: expected columns from 0 to 29 that ascend in each row, got 30 at 89",
    ),
    "negative": (lambda d: d["weight_hh_indices"].__setitem__(0, -1), "weight_hh_indices: expected columns from 0"),
    "twice": (
        lambda d: d["weight_hh_indices"].__setitem__(1, d["weight_hh_indices"][0]),
        "weight_hh_indices: expected columns from 0 to 29 that ascend in each row",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_refuses_what_is_no_reservoir_and_loads_none_of_it(fault: str) -> None:
    spoil, phrase = FAULTS[fault]
    network = fitted()
    before = network.state_dict()
    values = network.state_dict()
    values["readout_weight"] += 1
    spoil(values)
    with pytest.raises((ValueError, TypeError), match=re.escape(phrase)):
        network.load_state_dict(values)
    assert_same_bits(network.state_dict(), before)


def test_a_state_dict_has_parameters_and_buffers() -> None:
    network = rf.EchoState(2, 30, 1, seed=0)
    assert list(network.params) == ["readout_weight", "readout_bias"]
    assert network.params["readout_weight"].shape == (1, 32) and not network.flat_params.any()
    assert list(network.state_dict()) == [*network.params, *network.buffers]
    model = rf.Sequential(rf.Dropout(0.0), rf.Sequential(network))
    assert "1.0.weight_hh_data" in model.state_dict()
    model.load_state_dict(model.state_dict())


def test_gradients_train_the_readout() -> None:
    """dW = Σ dy [h; x]ᵀ; the reservoir's own are refused."""
    problem = make_problem(Shape(7, 3, 2, 20), np.float64, ragged=True)
    network = problem.network
    y, _, tape = network.forward(problem.x, problem.given_state(), problem.lengths)
    dy = np.random.default_rng(0).standard_normal(y.shape)
    for arguments, message in (
        ({}, "need_dx: the reservoir has no gradient, expected False, got True"),
        ({"dstate": problem.given_state(), "need_dx": False}, "dstate: the reservoir has no gradient"),
    ):
        with pytest.raises(ValueError, match=message):
            network.backward(tape, dy, **arguments)
    assert network.backward(tape, dy, need_dx=False) == (None, None)
    assert problem.lengths is not None
    valid = np.arange(7)[:, None] < problem.lengths
    features = np.concatenate([problem.harvest()[0], problem.x], axis=-1)[valid]
    assert np.abs(network.grads["readout_weight"] - dy[valid].T @ features).max() < 1e-12
    assert np.abs(network.grads["readout_bias"] - dy[valid].sum(axis=0)).max() < 1e-12


def test_a_reservoir_stands_at_the_bottom_of_a_network() -> None:
    random = np.random.default_rng(0)
    x = random.standard_normal((20, 16, 2), np.float32)
    target = (x[..., :1].sum(axis=0) > 0).astype(np.int64)[:, 0]
    model = rf.Sequential(rf.EchoState(2, 60, 8, seed=0), rf.Last(), rf.Linear(8, 2, seed=1))
    rf.initialize(model, **{"0.readout_weight": ("normal", 0.1)}, seed=0)
    optimizer, losses = rf.Adam(model, lr=1e-2), []
    for _ in range(60):
        model.zero_grad()
        logits, _, tape = model.forward(x)
        loss, dlogits = rf.softmax_cross_entropy(logits, target)
        model.backward(tape, dlogits, need_dx=False)
        optimizer.step()
        losses.append(loss)
    assert losses[-1] < 0.5 * losses[0]


def test_a_fit_makes_older_tapes_useless() -> None:
    network = fitted()
    y, _, tape = network.forward(np.ones((4, 1, 2), np.float32))
    network.fit(np.ones((4, 1, 2), np.float32), y)
    with pytest.raises(RuntimeError, match="parameters have changed"):
        network.backward(tape, y, need_dx=False)


def test_initialize_knows_the_readout() -> None:
    network = rf.initialize(rf.EchoState(2, 30, 1), readout_weight="default", readout_bias=0.5, seed=0)
    assert 0 < np.abs(network.params["readout_weight"]).max() <= 32**-0.5
    assert (network.params["readout_bias"] == 0.5).all()


# ---- refusals --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("arguments", "error", "phrase"),
    [
        ({"input_size": 0}, ValueError, "input_size: expected at least 1, got 0"),
        ({"hidden_size": 2.0}, TypeError, "hidden_size: expected an integer, got float"),
        ({"output_size": 0}, ValueError, "output_size: expected at least 1, got 0"),
        ({"spectral_radius": -0.1}, ValueError, "spectral_radius: expected a number >= 0 and finite, got -0.1"),
        ({"density": 0.0}, ValueError, "density: expected a number > 0"),
        ({"density": 1.1}, ValueError, "density: expected a number > 0 and <= 1, got 1.1"),
        ({"leak": 0}, ValueError, "leak: expected a number > 0"),
        ({"leak": 2}, ValueError, "leak: expected a number > 0 and <= 1, got 2"),
        ({"leak": "0.5"}, TypeError, "leak: expected a number, got str"),
        ({"input_scaling": float("nan")}, ValueError, "input_scaling: expected"),
        ({"bias_scaling": float("inf")}, ValueError, "bias_scaling: expected"),
        ({"feedback_scaling": -1.0}, ValueError, "feedback_scaling: expected"),
        ({"skip": 1}, TypeError, "skip: expected a bool, got int"),
        ({"dtype": np.float16}, TypeError, "dtype: expected float32 or float64"),
        ({"seed": -1}, ValueError, "seed: expected at least 0, got -1"),
    ],
)
def test_refuses_wrong_constructor_arguments(arguments: dict[str, Any], error: type[Exception], phrase: str) -> None:
    with pytest.raises(error, match="^" + re.escape(phrase)):
        rf.EchoState(**{"input_size": 2, "hidden_size": 8} | arguments)


X, Y = np.zeros((5, 3, 2), np.float32), np.zeros((5, 3, 1), np.float32)
H0, Y0 = np.zeros((1, 3, 8), np.float32), np.zeros((1, 3, 1), np.float32)


@pytest.mark.parametrize(
    ("call", "error", "phrase"),
    [
        (lambda n, f: n.harvest(X[0]), ValueError, "x: expected (T, B, 2), got (3, 2)"),
        (lambda n, f: n.harvest(X.astype(np.float64)), TypeError, "x: expected float32, got float64"),
        (lambda n, f: n(X, H0[:, :2]), ValueError, "h0: expected (1, 3, 8), got (1, 2, 8)"),
        (lambda n, f: n(X, H0[0]), ValueError, "h0: expected (1, 3, 8), got (3, 8)"),
        (lambda n, f: n(X, lengths=[5, 5, 6]), ValueError, "lengths: expected values from 0 to T = 5, got 6"),
        (lambda n, f: n(X, resets=np.zeros((5, 3))), TypeError, "resets: expected bool, got float64"),
        (lambda n, f: n.harvest(X, teacher=Y), ValueError, "teacher: expected None for a network without feedback"),
        (lambda n, f: f.harvest(X, teacher=Y[:4]), ValueError, "teacher: expected (5, 3, 1), got (4, 3, 1)"),
        (lambda n, f: f(X, H0), TypeError, "state: expected a tuple (h0, y0), got ndarray"),
        (lambda n, f: f(X, (H0,)), TypeError, "state: expected a tuple (h0, y0), got 1 entries"),
        (lambda n, f: f(X, (H0, H0)), ValueError, "y0: expected (1, 3, 1), got (1, 3, 8)"),
        (lambda n, f: f.forward(X), ValueError, "forward: a network with feedback has no gradients"),
        (lambda n, f: n.fit(X, Y[..., :0]), ValueError, "y: expected (5, 3, 1), got (5, 3, 0)"),
        (lambda n, f: n.fit(X, Y, washout=-1), ValueError, "washout: expected at least 0, got -1"),
        (lambda n, f: n.fit(X, Y, washout=5), ValueError, "washout: expected steps after it, got 5 of 5 steps"),
        (lambda n, f: n.fit(X, Y, lengths=[0, 0, 0]), ValueError, "washout: expected steps after it"),
        (lambda n, f: n.fit(X, Y, ridge=-1e-9), ValueError, "ridge: expected a number >= 0"),
        (lambda n, f: n.fit(X, Y + np.float32(np.nan)), ValueError, "x, y: expected finite numbers"),
        (lambda n, f: n.free_run(3, Y[0]), ValueError, "free_run: expected as many outputs as inputs"),
        (lambda n, f: rf.EchoState(2, 8).free_run(3), TypeError, "start: expected an array (B, 2), got None"),
        (lambda n, f: rf.EchoState(2, 8).free_run(-1, X[0]), ValueError, "steps: expected at least 0, got -1"),
        (lambda n, f: rf.EchoState(2, 8).free_run(3, X), ValueError, "start: expected (B, 2), got (5, 3, 2)"),
        (lambda n, f: rf.EchoState(2, 8).free_run(3, X[0, :2], H0), ValueError, "h0: expected (1, 2, 8), got"),
    ],
)
def test_refuses_wrong_arguments_and_says_which(call: Any, error: type[Exception], phrase: str) -> None:
    plain, fed = rf.EchoState(2, 8, 1, seed=0), rf.EchoState(2, 8, 1, feedback_scaling=0.5, seed=0)
    before = plain.flat_params.copy()
    with pytest.raises(error, match="^" + re.escape(phrase)):
        call(plain, fed)
    assert_same_bits(plain.flat_params, before)


@pytest.mark.parametrize(("inputs", "hidden"), [(2**40, 2**40), (1, 2**62)])
def test_sizes_that_no_memory_holds_are_refused(inputs: int, hidden: int) -> None:
    with pytest.raises((ValueError, MemoryError)):
        rf.EchoState(inputs, hidden)


# ---- another judge ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("leak", [1.0, 0.3])
@pytest.mark.parametrize(("hidden", "density"), [(20, 0.5), (300, 0.1)])
def test_states_are_those_of_reservoirpy(hidden: int, density: float, leak: float) -> None:
    """Its Reservoir with our weights, in float64."""
    nodes = pytest.importorskip("reservoirpy.nodes", reason="reservoirpy isn't here to judge: pip install reservoirpy")
    network = rf.EchoState(3, hidden, density=density, leak=leak, dtype=np.float64, seed=0)
    r = weights_of(network)
    judge = nodes.Reservoir(W=r.weight_hh, Win=r.weight_ih, bias=r.bias, lr=leak)
    x = np.random.default_rng(0).standard_normal((300, 3))
    states, _ = network.harvest(x[:, None])
    assert np.abs(states[:, 0] - judge.run(x)).max() < 1e-12


def with_feedback(leak: float) -> tuple[Any, Problem, dict[str, Any], Any]:
    """reservoirpy, a problem, its x and targets, and the same reservoir there, which reads both side by side."""
    rpy = pytest.importorskip("reservoirpy", reason="reservoirpy isn't here to judge: pip install reservoirpy")
    problem = make_problem(Shape(100, 1, 3, 50), np.float64, feedback_scaling=0.5, leak=leak)
    r = weights_of(problem.network)
    assert r.weight_fb is not None
    inputs = np.hstack([r.weight_ih, r.weight_fb])
    judge = rpy.nodes.Reservoir(W=r.weight_hh, Win=inputs, bias=r.bias, lr=leak, name="states")
    return rpy, problem, {"x": problem.x[:, 0], "y": problem.teacher[:, 0]}, judge


@pytest.mark.parametrize("leak", [1.0, 0.3])
def test_states_under_a_teacher_are_those_of_reservoirpy(leak: float) -> None:
    """Its delay of one step leads from a teacher to the reservoir."""
    rpy, problem, told, judge = with_feedback(leak)
    x, y = (rpy.nodes.Input(name=name) for name in told)
    model = rpy.Model([x, y, judge], [(x, 0, judge), (y, 1, judge)])
    model.initialize(told, {"y": told["y"]})
    states, _ = problem.network.harvest(problem.x, teacher=problem.teacher)
    assert np.abs(states[:, 0] - model.run(told)["states"]).max() < 1e-12


@pytest.mark.parametrize("fit", [False, True])
@pytest.mark.parametrize("leak", [1.0, 0.3])
def test_the_loop_of_outputs_is_that_of_reservoirpy(leak: float, fit: bool) -> None:
    """Through a readout of random numbers, and what its fit under the teacher makes of it."""
    rpy, problem, told, judge = with_feedback(leak)
    network, params = problem.network, problem.network.params
    readout = rpy.nodes.Ridge(1e-2, Wout=params["readout_weight"].T, bias=params["readout_bias"], name="y")
    model = rpy.ESN(judge, readout, feedback=True, input_to_readout=True)
    model.initialize(told["x"], told["y"])
    if fit:
        network.fit(problem.x, problem.teacher, ridge=1e-2)
        model.fit(told["x"], told["y"]).reset()
        assert np.abs(params["readout_weight"] - readout.Wout.T).max() < 1e-9
    assert np.abs(network(problem.x)[0][:, 0] - model.run(told["x"])).max() < 1e-9
