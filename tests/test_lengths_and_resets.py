"""What lengths and resets mean, said by layers alone: a row ends at its length; a reset cuts a sequence in two."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from shapes import Shape
from support import (
    CELLS,
    Array,
    Problem,
    as_state,
    as_tuple,
    assert_same_bits,
    initial_states,
    make_problem,
    solve,
)

pytestmark = pytest.mark.usefixtures("one_thread")
SHAPE = Shape(8, 6, 5, 11)

each_cell = pytest.mark.parametrize("cell", CELLS)


def forward(layer: Any, x: Array, state: tuple[Array, ...], **arguments: Any) -> tuple[Array, tuple[Array, ...]]:
    y, final = layer(x, as_state(state), **arguments)
    return y, as_tuple(final)


def first(problem: Problem) -> tuple[Array, ...]:
    assert problem.state is not None
    return problem.state


# ---- lengths ---------------------------------------------------------------------------------------------------------


@each_cell
def test_nothing_past_a_length_is_read_and_zeros_are_written(cell: str) -> None:
    """x and dy hold NaN there; y, dx and the tape hold zeros."""
    problem = make_problem(cell, SHAPE, num_layers=2, bidirectional=True, ragged=True)
    assert problem.lengths is not None and np.isnan(problem.x).any() and np.isnan(problem.dy).any()
    solution = solve(problem, np.float32)
    padding = np.arange(SHAPE.steps)[:, None] >= problem.lengths
    for name in ("y", "dx"):
        assert not solution[name][padding].any()
    for name in ("tape's states", "tape's gates"):
        assert not solution[name][:, padding].any()
    assert all(np.isfinite(array).all() for array in solution.values())


@each_cell
def test_at_length_zero_the_state_passes_through(cell: str) -> None:
    """And its gradient, back; nothing reaches the parameters."""
    problem = replace(make_problem(cell, SHAPE, num_layers=2, bidirectional=True), lengths=np.zeros(6, np.int64))
    solution = solve(problem, np.float32)
    for k, (state, dstate) in enumerate(zip(first(problem), problem.dstate, strict=True)):
        assert_same_bits(solution[f"final state {k}"], state)
        assert_same_bits(solution[f"gradient of state {k}"], dstate)
    assert not any(array.any() for name, array in solution.items() if "state " not in name)


@each_cell
def test_the_final_state_is_the_one_at_the_length(cell: str) -> None:
    problem = make_problem(cell, SHAPE, ragged=True)
    assert problem.lengths is not None
    y, final = forward(problem.layer(np.float32), problem.x, first(problem), lengths=problem.lengths)
    for b, length in enumerate(problem.lengths):
        assert_same_bits(final[0][0, b], y[length - 1, b] if length else first(problem)[0][0, b])


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint32", "int64", "uint64", ">i4"])
def test_lengths_may_be_any_integers(dtype: str) -> None:
    problem = make_problem("lstm", SHAPE, ragged=True)
    assert problem.lengths is not None
    layer = problem.layer(np.float32)
    expected = layer(problem.x, lengths=problem.lengths)[0]
    assert_same_bits(layer(problem.x, lengths=problem.lengths.astype(dtype))[0], expected)
    assert_same_bits(layer(problem.x, lengths=problem.lengths.tolist())[0], expected)


def test_lengths_of_no_rows_may_be_an_empty_list() -> None:
    """Though NumPy takes that for one of float64."""
    problem = make_problem("lstm", Shape(3, 0, 4, 5))
    y, _ = problem.layer(np.float32)(problem.x, lengths=[])
    assert y.shape == (3, 0, 5)


def test_the_caller_may_reuse_lengths_and_resets_before_backward() -> None:
    problem = make_problem("gru", SHAPE, ragged=True, cut=True)
    expected = solve(problem, np.float32)
    assert problem.lengths is not None and problem.resets is not None
    lengths, resets = problem.lengths.copy(), problem.resets.copy()
    layer = problem.layer(np.float32)
    tape = layer.forward(problem.x, as_state(first(problem)), lengths, resets)[2]
    lengths[:], resets[:] = 0, True
    dx, _ = layer.backward(tape, problem.dy, as_state(problem.dstate))
    assert_same_bits(dx, expected["dx"])


# ---- resets ----------------------------------------------------------------------------------------------------------


@each_cell
def test_a_reset_makes_two_sequences_of_one(cell: str) -> None:
    """The second starts from the cell's initial state, to the last bit."""
    problem = make_problem(cell, SHAPE)
    layer = problem.layer(np.float32)
    resets = np.zeros((SHAPE.steps, SHAPE.batch), np.bool_)
    resets[3] = True
    y, final = forward(layer, problem.x, first(problem), resets=resets)
    before, _ = forward(layer, problem.x[:3], first(problem))
    after, last = layer(problem.x[3:])
    assert_same_bits(y, np.concatenate([before, after]))
    assert_same_bits(final, as_tuple(last))


