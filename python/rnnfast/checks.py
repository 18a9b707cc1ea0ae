"""Checks of arguments, and arrays in the form that the kernels take.

The kernels take exact arrays: the right dtype in native byte order, aligned, and either C-contiguous or, for
sequences, with a contiguous last axis and any strides before it. The functions here accept every NumPy array of the
right dtype, copy it once where the kernels could not read it, and say precisely what is wrong otherwise:
``TypeError`` for a type or dtype, ``ValueError`` for a shape or a value.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from rnnfast import _kernels

Array: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"
Float: TypeAlias = "np.dtype[Any]"
Expected: TypeAlias = Sequence[int | str]  # a shape; a letter or "…" stands for any size or sizes

_LARGEST = np.iinfo(np.intp).max
# Bytes. Larger arrays begin at a cache line, so that rows of two threads share none if they are whole lines, and those
# of 64 KB reuse the memory of arrays before, which spares the system clearing pages.
_SMALL = 1 << 10


# ---- numbers ---------------------------------------------------------------------------------------------------------
def size(name: str, value: Any, minimum: int = 1, maximum: int | None = None) -> int:
    """An integer of at least `minimum` and, where there is one, at most `maximum`."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: expected an integer, got {type(value).__name__}") from None
    if isinstance(value, bool | np.bool):
        raise TypeError(f"{name}: expected an integer, got bool")
    if number < minimum:
        raise ValueError(f"{name}: expected at least {minimum}, got {number}")
    if maximum is not None and number > maximum:
        raise ValueError(f"{name}: expected at most {maximum}, got {number}")
    return number


def flag(name: str, value: Any) -> bool:
    """A truth value; a number or a string here is a slip, for instance of a forgotten keyword."""
    if not isinstance(value, bool | np.bool):
        raise TypeError(f"{name}: expected a bool, got {type(value).__name__}")
    return bool(value)


def real(name: str, value: Any, low: float = 0.0, high: float = math.inf, *, open_low: bool = False) -> float:
    """A number in low … high, without `high` and, with `open_low`, without `low`."""
    try:
        number = float("" if isinstance(value, str | bytes) else value)
    except (TypeError, ValueError):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}") from None
    if not (low < number if open_low else low <= number) or not number < high:
        bounds = f"{'>' if open_low else '>='} {low:g}" + (" and finite" if high == math.inf else f" and < {high:g}")
        raise ValueError(f"{name}: expected a number {bounds}, got {number:g}")
    return number


def float_dtype(value: Any) -> Float:
    """float32 or float64, in native byte order."""
    for dtype in (np.dtype(np.float32), np.dtype(np.float64)):
        if value is not None and dtype == value:  # None would mean float64
            return dtype
    raise TypeError(f"dtype: expected float32 or float64, got {value!r}")


# ---- shapes ----------------------------------------------------------------------------------------------------------
def show(shape: Expected) -> str:
    """A shape as it is written: (T, B, 4)."""
    return f"({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''})"


def empty(name: str, shape: tuple[int, ...], dtype: Float) -> Array:
    """A new array; ``ValueError`` if its size can't be counted, ``MemoryError`` if there is no room for it."""
    count = math.prod(shape) * dtype.itemsize
    if 0 < count < _SMALL:
        return np.empty(shape, dtype)
    if (count or math.prod([max(extent, 1) for extent in shape]) * dtype.itemsize) > _LARGEST:
        raise ValueError(f"{name}: an array of shape {show(shape)} and dtype {dtype} is too large to address")
    if count == 0:
        return np.empty(shape, dtype)
    try:
        return _kernels.empty_bytes(count).view(dtype).reshape(shape)
    except MemoryError:
        raise MemoryError(f"{name}: Unable to allocate {count} bytes for shape {show(shape)} and {dtype}") from None


def shaped(name: str, array: Array, expected: Expected) -> None:
    """Compare a shape; letters match any size, a leading "…" any sizes."""
    sizes, got = tuple(expected), array.shape
    if sizes == got:
        return
    if sizes[:1] == ("…",):
        sizes = sizes[1:]
        got = got[max(len(got) - len(sizes), 0) :]
    if len(got) == len(sizes):
        for want, have in zip(sizes, got, strict=True):
            if want != have and not isinstance(want, str):
                break
        else:
            return
    raise ValueError(f"{name}: expected {show(expected)}, got {show(array.shape)}")


# ---- arrays ----------------------------------------------------------------------------------------------------------
def as_array(name: str, value: Any) -> Array:
    """Anything that NumPy understands as an array."""
    try:
        return np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name}: expected an array, got {type(value).__name__} ({error})") from None


