"""What never changes a bit, with the options: threads, the batch, padding, cuts in time, streams, segments, the mode.

`test_exactness.py` holds this for the plain cells. Where a whole is compared with its parts, the whole runs on all
threads and each part on one.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shapes import Shape
from support import Array, Problem, as_state, as_tuple, assert_same_bits, make_problem, solve, threads
from variants import IN_BFLOAT16, VARIANTS, WAYS

# In float64 one of each kind: the same source, compiled for another type.
IN_FLOAT32 = VARIANTS | IN_BFLOAT16
CASES = [(name, np.float32) for name in IN_FLOAT32] + [(name, np.float64) for name in WAYS]

each_case = pytest.mark.parametrize(("variant", "dtype"), CASES)
on_every_isa = pytest.mark.kernel

# Different plans: rows for each thread, units for each thread, steps of x ahead, all in one cache.
PLANS = {
    "rows": Shape(9, 67, 13, 48),
    "units": Shape(4, 3, 40, 384),
    "one_row": Shape(20, 1, 17, 96),
    "small": Shape(5, 7, 5, 12),
}
# Segments that are computed again from a known y, on two threads too.
FEW_ROWS = Shape(40, 2, 40, 132)


def make(variant: str, shape: Shape, **options: Any) -> Problem:
    cell, of_cell = IN_FLOAT32[variant]
    return make_problem(cell, shape, **options, **of_cell)


def infer(layer: Any, problem: Problem, begin: int = 0, end: int | None = None, state: Any = None) -> tuple[Any, Any]:
    """y and the final state of the steps from begin to end, from `state` or the problem's own."""
    return _outputs(layer, layer.dtype, problem, begin, end, state)


def _outputs(call: Any, dtype: Any, problem: Problem, begin: int, end: int | None, state: Any) -> tuple[Any, Any]:
    if state is None and problem.state is not None:
        state = as_state(tuple(s.astype(dtype) for s in problem.state))
    lengths = None if problem.lengths is None else np.clip(problem.lengths - begin, 0, len(problem.x[begin:end]))
    resets = None if problem.resets is None else problem.resets[begin:end]
    y, final, *_ = call(problem.x[begin:end].astype(dtype), state, lengths, resets)
    return y, as_tuple(final)


@on_every_isa
@each_case
@pytest.mark.parametrize("plan", PLANS)
def test_threads_do_not_change_a_bit(plan: str, variant: str, dtype: type) -> None:
    """Of outputs, states, tapes and gradients, with masks."""
    form = {"ragged": True, "cut": True} if plan != "units" else {}
    problem = make(variant, PLANS[plan], bidirectional=plan == "small", **form)
    with threads(1):
        expected = solve(problem, dtype)
    for number in (2, 3, 7):
        with threads(number):
            assert_same_bits(solve(problem, dtype), expected, f"{number} threads:")


