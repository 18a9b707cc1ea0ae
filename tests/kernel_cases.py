"""Calls of the kernels beside the recurrences, and the arrays that their tests share."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from rnnfast import _kernels

Array = npt.NDArray[Any]
DTYPES = (np.float32, np.float64)
THREADS = (1, 2, 3, 7)
WIDTHS = (1, 3, 8, 31, 32, 33, 100)  # of a row: less than a vector, whole vectors, tails


def normal(*shape: int, dtype: npt.DTypeLike = np.float64, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def integers(high: int, *shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, high, shape)


def same_bits(a: Any, b: Any) -> bool:
    a, b = np.ascontiguousarray(a), np.ascontiguousarray(b)
    return bool(a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes())


def padding(lengths: Array, steps: int) -> Array:
    return np.asarray(np.arange(steps)[:, None] >= lengths)


def drop(
    x: Array, p: float, seed: int = 1, call: int = 2, layer: int = 3, lengths: Array | None = None, threads: int = 2
) -> Array:
    y = np.full_like(x, np.nan)
    _kernels.dropout(x, y, p, seed, call, layer, lengths, threads)
    return y


def drop_into(x: Array, y: Array) -> None:
    _kernels.dropout(x, y, 0.5, 0, 0, 0, None, 1)


def cross_entropy(logits: Array, targets: Array, weights: Array | None = None, threads: int = 2) -> tuple[float, Array]:
    dlogits = np.full_like(logits, np.nan)
    return _kernels.softmax_cross_entropy(logits, targets, weights, dlogits, threads), dlogits


def squared_error(y: Array, target: Array, weights: Array | None = None, threads: int = 2) -> tuple[float, Array]:
    dy = np.full_like(y, np.nan)
    return _kernels.mse(y, target, weights, dy, threads), dy
