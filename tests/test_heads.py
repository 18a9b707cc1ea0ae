"""The kernels beside the recurrences, as compiled: linear layer, embedding, dropout, losses, optimiser steps."""

from __future__ import annotations

import math
import re
import signal
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

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


# ---- every kernel, on enough data for threads and with tails ---------------------------------------------------------


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


# ---- linear ----------------------------------------------------------------------------------------------------------


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


# ---- dropout ---------------------------------------------------------------------------------------------------------


def philox(counter: Array, key: tuple[int, int]) -> Array:
    """Philox4x32-10 of counters (…, 4) by the definition of Salmon et al., 2011."""
    c = np.moveaxis(np.asarray(counter, np.uint64), -1, 0)
    k = [np.uint64(word) for word in key]
    low = np.uint64(0xFFFFFFFF)
    for _ in range(10):
        a, b = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        c = np.stack([b >> np.uint64(32) ^ c[1] ^ k[0], b & low, a >> np.uint64(32) ^ c[3] ^ k[1], a & low])
        k = [k[0] + np.uint64(0x9E3779B9) & low, k[1] + np.uint64(0xBB67AE85) & low]
    return np.moveaxis(c, 0, -1)


def expected_mask(shape: tuple[int, int, int], p: float, seed: int, call: int, layer: int) -> Array:
    """Which elements stay: feature 32 g + 8 w + i compares word w of the counter (8 g + i, row, t) with p."""
    steps, batch, width = shape
    low = 0xFFFFFFFF
    key = philox(np.array([call & low, call >> 32, layer, 0]), (seed & low, seed >> 32))
    feature = np.arange(width)
    block = feature // 32 * 8 + feature % 8
    counter = np.zeros((*shape, 4), np.uint64)
    counter[..., 0] = block
    counter[..., 1] = np.arange(batch)[:, None]
    counter[..., 2] = np.arange(steps)[:, None, None]
    words = np.take_along_axis(philox(counter, (int(key[0]), int(key[1]))), (feature // 8 % 4)[None, None, :, None], -1)
    return np.asarray(words[..., 0] >= math.floor(p * 2**32))


def drop(
    x: Array, p: float, seed: int = 1, call: int = 2, layer: int = 3, lengths: Array | None = None, threads: int = 2
) -> Array:
    y = np.full_like(x, np.nan)
    _kernels.dropout(x, y, p, seed, call, layer, lengths, threads)
    return y


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ([0, 0, 0, 0], (0, 0), [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, (0xFFFFFFFF, 0xFFFFFFFF), [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            (0xA4093822, 0x299F31D0),
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_philox_gives_the_known_answers(counter: list[int], key: tuple[int, int], words: list[int]) -> None:
    assert philox(np.array(counter), key).tolist() == words


@pytest.mark.kernel
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("p", [0.1, 0.5, 0.999])
@pytest.mark.parametrize("width", WIDTHS)
def test_the_mask_is_philoxs(width: int, p: float, dtype: Any) -> None:
    x = normal(4, 5, width, dtype=dtype)
    for seed, call, layer in [(0, 0, 0), (1, 2, 3), (2**64 - 1, 2**40 + 7, 12)]:
        kept = expected_mask(x.shape, p, seed, call, layer)
        assert (drop(x, p, seed, call, layer) == np.where(kept, x * dtype(1 / (1 - p)), 0)).all()


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_drops_its_share_and_keeps_the_mean(p: float) -> None:
    y = drop(np.ones((50, 40, 100), np.float64), p)
    deviation = math.sqrt(p * (1 - p) / y.size)
    assert abs((y == 0).mean() - p) < 5 * deviation
    assert y.mean() == pytest.approx(1, abs=5 * deviation / (1 - p))
    for axes in [(0, 1), (0, 2), (1, 2)]:  # no step, row or feature is preferred
        kept = (y != 0).mean(axes)
        assert abs(kept - (1 - p)).max() < 6 * math.sqrt(p * (1 - p) * kept.size / y.size)


def test_masks_of_other_keys_steps_and_rows_are_independent() -> None:
    ones = np.ones((40, 50, 64), np.float32)
    kept = drop(ones, 0.5) != 0
    others = [drop(ones, 0.5, *key) != 0 for key in [(77, 2, 3), (1, 77, 3), (1, 2, 77)]]
    others += [np.roll(kept, 1, axis) for axis in range(3)]
    for other in others:
        assert abs((kept == other).mean() - 0.5) < 5 * 0.5 / math.sqrt(kept.size)


@pytest.mark.parametrize("dtype", DTYPES)
def test_without_dropout_every_bit_is_copied(dtype: Any) -> None:
    x = normal(3, 4, 37, dtype=dtype)
    x[0, 0, :4] = np.nan, np.inf, -0.0, np.finfo(dtype).smallest_subnormal
    assert same_bits(drop(x, 0.0), x)


def test_a_mask_does_not_depend_on_strides_or_the_rest_of_the_batch() -> None:
    x = normal(7, 6, 40, dtype=np.float32)
    y = drop(x, 0.4)
    inside = np.zeros((6, 7, 80), np.float32)
    outer = inside[::-1, :, 40:].swapaxes(0, 1)  # negative and swapped strides, half of a wider row
    _kernels.dropout(np.broadcast_to(x[:1, :1], x.shape), outer, 0.4, 1, 2, 3, None, 1)
    assert ((outer != 0) == (y != 0)).all()
    assert not inside[..., :40].any()
    assert same_bits(drop(x[:3, :2, :33].copy(), 0.4), y[:3, :2, :33])


def test_dropout_never_reads_past_a_length_and_gives_zeros_there() -> None:
    x, lengths = normal(6, 4, 20), np.array([6, 0, 3, 1])
    whole, past = drop(x, 0.3), padding(lengths, 6)
    x[past] = np.nan
    y = drop(x, 0.3, lengths=lengths)
    assert same_bits(y[~past], whole[~past])
    assert not y[past].any()


def test_a_signal_ends_a_long_call() -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    # Seconds of work in little memory: the rows of a step are the same one.
    once = np.full((3000, 1, 1000), np.nan, np.float32)
    x = np.broadcast_to(np.ones(1000, np.float32), (3000, 1000, 1000))
    y = np.lib.stride_tricks.as_strided(once, x.shape, (4000, 0, 4))
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(KeyboardInterrupt):
            drop_into(x, y)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert np.isnan(once).any()


# ---- embedding -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", WIDTHS)
def test_embedding_looks_rows_up(width: int, dtype: Any) -> None:
    tokens, weight, lengths = integers(11, 6, 4), normal(11, width, dtype=dtype), np.array([6, 0, 3, 1])
    past = padding(lengths, 6)
    expected = weight[tokens]
    expected[past] = 0
    tokens[past] = -5  # never read
    y = np.full((4, 6, width), np.nan, dtype).swapaxes(0, 1)
    _kernels.embedding_forward(tokens, weight, y, lengths, 2)
    assert same_bits(y, expected)
    _kernels.embedding_forward(np.asfortranarray(tokens), weight, y, lengths, 2)
    assert same_bits(y, expected)


def ordered_gradient(tokens: Array, dy: Array, dweight: Array, lengths: Array) -> Array:
    result = dweight.copy()
    for t in reversed(range(len(tokens))):
        for b in range(tokens.shape[1]):
            if t < lengths[b]:
                result[tokens[t, b]] += dy[t, b]
    return result


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", WIDTHS)
def test_the_gradient_of_a_token_adds_up_in_a_fixed_order(width: int, dtype: Any) -> None:
    tokens, lengths = integers(3, 9, 4), np.array([9, 0, 5, 1])
    dy, before = normal(9, 4, width, dtype=dtype), normal(3, width, dtype=dtype, seed=1)
    expected = ordered_gradient(tokens, dy, before, lengths)
    dy[padding(lengths, 9)] = np.nan
    dweight = before.copy()
    _kernels.embedding_backward(tokens, dy, dweight, lengths, 2)
    assert same_bits(dweight, expected)


def test_the_gradient_of_segments_is_that_of_the_whole() -> None:
    tokens, dy, before = integers(3, 9, 4), normal(9, 4, 50, dtype=np.float32), normal(3, 50, dtype=np.float32)
    whole, cut = before.copy(), before.copy()
    _kernels.embedding_backward(tokens, dy, whole, None, 1)
    for steps in [slice(6, 9), slice(2, 6), slice(0, 2)]:
        _kernels.embedding_backward(tokens[steps], dy[steps], cut, None, 1)
    assert same_bits(cut, whole)


def test_a_nan_stays_with_its_token() -> None:
    tokens, dy, dweight = np.array([[0, 1, 2]]), np.ones((1, 3, 20)), np.zeros((3, 20))
    dy[0, 1] = np.nan
    _kernels.embedding_backward(tokens, dy, dweight, None, 1)
    assert np.isnan(dweight).any(1).tolist() == [False, True, False]


@pytest.mark.parametrize("token", [-1, 11, 2**62, -(2**63)])
def test_a_token_out_of_range_is_refused_and_changes_nothing(token: int) -> None:
    tokens, weight, y = integers(11, 3, 2), np.zeros((11, 5)), np.zeros((3, 2, 5))
    tokens[2, 1] = token
    message = rf"tokens: expected 0 to 10, got {token} at \(2, 1\)"
    with pytest.raises(ValueError, match=message):
        _kernels.embedding_forward(tokens, weight, y, None, 1)
    with pytest.raises(ValueError, match=message):
        _kernels.embedding_backward(tokens, np.ones_like(y), weight, None, 1)
    assert not weight.any()


# ---- losses ----------------------------------------------------------------------------------------------------------


def cross_entropy(logits: Array, targets: Array, weights: Array | None = None, threads: int = 2) -> tuple[float, Array]:
    dlogits = np.full_like(logits, np.nan)
    return _kernels.softmax_cross_entropy(logits, targets, weights, dlogits, threads), dlogits


def squared_error(y: Array, target: Array, weights: Array | None = None, threads: int = 2) -> tuple[float, Array]:
    dy = np.full_like(y, np.nan)
    return _kernels.mse(y, target, weights, dy, threads), dy


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


# ---- optimiser steps -------------------------------------------------------------------------------------------------


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


# ---- the boundary ----------------------------------------------------------------------------------------------------


def drop_into(x: Array, y: Array) -> None:
    _kernels.dropout(x, y, 0.5, 0, 0, 0, None, 1)


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
