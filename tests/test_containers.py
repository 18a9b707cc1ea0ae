"""Modules in a row: one buffer, one owner, one entry of the state each."""

from __future__ import annotations

import copy

import numpy as np
import pytest

import rnnfast as rf
from module_cases import draw, language_model, leaves


def test_sequential_moves_its_modules_into_one_buffer() -> None:
    parts = rf.Embedding(7, 4, seed=1), rf.LSTM(4, 5, seed=2), rf.Linear(5, 7, seed=3)
    values = np.concatenate([part.flat_params for part in parts])
    parts[2].grads["bias"] += 3
    model = rf.Sequential(*parts)
    assert np.array_equal(model.flat_params, values)
    assert model.grads["2.bias"].tolist() == [3] * 7
    assert list(model.params)[:3] == ["0.weight", "1.weight_ih_l0", "1.weight_hh_l0"]
    model.flat_params[...] = np.arange(values.size)
    assert parts[0].params["weight"][0, 0] == 0
    assert parts[2].params["bias"][-1] == values.size - 1
    parts[1].params["bias_ih_l0"] = np.zeros(20)
    assert not model.params["1.bias_ih_l0"].any()
    assert model.flat_params.flags.c_contiguous


def test_sequentials_nest() -> None:
    inner = rf.Sequential(rf.LSTM(4, 5, seed=2), rf.Linear(5, 7, seed=3))
    model = rf.Sequential(rf.Embedding(7, 4, seed=1), inner)
    flat = rf.Sequential(rf.Embedding(7, 4, seed=1), rf.LSTM(4, 5, seed=2), rf.Linear(5, 7, seed=3))
    assert list(model.params)[-1] == "1.1.bias"
    assert np.shares_memory(inner[1].params["bias"], model.flat_params)
    tokens = np.ones((3, 2), np.int64)
    y, state, tape = model.forward(tokens)
    expected, _, flat_tape = flat.forward(tokens)
    assert np.array_equal(y, expected)
    assert [len(leaves(entry)) for entry in state] == [0, 2]
    model.backward(tape, np.ones_like(y))
    flat.backward(flat_tape, np.ones_like(y))
    assert np.array_equal(model.flat_grads, flat.flat_grads)


def test_a_module_has_one_owner() -> None:
    layer = rf.Linear(4, 4)
    with pytest.raises(ValueError, match="Linear at position 1 already belongs to a Sequential"):
        rf.Sequential(layer, layer)
    rf.Sequential(layer)
    free = rf.Linear(4, 4)
    with pytest.raises(ValueError, match="Linear at position 1 already belongs to a Sequential"):
        rf.Sequential(free, layer)
    rf.Sequential(free, copy.deepcopy(layer))


def test_sequential_refuses_what_does_not_fit_together() -> None:
    with pytest.raises(ValueError, match="modules: expected at least one, got none"):
        rf.Sequential()
    with pytest.raises(TypeError, match="modules: expected modules, got list at position 0"):
        rf.Sequential([rf.Linear(4, 4)])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="expected one dtype for all, got float32, float64"):
        rf.Sequential(rf.Linear(4, 4), rf.Linear(4, 4, dtype=np.float64))
    with pytest.raises(ValueError, match="expected one batch_first for all, got LSTM at 0: True, Linear at 1: False"):
        rf.Sequential(rf.LSTM(4, 4, batch_first=True), rf.Linear(4, 4))
    rf.Sequential(rf.LSTM(4, 4, batch_first=True), rf.Last(batch_first=True), rf.Linear(4, 4))


def test_an_error_inside_a_sequential_says_where() -> None:
    model = rf.Sequential(rf.Linear(4, 4), rf.Linear(5, 4))
    with pytest.raises(ValueError, match=r"x: expected \(…, 5\), got \(3, 2, 4\)") as caught:
        model(draw(3, 2, 4))
    assert caught.value.__notes__ == ["in module 1 of a Sequential: Linear(5, 4)"]


def test_states_of_a_sequential_are_one_entry_a_module() -> None:
    model, x = language_model(), np.zeros((3, 2), np.int64)
    y, state = model(x)
    assert len(state) == 4 and len(state[1]) == 2 and state[0] is None
    again, _ = model(x, list(state))
    assert not np.array_equal(y, again)
    with pytest.raises(ValueError, match="state: expected 4 entries, one a module, got 2"):
        model(x, state[:2])
    with pytest.raises(TypeError, match="state: expected a tuple of 4 entries, got ndarray"):
        model(x, state[1][0])
    with pytest.raises(ValueError, match="state: Embedding has no state, expected None, got ndarray"):
        model(x, (state[1][0], None, None, None))


def test_lengths_end_at_last() -> None:
    model = rf.Sequential(rf.LSTM(4, 5, seed=1), rf.Last(), rf.Dropout(0.0), rf.Linear(5, 2, seed=2))
    x = draw(6, 3, 4)
    y, _ = model(x, lengths=[6, 1, 3], resets=np.zeros((6, 3), bool))
    hidden, _ = model[0](x, lengths=[6, 1, 3])
    expected, _ = model[3](hidden[[5, 0, 2], [0, 1, 2]])
    assert np.array_equal(y, expected)


def test_train_and_eval_reach_every_module() -> None:
    part = rf.Dropout(0.5)
    model = rf.Sequential(rf.Sequential(part), rf.Linear(4, 4))
    assert model.training and part.training
    assert model.eval() is model
    assert not model.training and not part.training
    assert model.train() is model
    assert part.training


def test_a_sequential_without_parameters_works() -> None:
    model, x = rf.Sequential(rf.Dropout(0.0), rf.Last()), draw(3, 2, 4, dtype=np.float64)
    y, _, tape = model.forward(x)
    assert y.dtype == np.float64
    dx, _ = model.backward(tape, np.ones_like(y))
    assert dx is not None
    assert dx.sum() == 8