@each_cell
def test_a_reset_cuts_both_directions_at_the_same_place(cell: str) -> None:
    """Each half has one end of its own: a state that is given enters where its direction begins."""
    problem = make_problem(cell, SHAPE, bidirectional=True)
    layer = problem.layer(np.float32)
    resets = np.zeros((SHAPE.steps, SHAPE.batch), np.bool_)
    resets[3] = True
    y, final = forward(layer, problem.x, first(problem), resets=resets)
    nothing = initial_states(cell, first(problem)[0][:1].shape)
    left = tuple(np.concatenate([s[:1], n]) for s, n in zip(first(problem), nothing, strict=True))
    right = tuple(np.concatenate([n, s[1:]]) for s, n in zip(first(problem), nothing, strict=True))
    left_y, left_final = forward(layer, problem.x[:3], left)
    right_y, right_final = forward(layer, problem.x[3:], right)
    assert_same_bits(y, np.concatenate([left_y, right_y]))
    ends = tuple(np.concatenate([r[:1], f[1:]]) for r, f in zip(right_final, left_final, strict=True))
    assert_same_bits(final, ends)


@each_cell
def test_a_reset_at_the_first_step_replaces_the_given_state(cell: str) -> None:
    """In the direction that begins there; the other one never passes t = 0."""
    problem = make_problem(cell, SHAPE, bidirectional=True)
    resets = np.zeros((SHAPE.steps, SHAPE.batch), np.bool_)
    resets[0] = True
    got = solve(replace(problem, resets=resets), np.float32)
    fresh = initial_states(cell, first(problem)[0].shape)
    partly = tuple(np.stack([n[0], s[1]]) for n, s in zip(fresh, first(problem), strict=True))
    expected = solve(replace(problem, state=partly), np.float32)
    assert_same_bits(got["y"], expected["y"])
    assert_same_bits(got["dx"], expected["dx"])
    for k in range(len(partly)):
        assert not got[f"gradient of state {k}"][0].any()
        assert_same_bits(got[f"gradient of state {k}"][1], expected[f"gradient of state {k}"][1])


@each_cell
def test_no_gradient_passes_a_reset(cell: str) -> None:
    """The rows that aren't reset have the gradients that they have without: not of every state, in every cell."""
    problem = make_problem(cell, SHAPE)
    problem.dy[:3] = 0
    resets = np.zeros((SHAPE.steps, SHAPE.batch), np.bool_)
    resets[3, ::2] = True
    solution, uncut = solve(replace(problem, resets=resets), np.float32), solve(problem, np.float32)
    assert not solution["dx"][:3, ::2].any()
    assert uncut["dx"][:3].any()
    assert_same_bits(solution["dx"][:, 1::2], uncut["dx"][:, 1::2])
    of_states = [f"gradient of state {k}" for k in range(len(problem.dstate))]
    for name in of_states:
        assert not solution[name][:, ::2].any()
        assert_same_bits(solution[name][:, 1::2], uncut[name][:, 1::2])
    assert any(uncut[name].any() for name in of_states)


@each_cell
def test_resets_past_a_length_mean_nothing(cell: str) -> None:
    """Not even at the length itself, where the reverse direction begins."""
    problem = make_problem(cell, SHAPE, num_layers=2, bidirectional=True, ragged=True)
    assert problem.lengths is not None
    resets = np.arange(SHAPE.steps)[:, None] >= problem.lengths
    assert_same_bits(solve(replace(problem, resets=resets), np.float32), solve(problem, np.float32))


@each_cell
def test_resets_nowhere_are_no_resets(cell: str) -> None:
    problem = make_problem(cell, SHAPE, num_layers=2, bidirectional=True, ragged=True)
    nowhere = np.zeros((SHAPE.steps, SHAPE.batch), np.bool_)
    assert_same_bits(solve(replace(problem, resets=nowhere), np.float32), solve(problem, np.float32))


@each_cell
def test_resets_everywhere_make_every_step_a_sequence(cell: str) -> None:
    problem = make_problem(cell, SHAPE)
    layer = problem.layer(np.float32)
    y, _ = layer(problem.x, as_state(first(problem)), resets=np.ones((SHAPE.steps, SHAPE.batch), np.bool_))
    steps, _ = layer(problem.x.reshape(1, -1, problem.shape.input))
    assert_same_bits(y, steps.reshape(y.shape))


def test_resets_have_the_leading_layout_of_x() -> None:
    problem = make_problem("lstm", SHAPE, cut=True)
    assert problem.resets is not None
    layer = problem.layer(np.float32, batch_first=True)
    y, _ = layer(problem.x.swapaxes(0, 1), as_state(first(problem)), resets=problem.resets.T)
    expected, _ = problem.layer(np.float32)(problem.x, as_state(first(problem)), resets=problem.resets)
    assert_same_bits(y.swapaxes(0, 1), expected)
