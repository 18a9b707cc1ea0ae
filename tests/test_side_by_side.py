"""Directions, and layers, that run side by side: where they do, that no bit tells, and that a signal ends them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import Any

import numpy as np
import pytest

import rnnfast as rf
from rnnfast import _kernels
from shapes import Shape
from support import CELLS, assert_same_bits, make_problem, solve, threads
from test_long_calls import interrupt, repeated

DIRECTIONS: dict[str, Any] = {"bidirectional": True}
LAYERS: dict[str, Any] = {"num_layers": 3}
WAITING = [cell for cell in CELLS if _kernels.cells()[cell]["recurrent"]]  # the others' units wait for no one
both = pytest.mark.parametrize("options", [DIRECTIONS, LAYERS], ids=["directions", "layers"])


def beside(layer: Any, steps: int, batch: int, number: int = 2) -> set[str]:
    with threads(number):
        return {plan.beside for plan in layer.plan(steps, batch)}


# ---- where they do ---------------------------------------------------------------------------------------------------


def test_directions_of_few_rows_and_units_run_side_by_side() -> None:
    assert beside(rf.LSTM(64, 64, 2, bidirectional=True, seed=0), 100, 1) == {"directions"}


def test_layers_of_few_rows_and_units_follow_each_other_by_some_steps() -> None:
    assert beside(rf.LSTM(64, 64, 2, seed=0), 100, 1) == {"layers"}


@both
def test_many_rows_are_shared_out_instead(options: dict[str, Any]) -> None:
    assert beside(rf.LSTM(64, 64, **options, seed=0), 100, 32) == {"nothing"}


@both
def test_units_are_shared_out_where_no_core_has_room_for_all_weights(options: dict[str, Any]) -> None:
    assert beside(rf.LSTM(512, 512, **options, seed=0), 100, 1) == {"nothing"}


@both
def test_units_of_a_scan_are_shared_out_since_they_wait_for_no_one(options: dict[str, Any]) -> None:
    assert beside(rf.SRU(120, 120, **options, seed=0), 100, 1) == {"nothing"}


@both
def test_one_thread_takes_one_after_the_other(options: dict[str, Any]) -> None:
    assert beside(rf.LSTM(64, 64, **options, seed=0), 100, 1, number=1) == {"nothing"}


def test_no_thread_loses_its_work_by_it() -> None:
    """Where all threads share the units of one layer, and a part of them could not."""
    layer = rf.LSTM(128, 128, 2, seed=0)
    assert beside(layer, 50, 16, number=8) == {"nothing"}
    with threads(8):
        assert {plan.threads for plan in layer.plan(50, 16)} == {8}
    assert beside(rf.LSTM(128, 128, 3, seed=0), 50, 4) == {"nothing"}  # a third layer would run alone


def test_a_first_layer_of_many_features_decides_too() -> None:
    assert beside(rf.LSTM(64, 128, 2, seed=0), 100, 2) == {"layers"}
    assert beside(rf.LSTM(2048, 128, 2, seed=0), 100, 2) == {"nothing"}


def test_dropout_is_made_of_whole_outputs() -> None:
    """In training the layers wait for each other, and the masks are the same as with one thread."""
    problem = make_problem("lstm", Shape(60, 1, 48, 48), num_layers=3, dropout=0.5)
    with threads(1):
        expected = solve(problem, np.float32)
    with threads(2):
        assert_same_bits(solve(problem, np.float32), expected)


# ---- no bit tells ----------------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("cell", WAITING)
@pytest.mark.parametrize("ragged", [False, True])
def test_results_are_those_of_one_after_the_other(cell: str, ragged: bool, options: dict[str, Any]) -> None:
    """With lengths and resets too; steps end within a stride of the layers."""
    problem = make_problem(cell, Shape(103, 3, 56, 56), ragged=ragged, cut=ragged, **options)
    with threads(1):
        expected = solve(problem, np.float32)
    assert beside(problem.layer(np.float32), 103, 3) != {"nothing"}
    for number in (2, 3, 7):
        with threads(number):
            assert_same_bits(solve(problem, np.float32), expected, f"{number} threads:")


@pytest.mark.parametrize(
    ("more", "number", "batch", "split"),
    [
        ({"num_layers": 2}, 8, 6, "units"),
        ({"num_layers": 3}, 7, 6, "units"),
        ({"bidirectional": True}, 8, 6, "units"),
        ({"bidirectional": True, "num_layers": 2}, 4, 6, "units"),
        ({"bidirectional": True}, 6, 10, "units"),
        ({"bidirectional": True}, 4, 12, "rows"),
    ],
)
@pytest.mark.parametrize("ragged", [False, True])
def test_a_team_of_several_threads(more: dict[str, Any], number: int, batch: int, split: str, ragged: bool) -> None:
    """Whose threads wait for each other, or have rows of their own."""
    problem = make_problem("lstm", Shape(40, batch, 72, 72), ragged=ragged, **more)
    with threads(1):
        expected = solve(problem, np.float32)
    with threads(number):
        plans = list(problem.layer(np.float32).plan(40, batch))
        assert all(plan.beside != "nothing" and (plan.threads > 1, plan.split) == (True, split) for plan in plans)
        assert_same_bits(solve(problem, np.float32), expected)


@both
@pytest.mark.parametrize(
    "more",
    [
        {"layer_norm": True},
        {"proj_size": 20},
        {"zoneout": 0.3, "recurrent_dropout": 0.3},
        {"grad_clip": 0.1},
        {"compute_dtype": "bfloat16"},
        {"train_initial_state": True},
    ],
    ids=lambda more: "+".join(more),
)
def test_options_change_nothing_about_that(more: dict[str, Any], options: dict[str, Any]) -> None:
    layers = [rf.LSTM(56, 56, **options, **more, seed=3) for _ in range(2)]
    x = np.random.default_rng(0).standard_normal((300, 1, 56), np.float32)
    assert beside(layers[0], 300, 1) != {"nothing"}
    seen = []
    for number, layer in zip((1, 2), layers, strict=True):
        with threads(number):
            y, state, tape = layer.forward(x)
            dx, dstate = layer.backward(tape, y, need_dx=True)
            seen.append((y, *state, dx, *dstate, layer.flat_grads))
    assert_same_bits(tuple(seen[1]), tuple(seen[0]))


@both
def test_double_precision(options: dict[str, Any]) -> None:
    problem = make_problem("gru", Shape(103, 3, 56, 56), **options)
    with threads(1):
        expected = solve(problem, np.float64)
    with threads(2):
        assert_same_bits(solve(problem, np.float64), expected)


def test_gradients_are_added_and_dx_is_optional() -> None:
    x = np.random.default_rng(0).standard_normal((100, 1, 64), np.float32)
    seen = []
    for number in (1, 2):
        layer = rf.GRU(64, 64, bidirectional=True, seed=1)
        layer.flat_grads[...] = 0.25
        with threads(number):
            y, _, tape = layer.forward(x)
            assert layer.backward(tape, y, need_dx=False)[0] is None
        seen.append(layer.flat_grads)
    assert_same_bits(seen[1], seen[0])


def test_checkpoints_and_windows() -> None:
    x = np.random.default_rng(0).standard_normal((400, 1, 64), np.float32)
    seen = []
    for number, checkpoint in ((1, None), (2, None), (2, 100)):
        layer = rf.LSTM(64, 64, 2, seed=1)
        with threads(number):
            y, _, tape = layer.forward(x, checkpoint=checkpoint)
            dx, _ = layer.backward(tape, y)
        seen.append((y, dx, layer.flat_grads))
    assert_same_bits(seen[1], seen[0])
    assert_same_bits(seen[2], seen[0])


def test_the_flow_of_the_gradient() -> None:
    x = np.random.default_rng(0).standard_normal((100, 1, 64), np.float32)
    for options in (DIRECTIONS, LAYERS):
        seen = []
        for number in (1, 2):
            layer = rf.LSTM(64, 64, **options, seed=1)
            with threads(number):
                y, _, tape = layer.forward(x)
                flow = rf.gradient_flow(layer, tape, y)
                seen.append((flow.hidden, flow.cell))
        assert_same_bits(seen[1], seen[0])


def test_fewer_threads_than_were_asked_for_take_several_each() -> None:
    program = """
