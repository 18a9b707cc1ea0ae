"""The simple recurrent unit."""

from __future__ import annotations

from functools import partial

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


def sru_step(skip: str, params: Params, x: Array, state: Vectors) -> tuple[Vectors, Vectors]:
    """Simple recurrent unit (Lei et al. 2018, "Simple recurrent units for highly parallelizable recurrence").

        x̃ = W_x x_t + b_x                                    candidate
        f = σ(W_f x_t + b_f + v_f ∘ c_{t-1})                 forget gate
        r = σ(W_r x_t + b_r + v_r ∘ c_{t-1})                 reset gate
        c_t = f ∘ c_{t-1} + (1 - f) ∘ x̃
        h_t = r ∘ c_t + (1 - r) ∘ s                          s = x_t or W_s x_t + b_s

    `skip` is "input" for s = x_t, which needs I = H, and "projected" for a fourth block of rows. The paper has no b_x.
    h is output only: nothing reads h_{t-1}.

    x (I,), h, c (H,), W (3H or 4H, I), b (3H or 4H,), weight_c (2H,) = (v_f, v_r); rows x̃ f r, s below them.
    """
    _, c = state
    candidate, af, ar, *projected = np.split(project_input(params, x), 3 if skip == "input" else 4)
    s = projected[0] if projected else _same_size(x, c)
    vf, vr = np.split(params["weight_c"], 2)
    f, r = sigmoid(af + vf * c), sigmoid(ar + vr * c)
    c = f * c + (1 - f) * candidate
    return (r * c + (1 - r) * s, c), (candidate, f, r, *projected)


def _same_size(x: Array, c: Array) -> Array:
    if x.shape != c.shape:
        raise ValueError(f"x: expected as many features as units for sru, {len(c)}, got {len(x)}; sru_skip takes any")
    return x


def sru_step_backward(skip: str, params: Params, x: Array, state: Vectors, gates: Vectors, dstate: Vectors) -> Adjoint:
    """c_t reaches the loss on its own and through h_t:

        dz_r     = r (1 - r) ∘ (c_t - s) ∘ dh_t
        ds       = (1 - r) ∘ dh_t
        dc_t    += r ∘ dh_t
        dx̃       = (1 - f) ∘ dc_t
        dz_f     = f (1 - f) ∘ (c_{t-1} - x̃) ∘ dc_t
        dc_{t-1} = f ∘ dc_t + v_f ∘ dz_f + v_r ∘ dz_r        dh_{t-1} = 0
        dv_f = c_{t-1} ∘ dz_f    dv_r = c_{t-1} ∘ dz_r

    ds is added to dx_t where s = x_t.
    """
    (h, c), (candidate, f, r, *projected), (dh, dc) = state, gates, dstate
    s = projected[0] if projected else x
    vf, vr = np.split(params["weight_c"], 2)
    dzr = r * (1 - r) * (f * c + (1 - f) * candidate - s) * dh
    ds = (1 - r) * dh
    dc = dc + r * dh
    dzf = f * (1 - f) * (c - candidate) * dc
    da = [(1 - f) * dc, dzf, dzr, *([ds] if projected else [])]
    dx, dparams = project_input_backward(params, x, np.concatenate(da))
    dc_before = f * dc + vf * dzf + vr * dzr
    dparams["weight_c"] = np.concatenate([c * dzf, c * dzr])
    return dx if projected else dx + ds, (np.zeros_like(h), dc_before), dparams


def _sru(skip: str) -> Cell:
    gates = ("x", "f", "r") if skip == "input" else ("x", "f", "r", "s")
    return Cell(gates, (0.0, 0.0), partial(sru_step, skip), partial(sru_step_backward, skip))


CELLS = {"sru": _sru("input"), "sru_skip": _sru("projected")}
