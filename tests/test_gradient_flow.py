"""`rf.gradient_flow`: the norms of ∂L/∂h_t and ∂L/∂c_t, seen on the way of a backward pass."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import rnnfast as rf
from rnnfast import reference
from shapes import EXACT, Shape
from support import CELLS, DTYPES, Array, Problem, as_state, as_tuple, assert_same_bits, make_problem, masks, threads
from variants import VARIANTS, WAYS

each_cell = pytest.mark.parametrize("cell", CELLS)
each_dtype = pytest.mark.parametrize("dtype", DTYPES)


def record(problem: Problem, dtype: Any, checkpoint: Any = None, **options: Any) -> tuple[Any, Any]:
    """A layer and the tape of its first call."""
    layer = problem.layer(dtype, **options)
    state = None if problem.state is None else as_state(tuple(s.astype(dtype) for s in problem.state))
    form = problem.lengths, problem.resets
    return layer, layer.forward(problem.x.astype(dtype), state, *form, checkpoint=checkpoint)[2]


def flow_of(problem: Problem, dtype: Any, checkpoint: Any = None, **options: Any) -> tuple[rf.GradientFlow, Any]:
    layer, tape = record(problem, dtype, checkpoint, **options)
    dstate = as_state(tuple(s.astype(dtype) for s in problem.dstate))
    return rf.gradient_flow(layer, tape, problem.dy.astype(dtype), dstate), layer


def gradients_of_rest(problem: Problem, begin: int, state: tuple[Array, ...]) -> tuple[Array, ...]:
    """Of the state (·, B, H) at which the sequence is cut, by the reference: of the steps from `begin` on alone."""
    keep, scale = masks(problem)
    tape = reference.forward(
        problem.cells,
        problem.params,
        problem.x[begin:],
        as_state(state),
        None if problem.lengths is None else np.maximum(problem.lengths - begin, 0),
        None if problem.resets is None else problem.resets[begin:],
        keep=as_state(tuple(share[:, begin:] if share.ndim > 1 else share for share in keep)),
        recurrent_scale=scale,
    )[2]
    clip = problem.options.get("grad_clip") or np.inf
    return as_tuple(reference.backward(tape, problem.dy[begin:], as_state(problem.dstate), clip=clip)[1])


def norm(array: Array) -> Array:
    result: Array = np.linalg.norm(array.astype(np.float64), axis=-1)
    return result


# ---- what it is ------------------------------------------------------------------------------------------------------


MASKED = [name for name, (_, options) in WAYS.items() if {"zoneout", "recurrent_dropout"} & options.keys()]


@pytest.mark.parametrize("form", [{}, {"ragged": True, "cut": True}], ids=str)
@pytest.mark.parametrize(
    ("variant", "training"), [*((name, True) for name in [*CELLS, *WAYS]), *((name, False) for name in MASKED)]
)
def test_it_is_the_gradient_of_the_state_at_which_a_sequence_is_cut(
    variant: str, training: bool, form: dict[str, Any]
) -> None:
    """∂L/∂h_t = dy_t + the gradient of the initial state of the steps after t; clamped, if it is to be."""
    cell, options = WAYS.get(variant, (variant, {}))
    problem = replace(make_problem(cell, Shape(5, 5, 3, 6), **form, **options), training=training)
    flow, _ = flow_of(problem, np.float64)
    _, tape = record(problem, np.float64)
    clip = options.get("grad_clip", np.inf)
    for t in range(5):
        dh, *_ = gradients_of_rest(problem, t + 1, tuple(s[:, t] for s in tape.states))
        runs = True if problem.lengths is None else problem.lengths > t
        expected = np.where(runs, norm(np.clip(dh[0] + problem.dy[t], -clip, clip)), 0)
        np.testing.assert_allclose(flow.hidden[0, t], expected, rtol=1e-10, err_msg=f"step {t}")


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("option", ["plain", "projection", "layer_norm", "recurrent_dropout", "zoneout_of_each"])
def test_of_the_cell_state_it_is_the_whole_gradient_too(option: str, training: bool) -> None:
    """What comes from later steps and through h of the same step, which zoneout makes of a c of its own."""
    options = {} if option == "plain" else VARIANTS[f"lstm-{option}"][1]
    problem = replace(make_problem("lstm", Shape(6, 4, 3, 6), **options), training=training)
    flow, _ = flow_of(problem, np.float64)
    _, tape = record(problem, np.float64)
    c, o = tape.cell[0], tape.gates[0, :, :, 3]
    for t in range(6):
        dh, dc = gradients_of_rest(problem, t + 1, tuple(s[:, t] for s in tape.states))
        dh = (dh[0] + problem.dy[t]) @ problem.params.get("weight_hr_l0", np.eye(6))
        through_h = 0 if "zoneout" in options else dh * o[t] * (1 - np.tanh(c[t]) ** 2)
        np.testing.assert_allclose(flow.cell[0, t], norm(dc[0] + through_h), rtol=1e-10, err_msg=f"step {t}")


@each_cell
def test_a_stack_is_its_layers_one_after_another(cell: str) -> None:
    problem = make_problem(cell, Shape(7, 5, 4, 6), num_layers=2, given=False, ragged=True, cut=True)
    flow, layer = flow_of(problem, np.float64)
    single = {"num_layers": 1, "given": False}
    inputs = problem.shape.input, 6
    lower, upper = (
        make_problem(layer._cell_of(k), Shape(7, 5, inputs[k], 6), **single).layer(np.float64) for k in (0, 1)
    )
    for k, part in enumerate((lower, upper)):
        part.load_state_dict(
            {name.replace(f"_l{k}", "_l0"): array for name, array in layer.params.items() if f"_l{k}" in name}
        )
    form = None, problem.lengths, problem.resets
    between, _, below = lower.forward(problem.x.astype(np.float64), *form)
    above = upper.forward(between, *form)[2]
    dy = problem.dy.astype(np.float64)
    dlower, dupper = (as_state(tuple(s[k : k + 1].astype(np.float64) for s in problem.dstate)) for k in (0, 1))
    dbetween, _ = upper.backward(above, dy, dupper, keep=True)
    np.testing.assert_array_equal(flow.hidden[1], rf.gradient_flow(upper, above, dy, dupper).hidden[0])
    np.testing.assert_array_equal(flow.hidden[0], rf.gradient_flow(lower, below, dbetween, dlower).hidden[0])


@each_cell
def test_the_second_direction_is_a_layer_that_reads_from_the_end(cell: str) -> None:
    problem = make_problem(cell, Shape(7, 5, 4, 6), bidirectional=True, given=False)
    flow, layer = flow_of(problem, np.float64)
    single = make_problem(cell, Shape(7, 5, 4, 6), given=False).layer(np.float64)
    single.load_state_dict(
        {name.removesuffix("_reverse"): array for name, array in layer.params.items() if name.endswith("_reverse")}
    )
    tape = single.forward(problem.x[::-1].astype(np.float64))[2]
    dy = problem.dy[::-1, :, 6:].astype(np.float64)
    reverse = rf.gradient_flow(single, tape, dy, as_state(tuple(s[1:].astype(np.float64) for s in problem.dstate)))
    np.testing.assert_allclose(flow.hidden[1], reverse.hidden[0, ::-1], rtol=1e-12)


@each_dtype
@each_cell
def test_threads_segments_and_layout_do_not_change_a_bit(cell: str, dtype: type) -> None:
    problem = make_problem(cell, EXACT["hidden_48"], num_layers=2, ragged=True, cut=True)
    with threads(1):
        expected, _ = flow_of(problem, dtype)
    for number, checkpoint in ((2, None), (3, 5), (2, True)):
        with threads(number):
            assert_same_bits(flow_of(problem, dtype, checkpoint)[0].states, expected.states)
    layer = problem.layer(dtype, batch_first=True)
    assert problem.resets is not None
    state = as_state(tuple(s.astype(dtype) for s in problem.state or ()))
    tape = layer.forward(problem.x.swapaxes(0, 1).astype(dtype), state, problem.lengths, problem.resets.T)[2]
    dstate = as_state(tuple(s.astype(dtype) for s in problem.dstate))
    flow = rf.gradient_flow(layer, tape, problem.dy.swapaxes(0, 1).astype(dtype), dstate)
    assert_same_bits(flow.states, expected.states)


@each_cell
@pytest.mark.parametrize("clip", [1e-3, 0.3])
def test_a_bound_on_the_gradient_bounds_its_flow(clip: float, cell: str) -> None:
    problem = make_problem(cell, Shape(9, 5, 4, 6), num_layers=2, bidirectional=True, ragged=True)
    flow, _ = flow_of(problem, np.float32, grad_clip=clip)
    most = np.float32(clip) * np.sqrt(6)
    assert flow.hidden.max() <= most * (1 + 1e-6)
    assert flow.hidden.max() >= 0.5 * most


# ---- what it leaves --------------------------------------------------------------------------------------------------


def test_tape_and_gradients_stay_as_they_were() -> None:
    problem = make_problem("lstm", Shape(5, 3, 4, 6), num_layers=2)
    layer = problem.layer(np.float32)
    tape = layer.forward(problem.x)[2]
    layer.flat_grads[...] = 1
    rf.gradient_flow(layer, tape, problem.dy)
    assert (layer.flat_grads == 1).all()
    dx, _ = layer.backward(tape, problem.dy)
    other = problem.layer(np.float32)
    assert_same_bits(dx, other.backward(other.forward(problem.x)[2], problem.dy)[0])


@each_dtype
def test_no_gradient_is_too_small_to_be_seen(dtype: type) -> None:
    """Their squares are zero in the layer's own dtype."""
    layer = rf.GRU(3, 5, dtype=dtype, seed=0)
    y, _, tape = layer.forward(np.zeros((4, 2, 3), dtype))
    small = float(np.finfo(dtype).tiny) * 1e6
    ones = rf.gradient_flow(layer, tape, np.ones_like(y)).hidden
    flow = rf.gradient_flow(layer, tape, np.full_like(y, small)).hidden
    np.testing.assert_allclose(flow, small * ones, rtol=1e-4)
    large = rf.gradient_flow(layer, tape, np.full_like(y, float(np.finfo(dtype).max) / 100)).hidden
    assert np.isfinite(large).all()


