"""The LSTM with exponential gates, sLSTM of xLSTM."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from rnnfast.reference.shared import Adjoint, Array, Cell, Params, Vectors, project, project_backward, sigmoid


def slstm_step(params: Params, x: Array, state: Vectors) -> tuple[Vectors, Vectors]:
    """LSTM with exponential gates and a normaliser (Beck et al. 2024, "xLSTM: Extended long short-term memory").

        ĩ = W_i x_t + b_i + R_i h_{t-1} + b'_i, and likewise f̃, z̃, õ
        m_t = max(log σ(f̃) + m_{t-1}, ĩ)                     stabiliser
        i = exp(ĩ - m_t)                                     input gate
        f = exp(log σ(f̃) + m_{t-1} - m_t)                    forget gate
        z = tanh(z̃)                                          candidate
        o = σ(õ)                                             output gate
        c_t = f ∘ c_{t-1} + i ∘ z
        n_t = f ∘ n_{t-1} + i                                normaliser
        h_t = o ∘ c_t / n_t

    What is meant is e^ĩ for i, σ(f̃) for f and c e^m for c: m keeps the exponentials in range and, since it scales c and
    n alike, doesn't show in h. It starts at -∞, where nothing of the states before is left. Where nothing has come in
    yet, n_t = 0, h_t is 0.

    A unit sees the h of its own head only: with R (4H, H/heads), the rows of unit u see the h of the H/heads units
    that u stands among.

    x (I,), h, c, n, m (H,), W (4H, I), b, b' (4H,); rows i f z o.
    """
    h, c, n, m = state
    a, u = project(_spread(params), x, h)
    i_raw, f_raw, z_raw, o_raw = np.split(a + u, 4)
    i, f, m = _stabilize(i_raw, -np.logaddexp(0, -f_raw), m)
    z, o = np.tanh(z_raw), sigmoid(o_raw)
    c, n = f * c + i * z, f * n + i
    return (o * _ratio(c, n), c, n, m), (i, f, z, o)


def _stabilize(i_raw: Array, log_f: Array, m: Array) -> tuple[Array, Array, Array]:
    """i, f and m_t; both are 0 where m_t = -∞, which would be ∞ - ∞."""
    m_after = np.maximum(log_f + m, i_raw)
    finite = np.where(np.isneginf(m_after), 0, m_after)
    return np.exp(i_raw - finite), np.exp(log_f + m - finite), m_after


def _ratio(c: Array, n: Array) -> Array:
    ratio: Array = np.where(n == 0, 0, c / np.where(n == 0, 1, n))
    return ratio


def slstm_step_backward(params: Params, x: Array, state: Vectors, gates: Vectors, dstate: Vectors) -> Adjoint:
    """m counts as a constant, its gradient as zero. c_t and n_t reach the loss on their own and through h_t:

        dz_o     = o (1 - o) ∘ c_t / n_t ∘ dh_t
        dc_t    += o / n_t ∘ dh_t
        dn_t    -= o ∘ c_t / n_t² ∘ dh_t
        dz_i     = i ∘ (z ∘ dc_t + dn_t)
        dz_f     = f (1 - σ(f̃)) ∘ (c_{t-1} ∘ dc_t + n_{t-1} ∘ dn_t)
        dz_z     = (1 - z²) ∘ i ∘ dc_t
        dc_{t-1} = f ∘ dc_t    dn_{t-1} = f ∘ dn_t    dm_{t-1} = 0

    So h has its true gradient, since m doesn't show in it; c_t and n_t have theirs at m_t as it is.
    """
    (h, c, n, _), (i, f, z, o), (dh, dc, dn, dm) = state, gates, dstate
    dense = _spread(params)
    a, u = project(dense, x, h)
    f_raw = np.split(a + u, 4)[1]
    n_after = f * n + i
    ratio = _ratio(f * c + i * z, n_after)
    dzo = o * (1 - o) * ratio * dh
    dc = dc + _ratio(o, n_after) * dh
    dn = dn - _ratio(o * ratio, n_after) * dh
    dzi = i * (z * dc + dn)
    dzf = f * sigmoid(-f_raw) * (c * dc + n * dn)
    dzz = (1 - z**2) * i * dc
    dz_rows = np.concatenate([dzi, dzf, dzz, dzo])
    dx, dh, dparams = project_backward(dense, x, h, dz_rows, dz_rows)
    dparams["weight_hh"] = np.take_along_axis(dparams["weight_hh"], _columns(params), axis=1)
    return dx, (dh, f * dc, f * dn, np.zeros_like(dm)), dparams


# R is block-diagonal. The two functions above see it as it would be written out, (4H, H) with zeros between the heads.


def _columns(params: Params) -> npt.NDArray[np.intp]:
    """The units that each row of R sees, (4H, H/heads)."""
    rows, width = params["weight_hh"].shape
    first = np.arange(rows) % (rows // 4) // width * width
    columns: npt.NDArray[np.intp] = first[:, None] + np.arange(width)
    return columns


def _spread(params: Params) -> Params:
    blocks = params["weight_hh"]
    dense = np.zeros((len(blocks), len(blocks) // 4), blocks.dtype)
    np.put_along_axis(dense, _columns(params), blocks, axis=1)
    return {**params, "weight_hh": dense}


CELLS = {
    "slstm": Cell(
        ("i", "f", "z", "o"),
        (0.0, 0.0, 0.0, -np.inf),
        slstm_step,
        slstm_step_backward,
        frozenset({"recurrent_dropout"}),
    )
}
