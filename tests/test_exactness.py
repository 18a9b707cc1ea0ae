"""What never changes a bit of a result: threads, the batch around a row, padding, cuts in time, inference, layout.

Where a whole is compared with its parts, the whole runs on all threads and each part on one.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from shapes import EXACT, Shape
from support import (
    CELLS,
    DTYPES,
    Problem,
    as_state,
    as_tuple,
    assert_same_bits,
    initial_states,
    make_problem,
    solve,
    threads,
)

ON_EVERY_ISA = ("batch_of_one", "tiny", "hidden_48", "hidden_130")

each_cell = pytest.mark.parametrize("cell", CELLS)
each_dtype = pytest.mark.parametrize("dtype", DTYPES)
each_shape = pytest.mark.parametrize(
    "shape", [pytest.param(name, marks=pytest.mark.kernel) if name in ON_EVERY_ISA else name for name in EXACT]
)


def infer(layer: Any, problem: Problem, begin: int = 0, end: int | None = None, state: Any = None) -> tuple[Any, Any]:
    """y and the final state of the steps from begin to end, from `state` or the problem's own."""
    return _outputs(layer, layer.dtype, problem, begin, end, state)


def train(layer: Any, problem: Problem) -> tuple[Any, Any]:
    """The same of all steps by a call that prepares for backward."""
    return _outputs(layer.forward, layer.dtype, problem, 0, None, None)


def _outputs(call: Any, dtype: Any, problem: Problem, begin: int, end: int | None, state: Any) -> tuple[Any, Any]:
    if state is None and problem.state is not None:
        state = as_state(tuple(s.astype(dtype) for s in problem.state))
    lengths = None
    if problem.lengths is not None:
        lengths = np.clip(problem.lengths - begin, 0, len(problem.x[begin:end]))
    resets = None if problem.resets is None else problem.resets[begin:end]
    y, final, *_ = call(problem.x[begin:end].astype(dtype), state, lengths, resets)
    return y, as_tuple(final)


# ---- threads ---------------------------------------------------------------------------------------------------------


@each_dtype
@each_cell
@each_shape
def test_threads_do_not_change_a_bit(shape: str, cell: str, dtype: type) -> None:
    """Of outputs, states, tapes and gradients."""
    problem = make_problem(cell, EXACT[shape])
    with threads(1):
        expected = solve(problem, dtype)
    for number in (2, 3, 7):
        with threads(number):
            assert_same_bits(solve(problem, dtype), expected, f"{number} threads:")


@each_dtype
@each_cell
@pytest.mark.parametrize("shape", [pytest.param("hidden_48", marks=pytest.mark.kernel), "hidden_130"])
def test_threads_do_not_change_a_bit_of_ragged_stacks(shape: str, cell: str, dtype: type) -> None:
    problem = make_problem(cell, EXACT[shape], num_layers=2, bidirectional=True, ragged=True, cut=True)
    with threads(1):
        expected = solve(problem, dtype)
    for number in (2, 3, 7):
        with threads(number):
            assert_same_bits(solve(problem, dtype), expected, f"{number} threads:")


@each_cell
def test_a_second_call_gives_the_same_bits(cell: str) -> None:
    problem = make_problem(cell, EXACT["hidden_100"], num_layers=2)
    with threads(2):
        assert_same_bits(solve(problem, np.float32), solve(problem, np.float32))


# ---- the batch -------------------------------------------------------------------------------------------------------


