"""What goes in and what is refused: arrays of every form, wrong ones by name, rows apart from each other."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import rnnfast as rf
from rnnfast import reference
from shapes import Shape
from support import (
    CELLS,
    DTYPES,
    Array,
    Problem,
    Taped,
    as_state,
    as_tuple,
    assert_same_bits,
    make_problem,
    misaligned,
    new_layer,
    read_only,
    threads,
)

pytestmark = pytest.mark.usefixtures("one_thread")
SHAPE = Shape(5, 4, 6, 8)

each_cell = pytest.mark.parametrize("cell", CELLS)


# ---- arrays of every form --------------------------------------------------------------------------------------------


def spread(array: Array) -> Array:
    """Every second element of a larger array, along each axis."""
    larger = np.ones([2 * size for size in array.shape], array.dtype)
    view = larger[tuple(slice(None, None, 2) for _ in array.shape)]
    view[...] = array
    return view


def mirrored(*axes: int) -> Callable[[Array], Array]:
    """The same values with negative strides."""
    return lambda array: np.flip(np.flip(array, axes).copy(), axes)


FORMS: dict[str, Callable[[Array], Array]] = {
    "fortran_order": np.asfortranarray,
    "axes_swapped": lambda array: np.ascontiguousarray(array.swapaxes(0, 1)).swapaxes(0, 1),
    "time_backwards": mirrored(0),
    "everything_backwards": mirrored(0, 1, 2),
    "features_backwards": mirrored(2),
    "spread": spread,
    "byte_swapped": lambda array: array.astype(array.dtype.newbyteorder()),
    "misaligned": misaligned,
    "read_only": read_only,
    "part_of_wider_rows": lambda array: np.concatenate([array, array + 1], axis=2)[..., : array.shape[2]],
}


def passes(problem: Problem, dtype: type, form: Callable[[Array], Array]) -> tuple[Any, ...]:
    """Everything that a forward and a backward pass return, with every argument in some form."""
    assert problem.state is not None
    layer = problem.layer(dtype)
    state, dstate = (
        as_state(tuple(form(s.astype(dtype)) for s in states)) for states in (problem.state, problem.dstate)
    )
    y, final, tape = layer.forward(form(problem.x.astype(dtype)), state)
    dx, dinitial = layer.backward(tape, form(problem.dy.astype(dtype)), dstate)
    return y, as_tuple(final), dx, as_tuple(dinitial), dict(layer.grads)


@pytest.mark.parametrize("dtype", DTYPES)
@each_cell
@pytest.mark.parametrize("form", FORMS)
def test_takes_arrays_of_every_form(form: str, cell: str, dtype: type) -> None:
    """To the last bit as if they were C-contiguous."""
    problem = make_problem(cell, SHAPE, num_layers=2, bidirectional=True)
    assert_same_bits(passes(problem, dtype, FORMS[form]), passes(problem, dtype, np.ascontiguousarray))


@each_cell
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_takes_arrays_with_zero_strides(axis: int, cell: str) -> None:
    """One step, row or feature that stands for all."""

    def repeated(array: Array) -> Array:
        return np.broadcast_to(array.take([0], axis), array.shape)

    problem = make_problem(cell, SHAPE, num_layers=2)
    expected = passes(problem, np.float32, lambda array: repeated(array).copy())
    assert_same_bits(passes(problem, np.float32, repeated), expected)


@pytest.mark.parametrize("axis", [0, 1])
def test_the_stride_of_a_single_step_or_row_counts_for_nothing(axis: int) -> None:
    """NumPy gives such an axis any stride, no multiple of an element's size either."""
    shape, inputs = [3, 4], 5
    shape[axis] = 1
    x = np.random.default_rng(0).standard_normal((*shape, inputs)).astype(np.float32)
    strides = list(x.strides)
    strides[axis] = 7
    layer = rf.LSTM(inputs, 8, seed=0)
    assert_same_bits(layer(np.lib.stride_tricks.as_strided(x, x.shape, strides)), layer(x))

    tokens = np.arange(math.prod(shape)).reshape(shape)
    strides = list(tokens.strides)
    strides[axis] = 7
    embedding = rf.Embedding(12, 6, seed=0)
    assert_same_bits(embedding(np.lib.stride_tricks.as_strided(tokens, tokens.shape, strides))[0], embedding(tokens)[0])


