"""Any layout that NumPy knows gives the same bits, and what modules refuse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import rnnfast as rf
from module_cases import MODULES, RECURRENT, Array, draw, input_of
from support import misaligned, read_only


def odd_strides(x: Array) -> Array:
    """Rows of a record array with one more byte: no whole number of elements apart."""
    records = np.zeros(x.shape[:-1], [("pad", "u1"), ("row", x.dtype, x.shape[-1:])])
    records["row"] = x
    return records["row"]


LAYOUTS: dict[str, Callable[[Array], Array]] = {
    "fortran": np.asfortranarray,
    "negative_strides": lambda x: x[::-1, ::-1, ::-1].copy()[::-1, ::-1, ::-1],
    "every_second": lambda x: np.repeat(np.repeat(x, 2, axis=2), 2, axis=0)[::2, :, ::2],
    "byte_swapped": lambda x: x.astype(x.dtype.newbyteorder()),
    "misaligned": misaligned,
    "read_only": read_only,
    "odd_strides": odd_strides,
    "swapped_axes": lambda x: x.swapaxes(0, 1).copy().swapaxes(0, 1),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", [name for name in MODULES if name != "embedding"])
@pytest.mark.parametrize(("steps", "batch"), [(5, 3), (1, 1)])
def test_any_layout_of_x_and_dy_gives_the_same_bits(name: str, layout: str, steps: int, batch: int) -> None:
    module, twin, x = MODULES[name](), MODULES[name](), draw(steps, batch, 4)
    y, _, tape = module.forward(x)
    dy = draw(*y.shape, seed=1)
    dx, _ = module.backward(tape, dy)
    again, _, tape = twin.forward(LAYOUTS[layout](x))
    assert np.array_equal(again, y)
    dx_again, _ = twin.backward(tape, LAYOUTS[layout](dy[None])[0] if dy.ndim == 2 else LAYOUTS[layout](dy))
    assert dx is not None and dx_again is not None
    assert np.array_equal(dx_again, dx)
    assert np.array_equal(twin.flat_grads, module.flat_grads)


@pytest.mark.parametrize("layout", ["fortran", "negative_strides", "byte_swapped", "misaligned", "read_only"])
def test_any_layout_of_the_state_gives_the_same_bits(layout: str) -> None:
    layer, x = rf.LSTM(4, 5, 2, seed=0), draw(4, 3, 4)
    _, state = layer(x)
    y, _ = layer(x, state)
    assert np.array_equal(layer(x, tuple(LAYOUTS[layout](array) for array in state))[0], y)


def test_zero_strides_are_taken() -> None:
    layer, row = rf.GRU(4, 5, seed=0), draw(4)
    y, _ = layer(np.broadcast_to(row, (3, 2, 4)))
    assert np.array_equal(y, layer(np.tile(row, (3, 2, 1)))[0])
    y, _, tape = layer.forward(np.zeros((3, 2, 4), np.float32))
    layer.backward(tape, np.broadcast_to(np.float32(1), y.shape))


@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", ">i4", "u4", "i8", "u8", ">u8"])
def test_tokens_of_any_integer_dtype(dtype: str) -> None:
    layer = rf.Embedding(7, 5, seed=0)
    assert np.array_equal(layer(np.array([[1, 6], [2, 3]], dtype))[0], layer([[1, 6], [2, 3]])[0])


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (np.zeros((3, 2, 4)), TypeError, "x: expected float32, got float64"),
        (np.zeros((3, 2, 4), np.float16), TypeError, "x: expected float32, got float16"),
        (np.zeros((3, 2, 4), int), TypeError, "x: expected float32, got int64"),
        (np.zeros((3, 2, 4), object), TypeError, "x: expected float32, got object"),
        (np.zeros((3, 2, 4), bool), TypeError, "x: expected float32, got bool"),
        ([[1, 2], [3]], TypeError, "x: expected an array, got list"),
        (None, TypeError, "x: expected float32, got object"),
        (np.zeros((3, 2, 5), np.float32), ValueError, r"x: expected \(T, B, 4\), got \(3, 2, 5\)"),
        (np.zeros((3, 4), np.float32), ValueError, r"x: expected \(T, B, 4\), got \(3, 4\)"),
        (np.float32(0), ValueError, r"x: expected \(T, B, 4\), got \(\)"),
    ],
)
def test_rejects_wrong_x_and_says_what_came(x: Any, error: type[Exception], message: str) -> None:
    for make in RECURRENT.values():
        with pytest.raises(error, match=message):
            make(4, 5)(x)


def test_rejects_wrong_hidden_shape_and_says_which() -> None:
    layer, x = rf.LSTM(4, 64, 2), draw(3, 4, 4)
    good, bad = np.zeros((2, 4, 64), np.float32), np.zeros((2, 4, 32), np.float32)
    with pytest.raises(ValueError, match=r"h0: expected \(2, 4, 64\), got \(2, 4, 32\)"):
        layer(x, (bad, good))
    with pytest.raises(ValueError, match=r"c0: expected \(2, 4, 64\), got \(2, 4, 32\)"):
        layer(x, (good, bad))
    with pytest.raises(TypeError, match="c0: expected float32, got float64"):
        layer(x, (good, good.astype(np.float64)))
    with pytest.raises(TypeError, match=r"state: expected a tuple \(h0, c0\), got ndarray"):
        layer(x, good)
    with pytest.raises(TypeError, match=r"state: expected a tuple \(h0, c0\), got 3 entries"):
        layer(x, (good, good, good))
    with pytest.raises(ValueError, match=r"h0: expected \(1, 4, 8\), got \(2, 4, 64\)"):
        rf.GRU(4, 8)(x, good)


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize(
    ("lengths", "error", "message"),
    [
        ([6, 7, 1], ValueError, "lengths: expected values from 0 to T = 6, got 7 at index 1"),
        ([6, 6, -1], ValueError, "lengths: expected values from 0 to T = 6, got -1 at index 2"),
        (
            np.array([6, 2**63 + 1, 0], np.uint64),
            ValueError,
            "lengths: .* got 9223372036854775809 at index 1",
        ),
        ([6, 6], ValueError, r"lengths: expected \(3,\), got \(2,\)"),
        ([[6, 6, 6]], ValueError, r"lengths: expected \(3,\), got \(1, 3\)"),
        ([6.0, 6.0, 6.0], TypeError, "lengths: expected integers, got float64"),
        ([True, True, True], TypeError, "lengths: expected integers, got bool"),
    ],
)
def test_rejects_wrong_lengths(name: str, lengths: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        MODULES[name]()(input_of(name, 6, 3), lengths=lengths)


@pytest.mark.parametrize("name", MODULES)
def test_rejects_wrong_resets(name: str) -> None:
    module, x = MODULES[name](), input_of(name, 6, 3)
    with pytest.raises(ValueError, match=r"resets: expected \(6, 3\), got \(3, 6\)"):
        module(x, resets=np.zeros((3, 6), bool))
    with pytest.raises(TypeError, match="resets: expected bool, got int64"):
        module(x, resets=np.zeros((6, 3), int))


def test_rejects_lengths_where_there_are_no_steps() -> None:
    with pytest.raises(ValueError, match=r"lengths: expected None, because x of shape \(3, 4\) has no steps"):
        rf.Linear(4, 5)(draw(3, 4), lengths=[3, 3, 3, 3])


def test_rejects_wrong_tokens() -> None:
    layer = rf.Embedding(7, 5)
    with pytest.raises(ValueError, match=r"x: expected values from 0 to 6, got 7 at \(1, 0\)"):
        layer([[1, 2], [7, 0]])
    with pytest.raises(ValueError, match=r"x: expected values from 0 to 6, got -1 at \(0,\)"):
        layer([-1])
    with pytest.raises(ValueError, match=r"x: expected values from 0 to 6, got 18446744073709551615"):
        layer(np.array([2**64 - 1], np.uint64))
    with pytest.raises(TypeError, match="x: expected integers, got float32"):
        layer(np.zeros((3, 2), np.float32))


def test_a_changed_token_does_not_reach_backward() -> None:
    layer, x = rf.Embedding(7, 5, seed=0), np.array([[1, 2]])
    y, _, tape = layer.forward(x)
    x[...] = 2**40
    layer.backward(tape, np.ones_like(y))
    assert np.flatnonzero(layer.grads["weight"].any(axis=1)).tolist() == [1, 2]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: rf.LSTM(0, 5), ValueError, "input_size: expected at least 1, got 0"),
        (lambda: rf.LSTM(4, -5), ValueError, "hidden_size: expected at least 1, got -5"),
        (lambda: rf.LSTM(4, 5.0), TypeError, "hidden_size: expected an integer, got float"),  # type: ignore[arg-type]
        (lambda: rf.LSTM(4, True), TypeError, "hidden_size: expected an integer, got bool"),
        (lambda: rf.LSTM(4, 5, 0), ValueError, "num_layers: expected at least 1, got 0"),
        (lambda: rf.LSTM(4, 5, bias=1), TypeError, "bias: expected a bool, got int"),  # type: ignore[arg-type]
        (lambda: rf.LSTM(4, 5, 2, dropout=1.0), ValueError, "dropout: expected a number >= 0 and < 1, got 1"),
        (lambda: rf.LSTM(4, 5, 2, dropout=float("nan")), ValueError, "dropout: .* got nan"),
        (lambda: rf.LSTM(4, 5, 2, dropout="0.5"), TypeError, "dropout: expected a number, got str"),  # type: ignore[arg-type]
        (lambda: rf.LSTM(4, 5, dtype=np.float16), TypeError, "dtype: expected float32 or float64"),
        (lambda: rf.LSTM(4, 5, dtype=None), TypeError, "dtype: expected float32 or float64, got None"),
        (lambda: rf.LSTM(4, 5, seed=-1), ValueError, "seed: expected at least 0, got -1"),
        (lambda: rf.LSTM(4, 5, seed=2**64), ValueError, r"seed: expected an integer below 2\*\*64"),
        (lambda: rf.RNN(4, 5, nonlinearity="elu"), ValueError, "nonlinearity: expected 'tanh', 'relu' or 'sigmoid'"),
        (lambda: rf.GRU(4, 5, reset_after=None), TypeError, "reset_after: expected"),
        (lambda: rf.Dropout(1.5), ValueError, "p: expected a number >= 0 and < 1, got 1.5"),
        (lambda: rf.LSTM(2**40, 2**40), ValueError, "parameters: an array of shape .* is too large to address"),
        (lambda: rf.Embedding(2**40, 2**18), MemoryError, "Unable to allocate"),
    ],
)
def test_rejects_wrong_options(make: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_sizes_that_cannot_be_counted_are_refused_before_anything_runs() -> None:
    x = np.broadcast_to(np.float32(0), (2**58, 2, 1))
    with pytest.raises(ValueError, match="too large to address"):
        rf.LSTM(1, 8)(x)
    with pytest.raises(ValueError, match="too large to address"):
        rf.Linear(1, 8)(x)
    with pytest.raises(MemoryError):
        rf.Linear(1, 1)(np.broadcast_to(np.float32(0), (2**50, 2, 1)))