@each_dtype
@each_cell
@each_shape
def test_a_row_is_the_same_alone_and_in_any_batch(shape: str, cell: str, dtype: type) -> None:
    problem = make_problem(cell, EXACT[shape], num_layers=2, bidirectional=True, ragged=True, cut=True)
    layer = problem.layer(dtype)
    y, final = infer(layer, problem)
    batch = problem.shape.batch
    for rows in (slice(0, 1), slice(batch - 1, batch), slice(batch // 2, batch // 2 + 2), slice(1, 6), slice(0, 17)):
        with threads(1):
            part_y, part_final = infer(layer, problem.rows(rows))
        assert_same_bits(part_y, y[:, rows], f"y of rows {rows}")
        assert_same_bits(part_final, tuple(s[:, rows] for s in final), f"state of rows {rows}")


@each_cell
def test_the_order_of_rows_does_not_matter(cell: str) -> None:
    problem = make_problem(cell, Shape(9, 12, 5, 21), num_layers=2, bidirectional=True, ragged=True, cut=True)
    layer = problem.layer(np.float32)
    y, final = infer(layer, problem)
    reversed_y, reversed_final = infer(layer, problem.rows(slice(None, None, -1)))
    assert_same_bits(reversed_y[:, ::-1], y)
    assert_same_bits(tuple(s[:, ::-1] for s in reversed_final), final)


# ---- lengths ---------------------------------------------------------------------------------------------------------


@each_dtype
@each_cell
@each_shape
def test_a_padded_row_is_the_row_cut_to_its_length(shape: str, cell: str, dtype: type) -> None:
    problem = make_problem(cell, EXACT[shape], num_layers=2, bidirectional=True, ragged=True, cut=True)
    layer = problem.layer(dtype)
    y, final = infer(layer, problem)
    assert problem.lengths is not None
    for b in range(0, problem.shape.batch, 5):
        length = int(problem.lengths[b])
        with threads(1):
            row_y, row_final = infer(layer, replace(problem.rows(slice(b, b + 1)), lengths=None), 0, length)
        assert_same_bits(y[:length, b : b + 1], row_y, f"row {b}")
        assert_same_bits(tuple(s[:, b : b + 1] for s in final), row_final, f"row {b}")


@each_dtype
@each_cell
def test_full_lengths_and_padding_of_the_whole_batch_change_nothing(cell: str, dtype: type) -> None:
    problem = make_problem(cell, EXACT["hidden_48"], num_layers=2, bidirectional=True)
    layer = problem.layer(dtype)
    steps, batch, inputs = problem.x.shape
    expected_y, expected = infer(layer, problem)
    full = replace(problem, lengths=np.full(batch, steps))
    y, final = infer(layer, full)
    assert_same_bits(y, expected_y)
    assert_same_bits(final, expected)
    padding = np.full((5, batch, inputs), np.nan, np.float32)
    y, final = infer(layer, replace(full, x=np.concatenate([problem.x, padding])))
    assert_same_bits(y[:steps], expected_y)
    assert_same_bits(final, expected)


# ---- time ------------------------------------------------------------------------------------------------------------


@each_dtype
@each_cell
@each_shape
def test_a_sequence_is_the_same_whole_and_in_pieces(shape: str, cell: str, dtype: type) -> None:
    """With the state carried from piece to piece; one direction, any number of layers."""
    problem = make_problem(cell, EXACT[shape], num_layers=2, ragged=True, cut=True)
    layer = problem.layer(dtype)
    y, final = infer(layer, problem)
    steps = problem.shape.steps
    for cuts in [(1,), (steps // 2,), (2, 3), tuple(range(1, steps))]:
        state, pieces = None, []
        for begin, end in zip((0, *cuts), (*cuts, steps), strict=True):
            with threads(1):
                piece, last = infer(layer, problem, begin, end, state)
            state = as_state(last)
            pieces.append(piece)
        assert_same_bits(np.concatenate(pieces), y, f"cut at {cuts}")
        assert_same_bits(as_tuple(state), final, f"cut at {cuts}")


# ---- the form of the call --------------------------------------------------------------------------------------------


@each_dtype
@each_cell
@each_shape
def test_inference_and_training_give_the_same_bits(shape: str, cell: str, dtype: type) -> None:
    problem = make_problem(cell, EXACT[shape], num_layers=2, bidirectional=True, ragged=True, cut=True)
    layer = problem.layer(dtype)
    y, final = infer(layer, problem)
    training_y, training_final = train(layer, problem)
    assert_same_bits(training_y, y)
    assert_same_bits(training_final, final)


@each_dtype
@each_cell
def test_batch_first_gives_the_same_bits(cell: str, dtype: type) -> None:
    problem = make_problem(cell, EXACT["hidden_100"], num_layers=2, bidirectional=True, ragged=True, cut=True)
    assert_same_bits(solve(problem, dtype, batch_first=True), solve(problem, dtype))


@each_cell
def test_no_state_given_is_the_state_that_the_cell_starts_from(cell: str) -> None:
    """Zeros, but for the m of an sLSTM."""
    problem = make_problem(cell, EXACT["hidden_48"], num_layers=2)
    initial = initial_states(cell, problem.dstate[0].shape)
    given = solve(replace(problem, state=initial), np.float32)
    assert_same_bits(solve(replace(problem, state=None), np.float32), given)
