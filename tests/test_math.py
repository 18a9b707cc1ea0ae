"""exp, sigmoid and tanh of the lanes: within their bounds over the whole range, and right at every special value."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from rnnfast import _kernels

pytestmark = pytest.mark.kernel

Array = npt.NDArray[Any]

BOUNDS = {"exp": 1.1, "sigmoid": 2.51, "tanh": 2.2}  # in ULP, as cpp/elementary.h states them
WIDER = {np.float32: np.float64, np.float64: np.longdouble}


def exact(name: str, x: Array) -> Array:
    """The function in x's own, wider type, whose rounding errors are too small to count."""
    if name == "tanh":
        return np.tanh(x)
    return np.exp(x) if name == "exp" else 1 / (1 + np.exp(-x))


def flushed(x: Array) -> Array:
    """Subnormal numbers count as zeros of their sign."""
    return np.where(np.abs(x) < np.finfo(x.dtype).tiny, np.copysign(x.dtype.type(0), x), x)


def errors(y: Array, truth: Array, bound: float) -> Array:
    """|y - truth| in units in the last place of the correctly rounded truth; NaN where either is NaN.

    Infinity stands for the number after the largest one. Zero is right where the truth is at most `bound` units above
    the subnormal numbers.
    """
    info, wide = np.finfo(y.dtype), truth.dtype.type
    infinity, tiny = np.ldexp(wide(1), info.maxexp), wide(info.tiny)
    truth = np.clip(truth, -infinity, infinity)
    nearest = np.clip(np.abs(truth.astype(y.dtype)), info.tiny, None).astype(wide)
    unit = np.ldexp(wide(1), np.frexp(np.minimum(nearest, infinity))[1] - info.nmant - 1)
    vanished = (np.abs(y) < info.tiny) & (np.abs(truth) < tiny * (1 + bound * wide(info.eps)))
    return np.where(vanished, wide(0), np.abs(np.clip(y.astype(wide), -infinity, infinity) - truth) / unit)


def assert_within_bound(name: str, x: Array) -> None:
    y = _kernels.math(name, x)
    with np.errstate(all="ignore"):
        truth = exact(name, flushed(x).astype(WIDER[x.dtype.type]))
        error = errors(y, truth, BOUNDS[name])
        wrong = np.isnan(y) != np.isnan(truth)
        wrong |= ~np.isnan(y) & ((np.signbit(y) != np.signbit(truth)) | ~(error <= BOUNDS[name]))
    if wrong.any():
        k = np.flatnonzero(wrong)[np.argmax(np.nan_to_num(error[wrong], nan=np.inf))]
        pytest.fail(f"{name}({x[k]!r}) is {y[k]!r}, not {truth[k]!r}: {error[k]:.3f} ULP; {wrong.sum()} are wrong")


def hard_places(dtype: type) -> Array:
    """Powers of two, where 2^n changes, where results overflow, vanish or saturate, all with their neighbours."""
    info = np.finfo(dtype)
    n, ln2 = np.arange(1, 2 * info.maxexp + 120), np.log(np.longdouble(2))
    powers = np.ldexp(dtype(1), np.arange(info.minexp, info.maxexp))
    limits = [info.tiny, info.max, 9.1, 19.2, 87.33, 88, 88.72, 89, 708.4, 709, 709.78, 710]
    places = np.concatenate([powers, np.asarray(n * ln2 / 4, dtype), np.asarray(limits, dtype)])
    integer = np.dtype(f"i{info.bits // 8}")
    near = (places.view(integer)[:, None] + np.arange(-30, 31)).astype(integer).ravel().view(dtype)
    special = np.array([0, np.inf, np.nan, info.smallest_subnormal, info.tiny / 2], dtype)
    return np.concatenate([near, -near, special, -special])