@pytest.mark.parametrize("form", ["axes_swapped", "time_backwards", "spread", "read_only"])
def test_takes_resets_of_every_form(form: str) -> None:
    problem = make_problem("lstm", SHAPE, cut=True)
    assert problem.resets is not None
    layer = problem.layer(np.float32)
    resets = FORMS[form](problem.resets)
    assert not resets.flags.c_contiguous or form == "read_only"
    expected = layer(problem.x, as_state(problem.state or ()), resets=problem.resets.copy())
    assert_same_bits(layer(problem.x, as_state(problem.state or ()), resets=resets), expected)


def test_arguments_are_left_as_they_were() -> None:
    problem = make_problem("lstm", SHAPE, num_layers=2, bidirectional=True)
    arrays = [problem.x, problem.dy, *(problem.state or ()), *problem.dstate]
    before = [array.copy() for array in arrays]
    passes(problem, np.float32, lambda array: array)
    assert_same_bits(tuple(arrays), tuple(before))


# ---- wrong arrays are refused by name --------------------------------------------------------------------------------

LSTM_ARGUMENTS = {"x": (5, 4, 6), "h0": (1, 4, 8), "c0": (1, 4, 8), "dy": (5, 4, 8), "dh": (1, 4, 8), "dc": (1, 4, 8)}


def call(**changed: Any) -> None:
    """Forward and backward of an LSTM, with some arguments changed."""
    layer = rf.LSTM(SHAPE.input, SHAPE.hidden, seed=0)
    a = {name: np.zeros(shape, np.float32) for name, shape in LSTM_ARGUMENTS.items()} | changed
    _, _, tape = layer.forward(a["x"], (a["h0"], a["c0"]), a.get("lengths"), a.get("resets"))
    layer.backward(tape, a["dy"], (a["dh"], a["dc"]))


@pytest.mark.parametrize("dtype", ["float16", "float64", "int32", "int64", "bool", "complex64", "object", "U1"])
@pytest.mark.parametrize("name", LSTM_ARGUMENTS)
def test_refuses_another_dtype_and_says_which(name: str, dtype: str) -> None:
    expected = rf"^{name}: expected float32, got {re.escape(str(np.dtype(dtype)))}"
    with pytest.raises(TypeError, match=expected):
        call(**{name: np.zeros(LSTM_ARGUMENTS[name], dtype)})


@pytest.mark.parametrize("name", LSTM_ARGUMENTS)
def test_refuses_what_is_no_array(name: str) -> None:
    with pytest.raises(TypeError, match=f"^{name}: expected "):
        call(**{name: "zeros"})
    with pytest.raises(TypeError, match=f"^{name}: expected "):
        call(**{name: [[1.0], [1.0, 2.0]]})


