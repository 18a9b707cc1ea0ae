"""The equations of the echo state network in plain NumPy: what the kernels are tested against.

Letters as in `reference`: T steps, B batch, I input, H hidden, O output; x input, h state, y output, a leak.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rnnfast.reference.shared import Array, product

__all__ = ["Reservoir", "readout", "reservoir_scan", "reservoir_step"]


@dataclass(frozen=True)
class Reservoir:
    """The fixed weights: W_in (H, I), W (H, H) with its zeros, b (H,), W_fb (H, O) or None, the leak a."""

    weight_ih: Array
    weight_hh: Array
    bias: Array
    leak: float = 1.0
    weight_fb: Array | None = None

    def astype(self, dtype: npt.DTypeLike) -> Reservoir:
        fb = None if self.weight_fb is None else self.weight_fb.astype(dtype)
        ih, hh, bias = (array.astype(dtype) for array in (self.weight_ih, self.weight_hh, self.bias))
        return Reservoir(ih, hh, bias, self.leak, fb)


def reservoir_step(r: Reservoir, x: Array, h: Array, y: Array | None = None) -> Array:
    """One step of leaky units (Jaeger et al. 2007, "Optimization and applications of echo state networks").

        h_t = (1 - a) h_{t-1} + a tanh(W_in x_t + W_fb y_{t-1} + W h_{t-1} + b)

    x (I,), h (H,), y (O,) where there is a W_fb. The sum begins with b and goes on in the order in which it stands.
    """
    columns, values = [r.bias[:, None], r.weight_ih, r.weight_hh], [np.ones(1, h.dtype), x, h]
    if r.weight_fb is not None and y is not None:
        columns.insert(2, r.weight_fb)
        values.insert(2, y)
    z = product(np.hstack(columns), np.concatenate(values))
    leak = h.dtype.type(r.leak)
    return np.asarray((1 - leak) * h + leak * np.tanh(z))


def readout(weight: Array, bias: Array, x: Array, h: Array) -> Array:
    """y_t = W_out [h_t; x_t] + b_out, or without x_t where W_out (O, H + I) has only H columns."""
    seen = np.concatenate([np.ones(1, h.dtype), h, x])[: 1 + weight.shape[1]]
    return product(np.hstack([bias[:, None], weight]), seen)


def reservoir_scan(
    r: Reservoir,
    x: npt.ArrayLike | None,
    h0: npt.ArrayLike | None = None,
    *,
    out: tuple[npt.ArrayLike, npt.ArrayLike] | None = None,
    teacher: npt.ArrayLike | None = None,
    y0: npt.ArrayLike | None = None,
    steps: int = 0,
    lengths: npt.ArrayLike | None = None,
    resets: npt.ArrayLike | None = None,
    dtype: npt.DTypeLike = np.float64,
) -> tuple[Array, Array, Array]:
    """The states of a reservoir for a batch of sequences, each by itself, and what the readout makes of them.

    Args:
        r: the weights.
        x: (T, B, I); None where the output of the step before is the input, for `steps` steps.
        h0: (B, H); zeros if None.
        out: W_out (O, H + I) or (O, H), and b_out (O,).
        teacher: (T, B, O): y_{t-1} as W_fb sees it; None for what the readout said.
        y0: (B, O): what was said before the first step; zeros if None.
        steps: T where x is None.
        lengths: (B,): a row's later steps aren't run.
        resets: (T, B) bool: h and y are zeroed before that step.
        dtype: what everything is converted to and computed in.

    Returns:
        h (T, B, H) and y (T, B, O), zero past a length, and the last h (B, H).
    """
    r = r.astype(dtype)
    given: Any = None if x is None else np.asarray(x, dtype)
    told: Any = None if teacher is None else np.asarray(teacher, dtype)
    weight, bias = (np.zeros((0, 1)), np.zeros(0)) if out is None else (np.asarray(array, dtype) for array in out)
    outputs = len(bias) if told is None else told.shape[2]
    steps, batch = (steps, len(np.asarray(y0))) if given is None else given.shape[:2]
    hidden = len(r.bias)
    last = np.zeros((batch, hidden), dtype) if h0 is None else np.array(h0, dtype)
    before = np.zeros((batch, outputs), dtype) if y0 is None else np.array(y0, dtype)
    each = np.full(batch, steps) if lengths is None else np.asarray(lengths)
    cuts = np.zeros((steps, batch), np.bool_) if resets is None else np.asarray(resets, np.bool_)

    states, y = np.zeros((steps, batch, hidden), dtype), np.zeros((steps, batch, outputs), dtype)
    for b in range(batch):
        for t in range(int(each[b])):
            if cuts[t, b]:
                last[b], before[b] = 0, 0
            seen = before[b].copy() if given is None else given[t, b]
            states[t, b] = last[b] = reservoir_step(r, seen, last[b], before[b])
            if out is not None:
                y[t, b] = before[b] = readout(weight, bias, seen, last[b])
            if told is not None:
                before[b] = told[t, b]
    return states, y, last
