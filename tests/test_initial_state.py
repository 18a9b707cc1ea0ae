"""`train_initial_state`: the state that stands for none is a parameter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rnnfast as rf
from shapes import Shape
from support import CELLS, Array, as_state, as_tuple, assert_same_bits, make_problem, new_layer, threads
from variants import IN_BFLOAT16, WAYS

each_cell = pytest.mark.parametrize("cell", CELLS)

VARIANTS = {**{cell: (cell, {}) for cell in CELLS}, **WAYS, **IN_BFLOAT16}

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "stacked_ragged_with_resets": {"num_layers": 2, "ragged": True, "cut": True},
    "bidirectional_ragged_with_resets": {"bidirectional": True, "ragged": True, "cut": True},
}


def trained(layer: Any) -> dict[str, Array]:
    return {name: array for name, array in layer.params.items() if name.startswith("initial_")}


def make(cell: str, shape: Shape, options: dict[str, Any], dtype: type = np.float64) -> tuple[Any, Any]:
    """A problem without a state, and its layer with an initial state of random numbers and the masks of its own."""
    problem = make_problem(cell, shape, given=False, **options)
    _, _, inputs, hidden = problem.shape
    layer = new_layer(cell, inputs, hidden, train_initial_state=True, dtype=dtype, seed=5, **problem.options)
    random = np.random.default_rng(5)
    drawn = {name: random.standard_normal(array.shape) for name, array in trained(layer).items()}
    if "initial_n" in drawn:  # a sum of positive numbers; h is divided by it
        drawn["initial_n"] = 1 + np.abs(drawn["initial_n"])
    layer.load_state_dict({**problem.params, **drawn})
    return problem, layer


def broadcast(layer: Any, batch: int) -> Any:
    return as_state(tuple(np.repeat(array[:, None], batch, axis=1) for array in trained(layer).values()))


# ---- what it is ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bidirectional", [False, True])
def test_the_state_is_zeros_at_first_and_comes_after_the_other_parameters(bidirectional: bool) -> None:
    plain = rf.LSTM(3, 5, 2, bidirectional=bidirectional, seed=0)
    layer = rf.LSTM(3, 5, 2, bidirectional=bidirectional, train_initial_state=True, seed=0)
    assert list(layer.params) == [*plain.params, "initial_h", "initial_c"]
    for array in trained(layer).values():
        assert array.shape == (4 if bidirectional else 2, 5)
        assert not array.any()
    assert_same_bits(layer.flat_params[: plain.flat_params.size], plain.flat_params)
    x = np.random.default_rng(0).standard_normal((4, 2, 3), np.float32)
    assert_same_bits(layer(x), plain(x))


@each_cell
@pytest.mark.parametrize("options", OPTIONS)
def test_no_state_stands_for_the_trained_one(options: str, cell: str) -> None:
    problem, layer = make(cell, Shape(6, 7, 3, 5), OPTIONS[options], np.float32)
    plain = problem.layer(np.float32)
    state = broadcast(layer, 7)
    assert_same_bits(
        layer(problem.x, None, problem.lengths, problem.resets),
        plain(problem.x, state, problem.lengths, problem.resets),
    )
    y, final, _ = layer.forward(problem.x, None, problem.lengths, problem.resets)
    assert_same_bits((y, final), plain(problem.x, state, problem.lengths, problem.resets))


def test_the_m_of_an_slstm_begins_at_minus_infinity() -> None:
    layer = rf.SLSTM(3, 5, train_initial_state=True, seed=0)
    assert np.isneginf(layer.params["initial_m"]).all()
    assert not any(array.any() for name, array in trained(layer).items() if name != "initial_m")
    x = np.random.default_rng(0).standard_normal((4, 2, 3), np.float32)
    assert_same_bits(layer(x), rf.SLSTM(3, 5, seed=0)(x))
    for optimizer in (rf.Adam(layer, lr=0.01, weight_decay=0.1), rf.SGD(layer, lr=0.1, momentum=0.9)):
        y, _, tape = layer.forward(x)
        layer.backward(tape, np.ones_like(y))
        assert np.isfinite(optimizer.step(clip_norm=1.0))
    assert np.isneginf(layer.params["initial_m"]).all() and layer.params["initial_h"].all()
    rf.initialize(layer, initial_m=0.0)
    rf.initialize(layer, initial_m="default")
    assert np.isneginf(layer.params["initial_m"]).all()


def test_a_reset_restores_zeros() -> None:
    problem, layer = make("gru", Shape(3, 2, 3, 5), {}, np.float32)
    resets = np.zeros((3, 2), np.bool)
    resets[0, 1] = True
    y, _ = layer(problem.x, resets=resets)
    zeros, _ = problem.layer(np.float32)(problem.x)
    assert_same_bits(y[:, 1], zeros[:, 1])
    assert (y[:, 0] != zeros[:, 0]).any()


# ---- its gradient ----------------------------------------------------------------------------------------------------


@each_cell
@pytest.mark.parametrize("options", OPTIONS)
def test_its_gradient_is_the_slope(options: str, cell: str) -> None:
    problem, layer = make(cell, Shape(4, 5, 3, 4), OPTIONS[options])
    x, dy = problem.x.astype(np.float64), problem.dy.astype(np.float64)
    dstate = tuple(s.astype(np.float64) for s in problem.dstate)
    if cell == "slstm":  # m counts as a constant: c, n and m depend on it
        dstate = dstate[0], *(np.zeros_like(s) for s in dstate[1:])

    def loss() -> float:
        y, final = layer(x, None, problem.lengths, problem.resets)
        of_states = [np.vdot(s, ds) for s, ds in zip(as_tuple(final), dstate, strict=True)]
        return float(np.nansum(y * dy) + sum(of_states))

    with threads(1):
        tape = layer.forward(x, None, problem.lengths, problem.resets)[2]
        layer.backward(tape, dy, as_state(dstate))
        for name, array in trained(layer).items():
            if name == "initial_m":
                assert not layer.grads[name].any()
                continue
            slopes = np.zeros_like(array)
            for element in np.ndindex(*array.shape):
                before = array[element]
                array[element] = before + 1e-6
                above = loss()
                array[element] = before - 1e-6
                slopes[element] = (above - loss()) / 2e-6
                array[element] = before
            np.testing.assert_allclose(layer.grads[name], slopes, rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_its_gradient_is_that_of_the_state_summed_over_the_batch(
    variant: str, bidirectional: bool, training: bool
) -> None:
    """And the other gradients are those with the same state given and the same masks; in segments too."""
    cell, of_cell = VARIANTS[variant]
    whole = {"num_layers": 2, "bidirectional": bidirectional, "ragged": True, "cut": True, **of_cell}
    problem, layer = make(cell, Shape(9, 6, 3, 12), whole, np.float32)
    layer, plain = layer.train(training), problem.layer(np.float32).train(training)
    masks = layer.rng_state
    tape = plain.forward(problem.x, broadcast(layer, 6), problem.lengths, problem.resets)[2]
    dx, dinitial = plain.backward(tape, problem.dy, as_state(problem.dstate))
    for checkpoint in (None,) if bidirectional else (None, 2):
        layer.zero_grad()
        layer.rng_state = masks
        tape = layer.forward(problem.x, None, problem.lengths, problem.resets, checkpoint=checkpoint)[2]
        assert_same_bits(layer.backward(tape, problem.dy, as_state(problem.dstate)), (dx, dinitial))
        for name, gradient in plain.grads.items():
            assert_same_bits(layer.grads[name], gradient, name)
        for name, of_rows in zip(trained(layer), as_tuple(dinitial), strict=True):
            assert_same_bits(layer.grads[name], of_rows.sum(axis=1))


def test_a_given_state_leaves_the_trained_one_alone() -> None:
    problem, layer = make("lstm", Shape(4, 3, 3, 5), {}, np.float32)
    y, state, tape = layer.forward(problem.x, broadcast(layer, 3))
    layer.backward(tape, np.ones_like(y), state)
    assert layer.grads["weight_hh_l0"].any()
    assert not any(layer.grads[name].any() for name in trained(layer))


def test_a_change_after_forward_does_not_reach_backward() -> None:
    gradients = []
    for change in (0.0, 1.0):
        problem, layer = make("gru", Shape(4, 3, 3, 5), {}, np.float32)
        y, _, tape = layer.forward(problem.x)
        layer.params["initial_h"] += change  # not noticed by the tape, as `Module` says
        layer.backward(tape, np.ones_like(y))
        gradients.append(layer.grads["weight_hh_l0"].copy())
    assert_same_bits(*gradients)


def test_an_optimiser_trains_it() -> None:
    """The first output is to be the same from an x of zeros: the state alone can tell it."""
    layer = rf.RNN(1, 4, train_initial_state=True, bias=False, seed=0)
    model = rf.Sequential(layer, rf.Linear(4, 1, bias=False, seed=1))
    assert "0.initial_h" in model.params
    optimizer = rf.Adam(model, lr=0.05)
    x, target = np.zeros((1, 3, 1), np.float32), np.full((1, 3, 1), 0.5, np.float32)
    losses = []
    for _ in range(100):
        model.zero_grad()
        y, _, tape = model.forward(x)
        loss, dy = rf.mse(y, target)
        model.backward(tape, dy)
        optimizer.step()
        losses.append(loss)
    assert losses[-1] < 0.05 * losses[0]


# ---- where else it shows ---------------------------------------------------------------------------------------------


@each_cell
def test_a_stream_begins_with_it(cell: str) -> None:
    problem, layer = make(cell, Shape(4, 3, 3, 5), {"num_layers": 2}, np.float32)
    y, _ = layer(problem.x)
    stream = layer.stream(3)
    assert_same_bits(np.stack([stream.step(x_t) for x_t in problem.x]), y)
    stream.reset([1])
    assert_same_bits(stream.step(problem.x[0])[1], y[0, 1])
    stream.reset()
    assert_same_bits(stream.step(problem.x[0]), y[0])
    stream.state = None
    assert_same_bits(stream.step(problem.x[0]), y[0])


def test_it_is_saved(tmp_path: Path) -> None:
    problem, layer = make("lstm", Shape(4, 3, 3, 5), {}, np.float32)
    assert "train_initial_state=True" in repr(layer)
    rf.save(layer, tmp_path / "model.safetensors")
    again = rf.load(tmp_path / "model.safetensors")
    assert again.config == layer.config
    assert_same_bits(again(problem.x), layer(problem.x))


def test_a_state_dict_without_it_is_for_layers_without_it() -> None:
    plain, layer = rf.LSTM(3, 5, seed=0), rf.LSTM(3, 5, train_initial_state=True, seed=1)
    with pytest.raises(ValueError, match="missing initial_h; missing initial_c"):
        layer.load_state_dict(plain.state_dict())
    with pytest.raises(ValueError, match="unexpected initial_h; unexpected initial_c"):
        plain.load_state_dict(layer.state_dict())


def test_it_is_initialised_by_name_and_by_default_with_zeros() -> None:
    layer = rf.GRU(3, 5, train_initial_state=True, seed=0)
    rf.initialize(layer, initial_h="normal", seed=0)
    assert layer.params["initial_h"].all()
    rf.initialize(layer, initial_h="default", seed=0)
    assert not layer.params["initial_h"].any()
    rf.initialize(layer, weight_hh="orthogonal", chrono=10, seed=0)
    assert not layer.params["initial_h"].any()


def test_refuses_what_is_no_truth_value() -> None:
    for kind in (rf.RNN, rf.LSTM, rf.GRU, rf.IndRNN, rf.MinGRU, rf.MinLSTM):
        with pytest.raises(TypeError, match="train_initial_state: expected a bool, got int"):
            kind(3, 5, train_initial_state=1)  # type: ignore[arg-type]