def test_what_is_infinite_stays_so() -> None:
    layer = rf.GRU(3, 5, seed=0)
    y, _, tape = layer.forward(np.zeros((1, 3, 3), np.float32))
    dy = np.ones_like(y)
    dy[0, 1, 2], dy[0, 2, 0] = np.inf, np.nan
    first, second, third = rf.gradient_flow(layer, tape, dy).hidden[0, 0]
    assert np.isfinite(first)
    assert np.isposinf(second)
    assert np.isnan(third)


def test_a_network_without_cell_state_says_so() -> None:
    layer = rf.GRU(3, 5, seed=0)
    _, state, tape = layer.forward(np.zeros((4, 2, 3), np.float32))
    flow = rf.gradient_flow(layer, tape, None, state)
    assert repr(flow) == "GradientFlow(1 × (1, 4, 2))"
    with pytest.raises(AttributeError, match="cell: this layer has no state but h"):
        _ = flow.cell


# ---- what is refused -------------------------------------------------------------------------------------------------


def test_refuses_what_is_no_recurrent_layer() -> None:
    model = rf.Sequential(rf.GRU(3, 5, seed=0), rf.Linear(5, 2, seed=1))
    y, _, tape = model.forward(np.zeros((4, 2, 3), np.float32))
    with pytest.raises(TypeError, match="layer: expected a recurrent layer, got Sequential"):
        rf.gradient_flow(model, tape, y)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="tape: made by another module"):
        rf.gradient_flow(rf.GRU(3, 5), tape[0], np.zeros((4, 2, 5), np.float32))
    with pytest.raises(TypeError, match="tape: expected the tape of a forward call, got ndarray"):
        rf.gradient_flow(rf.GRU(3, 5), y, y)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"dy: expected \(4, 2, 5\), got \(4, 2, 2\)"):
        rf.gradient_flow(model[0], tape[0], y)  # type: ignore[arg-type]
    flow = rf.gradient_flow(model[0], tape[0], np.ones((4, 2, 5), np.float32))  # type: ignore[arg-type]
    assert flow.hidden.shape == (1, 4, 2)
    model.backward(tape, y)
    with pytest.raises(RuntimeError, match="consumed"):
        rf.gradient_flow(model[0], tape[0], None)  # type: ignore[arg-type]
