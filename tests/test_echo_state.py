"""The echo state network on its reservoir: the readout it solves for, free runs, what it is as a module, refusals."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rnnfast as rf
from reservoir_cases import assert_close, each_dtype, irregular, load_matrix, make_problem, weights_of
from rnnfast import echo_state
from rnnfast.reference.reservoir import reservoir_scan
from shapes import Shape
from support import Array, assert_same_bits, threads


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
