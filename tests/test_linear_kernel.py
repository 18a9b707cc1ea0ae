"""The linear layer as compiled: accuracy, and the same bits in any batch."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from kernel_cases import DTYPES, WIDTHS, Array, normal, padding, same_bits
from rnnfast import _kernels


def linear(x: Array, weight: Array, bias: Array | None, lengths: Array | None = None, threads: int = 2) -> Array:
    y = np.full((*x.shape[:2], len(weight)), np.nan, x.dtype)
    _kernels.linear_forward(x, weight, bias, y, lengths, threads)
    return y


@pytest.mark.kernel
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("outputs", WIDTHS)
@pytest.mark.parametrize("inputs", WIDTHS)
def test_linear_errs_by_no_more_than_its_terms_allow(inputs: int, outputs: int, dtype: Any) -> None:
    """|error| ≤ eps·√terms·Σ|terms|, of y, dx, dW and db; nothing past a length is read, zeros are written there."""
    lengths = np.array([40, 0, 13, 1, 39, 40, 40])
    past = padding(lengths, 40)
    x, weight, bias = (
        normal(40, 7, inputs, dtype=dtype),
        normal(outputs, inputs, dtype=dtype),
        normal(outputs, dtype=dtype),
    )
    dy = normal(40, 7, outputs, dtype=dtype, seed=1)
    x[past], dy[past] = np.nan, np.nan
    dx, dweight, dbias = np.full_like(x, np.nan), np.ones_like(weight), np.ones_like(bias)
    _kernels.linear_backward(x, weight, dy, dx, dweight, dbias, lengths, 2)
    y = linear(x, weight, bias, lengths)
    assert not y[past].any() and not dx[past].any()
    live = ~past
    wide = [a.astype(np.longdouble) for a in (x[live], weight, bias, dy[live])]
    absolute = [abs(a) for a in wide]
    for got, (exact, terms), count in (
        (y[live], [a @ w.T + b for a, w, b, _ in (wide, absolute)], inputs + 1),
        (dx[live], [d @ w for _, w, _, d in (wide, absolute)], outputs),
        (dweight, [1 + d.T @ a for a, _, _, d in (wide, absolute)], live.sum() + 1),
        (dbias, [1 + d.sum(0) for _, _, _, d in (wide, absolute)], live.sum() + 1),
    ):
        assert (abs(got - exact) <= np.finfo(dtype).eps * math.sqrt(count) * terms).all()


@pytest.mark.kernel
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("outputs", [*WIDTHS, 400])
def test_a_row_of_a_linear_layer_is_the_same_alone_and_in_any_batch(outputs: int, dtype: Any) -> None:
    x, weight, bias = normal(9, 31, 70, dtype=dtype), normal(outputs, 70, dtype=dtype), normal(outputs, dtype=dtype)
    whole = linear(x, weight, bias)
    for rows in (slice(0, 1), slice(30, 31), slice(3, 8), slice(5, 28)):
        assert same_bits(linear(x[:, rows], weight, bias, threads=1), whole[:, rows])
        assert same_bits(linear(x[4:5, rows], weight, bias, threads=1), whole[4:5, rows])
    assert same_bits(linear(x, weight, bias, np.arange(1, 32) % 10)[:2, 8], whole[:2, 8])
    assert same_bits(linear(x, weight, None), linear(x, weight, np.zeros_like(bias)))


def test_gradients_of_a_large_linear_layer_do_not_change_from_call_to_call() -> None:
    """Its chunks of rows are cut by the clock, which must not change a bit."""
    x, weight, dy = (normal(*shape, dtype=np.float32) for shape in ((5, 80, 1000), (900, 1000), (5, 80, 900)))
    results = []
    for threads in (1, 2, 1, 2):
        dx, dweight, dbias = np.empty_like(x), np.zeros_like(weight), np.zeros(900, np.float32)
        _kernels.linear_backward(x, weight, dy, dx, dweight, dbias, None, threads)
        results.append((dx.tobytes(), dweight.tobytes(), dbias.tobytes()))
    assert len(set(results)) == 1
