"""`rf.vanishing_penalty`: Ω of Pascanu, Mikolov & Bengio (2013), and what it does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import rnnfast as rf
from shapes import Shape
from support import Array, Problem, as_state, assert_same_bits, make_problem, new_layer, threads

RNNS = ("rnn_tanh", "rnn_relu", "rnn_sigmoid")

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no_state_given": {"given": False},
    "ragged": {"ragged": True},
    "resets": {"cut": True},
    "stacked": {"num_layers": 2},
    "everything": {"num_layers": 2, "bidirectional": True, "ragged": True, "cut": True},
}
SLOPES = {
    "rnn_tanh": lambda h: 1 - h**2,
    "rnn_sigmoid": lambda h: h * (1 - h),
    "rnn_relu": lambda h: 1.0 * (h > 0),
}


def forward(problem: Problem, layer: Any, checkpoint: Any = None) -> Any:
    """The tape."""
    state = None if problem.state is None else as_state(tuple(s.astype(layer.dtype) for s in problem.state))
    x = problem.x.astype(layer.dtype)
    return layer.forward(x, state, problem.lengths, problem.resets, checkpoint=checkpoint)[2]


def losses(problem: Problem, layer: Any) -> tuple[Array, Any]:
    """dy and dstate."""
    return problem.dy.astype(layer.dtype), as_state(tuple(s.astype(layer.dtype) for s in problem.dstate))


def gradients_of_h(problem: Problem, layer: Any) -> Array:
    """∂L/∂h_t (L·D, T, B, H), from what the penalty looks at too."""
    tape, (dy, dstate) = forward(problem, layer), losses(problem, layer)
    seen = np.zeros(tape.hidden.shape)

    def watch(k: int, run: Any, gradients: tuple[Array, ...]) -> None:
        seen[k] = gradients[0]

    from rnnfast.flow import watched_backward

    watched_backward(layer, tape, dy, dstate, watch)
    return seen


def by_hand(problem: Problem, weights: list[Array], hidden: Array, gradients: Array) -> float:
    """Ω in loops, for other recurrent weights but the same h and ∂L/∂h."""
    directions = 2 if problem.options["bidirectional"] else 1
    total = 0.0
    for k, weight in enumerate(weights):
        for b in range(problem.shape.batch):
            length = problem.shape.steps if problem.lengths is None else problem.lengths[b]
            for t in range(length):
                before = t + 1 if k % directions else t - 1
                cut = problem.resets is not None and problem.resets[max(t, before) % problem.shape.steps, b]
                if not 0 <= before < length or cut or not gradients[k, t, b].any():
                    continue
                g = gradients[k, t, b]
                passed = (g * SLOPES[problem.cell](hidden[k, t, b])) @ weight
                total += (np.linalg.norm(passed) / np.linalg.norm(g) - 1) ** 2
    return total / problem.shape.batch


@pytest.mark.parametrize("cell", RNNS)
@pytest.mark.parametrize("options", OPTIONS)
def test_it_is_the_papers_and_its_gradient_the_slope_with_the_rest_held(options: str, cell: str) -> None:
    problem = make_problem(cell, Shape(6, 5, 3, 4), **OPTIONS[options])
    layer = problem.layer(np.float64)
    names = [name for name in layer.params if name.startswith("weight_hh")]
    hidden, gradients = forward(problem, layer).hidden, gradients_of_h(problem, layer)
    weights = [layer.params[name].copy() for name in names]
    dy, dstate = losses(problem, layer)
    omega = rf.vanishing_penalty(layer, forward(problem, layer), dy, dstate, weight=0.5)
    np.testing.assert_allclose(omega, by_hand(problem, weights, hidden, gradients), rtol=1e-12)
    for name, weight in zip(names, weights, strict=True):
        slopes = np.zeros_like(weight)
        for element in np.ndindex(*weight.shape):
            before = weight[element]
            weight[element] = before + 1e-6
            above = by_hand(problem, weights, hidden, gradients)
            weight[element] = before - 1e-6
            slopes[element] = (above - by_hand(problem, weights, hidden, gradients)) / 2e-6
            weight[element] = before
        np.testing.assert_allclose(layer.grads[name], 0.5 * slopes, rtol=1e-5, atol=1e-8, err_msg=name)
    others = [name for name in layer.params if name not in names]
    assert not any(layer.grads[name].any() for name in others)


@pytest.mark.parametrize("cell", RNNS)
def test_segments_change_nothing_but_the_order_of_the_sum(cell: str) -> None:
    problem = make_problem(cell, Shape(11, 5, 3, 4), num_layers=2, ragged=True, cut=True)
    results = []
    for checkpoint in (None, 1, 4):
        layer = problem.layer(np.float64)
        omega = rf.vanishing_penalty(layer, forward(problem, layer, checkpoint), *losses(problem, layer))
        results.append((omega, layer.flat_grads.copy()))
    for omega, grads in results[1:]:
        np.testing.assert_allclose(omega, results[0][0], rtol=1e-12)
        np.testing.assert_allclose(grads, results[0][1], rtol=1e-12, atol=1e-14)


def test_threads_do_not_change_a_bit_of_it() -> None:
    problem = make_problem("rnn_tanh", Shape(12, 20, 3, 48), num_layers=2, ragged=True)
    results = []
    for number in (1, 2, 3):
        layer = problem.layer(np.float32)
        with threads(number):
            omega = rf.vanishing_penalty(layer, forward(problem, layer), *losses(problem, layer))
        results.append((np.float64(omega), layer.flat_grads))
    assert_same_bits(results[1], results[0])
    assert_same_bits(results[2], results[0])


def test_the_gradient_goes_where_it_is_told_and_adds_up() -> None:
    problem = make_problem("rnn_tanh", Shape(6, 5, 3, 4))
    layer = problem.layer(np.float32)
    tape = forward(problem, layer)
    elsewhere = np.zeros_like(layer.flat_grads)
    omega = rf.vanishing_penalty(layer, tape, *losses(problem, layer), grads=elsewhere)
    assert not layer.flat_grads.any()
    for _ in range(2):
        assert rf.vanishing_penalty(layer, tape, *losses(problem, layer)) == omega
    assert_same_bits(layer.flat_grads, 2 * elsewhere)
    assert rf.vanishing_penalty(layer, tape, *losses(problem, layer), weight=0) == omega
    assert_same_bits(layer.flat_grads, 2 * elsewhere)
    layer.backward(tape, None)


@pytest.mark.parametrize("size", [1e-30, 1e-15, 1e15])
def test_the_size_of_the_loss_does_not_matter(size: float) -> None:
    """Float32 numbers whose squares are zero or infinite."""
    problem = make_problem("rnn_tanh", Shape(4, 5, 3, 4))
    results = []
    for factor in (1.0, size):
        layer = problem.layer(np.float32)
        dy, dstate = losses(problem, layer)
        omega = rf.vanishing_penalty(layer, forward(problem, layer), dy * factor, dstate * factor)
        results.append((omega, layer.flat_grads))
    np.testing.assert_allclose(results[1][0], results[0][0], rtol=1e-4)
    np.testing.assert_allclose(results[1][1], results[0][1], rtol=1e-3, atol=1e-5)


def test_no_gradient_no_penalty() -> None:
    layer = rf.RNN(3, 5, seed=0)
    for x in (np.ones((4, 2, 3), np.float32), np.ones((4, 0, 3), np.float32), np.ones((0, 2, 3), np.float32)):
        assert rf.vanishing_penalty(layer, layer.forward(x)[2], None) == 0
    dead = rf.RNN(3, 5, nonlinearity="relu", seed=0)
    dead.params["bias_ih_l0"] = np.full(5, -100)
    y, _, tape = dead.forward(np.ones((4, 2, 3), np.float32))
    assert rf.vanishing_penalty(dead, tape, np.ones_like(y)) == 3  # nothing passes any of the three steps back
    assert not dead.flat_grads.any()


# ---- what it does ----------------------------------------------------------------------------------------------------


def remember_the_first_bit(weight: float, steps: int = 50, updates: int = 150) -> tuple[float, float]:
    """A tanh RNN is to tell at the end what the first step said.

    Returns how often it is right in the end, and ‖∂L/∂h‖ of the first step over that of the last.
    """
    layer, head = rf.RNN(2, 32, seed=0), rf.Linear(32, 2, seed=1)
    model = rf.Sequential(layer, rf.Last(), head)
    optimizer, random = rf.Adam(model, lr=1e-3), np.random.default_rng(0)
    right = []
    for _ in range(updates):
        bits = random.integers(0, 2, 32)
        x = 0.3 * random.standard_normal((steps, 32, 2)).astype(np.float32)
        x[..., 1] = 0
        x[0, :, 1] = 2 * bits - 1
        model.zero_grad()
        logits, _, tape = model.forward(x)
        _, dlogits = rf.softmax_cross_entropy(logits, bits)
        right.append(np.mean(logits.argmax(axis=1) == bits))
        scratch = np.zeros_like(head.flat_grads)
        dlast, _ = head.backward(tape[2], dlogits, keep=True, grads=scratch)
        dy, _ = model[1].backward(tape[1], dlast, keep=True)
        if weight:
            rf.vanishing_penalty(layer, tape[0], dy, weight=weight)
        if len(right) == updates:
            flow = rf.gradient_flow(layer, tape[0], dy).hidden[0]
        model.backward(tape, dlogits, need_dx=False)
        optimizer.step(clip_norm=1.0)
    return float(np.mean(right[-30:])), float(np.median(flow[0] / flow[-1]))


def test_with_it_a_tanh_network_learns_what_is_50_steps_back() -> None:
    with threads(1):
        right, reaches = remember_the_first_bit(weight=0.1)
        chance, vanishes = remember_the_first_bit(weight=0.0)
    assert right > 0.95
    assert reaches > 0.01
    assert chance < 0.7
    assert vanishes < 1e-6


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", ["lstm", "gru", "ind_rnn_relu", "min_gru"])
def test_refuses_other_cells_by_name(cell: str) -> None:
    layer = new_layer(cell, 3, 5)
    y, _, tape = layer.forward(np.ones((4, 2, 3), np.float32))
    with pytest.raises(TypeError, match=f"layer: expected an RNN, got {type(layer).__name__}"):
        rf.vanishing_penalty(layer, tape, y)


@pytest.mark.parametrize("options", [{"layer_norm": True}, {"zoneout": 0.5}, {"recurrent_dropout": 0.5}])
def test_refuses_by_name_what_gives_h_another_way_back(options: dict[str, Any]) -> None:
    layer = rf.RNN(3, 5, seed=0, **options)
    y, _, tape = layer.forward(np.ones((4, 2, 3), np.float32))
    (option,) = options
    with pytest.raises(ValueError, match=f"layer: expected an RNN without {option}, which changes .*, got "):
        rf.vanishing_penalty(layer, tape, y)


def test_refuses_wrong_arguments() -> None:
    layer = rf.RNN(3, 5, seed=0)
    y, _, tape = layer.forward(np.ones((4, 2, 3), np.float32))
    with pytest.raises(ValueError, match="weight: expected a number >= 0 and finite, got -1"):
        rf.vanishing_penalty(layer, tape, y, weight=-1)
    with pytest.raises(ValueError, match=r"dy: expected \(4, 2, 5\)"):
        rf.vanishing_penalty(layer, tape, y[:, :, :2])
    with pytest.raises(TypeError, match="grads: expected an array or a mapping"):
        rf.vanishing_penalty(layer, tape, y, grads=3)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="another module"):
        rf.vanishing_penalty(rf.RNN(3, 5), tape, y)
    assert not layer.flat_grads.any()