def sample(dtype: type, count: int) -> Array:
    """Every hard place, random bits (so every exponent), and numbers of the size that the cells see."""
    random = np.random.default_rng(7)
    bits = random.integers(0, 256, count * np.dtype(dtype).itemsize, np.uint8).view(dtype)
    reach = -np.log(np.finfo(dtype).tiny) * 1.05
    spread = [random.uniform(-size, size, count).astype(dtype) for size in (0.5, 5, 40, reach)]
    return np.concatenate([hard_places(dtype), bits, *spread])


@pytest.mark.parametrize("dtype", WIDER, ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("name", BOUNDS)
def test_error_is_within_the_bound(name: str, dtype: type) -> None:
    if np.finfo(WIDER[dtype]).nmant < np.finfo(dtype).nmant + 10:
        pytest.skip("long double is no wider than double here: nothing to judge float64 by")
    assert_within_bound(name, sample(dtype, 400_000))


@pytest.mark.long
@pytest.mark.parametrize("name", BOUNDS)
def test_error_is_within_the_bound_at_every_float32(name: str) -> None:
    block = 1 << 20
    for start in range(0, 1 << 32, block):
        assert_within_bound(name, np.arange(start, start + block, dtype=np.uint32).view(np.float32))


@pytest.mark.parametrize("dtype", WIDER, ids=lambda dtype: dtype.__name__)
def test_special_values(dtype: type) -> None:
    x = np.array([0.0, -0.0, np.inf, -np.inf, np.nan], dtype)
    expected = {"exp": [1, 1, np.inf, 0, np.nan], "sigmoid": [0.5, 0.5, 1, 0, np.nan], "tanh": [0, -0.0, 1, -1, np.nan]}
    for name, values in expected.items():
        y = flushed(_kernels.math(name, x))
        np.testing.assert_array_equal(y, np.array(values, dtype))
        np.testing.assert_array_equal(np.signbit(y[:-1]), np.signbit(values[:-1]))


@pytest.mark.parametrize("dtype", WIDER, ids=lambda dtype: dtype.__name__)
def test_exp_overflows_where_it_must(dtype: type) -> None:
    last = np.nextafter(dtype(np.log(np.longdouble(np.finfo(dtype).max))), dtype(0))
    x = np.array([last, last + 3 * np.spacing(last)])
    assert np.isinf(_kernels.math("exp", x)).tolist() == [False, True]


@pytest.mark.parametrize("dtype", WIDER, ids=lambda dtype: dtype.__name__)
def test_sigmoid_and_tanh_stay_within_their_range_and_tanh_is_odd(dtype: type) -> None:
    x = sample(dtype, 100_000)
    x = x[~np.isnan(x)]
    sigmoid, tanh = _kernels.math("sigmoid", x), _kernels.math("tanh", x)
    assert sigmoid.min() >= 0 and sigmoid.max() == 1
    assert tanh.min() == -1 and tanh.max() == 1
    assert _kernels.math("tanh", -x).tobytes() == (-tanh).tobytes()


@pytest.mark.parametrize("dtype", WIDER, ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("name", BOUNDS)
def test_a_lane_knows_nothing_of_the_others(name: str, dtype: type) -> None:
    x = np.random.default_rng(0).normal(0, 4, 41).astype(dtype)
    x[[3, 17]] = np.nan, np.inf
    whole = _kernels.math(name, x)
    alone = np.concatenate([_kernels.math(name, x[k : k + 1]) for k in range(len(x))])
    reversed_ = _kernels.math(name, x[::-1].copy())[::-1]
    np.testing.assert_array_equal(whole, alone)
    np.testing.assert_array_equal(whole, reversed_)
    assert len(_kernels.math(name, x[:0])) == 0


def test_the_callers_mode_for_subnormals_is_given_back() -> None:
    _kernels.math("exp", np.ones(100, np.float32))
    assert np.finfo(np.float32).tiny / np.full(1, 2, np.float32) > 0


def test_rejects_an_unknown_name() -> None:
    with pytest.raises(ValueError, match="name: expected exp, sigmoid or tanh, got cosh"):
        _kernels.math("cosh", np.ones(3))