import numpy as np, rnnfast as rf
x = np.random.default_rng(0).standard_normal((200, 1, 64), np.float32)
for options in ({"bidirectional": True}, {"num_layers": 3}):
    seen = []
    for number in (1, 3):
        rf.set_num_threads(number)
        layer = rf.LSTM(64, 64, **options, seed=1)
        y, _, tape = layer.forward(x)
        dx, _ = layer.backward(tape, y)
        seen.append((y.tobytes(), dx.tobytes(), layer.flat_grads.tobytes()))
    assert seen[0] == seen[1]
"""
    for limit in ("2", "1"):
        environment = {**os.environ, "OMP_THREAD_LIMIT": limit}
        done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, encoding="utf-8")
        assert done.returncode == 0, done.stderr


# ---- when it ends early ----------------------------------------------------------------------------------------------


@both
def test_a_signal_ends_them(options: dict[str, Any]) -> None:
    with threads(2):
        layer, x = rf.LSTM(64, 64, **options, seed=0), repeated(60_000, 1, 64)
        assert beside(layer, *x.shape[:2]) != {"nothing"}
        interrupt(lambda: layer(x))
        y, _, tape = layer.forward(x)
        interrupt(lambda: layer.backward(tape, y))
        layer.zero_grad()
        layer.backward(tape, y)
        expected = layer.flat_grads.copy()
        layer.zero_grad()
        _, _, tape = layer.forward(x)
        layer.backward(tape, y)
        assert_same_bits(layer.flat_grads, expected)


def test_a_signal_is_seen_where_one_of_them_is_done_early() -> None:
    """The last layer, whose backward comes first and is soon over: the gradient of the other one is not there yet."""
    with threads(2):
        layer, x = rf.LSTM(700, 64, 2, seed=0), repeated(40_000, 1, 700)
        assert beside(layer, *x.shape[:2]) == {"layers"}
        y, _, tape = layer.forward(x)

        def backward() -> float:
            begun = time.perf_counter()
            layer.backward(tape, y, need_dx=False, keep=True)
            return time.perf_counter() - begun

        whole = min(backward(), backward())
        layer.flat_grads[...] = 7
        interrupt(backward, after=0.6 * whole)
        assert (layer.grads["weight_ih_l0"] == 7).all()


def test_nothing_runs_before_all_calls_are_made() -> None:
    x, y, final = np.ones((4, 2, 3), np.float32), np.full((4, 2, 5), np.nan, np.float32), np.empty((2, 5), np.float32)
    weights = {"weight_ih": np.ones((5, 3), np.float32), "weight_hh": np.ones((5, 5), np.float32), "unit_weights": ()}
    calls = _kernels.make_calls(False, 2)
    _kernels.forward(
        "rnn_tanh", x, weights, None, y, [], None, [final], None, None, False, 2, 0, 1, None, None, False, calls
    )
    assert np.isnan(y).all()
    calls.run(2)
    assert np.isfinite(y).all()
    y[...] = 7
    calls.run(2)
    assert (y == 7).all(), "calls run once"
