"""The kernels beside the recurrences, as compiled: threads, modes, refusals."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from kernel_cases import (
    DTYPES,
    THREADS,
    Array,
    cross_entropy,
    drop,
    drop_into,
    integers,
    normal,
    same_bits,
    squared_error,
)
from rnnfast import _kernels


def run_linear_forward(dtype: npt.DTypeLike, threads: int) -> Array:
    y = np.empty((67, 9, 101), dtype)
    x, weight, bias = normal(67, 9, 61, dtype=dtype), normal(101, 61, dtype=dtype), normal(101, dtype=dtype)
    _kernels.linear_forward(x, weight, bias, y, integers(68, 9, seed=1), threads)
    return y


def run_linear_backward(dtype: npt.DTypeLike, threads: int) -> Array:
    x, weight, dy = normal(67, 9, 61, dtype=dtype), normal(101, 61, dtype=dtype), normal(67, 9, 101, dtype=dtype)
    dx, dweight, dbias = np.empty_like(x), normal(101, 61, dtype=dtype, seed=1), normal(101, dtype=dtype, seed=2)
    _kernels.linear_backward(x, weight, dy, dx, dweight, dbias, integers(68, 9, seed=1), threads)
    return np.concatenate([dx.ravel(), dweight.ravel(), dbias])


def run_embedding_forward(dtype: npt.DTypeLike, threads: int) -> Array:
    y = np.empty((23, 9, 101), dtype)
    lengths = integers(24, 9, seed=1)
    _kernels.embedding_forward(integers(30, 23, 9), normal(30, 101, dtype=dtype), y, lengths, threads)
    return y


def run_embedding_backward(dtype: npt.DTypeLike, threads: int) -> Array:
    dweight = normal(5, 101, dtype=dtype)
    _kernels.embedding_backward(integers(5, 23, 9), normal(23, 9, 101, dtype=dtype), dweight, None, threads)
    return dweight


def run_dropout(dtype: npt.DTypeLike, threads: int) -> Array:
    y = np.empty((23, 9, 101), dtype)
    _kernels.dropout(normal(23, 9, 101, dtype=dtype), y, 0.3, 5, 6, 1, integers(24, 9, seed=1), threads)
    return y


def run_cross_entropy(dtype: npt.DTypeLike, threads: int) -> Array:
    logits, weights = normal(417, 101, dtype=dtype), normal(417, dtype=dtype, seed=1).clip(0)
    dlogits = np.empty_like(logits)
    loss = _kernels.softmax_cross_entropy(logits, integers(101, 417), weights, dlogits, threads)
    return np.append(dlogits.astype(np.float64), loss)


def run_softmax_head(dtype: npt.DTypeLike, threads: int) -> Array:
    x, weights = normal(17, 25, 41, dtype=dtype), normal(425, dtype=dtype, seed=1).clip(0)
    weight, bias, dx = normal(101, 41, dtype=dtype, seed=2), normal(101, dtype=dtype), np.empty_like(x)
    grads, targets = (np.zeros_like(weight), np.zeros_like(bias)), integers(101, 425)
    loss = _kernels.softmax_head(x, weight, bias, targets, weights, True, dx, *grads, threads)
    return np.concatenate([*(array.ravel().astype(np.float64) for array in (dx, *grads)), [loss]])


def run_mse(dtype: npt.DTypeLike, threads: int) -> Array:
    y, target = normal(5001, 7, dtype=dtype), normal(5001, 7, dtype=dtype, seed=1)
    dy = np.empty_like(y)
    loss = _kernels.mse(y, target, normal(5001, dtype=dtype, seed=2).clip(0), dy, threads)
    return np.append(dy.astype(np.float64), loss)


def run_sum_of_squares(dtype: npt.DTypeLike, threads: int) -> Array:
    return np.array(_kernels.sum_of_squares(normal(1_000_003, dtype=dtype), 2.5, threads))


def run_sgd(dtype: npt.DTypeLike, threads: int) -> Array:
    params, grads, velocity = (normal(20_011, dtype=dtype, seed=k) for k in range(3))
    _kernels.sgd_step(params, grads, velocity, 0.1, 0.9, 0.5, 1.5, threads)
    return np.stack([params, velocity])


def run_adam(dtype: npt.DTypeLike, threads: int) -> Array:
    params, grads, m, v = (normal(20_011, dtype=dtype, seed=k) for k in range(4))
    _kernels.adam_step(params, grads, m, v := abs(v), 0.01, 0.9, 0.999, 1e-8, 0.1, 3, 0.5, 1.5, threads)
    return np.stack([params, m, v])


KERNELS: dict[str, Callable[[npt.DTypeLike, int], Array]] = {
    "linear_forward": run_linear_forward,
    "linear_backward": run_linear_backward,
    "embedding_forward": run_embedding_forward,
    "embedding_backward": run_embedding_backward,
    "dropout": run_dropout,
    "softmax_cross_entropy": run_cross_entropy,
    "softmax_head": run_softmax_head,
    "mse": run_mse,
    "sum_of_squares": run_sum_of_squares,
    "sgd_step": run_sgd,
    "adam_step": run_adam,
}


@pytest.mark.kernel
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernel", KERNELS)
def test_threads_do_not_change_a_bit(kernel: str, dtype: Any) -> None:
    results = [KERNELS[kernel](dtype, threads) for threads in THREADS]
    assert np.isfinite(results[0]).all()
    for result in results[1:]:
        assert same_bits(result, results[0])


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_callers_subnormals_survive_a_call(kernel: str) -> None:
    KERNELS[kernel](np.float32, 2)
    assert np.float32(1e-40) * np.float32(0.5) > 0


@pytest.mark.parametrize("kernel", KERNELS)
def test_one_thread_at_least(kernel: str) -> None:
    with pytest.raises(ValueError, match="num_threads: expected at least 1, got 0"):
        KERNELS[kernel](np.float32, 0)


# ---- refusals -------------------------------------------------------------------------------------------------------


def step(params: Array, grads: Array) -> None:
    _kernels.sgd_step(params, grads, None, 0.1, 0.0, 1.0, math.inf, 1)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int32, ">f4"])
def test_rejects_another_dtype(dtype: Any) -> None:
    x = np.zeros((2, 3, 4), np.float32)
    for arrays in ((x, x.astype(dtype)), (x.astype(dtype), x)):
        with pytest.raises(TypeError, match="incompatible function arguments"):
            drop_into(*arrays)


def test_rejects_a_wrong_shape_and_says_which() -> None:
    x, flat, matrix = np.zeros((2, 3, 4), np.float32), np.zeros(5, np.float32), np.zeros((2, 4), np.float32)
    read_only = flat.copy()
    read_only.flags.writeable = False
    cases: dict[str, Callable[[], object]] = {
        "y: expected (2, 3, 4), got (2, 3, 3)": lambda: drop_into(x, x[..., :3]),
        "y: expected a contiguous last axis": lambda: drop_into(x, np.repeat(x, 2, -1)[..., ::2]),
        "lengths: expected 0 to 2, got 3 in row 1": lambda: drop(x, 0.5, lengths=np.array([0, 3, 1])),
        "lengths: expected (3": lambda: drop(x, 0.5, lengths=np.array([0, 1])),
        "grads: expected (5": lambda: step(flat, flat[:4]),
        "grads: expected a C-contiguous array": lambda: step(flat, np.repeat(flat, 2)[::2]),
        "not writeable": lambda: step(read_only, flat),
        "values: expected an array of 1 axes, got (2, 3, 4)": lambda: _kernels.sum_of_squares(x, 1.0, 1),
        "targets: expected (2": lambda: cross_entropy(matrix, np.zeros(3, np.int64)),
        "target: expected (2, 4), got (2, 3)": lambda: squared_error(matrix, matrix[:, :3].copy()),
    }
    for message, call in cases.items():
        with pytest.raises(ValueError, match=re.escape(message)):
            call()
