"""What a tape promises, and the gradients that come of it for a whole model."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import rnnfast as rf
from module_cases import MODULES, RECURRENT, Array, draw, input_of, language_model, leaves


# ---- tapes -----------------------------------------------------------------------------------------------------------
def test_y_of_forward_is_read_only_and_x_is_not_copied() -> None:
    for name, make in MODULES.items():
        y, _, _ = make().forward(input_of(name, 3, 2))
        with pytest.raises(ValueError, match="read-only"):
            y[...] = 0
    x = draw(3, 2, 4)
    _, _, tape = rf.GRU(4, 5, seed=0).forward(x)
    assert np.shares_memory(tape.record.inputs[0], x)


def test_a_changed_initial_state_does_not_reach_backward() -> None:
    layer, x = rf.LSTM(4, 5, seed=0), draw(3, 2, 4)
    _, state = layer(x)
    kept = copy.deepcopy(state)
    y, _, tape = layer.forward(x, state)
    for array in state:
        array[...] = np.nan
    dx, _ = layer.backward(tape, np.ones_like(y))
    y, _, tape = layer.forward(x, kept)
    assert np.array_equal(dx, layer.backward(tape, np.ones_like(y))[0])  # type: ignore[arg-type]


def test_the_arrays_of_a_tape_are_copies() -> None:
    _, _, tape = rf.LSTM(4, 5, seed=0).forward(draw(3, 2, 4))
    for name in ("hidden", "cell", "gates"):
        before = getattr(tape, name).copy()
        getattr(tape, name)[...] = 7
        assert np.array_equal(getattr(tape, name), before)


def test_the_tape_holds_what_the_equations_say() -> None:
    layer = rf.LSTM(4, 5, 2, seed=0)
    y, (h, c), tape = layer.forward(draw(6, 3, 4))
    i, f, g, o = (tape.gates[..., k, :] for k in range(4))
    before = np.concatenate([np.zeros_like(tape.cell[:, :1]), tape.cell[:, :-1]], axis=1)
    np.testing.assert_allclose(tape.cell, f * before + i * g, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(tape.hidden, o * np.tanh(tape.cell), rtol=1e-5, atol=1e-6)
    assert np.array_equal(tape.hidden[-1], y)
    assert np.array_equal(tape.hidden[:, -1], h)
    assert np.array_equal(tape.cell[:, -1], c)


@pytest.mark.parametrize("name", MODULES)
def test_backward_consumes_the_tape(name: str) -> None:
    module = MODULES[name]()
    y, _, tape = module.forward(input_of(name, 3, 2))
    module.backward(tape, np.ones_like(y), keep=True)
    once = module.flat_grads.copy()
    module.backward(tape, np.ones_like(y))
    assert np.array_equal(module.flat_grads, 2 * once)
    with pytest.raises(RuntimeError, match="consumed by backward"):
        module.backward(tape, np.ones_like(y))
    if name in RECURRENT:
        with pytest.raises(RuntimeError, match="consumed by backward"):
            _ = tape.hidden


def test_what_is_no_tape_is_refused() -> None:
    layer = rf.GRU(4, 5, seed=0)
    y, _, tape = layer.forward(draw(3, 2, 4))
    for tape_or_not, got in ((y, "ndarray"), (None, "NoneType")):
        with pytest.raises(TypeError, match=f"tape: expected the tape of a forward call, got {got}"):
            layer.backward(tape_or_not, tape)


def test_a_refused_backward_leaves_tape_and_gradients() -> None:
    model = language_model()
    y, _, tape = model.forward(np.zeros((3, 2), np.int64))
    with pytest.raises(ValueError, match=r"dy: expected \(3, 2, 7\), got \(3, 2, 5\)"):
        model.backward(tape, draw(3, 2, 5))
    with pytest.raises(ValueError, match=r"dh: expected \(2, 2, 5\), got \(1, 2, 5\)"):
        model.backward(tape, np.ones_like(y), (None, (draw(1, 2, 5), draw(1, 2, 5)), None, None))
    with pytest.raises(ValueError, match="dstate: expected 4 entries, one a module, got 1"):
        model.backward(tape, np.ones_like(y), (None,))
    assert not model.flat_grads.any()
    model.backward(tape, np.ones_like(y))


def test_several_tapes_may_be_alive() -> None:
    layer, first, second = rf.GRU(4, 5, seed=0), draw(3, 2, 4), draw(5, 2, 4, seed=1)
    y1, state, tape1 = layer.forward(first)
    y2, _, tape2 = layer.forward(second, state)
    _, dstate = layer.backward(tape2, np.ones_like(y2))
    layer.backward(tape1, np.ones_like(y1), dstate)
    windows = layer.flat_grads.copy()
    layer.zero_grad()
    y, _, tape = layer.forward(np.concatenate([first, second]))
    layer.backward(tape, np.ones_like(y))
    np.testing.assert_allclose(windows, layer.flat_grads, rtol=1e-5, atol=1e-6)


def test_a_tape_refuses_another_module_and_changed_parameters() -> None:
    layer, x = rf.GRU(4, 5, seed=0), draw(3, 2, 4)
    y, _, tape = layer.forward(x)
    with pytest.raises(RuntimeError, match="another module"):
        rf.GRU(4, 5, seed=0).backward(tape, np.ones_like(y))
    changes: dict[str, Callable[[], object]] = {
        "an optimiser's step": rf.SGD(layer, lr=0.0).step,
        "load_state_dict": lambda: layer.load_state_dict(layer.state_dict()),
        "mark_changed": layer.mark_changed,
        "a move into a Sequential": lambda: rf.Sequential(layer),
    }
    for change in changes.values():
        y, _, tape = layer.forward(x)
        change()
        with pytest.raises(RuntimeError, match="the parameters have changed"):
            layer.backward(tape, np.ones_like(y))


def test_a_part_that_changes_makes_the_whole_tape_stale() -> None:
    model = language_model()
    y, _, tape = model.forward(np.zeros((3, 2), np.int64))
    model[1].load_state_dict(model[1].state_dict())
    with pytest.raises(RuntimeError, match="the parameters have changed"):
        model.backward(tape, np.ones_like(y))


@pytest.mark.parametrize("name", MODULES)
def test_gradients_accumulate_and_dx_can_be_left_out(name: str) -> None:
    module, x = MODULES[name](), input_of(name, 3, 2)
    y, _, tape = module.forward(x)
    dx, _ = module.backward(tape, np.ones_like(y), need_dx=False, keep=True)
    assert dx is None
    once = module.flat_grads.copy()
    module.backward(tape, np.ones_like(y))
    assert np.array_equal(module.flat_grads, 2 * once)


def test_backward_adds_into_the_gradients_it_is_given() -> None:
    model = language_model()
    y, _, tape = model.forward(np.ones((3, 2), np.int64))
    model.backward(tape, np.ones_like(y), keep=True)
    flat = np.ones_like(model.flat_grads)
    model.backward(tape, np.ones_like(y), grads=flat, keep=True)
    np.testing.assert_allclose(flat, 1 + model.flat_grads, rtol=1e-6)
    named = {name: np.zeros_like(view) for name, view in model.grads.items()}
    model.backward(tape, np.ones_like(y), grads=named, keep=True)
    assert all(np.array_equal(named[name], view) for name, view in model.grads.items())
    for wrong, error, message in (
        (flat[:-1], ValueError, r"grads: expected \(\d+,\), got"),
        (flat.astype(np.float64), TypeError, "grads: expected float32, got float64"),
        (np.zeros(2 * flat.size, np.float32)[::2], ValueError, "grads: expected a writable, aligned, C-contiguous"),
        ({"weight": flat}, ValueError, r"grads: expected the names \['0.weight'"),
        ([0.0], TypeError, "grads: expected an array or a mapping"),
    ):
        with pytest.raises(error, match=message):
            model.backward(tape, np.ones_like(y), grads=wrong, keep=True)  # type: ignore[arg-type]


def test_concurrent_calls_give_what_single_ones_give() -> None:
    model, count = language_model(), 4
    tokens = [np.full((8, 2), k) for k in range(count)]
    alone, together = np.zeros((2, count, model.flat_grads.size), np.float32)

    def run(k: int, grads: Array) -> None:
        y, _, tape = model.forward(tokens[k])
        model.backward(tape, np.ones_like(y), grads=grads)

    for k in range(count):
        run(k, alone[k])
    workers = [threading.Thread(target=run, args=(k, together[k])) for k in range(count)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert np.array_equal(alone, together)
    assert not model.flat_grads.any()


# ---- gradients of a whole model --------------------------------------------------------------------------------------
@pytest.mark.parametrize("batch_first", [False, True])
def test_gradients_of_a_model_match_central_differences(batch_first: bool) -> None:
    """Linear, bidirectional stack with dropout, dropout, last, linear; ragged, with resets and states."""
    model = rf.Sequential(
        rf.Linear(3, 4, seed=1, dtype=np.float64, batch_first=batch_first),
        rf.LSTM(4, 3, 2, dropout=0.4, bidirectional=True, seed=2, dtype=np.float64, batch_first=batch_first),
        rf.Dropout(0.3, seed=3, batch_first=batch_first),
        rf.GRU(6, 4, seed=4, dtype=np.float64, batch_first=batch_first),
        rf.Last(batch_first=batch_first),
        rf.Linear(4, 2, seed=5, dtype=np.float64),
    )
    x = draw(5, 3, 3, dtype=np.float64)
    resets = np.zeros((5, 3), bool)
    resets[2, 0] = resets[1, 2] = True
    states = [draw(4, 3, 3, seed=k, dtype=np.float64) for k in (6, 7)] + [draw(1, 3, 4, seed=8, dtype=np.float64)]
    target, weights = draw(3, 2, seed=9, dtype=np.float64), [draw(*s.shape, seed=10, dtype=np.float64) for s in states]
    key = model.rng_state
    if batch_first:
        x, resets = np.ascontiguousarray(x.swapaxes(0, 1)), resets.T

    def run() -> tuple[float, Any, Any, Any]:
        model.rng_state = key
        y, state, tape = model.forward(x, (None, tuple(states[:2]), None, states[2], None, None), [5, 4, 3], resets)
        loss, dy = rf.mse(y, target)
        ends = leaves(state)
        return loss + sum(float((w * e).sum()) for w, e in zip(weights, ends, strict=True)), dy, tape, ends

    _, dy, tape, _ = run()
    dx, dstate = model.backward(tape, dy, (None, tuple(weights[:2]), None, weights[2], None, None))
    for array, gradient in ((x, dx), *zip(states, leaves(dstate), strict=True), (model.flat_params, model.flat_grads)):
        direction = draw(*array.shape, seed=11, dtype=np.float64)
        kept, losses = array.copy(), []
        for sign in (1, -1):
            array[...] = kept + sign * 1e-6 * direction
            losses.append(run()[0])
        array[...] = kept
        assert gradient is not None
        np.testing.assert_allclose((losses[0] - losses[1]) / 2e-6, (gradient * direction).sum(), atol=1e-5, rtol=1e-4)


def test_embedding_adds_up_the_gradients_of_a_token() -> None:
    layer = rf.Embedding(4, 2, seed=0)
    y, _, tape = layer.forward([[1, 3], [1, 0]])
    assert np.array_equal(y[0, 1], layer.params["weight"][3])
    dx, _ = layer.backward(tape, np.ones_like(y))
    assert dx is None
    assert layer.grads["weight"].tolist() == [[1, 1], [2, 2], [0, 0], [1, 1]]


@pytest.mark.parametrize("shape", [(), (6,), (2, 6), (5, 2, 6), (3, 5, 2, 6)])
def test_linear_and_dropout_take_any_number_of_leading_axes(shape: tuple[int, ...]) -> None:
    layer, x = rf.Linear(4, 5, seed=0), draw(*shape, 4)
    y, _, tape = layer.forward(x)
    np.testing.assert_allclose(y, x @ layer.params["weight"].T + layer.params["bias"], rtol=1e-5, atol=1e-5)
    dy = draw(*shape, 5, seed=1)
    dx, _ = layer.backward(tape, dy)
    assert dx is not None
    np.testing.assert_allclose(dx, dy @ layer.params["weight"], rtol=1e-5, atol=1e-5)
    expected = dy.reshape(-1, 5).T @ x.reshape(-1, 4)
    np.testing.assert_allclose(layer.grads["weight"], expected, rtol=1e-4, atol=1e-5)
    assert rf.Dropout(0.5)(x)[0].shape == x.shape
    assert rf.Embedding(3, 2)(np.zeros(shape, int))[0].shape == (*shape, 2)
