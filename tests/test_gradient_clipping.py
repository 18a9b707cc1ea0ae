"""`grad_clip`: ∂L/∂h clamped at every step, before it goes back through the cell."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import rnnfast as rf
from shapes import EXACT, SMALL
from support import CELLS, DTYPES, Array, as_state, assert_same_bits, make_problem, new_layer, solve, threads

each_cell = pytest.mark.parametrize("cell", CELLS)
each_dtype = pytest.mark.parametrize("dtype", DTYPES)


def clipped_by_hand(
    params: dict[str, Array], x: Array, h0: Array, dy: Array, dh_last: Array, clip: float
) -> dict[str, Array]:
    """Backpropagation through a tanh RNN, a loop over its steps."""
    w, r = params["weight_ih_l0"], params["weight_hh_l0"]
    h = [h0]
    for x_t in x:
        h.append(np.tanh(x_t @ w.T + params["bias_ih_l0"] + h[-1] @ r.T + params["bias_hh_l0"]))
    dw, dr, db, dx = np.zeros_like(w), np.zeros_like(r), np.zeros(len(w)), np.zeros_like(x)
    dh = dh_last
    for t in reversed(range(len(x))):
        dz = np.clip(dh + dy[t], -clip, clip) * (1 - h[t + 1] ** 2)
        dw, dr, db = dw + dz.T @ x[t], dr + dz.T @ h[t], db + dz.sum(axis=0)
        dx[t], dh = dz @ w, dz @ r
    return {"dx": dx, "dh0": dh, "weight_ih_l0": dw, "weight_hh_l0": dr, "bias_ih_l0": db, "bias_hh_l0": db}


@pytest.mark.parametrize("clip", [0.05, 0.5, 100.0])
def test_every_step_is_clamped_as_by_hand(clip: float) -> None:
    random = np.random.default_rng(0)
    layer = rf.RNN(3, 5, grad_clip=clip, dtype=np.float64, seed=0)
    layer.params["weight_hh_l0"] *= 4  # so that the gradient grows
    x, dy = random.standard_normal((12, 4, 3)), random.standard_normal((12, 4, 5))
    h0, dh_last = random.standard_normal((2, 1, 4, 5))
    _, _, tape = layer.forward(x, h0)
    dx, dh0 = layer.backward(tape, dy, dh_last)
    expected = clipped_by_hand(layer.state_dict(), x, h0[0], dy, dh_last[0], clip)
    for name, got in {"dx": dx, "dh0": dh0[0], **layer.grads}.items():
        np.testing.assert_allclose(got, expected[name], rtol=1e-10, atol=1e-12, err_msg=name)


@each_dtype
@each_cell
def test_a_bound_that_nothing_reaches_changes_no_bit(cell: str, dtype: type) -> None:
    problem = make_problem(cell, SMALL["hidden_tail"], num_layers=2, bidirectional=True, ragged=True, cut=True)
    bounded = replace(problem, options={**problem.options, "grad_clip": 1e30})
    assert_same_bits(solve(bounded, dtype), solve(problem, dtype))


@each_cell
def test_threads_and_segments_do_not_change_a_bit_of_clamped_gradients(cell: str) -> None:
    problem = make_problem(cell, EXACT["hidden_48"], num_layers=2, ragged=True, cut=True)
    results = []
    for number, checkpoint in ((1, None), (2, None), (3, None), (2, 5), (1, True)):
        layer = problem.layer(np.float32, grad_clip=0.3)
        with threads(number):
            tape = layer.forward(
                problem.x, as_state(problem.state or ()), problem.lengths, problem.resets, checkpoint=checkpoint
            )[2]
            dx, _ = layer.backward(tape, problem.dy, as_state(problem.dstate))
        results.append({"dx": dx, **layer.grads})
    unclamped = problem.layer(np.float32)
    tape = unclamped.forward(problem.x, as_state(problem.state or ()), problem.lengths, problem.resets)[2]
    unclamped.backward(tape, problem.dy, as_state(problem.dstate))
    assert (unclamped.flat_grads != layer.flat_grads).any()
    for other in results[1:]:
        assert_same_bits(other, results[0])


def test_a_gradient_that_is_no_number_stays_one() -> None:
    layer = rf.GRU(3, 5, grad_clip=1.0, seed=0)
    y, _, tape = layer.forward(np.ones((4, 2, 3), np.float32))
    dy = np.ones_like(y)
    dy[2, 1, 0] = np.nan
    dx, _ = layer.backward(tape, dy)
    assert dx is not None
    assert np.isnan(dx[:3, 1]).all()
    assert not np.isnan(dx[:, 0]).any()


@each_cell
def test_the_bound_is_part_of_the_description_and_of_a_file(cell: str, tmp_path: Any) -> None:
    layer = new_layer(cell, 3, 5, grad_clip=0.25, seed=0)
    assert "grad_clip=0.25" in repr(layer)
    assert "grad_clip" not in repr(new_layer(cell, 3, 5))
    rf.save(layer, tmp_path / "model.safetensors")
    again: Any = rf.load(tmp_path / "model.safetensors")
    assert (again.grad_clip, again.config) == (0.25, layer.config)


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (0.0, ValueError, "grad_clip: expected a number > 0 and finite, got 0"),
        (-1, ValueError, "grad_clip: expected a number > 0 and finite, got -1"),
        (math.inf, ValueError, "grad_clip: expected a number > 0 and finite, got inf"),
        (math.nan, ValueError, "grad_clip: .* got nan"),
        ("1", TypeError, "grad_clip: expected a number, got str"),
    ],
)
def test_wrong_bounds_are_refused(value: Any, error: type[Exception], message: str) -> None:
    for kind in (rf.RNN, rf.LSTM, rf.GRU, rf.IndRNN, rf.MinGRU, rf.MinLSTM):
        with pytest.raises(error, match=message):
            kind(3, 5, grad_clip=value)