def wrong_shapes(shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Another rank, and one less or more along each axis."""
    off_by_one = [(*shape[:k], shape[k] + d, *shape[k + 1 :]) for k in range(len(shape)) for d in (-1, 1)]
    return [(), shape[:2], (*shape, 1), (1, *shape), *off_by_one]


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        pytest.param(name, shape, id=f"{name}-{'x'.join(map(str, shape))}")
        for name, right in LSTM_ARGUMENTS.items()
        for shape in wrong_shapes(right)
        if name != "x" or len(shape) != 3 or shape[2] != 6  # x may have any number of steps and rows
    ],
)
def test_refuses_another_shape_and_says_which(name: str, shape: tuple[int, ...]) -> None:
    expected = "(T, B, 6)" if name == "x" else str(LSTM_ARGUMENTS[name])
    with pytest.raises(ValueError, match=re.escape(f"{name}: expected {expected}, got {shape}")):
        call(**{name: np.zeros(shape, np.float32)})


def test_shapes_are_told_in_the_layout_of_the_layer() -> None:
    layer = rf.GRU(6, 8, num_layers=2, bidirectional=True, batch_first=True)
    with pytest.raises(ValueError, match=r"x: expected \(B, T, 6\), got \(4, 5, 7\)"):
        layer(np.zeros((4, 5, 7), np.float32))
    with pytest.raises(ValueError, match=r"h0: expected \(4, 4, 8\), got \(4, 5, 8\)"):
        layer(np.zeros((4, 5, 6), np.float32), np.zeros((4, 5, 8), np.float32))


@pytest.mark.parametrize("state", [np.zeros((1, 4, 8), np.float32), (np.zeros((1, 4, 8), np.float32),), 0, "hc"])
def test_a_state_of_two_is_a_pair(state: Any) -> None:
    with pytest.raises(TypeError, match="state: expected "):
        rf.LSTM(6, 8)(np.zeros((5, 4, 6), np.float32), state)


@pytest.mark.parametrize(
    ("lengths", "error", "phrase"),
    [
        ([5, 5, 5, 6], ValueError, "expected values from 0 to T = 5, got 6"),
        ([5, -1, 5, 5], ValueError, "expected values from 0 to T = 5, got -1"),
        (np.array([2**63, 0, 0, 0], np.uint64), ValueError, "expected values from 0 to T = 5, got"),
        ([5, 5, 5], ValueError, "expected (4,), got (3,)"),
        ([[5, 5, 5, 5]], ValueError, "expected (4,), got (1, 4)"),
        (5, ValueError, "expected (4,), got ()"),
        ([5.0, 5.0, 5.0, 5.0], TypeError, "expected integers, got float64"),
        ([True, True, True, True], TypeError, "expected integers, got bool"),
        ([None, 5, 5, 5], TypeError, "expected integers, got object"),
    ],
)
def test_refuses_wrong_lengths(lengths: Any, error: type[Exception], phrase: str) -> None:
    with pytest.raises(error, match=re.escape(f"lengths: {phrase}")):
        call(lengths=lengths)


@pytest.mark.parametrize(
    ("resets", "error", "phrase"),
    [
        (np.zeros((5, 4), np.int8), TypeError, "expected bool, got int8"),
        (np.zeros((5, 4), np.float32), TypeError, "expected bool, got float32"),
        (np.zeros((4, 5), np.bool_), ValueError, "expected (5, 4), got (4, 5)"),
        (np.zeros(5, np.bool_), ValueError, "expected (5, 4), got (5,)"),
        (np.zeros((5, 4, 1), np.bool_), ValueError, "expected (5, 4), got (5, 4, 1)"),
    ],
)
def test_refuses_wrong_resets(resets: Any, error: type[Exception], phrase: str) -> None:
    with pytest.raises(error, match=re.escape(f"resets: {phrase}")):
        call(resets=resets)


@pytest.mark.parametrize(
    ("arguments", "error", "phrase"),
    [
        ({"input_size": 0}, ValueError, "input_size"),
        ({"hidden_size": -1}, ValueError, "hidden_size"),
        ({"hidden_size": 8.0}, TypeError, "hidden_size"),
        ({"num_layers": 0}, ValueError, "num_layers"),
        ({"num_layers": 10**8}, ValueError, "num_layers"),
        ({"dropout": 1.5}, ValueError, "dropout"),
        ({"dropout": -0.1}, ValueError, "dropout"),
        ({"dtype": np.float16}, TypeError, "dtype"),
        ({"dtype": np.int64}, TypeError, "dtype"),
        ({"dtype": None}, TypeError, "dtype"),
        ({"bidirectional": 2}, TypeError, "bidirectional"),
    ],
)
def test_refuses_wrong_constructor_arguments(arguments: dict[str, Any], error: type[Exception], phrase: str) -> None:
    with pytest.raises(error, match=f"^{phrase}: expected "):
        rf.LSTM(**{"input_size": 6, "hidden_size": 8} | arguments)


def test_refuses_an_unknown_nonlinearity() -> None:
    with pytest.raises(ValueError, match=r"nonlinearity: expected .*, got 'gelu'"):
        rf.RNN(6, 8, nonlinearity="gelu")


# ---- mismatching weights ---------------------------------------------------------------------------------------------

FAULTS: dict[str, tuple[Callable[[dict[str, Array]], Any], type[Exception], str]] = {
    "missing": (lambda d: d.pop("weight_hh_l1"), ValueError, "missing weight_hh_l1"),
    "unexpected": (lambda d: d.update(weight_hh_l2=d["weight_hh_l1"]), ValueError, "unexpected weight_hh_l2"),
    "other_hidden_size": (
        lambda d: d.update(weight_hh_l1=np.zeros((32, 7))),
        ValueError,
        "weight_hh_l1: expected (32, 8), got (32, 7)",
    ),
    "transposed": (
        lambda d: d.update(weight_ih_l0=d["weight_ih_l0"].T),
        ValueError,
        "weight_ih_l0: expected (32, 6), got (6, 32)",
    ),
    "would_broadcast": (
        lambda d: d.update(bias_hh_l1=np.zeros((1,))),
        ValueError,
        "bias_hh_l1: expected (32,), got (1,)",
    ),
    "no_numbers": (lambda d: d.update(bias_hh_l1=np.full(32, "a")), TypeError, "bias_hh_l1: expected "),
    "complex": (lambda d: d.update(bias_hh_l1=np.zeros(32, complex)), TypeError, "bias_hh_l1: expected "),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_refuses_mismatching_weights_and_loads_none_of_them(fault: str) -> None:
    spoil, error, phrase = FAULTS[fault]
    layer = rf.LSTM(6, 8, num_layers=2, seed=0)
    before = layer.flat_params.copy()
    weights: dict[str, Array] = {name: array + 1 for name, array in layer.state_dict().items()}
    spoil(weights)
    with pytest.raises(error, match=re.escape(phrase)):
        layer.load_state_dict(weights)
    assert_same_bits(layer.flat_params, before)


def test_a_state_dict_is_a_copy() -> None:
    layer = rf.GRU(6, 8, seed=0)
    before = layer.flat_params.copy()
    layer.state_dict()["weight_hh_l0"][...] = 0
    assert_same_bits(layer.flat_params, before)


# ---- too large -------------------------------------------------------------------------------------------------------


def endless(steps: int, batch: int, dtype: type = np.float32) -> Array:
    """x of shape (steps, batch, 1) in the memory of one number."""
    one: Array = np.zeros(1, dtype)
    return np.lib.stride_tricks.as_strided(one, (steps, batch, 1), (0, 0, one.itemsize))


@each_cell
def test_a_huge_call_is_a_memory_error(cell: str) -> None:
    """2⁵⁴ bytes of y: more than any address space of today holds, so that no machine starts to fill them."""
    layer = new_layer(cell, 1, 64)
    with pytest.raises(MemoryError):
        layer(endless(2**23, 2**23))
    with pytest.raises(MemoryError):
        layer.forward(endless(2**23, 2**23))


def test_a_huge_layer_is_a_memory_error() -> None:
    with pytest.raises(MemoryError):
        rf.LSTM(1, 2**22)


@pytest.mark.parametrize(("steps", "batch"), [(2**30, 2**30), (2**31, 2**29), (2**60, 1), (1, 2**60)])
def test_sizes_whose_product_overflows_are_refused(steps: int, batch: int) -> None:
    with pytest.raises((ValueError, MemoryError)):
        rf.LSTM(1, 64)(endless(steps, batch))


@pytest.mark.parametrize(("inputs", "hidden"), [(2**40, 2**40), (1, 2**31), (2**62, 1), (1, 2**62), (2**100, 2**100)])
def test_layers_whose_size_overflows_are_refused(inputs: int, hidden: int) -> None:
    with pytest.raises((ValueError, MemoryError, OverflowError)):
        rf.LSTM(inputs, hidden)


# ---- NaN and infinity stay in their row ------------------------------------------------------------------------------


def rows_of(results: tuple[Any, ...], rows: list[int]) -> tuple[Any, ...]:
    y, final, dx, dinitial, _ = results
    return tuple(np.delete(array, rows, axis=1) for array in (y, *final, dx, *dinitial))


@pytest.mark.parametrize("dtype", DTYPES)
@each_cell
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("argument", ["x", "state", "dy", "dstate"])
def test_nan_and_infinity_stay_in_their_own_row(argument: str, value: float, cell: str, dtype: type) -> None:
    """The other rows' outputs, states and gradients keep every bit."""
    problem = make_problem(cell, Shape(5, 13, 6, 21), num_layers=2, bidirectional=True)
    clean = passes(problem, dtype, np.ascontiguousarray)
    array = getattr(problem, argument)
    for a in array if isinstance(array, tuple) else (array,):
        a[1, 7] = value
    spoilt = passes(problem, dtype, np.ascontiguousarray)
    assert_same_bits(rows_of(spoilt, [7]), rows_of(clean, [7]))
    assert not np.array_equal(spoilt[2][:, 7], clean[2][:, 7])


@pytest.mark.parametrize("dtype", DTYPES)
@each_cell
def test_nan_in_x_is_nan_in_every_later_output(cell: str, dtype: type) -> None:
    problem = make_problem(cell, Shape(5, 13, 6, 21))
    problem.x[2, 7, 3] = np.nan
    y, final, _, _, _ = passes(problem, dtype, np.ascontiguousarray)
    assert np.isfinite(y[:2]).all() and np.isnan(y[2:, 7]).all()
    assert all(np.isnan(s[:, 7]).all() for s in final)


@pytest.mark.parametrize("dtype", DTYPES)
@each_cell
@pytest.mark.parametrize("value", [np.inf, -np.inf, 1e30, -1e30])
def test_infinite_and_huge_inputs_give_what_the_equations_give(value: float, cell: str, dtype: type) -> None:
    problem = make_problem(cell, Shape(3, 5, 6, 21))
    problem.x[1, 2, 3] = value
    assert problem.state is not None
    y, _ = problem.layer(dtype)(problem.x.astype(dtype), as_state(tuple(s.astype(dtype) for s in problem.state)))
    with np.errstate(invalid="ignore"):
        expected, _, _ = reference.forward(cell, problem.params, problem.x, as_state(problem.state))
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)