@on_every_isa
@each_case
def test_a_row_is_the_same_alone_and_in_any_batch_padded_or_cut(variant: str, dtype: type) -> None:
    for shape in (PLANS["rows"], Shape(7, 12, 5, 102)):
        problem = make(variant, shape, num_layers=2, bidirectional=True, ragged=True, cut=True)
        layer = problem.layer(dtype)
        y, final = infer(layer, problem)
        batch = shape.batch
        assert problem.lengths is not None
        with threads(1):
            for rows in (slice(0, 1), slice(batch // 2, batch // 2 + 2), slice(1, 6), slice(0, 9)):
                part_y, part_final = infer(layer, problem.rows(rows))
                assert_same_bits(part_y, y[:, rows], f"y of rows {rows}")
                assert_same_bits(part_final, tuple(s[:, rows] for s in final), f"state of rows {rows}")
            for b in range(0, batch, 5):
                length = int(problem.lengths[b])
                row_y, row_final = infer(layer, replace(problem.rows(slice(b, b + 1)), lengths=None), 0, length)
                assert_same_bits(row_y, y[:length, b : b + 1], f"row {b}, cut at {length}")
                assert_same_bits(row_final, tuple(s[:, b : b + 1] for s in final), f"row {b}, cut at {length}")


@on_every_isa
@each_case
@pytest.mark.parametrize("plan", ["one_row", "small"])
def test_a_sequence_is_the_same_whole_and_in_pieces(plan: str, variant: str, dtype: type) -> None:
    problem = make(variant, PLANS[plan], num_layers=2, ragged=True, cut=True)
    layer = problem.layer(dtype)
    y, final = infer(layer, problem)
    steps = problem.shape.steps
    for cuts in [(1,), (2, 3), tuple(range(1, steps))]:
        state, pieces = None, []
        for begin, end in zip((0, *cuts), (*cuts, steps), strict=True):
            with threads(1):
                piece, last = infer(layer, problem, begin, end, state)
            state = as_state(last)
            pieces.append(piece)
        assert_same_bits(np.concatenate(pieces), y, f"cut at {cuts}")
        assert_same_bits(as_tuple(state), final, f"cut at {cuts}")


@on_every_isa
@each_case
@pytest.mark.parametrize("plan", PLANS)
def test_inference_and_a_training_call_in_evaluation_mode_give_the_same_bits(
    plan: str, variant: str, dtype: type
) -> None:
    """Inference never draws a mask, also in training mode."""
    problem = make(variant, PLANS[plan], bidirectional=True, ragged=True, cut=True)
    layer = problem.layer(dtype)
    expected = infer(layer, problem)
    assert layer.training
    assert_same_bits(_outputs(layer.eval().forward, dtype, problem, 0, None, None), expected)
    assert_same_bits(infer(layer, problem), expected)


@on_every_isa
@each_case
@pytest.mark.parametrize("batch", [1, 29])
def test_a_stream_gives_the_bits_of_the_layer(batch: int, variant: str, dtype: type) -> None:
    for hidden, inputs in ((30, 30 if variant.startswith("sru-") else 11), (96, 96)):
        problem = make(variant, Shape(3, batch, inputs, hidden), num_layers=2, given=False)
        layer = problem.layer(dtype)
        y, final = infer(layer, problem)
        for number in (1, 2):
            with threads(number):
                stream = layer.stream(batch)
            assert_same_bits(np.stack([stream.step(x_t) for x_t in problem.x.astype(dtype)]), y)
            assert_same_bits(as_tuple(stream.state), final)
            stream.reset()
            assert_same_bits(stream.step(problem.x[0].astype(dtype)), y[0])


@each_case
def test_batch_first_gives_the_same_bits(variant: str, dtype: type) -> None:
    problem = make(variant, Shape(6, 9, 7, 30), num_layers=2, bidirectional=True, ragged=True, cut=True)
    assert_same_bits(solve(problem, dtype, batch_first=True), solve(problem, dtype))


# ---- segments --------------------------------------------------------------------------------------------------------


def train(problem: Problem, dtype: Any, checkpoint: Any, dropout: float) -> dict[str, Any]:
    """Everything that forward and backward give, added to gradients that were there before."""
    layer = problem.layer(dtype, dropout=dropout)
    layer.flat_grads[...] = np.random.default_rng(0).standard_normal(layer.flat_grads.shape)
    state = None if problem.state is None else as_state(tuple(s.astype(dtype) for s in problem.state))
    y, final, tape = layer.forward(
        problem.x.astype(dtype), state, problem.lengths, problem.resets, checkpoint=checkpoint
    )
    dstate = as_state(tuple(s.astype(dtype) for s in problem.dstate))
    dx, dinitial = layer.backward(tape, problem.dy.astype(dtype), dstate)
    gradients: dict[str, Array] = dict(layer.grads)
    return {"y": y, "final": as_tuple(final), "dx": dx, "dinitial": as_tuple(dinitial), **gradients}


@on_every_isa
@each_case
@pytest.mark.parametrize("shape", [PLANS["rows"], PLANS["small"], FEW_ROWS], ids=["rows", "small", "few_rows"])
def test_segments_do_not_change_a_bit(shape: Shape, variant: str, dtype: type) -> None:
    """The masks are those of the whole sequence; the whole on all threads, the segments on some."""
    problem = make(variant, shape, num_layers=2, ragged=True, cut=True)
    expected = train(problem, dtype, None, 0.3)
    for checkpoint, number in ((True, 1), (1, 1), (3, 1), (True, 2)):
        with threads(number):
            got = train(problem, dtype, checkpoint, 0.3)
        assert_same_bits(got, expected, f"{checkpoint} steps, {number} threads:")


@settings(max_examples=60)
@given(
    case=st.sampled_from(CASES),
    sizes=st.tuples(st.integers(0, 20), st.integers(0, 9), st.integers(1, 20), st.integers(1, 8)),
    num_layers=st.integers(1, 2),
    checkpoint=st.integers(1, 22),
    number=st.integers(1, 3),
    form=st.fixed_dictionaries(dict.fromkeys(("bias", "given", "ragged", "cut"), st.booleans())),
    seed=st.integers(0, 1000),
)
def test_no_cut_in_time_changes_a_bit(
    case: tuple[str, type],
    sizes: tuple[int, int, int, int],
    num_layers: int,
    checkpoint: int,
    number: int,
    form: dict[str, Any],
    seed: int,
) -> None:
    variant, dtype = case
    shape = Shape(*sizes[:3], 6 * sizes[3])
    problem = make(variant, shape, num_layers=num_layers, seed=seed, **form)
    dropout = 0.4 if num_layers > 1 else 0.0
    expected = train(problem, dtype, None, dropout)
    with threads(number):
        assert_same_bits(train(problem, dtype, checkpoint, dropout), expected)
