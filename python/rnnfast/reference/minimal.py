"""Minimal GRU and LSTM, whose gates see x only."""

from __future__ import annotations

import numpy as np

from rnnfast.reference.shared import (
    Adjoint,
    Array,
    Cell,
    Params,
    Vectors,
    project_input,
    project_input_backward,
    sigmoid,
)


def min_gru_step(params: Params, x: Array, state: Vectors) -> tuple[Vectors, Vectors]:
    """Minimal GRU (Feng et al. 2024, "Were RNNs all we needed?"), without its logarithmic form.

        z = σ(W_z x_t + b_z)                update gate
        n = W_h x_t + b_h                   candidate
        h_t = (1 - z) ∘ h_{t-1} + z ∘ n

    x (I,), h (H,), W (2H, I), b (2H,); rows z h.
    """
    (h,) = state
    az, n = np.split(project_input(params, x), 2)
    z = sigmoid(az)
    return ((1 - z) * h + z * n,), (z, n)


def min_gru_step_backward(params: Params, x: Array, state: Vectors, gates: Vectors, dstate: Vectors) -> Adjoint:
    """da_z = z (1 - z) ∘ (n - h_{t-1}) ∘ dh_t, dn = z ∘ dh_t, dh_{t-1} = (1 - z) ∘ dh_t."""
    (h,), (z, n), (dh,) = state, gates, dstate
    dx, dparams = project_input_backward(params, x, np.concatenate([z * (1 - z) * (n - h) * dh, z * dh]))
    return dx, ((1 - z) * dh,), dparams


def min_lstm_step(params: Params, x: Array, state: Vectors) -> tuple[Vectors, Vectors]:
    """Minimal LSTM (Feng et al. 2024, "Were RNNs all we needed?"), normalised, without its logarithmic form.

        f = σ(W_f x_t + b_f)    i = σ(W_i x_t + b_i)    n = W_h x_t + b_h
        h_t = k ∘ h_{t-1} + (1 - k) ∘ n             k = f / (f + i)

    x (I,), h (H,), W (3H, I), b (3H,); rows f i h.
    """
    (h,) = state
    af, ai, n = np.split(project_input(params, x), 3)
    f, i = sigmoid(af), sigmoid(ai)
    k = _share(f, i)
    return (k * h + (1 - k) * n,), (f, i, n)


def _share(f: Array, i: Array) -> Array:
    """k = f / (f + i); one half where both have underflowed."""
    underflow = f + i < np.finfo(f.dtype).tiny
    k: Array = np.where(underflow, 0.5, f / np.where(underflow, 1, f + i)).astype(f.dtype)
    return k


def min_lstm_step_backward(params: Params, x: Array, state: Vectors, gates: Vectors, dstate: Vectors) -> Adjoint:
    """With dk = (h_{t-1} - n) ∘ dh_t:

    da_f = k (1 - k) ∘ (1 - f) ∘ dk    da_i = -k (1 - k) ∘ (1 - i) ∘ dk    dn = (1 - k) ∘ dh_t
    dh_{t-1} = k ∘ dh_t
    """
    (h,), (f, i, n), (dh,) = state, gates, dstate
    k = _share(f, i)
    dk = k * (1 - k) * (h - n) * dh
    dx, dparams = project_input_backward(params, x, np.concatenate([dk * (1 - f), -dk * (1 - i), (1 - k) * dh]))
    return dx, (k * dh,), dparams


CELLS = {
    "min_gru": Cell(("z", "n"), (0.0,), min_gru_step, min_gru_step_backward),
    "min_lstm": Cell(("f", "i", "n"), (0.0,), min_lstm_step, min_lstm_step_backward),
}