# ---- the caller's arithmetic -----------------------------------------------------------------------------------------


def subnormals_are_kept() -> bool:
    tiny = np.full(64, np.finfo(np.float32).smallest_subnormal), np.full(64, np.finfo(np.float64).smallest_subnormal)
    return all(bool((array * array.dtype.type(1)).all()) for array in tiny)


@pytest.mark.parametrize("number", [1, 2])
@each_cell
def test_the_callers_floating_point_mode_stays_as_it_is(cell: str, number: int) -> None:
    """The kernels flush subnormals to zero; the caller's thread must not."""
    assert subnormals_are_kept()
    with threads(number):
        Taped(SHAPE, cell).backward()
        assert subnormals_are_kept()
        with pytest.raises(ValueError):
            Taped(SHAPE, cell).layer(np.zeros((5, 4, 7), np.float32))
    assert subnormals_are_kept()


@each_cell
def test_subnormal_numbers_count_as_zeros(cell: str) -> None:
    """In arguments: whatever they are, results keep every bit, but for signs of zeros."""
    problem = make_problem(cell, SHAPE)
    arguments = problem.x, *(problem.state or ())

    def solution(size: float) -> tuple[Any, ...]:
        x, *states = (array * np.float32(size) for array in arguments)
        y, final, dx, _, _ = passes(replace(problem, x=x, state=tuple(states)), np.float32, np.ascontiguousarray)
        return tuple(array + 0 for array in (y, *final, dx))

    assert_same_bits(solution(1e-40), solution(0))
