"""Losses: each gives the loss and its gradient in one pass.

A mask, bools or weights m in the leading layout of the outputs, leaves steps out or weighs them: the loss is
Σ m·l / Σ m, and 0 with a zero gradient if Σ m = 0. Outputs and targets of a masked step (m = 0) are never read.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from rnnfast import _kernels, checks, threads
from rnnfast.checks import Array, Float

__all__ = ["mse", "softmax_cross_entropy"]


def softmax_cross_entropy(logits: Any, targets: Any, mask: Any = None) -> tuple[float, Array]:
    """Mean over the steps of l = log Σ_v exp(logits_v) − logits_target, in nats, and its gradient.

    ::

        dlogits = m / Σ m · (softmax(logits) − onehot(target))

    Args:
        logits: (…, V), float32 or float64.
        targets: (…), any integer dtype, in 0 … V − 1 where the mask isn't zero.
        mask: (…), bools or weights ≥ 0; None counts every step once.

    Returns:
        The loss, a float, and dlogits like logits.

    Raises:
        TypeError: a dtype is wrong.
        ValueError: a shape is wrong, a target out of range, or a weight negative, infinite or NaN.

    Examples:
        >>> import numpy as np
        >>> import rnnfast as rf
        >>> loss, dlogits = rf.softmax_cross_entropy(np.zeros((5, 2, 4), np.float32), np.ones((5, 2), np.int64))
        >>> round(loss, 4), dlogits.shape  # log 4
        (1.3863, (5, 2, 4))
    """
    logits = checks.contiguous(checks.features("logits", logits, ("…", "V"), None))
    targets = checks.integers("targets", targets)
    checks.shaped("targets", targets, logits.shape[:-1])
    weights = step_weights(mask, logits.shape[:-1], logits.dtype)
    ignored = None if weights is None else (weights == 0).reshape(targets.shape)
    checks.in_range("targets", targets, logits.shape[-1], ignored)
    dlogits = checks.empty("dlogits", logits.shape, logits.dtype)
    loss = _kernels.softmax_cross_entropy(
        _rows(logits), checks.contiguous(checks.as_int64(targets)).ravel(), weights, _rows(dlogits), threads.resolve()
    )
    return loss, dlogits


def mse(y: Any, target: Any, mask: Any = None) -> tuple[float, Array]:
    """Mean over steps and features of l = (y − target)², and its gradient.

    ::

        dy = m / Σ m · 2 (y − target) / F

    Args:
        y: (…, F), float32 or float64.
        target: like y.
        mask: (…), bools or weights ≥ 0; None counts every step once.

    Returns:
        The loss, a float, and dy like y.

    Raises:
        TypeError: a dtype is wrong.
        ValueError: a shape is wrong, or a weight negative, infinite or NaN.

    Examples:
        >>> import numpy as np
        >>> import rnnfast as rf
        >>> loss, dy = rf.mse(np.zeros((3, 2)), np.full((3, 2), 2.0), mask=[True, False, True])
        >>> loss, dy.tolist()
        (4.0, [[-1.0, -1.0], [0.0, 0.0], [-1.0, -1.0]])
    """
    y = checks.contiguous(checks.features("y", y, ("…", "F"), None))
    target = checks.block("target", target, y.shape, y.dtype)
    weights = step_weights(mask, y.shape[:-1], y.dtype)
    dy = checks.empty("dy", y.shape, y.dtype)
    loss = _kernels.mse(_rows(y), _rows(target), weights, _rows(dy), threads.resolve())
    return loss, dy


def _rows(array: Array) -> Array:
    """(…, F) as (N, F): a view of a C-contiguous array."""
    return array.reshape(int(np.prod(array.shape[:-1])), array.shape[-1])


def step_weights(mask: Any, shape: tuple[int, ...], dtype: Float) -> Array | None:
    """The mask as (N,) weights of the outputs' dtype."""
    if mask is None:
        return None
    array = checks.as_array("mask", mask)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"mask: expected bools or weights, got {array.dtype}")
    checks.shaped("mask", array, shape)
    weights = array.astype(dtype).ravel()
    wrong = ~((weights >= 0) & (weights < np.inf))
    if wrong.any():
        index = tuple(map(int, np.unravel_index(int(wrong.argmax()), shape)))
        raise ValueError(f"mask: expected finite weights >= 0, got {array[index]} at {checks.show(index)}")
    return weights
