"""Gated recurrent units: the reset gate after the product, or before it."""

from __future__ import annotations

import numpy as np

from rnnfast.reference.shared import (
    Adjoint,
    Array,
    Cell,
    Params,
    Vectors,
    project,
    project_backward,
    project_input,
    project_input_backward,
    project_state,
    project_state_backward,
    sigmoid,
    units,
)


def gru_step(params: Params, x: Array, state: Vectors) -> tuple[Vectors, Vectors]:
    """Gated recurrent unit, reset gate after the product (Cho et al. 2014, in the form of cuDNN and PyTorch).

        r = σ(W_r x_t + b_r + R_r h_{t-1} + b'_r)            reset gate
        z = σ(W_z x_t + b_z + R_z h_{t-1} + b'_z)            update gate
        n = tanh(W_n x_t + b_n + r ∘ (R_n h_{t-1} + b'_n))   candidate
        h_t = (1 - z) ∘ n + z ∘ h_{t-1}

    x (I,), h (H,), W (3H, I), R (3H, H), b, b' (3H,); rows r z n.
    """
    (h,) = state
    a, u = project(params, x, h)
    (ar, az, an), (ur, uz, un) = np.split(a, 3), np.split(u, 3)
    r, z = sigmoid(ar + ur), sigmoid(az + uz)
    n = np.tanh(an + r * un)
    return ((1 - z) * n + z * h,), (r, z, n)


def gru_step_backward(params: Params, x: Array, state: Vectors, gates: Vectors, dstate: Vectors) -> Adjoint:
    """The candidate's recurrent part u_n = R_n h_{t-1} + b'_n has a gradient of its own, since r scales it:

        dz_n     = (1 - n²) ∘ (1 - z) ∘ dh_t
        dz_z     = z (1 - z) ∘ (h_{t-1} - n) ∘ dh_t
        dz_r     = r (1 - r) ∘ u_n ∘ dz_n
        du_n     = r ∘ dz_n

    W sees (dz_r, dz_z, dz_n), R sees (dz_r, dz_z, du_n), and h_{t-1} also reaches h_t past both: dh_{t-1} += z ∘ dh_t.
    """
    (h,), (r, z, n), (dh,) = state, gates, dstate
    un = np.split(project(params, x, h)[1], 3)[2]
    dzn = (1 - n**2) * (1 - z) * dh
    dzz = z * (1 - z) * (h - n) * dh
    dzr = r * (1 - r) * un * dzn
    da = np.concatenate([dzr, dzz, dzn])
    du = np.concatenate([dzr, dzz, r * dzn])
    dx, dh_product, dparams = project_backward(params, x, h, da, du)
    return dx, (z * dh + dh_product,), dparams


def gru_reset_before_step(params: Params, x: Array, state: Vectors) -> tuple[Vectors, Vectors]:
    """Gated recurrent unit, reset gate before the product, as it was published (Cho et al. 2014).

        r = σ(W_r x_t + b_r + R_r h_{t-1} + b'_r)            reset gate
        z = σ(W_z x_t + b_z + R_z h_{t-1} + b'_z)            update gate
        n = tanh(W_n x_t + b_n + R_n (r ∘ h_{t-1}) + b'_n)   candidate
        h_t = (1 - z) ∘ n + z ∘ h_{t-1}

    x (I,), h (H,), W (3H, I), R (3H, H), b, b' (3H,); rows r z n.
    """
    (h,) = state
    ar, az, an = np.split(project_input(params, x), 3)
    of_gates, of_candidate = _split_state_rows(params)
    ur, uz = np.split(project_state(of_gates, h), 2)
    r, z = sigmoid(ar + ur), sigmoid(az + uz)
    n = np.tanh(an + project_state(of_candidate, r * h))
    return ((1 - z) * n + z * h,), (r, z, n)


def _split_state_rows(params: Params) -> tuple[Params, Params]:
    """The parameters with the state's rows of r and z alone, and with those of n alone: two products, one by one."""
    names = [name for name in ("weight_hh", "bias_hh", "ln_hh_weight", "ln_hh_bias") if name in params]
    rows = 2 * units(params)
    of_gates = {name: params[name][:rows] for name in names}
    of_candidate = {name: params[name][rows:] for name in names}
    return {**params, **of_gates}, {**params, **of_candidate}


def gru_reset_before_step_backward(
    params: Params, x: Array, state: Vectors, gates: Vectors, dstate: Vectors
) -> Adjoint:
    """Two products, one after the other, and so two adjoints; with q = r ∘ h_{t-1}, what R_n sees:

        dz_n     = (1 - n²) ∘ (1 - z) ∘ dh_t
        dz_z     = z (1 - z) ∘ (h_{t-1} - n) ∘ dh_t
        dq       = R_nᵀ dz_n
        dz_r     = r (1 - r) ∘ h_{t-1} ∘ dq
        dh_{t-1} = z ∘ dh_t + r ∘ dq + R_rᵀ dz_r + R_zᵀ dz_z

    W sees (dz_r, dz_z, dz_n), R_r and R_z see h_{t-1}, R_n sees q.
    """
    (h,), (r, z, n), (dh,) = state, gates, dstate
    of_gates, of_candidate = _split_state_rows(params)
    dzn = (1 - n**2) * (1 - z) * dh
    dzz = z * (1 - z) * (h - n) * dh
    dq, dcandidate = project_state_backward(of_candidate, r * h, dzn)
    dzr = r * (1 - r) * h * dq
    dh_product, dgates = project_state_backward(of_gates, h, np.concatenate([dzr, dzz]))
    dx, dinput = project_input_backward(params, x, np.concatenate([dzr, dzz, dzn]))
    dstate_rows = {name: np.concatenate([dgates[name], dcandidate[name]]) for name in dgates}
    return dx, (z * dh + r * dq + dh_product,), dinput | dstate_rows


_OPTIONS = frozenset({"layer_norm", "recurrent_dropout"})

CELLS = {
    "gru": Cell(("r", "z", "n"), (0.0,), gru_step, gru_step_backward, _OPTIONS),
    "gru_reset_before": Cell(("r", "z", "n"), (0.0,), gru_reset_before_step, gru_reset_before_step_backward, _OPTIONS),
}