def typed(name: str, value: Any, dtype: Float | None) -> Array:
    """An array of `dtype` in either byte order; None stands for float32 or float64."""
    array = as_array(name, value)
    if array.dtype is dtype:
        return array
    native = array.dtype.newbyteorder("=")
    if dtype is None and native not in (np.dtype(np.float32), np.dtype(np.float64)):
        raise TypeError(f"{name}: expected float32 or float64, got {array.dtype}")
    if dtype is not None and native != dtype:
        raise TypeError(f"{name}: expected {dtype}, got {array.dtype}")
    return array


def contiguous(array: Array) -> Array:
    """The array itself if it is C-contiguous, aligned and native, else such a copy."""
    if array.flags.c_contiguous and array.flags.aligned and array.dtype.isnative:
        return array
    return np.array(array, array.dtype.newbyteorder("="), order="C")


def rows(array: Array) -> Array:
    """The array itself if its last axis is contiguous and it is aligned and native, else a C-contiguous copy."""
    packed = array.flags.c_contiguous or array.strides[-1] == array.itemsize or array.shape[-1] == 1
    if packed and array.flags.aligned and array.dtype.isnative:
        return array
    return np.array(array, array.dtype.newbyteorder("="), order="C")


def features(name: str, value: Any, expected: Expected, dtype: Float | None) -> Array:
    """An array of rows of features: dtype and shape as expected, any strides but for the last axis."""
    array = typed(name, value, dtype)
    shaped(name, array, expected)
    return rows(array)


def block(name: str, value: Any, expected: Expected, dtype: Float) -> Array:
    """A C-contiguous array of the expected dtype and shape."""
    array = typed(name, value, dtype)
    shaped(name, array, expected)
    return contiguous(array)


def states(
    what: str, value: Any, names: Sequence[str], shapes: Sequence[tuple[int, ...]], dtype: Float
) -> tuple[Array, ...] | None:
    """The states of a layer, one C-contiguous array for each name; one alone stands without a tuple. None for None."""
    if value is None:
        return None
    if len(names) == 1:
        value = (value,)
    elif not isinstance(value, tuple | list) or len(value) != len(names):
        got = f"{len(value)} entries" if isinstance(value, tuple | list) else type(value).__name__
        raise TypeError(f"{what}: expected a tuple ({', '.join(names)}), got {got}")
    named = zip(names, value, shapes, strict=True)
    return tuple(block(name, array, shape, dtype) for name, array, shape in named)


def time_major(array: Array, batch_first: bool) -> Array:
    """(T, B, …) for (T, B, …) or (B, T, …): a view."""
    return array.swapaxes(0, 1) if batch_first else array


def leading(batch_first: bool) -> tuple[str, str]:
    """The names of the two leading axes, for messages."""
    return ("B", "T") if batch_first else ("T", "B")


def lengths(value: Any, steps: int, batch: int) -> Array | None:
    """(B,) integers in 0 … T as int64, or None."""
    if value is None:
        return None
    array = integers("lengths", value)
    shaped("lengths", array, (batch,))
    outside = (array < 0) | (array > steps)
    if outside.any():
        index = int(outside.argmax())
        raise ValueError(f"lengths: expected values from 0 to T = {steps}, got {array[index]} at index {index}")
    return array.astype(np.int64)  # always a copy: a tape may keep it


def resets(value: Any, steps: int, batch: int, batch_first: bool) -> Array | None:
    """Bools in x's leading layout as (T, B), or None."""
    if value is None:
        return None
    array = as_array("resets", value)
    if array.dtype != np.bool:
        raise TypeError(f"resets: expected bool, got {array.dtype}")
    shaped("resets", array, (batch, steps) if batch_first else (steps, batch))
    return time_major(array, batch_first).copy()  # a tape may keep it


def integers(name: str, value: Any) -> Array:
    """An array of any integer dtype, or an empty list, which has none."""
    array = as_array(name, value)
    if isinstance(value, list | tuple) and array.size == 0:
        array = array.astype(np.int64)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name}: expected integers, got {array.dtype}")
    return array


def as_int64(array: Array) -> Array:
    """The array itself if it is native, aligned int64, else such a copy. The values have been checked."""
    return array if array.dtype == np.int64 and array.flags.aligned else array.astype(np.int64)


def in_range(name: str, array: Array, count: int, ignored: Array | None = None) -> None:
    """Values in 0 … count − 1 wherever `ignored` (of the same shape) isn't set."""
    if array.size == 0 or (array.min() >= 0 and array.max() < count):
        return
    outside = (array < 0) | (array >= count)
    if ignored is not None:
        outside &= ~ignored
    if outside.any():
        index = tuple(map(int, np.unravel_index(int(outside.argmax()), array.shape)))
        raise ValueError(f"{name}: expected values from 0 to {count - 1}, got {array[index]} at {show(index)}")


def past(lengths: Array, steps: int) -> Array:
    """(T, B) bools: whether a step is past its row's length."""
    padding: Array = np.arange(steps)[:, None] >= lengths
    return padding
