"""Optimiser steps as compiled: their formulas to the bit, and the norm that clips."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from kernel_cases import DTYPES, Array, normal, same_bits
from rnnfast import _kernels


@pytest.mark.kernel
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [0, 1, 15, 16, 17, 1024, 1025, 70_001])
@pytest.mark.parametrize("clip_value", [math.inf, 0.5])
def test_sum_of_squares_is_exact_to_a_few_roundings(n: int, clip_value: float, dtype: Any) -> None:
    values = normal(n, dtype=dtype)
    clipped = np.clip(values, -clip_value, clip_value).astype(np.float64)
    expected = math.fsum((clipped * clipped).tolist())
    assert _kernels.sum_of_squares(values, clip_value, 2) == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("place", [0, 8, 1030])
def test_the_norm_shows_what_is_not_finite(place: int, dtype: Any) -> None:
    values = normal(1031, dtype=dtype)
    values[place] = np.nan
    assert math.isnan(_kernels.sum_of_squares(values, math.inf, 1))
    assert math.isnan(_kernels.sum_of_squares(values, 1.0, 1))
    values[place] = -np.inf
    assert _kernels.sum_of_squares(values, math.inf, 1) == math.inf
    assert math.isfinite(_kernels.sum_of_squares(values, 1.0, 1))


def test_the_norm_of_float32_does_not_overflow() -> None:
    assert _kernels.sum_of_squares(np.full(100, 1e30, np.float32), math.inf, 1) == pytest.approx(1e62)


def sgd(params: Array, grads: Array, velocity: Array | None, dtype: Any) -> tuple[Array, Array]:
    """One step with every operation rounded to `dtype`."""
    p, g = params.astype(dtype), np.clip(grads.astype(dtype), dtype(-1.5), dtype(1.5)) * dtype(0.3)
    v = g if velocity is None else dtype(0.9) * velocity.astype(dtype) + g
    return p - dtype(0.01) * v, v


@pytest.mark.kernel
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [0, 1, 7, 16, 100, 20_001])
@pytest.mark.parametrize("momentum", [False, True])
def test_sgd_is_its_formula_to_the_bit(momentum: bool, n: int, dtype: Any) -> None:
    params, grads, velocity = (normal(n, dtype=dtype, seed=k) for k in range(3))
    buffer, kept = (velocity if momentum else None), grads.copy()
    expected, expected_velocity = sgd(params, grads, buffer, dtype)
    exact = sgd(params, grads, buffer, np.float64)[0]
    _kernels.sgd_step(params, grads, buffer, 0.01, 0.9 if momentum else 0.0, 0.3, 1.5, 2)
    assert same_bits(params, expected)
    assert not momentum or same_bits(velocity, expected_velocity)
    assert same_bits(grads, kept)
    np.testing.assert_allclose(params, exact, rtol=0, atol=4 * np.finfo(dtype).eps)


def adam(arrays: list[Array], step: int, dtype: Any) -> tuple[Array, Array, Array]:
    """One step with the factors rounded once, and every operation, to `dtype`."""
    p, g, m, v = (array.astype(dtype) for array in arrays)
    b1, b2, lr, decay = 0.9, 0.999, 0.01, 0.1
    g = np.clip(g, dtype(-1.5), dtype(1.5)) * dtype(0.3)
    m = dtype(b1) * m + dtype(1 - b1) * g
    v = dtype(b2) * v + dtype(1 - b2) * (g * g)
    root = np.sqrt(v) * dtype(1 / math.sqrt(1 - b2**step))
    return dtype(1 - lr * decay) * p - dtype(lr / (1 - b1**step)) * (m / (root + dtype(1e-8))), m, v


@pytest.mark.kernel
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [0, 1, 7, 16, 100, 20_001])
@pytest.mark.parametrize("step", [1, 2, 1000, 10**9])
def test_adam_is_its_formula_to_the_bit(step: int, n: int, dtype: Any) -> None:
    params, grads, m, v = (normal(n, dtype=dtype, seed=k) for k in range(4))
    v, kept = v * v, grads.copy()
    expected, exact = adam([params, grads, m, v], step, dtype), adam([params, grads, m, v], step, np.float64)
    _kernels.adam_step(params, grads, m, v, 0.01, 0.9, 0.999, 1e-8, 0.1, step, 0.3, 1.5, 2)
    for got, bits in zip((params, m, v), expected, strict=True):
        assert same_bits(got, bits)
    assert same_bits(grads, kept)
    move = abs(exact[0] - params).max(initial=0) / max(1, abs(exact[0]).max(initial=0))
    assert move < 20 * np.finfo(dtype).eps


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_nan_gradient_is_not_clipped_away(dtype: Any) -> None:
    grads = np.zeros(40, dtype)
    grads[[0, 39]] = np.nan
    for momentum in (None, np.zeros(40, dtype)):
        params = np.zeros(40, dtype)
        _kernels.sgd_step(params, grads, momentum, 0.1, 0.9, 1.0, 1.0, 1)
        assert np.isnan(params).nonzero()[0].tolist() == [0, 39]
