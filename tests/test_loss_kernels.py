"""The losses as compiled: accuracy, stability, what is masked."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from kernel_cases import DTYPES, WIDTHS, Array, cross_entropy, integers, normal, same_bits, squared_error


def exact_cross_entropy(logits: Array, targets: Array, weights: Array | None = None) -> tuple[float, Array]:
    x, rows = logits.astype(np.longdouble), np.arange(len(logits))
    m = np.ones(len(x)) if weights is None else weights.astype(np.longdouble)
    exponentials = np.exp(x - x.max(1, keepdims=True))
    total = exponentials.sum(1)
    losses = np.log(total) + x.max(1) - x[rows, targets]
    exponentials[rows, targets] = 0
    exponentials[rows, targets] = -exponentials.sum(1)
    return float((m * losses).sum() / m.sum()), exponentials * (m / m.sum() / total)[:, None]


@pytest.mark.kernel
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", [*WIDTHS, 1000])
@pytest.mark.parametrize("weighted", [False, True])
def test_cross_entropy_is_as_accurate_as_its_dtype(classes: int, weighted: bool, dtype: Any) -> None:
    logits, targets = (4 * normal(60, classes)).astype(dtype), integers(classes, 60)
    weights = np.random.default_rng(2).random(60).astype(dtype) if weighted else None
    loss, dlogits = cross_entropy(logits, targets, weights)
    expected, gradient = exact_cross_entropy(logits, targets, weights)
    eps = float(np.finfo(dtype).eps)
    assert loss == pytest.approx(expected, rel=max(2 * eps, 1e-14), abs=1e-15)
    # Beside what exp and the products round, x - max is rounded to half a unit of itself.
    distance = logits.max(1, keepdims=True) - logits
    assert (abs(dlogits - gradient) <= eps * (6 + distance) * abs(gradient) + 1e-30).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_cancels_where_the_target_is_almost_sure(dtype: Any) -> None:
    loss, dlogits = cross_entropy(np.array([[0, -60]], dtype), np.array([0]))
    miss, tolerance = math.exp(-60), 4 * float(np.finfo(dtype).eps)
    assert loss == pytest.approx(miss, rel=tolerance, abs=0)
    np.testing.assert_allclose(dlogits, [[-miss, miss]], rtol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
def test_logits_of_any_size_are_stable(dtype: Any) -> None:
    huge = float(np.finfo(dtype).max) / 4
    logits = np.array([[huge, -huge, 0], [-huge, -huge, -huge], [1000, 0, -np.inf]], dtype)
    loss, dlogits = cross_entropy(logits, np.array([0, 1, 0]))
    assert loss == pytest.approx(math.log(3) / 3)
    np.testing.assert_allclose(dlogits, np.array([[0, 0, 0], [1, -2, 1], [0, 0, 0]]) / 9, rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("classes", [3, 20])
def test_a_bad_logit_stays_in_its_row(classes: int, bad: float) -> None:
    logits, targets = normal(5, classes, dtype=np.float32), integers(classes, 5)
    logits[2, 1] = bad
    loss, dlogits = cross_entropy(logits, targets)
    assert math.isnan(loss)
    assert np.isnan(dlogits).all(1).tolist() == [False, False, True, False, False]
    assert np.isfinite(dlogits[[0, 1, 3, 4]]).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_without_weight_are_never_read(dtype: Any) -> None:
    logits, y, target = (normal(9, 13, dtype=dtype, seed=k) for k in range(3))
    targets, weights = integers(13, 9), np.array([1, 0, 1, 0, 0, 2, 0, 1, 0], dtype)
    used = weights > 0
    loss, dlogits = cross_entropy(logits[used], targets[used], weights[used])
    error, dy = squared_error(y[used], target[used], weights[used])
    logits[~used], y[~used], target[~used], targets[~used] = np.nan, np.nan, np.nan, -1
    for (got, gradient), (expected, expected_gradient) in (
        (cross_entropy(logits, targets, weights), (loss, dlogits)),
        (squared_error(y, target, weights), (error, dy)),
    ):
        assert got == pytest.approx(expected, rel=1e-14)
        assert same_bits(gradient[used], expected_gradient)
        assert not gradient[~used].any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_weight_at_all_is_no_loss(dtype: Any) -> None:
    bad, zeros = np.full((4, 5), np.nan, dtype), np.zeros(4, dtype)
    for loss, gradient in (cross_entropy(bad, np.full(4, -1), zeros), squared_error(bad, bad, zeros)):
        assert loss == 0
        assert same_bits(gradient, np.zeros((4, 5), dtype))
    for rows, width in [(0, 5), (0, 0)]:
        empty = np.empty((rows, width), dtype)
        assert cross_entropy(empty, np.empty(rows, np.int64))[0] == 0
        assert squared_error(empty, empty)[0] == 0
    assert squared_error(np.empty((3, 0), dtype), np.empty((3, 0), dtype))[0] == 0


def test_a_target_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match=r"targets: expected 0 to 3, got 4 at \(1,\)"):
        cross_entropy(np.zeros((3, 4)), np.array([0, 4, 1]))


@pytest.mark.kernel
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("features", WIDTHS)
@pytest.mark.parametrize("weighted", [False, True])
def test_mse_is_as_accurate_as_its_dtype(features: int, weighted: bool, dtype: Any) -> None:
    y, target = normal(700, features, dtype=dtype), normal(700, features, dtype=dtype, seed=1)
    m = np.random.default_rng(2).random(700).astype(dtype) if weighted else np.ones(700, dtype)
    loss, dy = squared_error(y, target, m if weighted else None)
    difference, fraction = y.astype(np.longdouble) - target, (m / m.sum(dtype=np.longdouble))[:, None] / features
    eps = float(np.finfo(dtype).eps)
    assert loss == pytest.approx(float((fraction * difference**2).sum()), rel=eps)
    np.testing.assert_allclose(dy, (2 * fraction * difference).astype(np.float64), rtol=2 * eps)
