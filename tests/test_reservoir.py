"""The reservoir of an echo state network: its states and outputs against the reference, what never changes a bit, the
matrix it draws, and another judge."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rnnfast as rf
from reservoir_cases import (
    EXACT,
    OPTIONS,
    SMALL,
    Problem,
    assert_outputs_match,
    assert_states_match,
    each_dtype,
    irregular,
    load_matrix,
    make_problem,
    weights_of,
)
from rnnfast import echo_state, reservoir
from shapes import Shape
from support import DTYPES, Array, assert_same_bits, threads


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
