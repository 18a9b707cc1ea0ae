"""Long short-term memory: with or without peepholes, a forget gate of its own, coupled or none."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np

from rnnfast.reference.shared import Adjoint, Array, Cell, Params, Vectors, project, project_backward, sigmoid


def lstm_step(forget: str, params: Params, x: Array, state: Vectors) -> tuple[Vectors, Vectors]:
    """Long short-term memory (Hochreiter & Schmidhuber 1997; forget gate: Gers, Schmidhuber & Cummins 2000).

        i = σ(W_i x_t + b_i + R_i h_{t-1} + b'_i + w_ci ∘ c_{t-1})   input gate
        f = σ(W_f x_t + b_f + R_f h_{t-1} + b'_f + w_cf ∘ c_{t-1})   forget gate
        g = tanh(W_g x_t + b_g + R_g h_{t-1} + b'_g)                 candidate
        c_t = f ∘ c_{t-1} + i ∘ g
        o = σ(W_o x_t + b_o + R_o h_{t-1} + b'_o + w_co ∘ c_t)       output gate
        h_t = o ∘ tanh(c_t)

    `forget` is "gate" as written, "coupled" for f = 1 - i (Greff et al. 2017), "none" for f = 1, as in 1997. The
    peepholes w_ci, w_cf, w_co (Gers & Schmidhuber 2000) are there if `params` has `weight_ci` and its kin.

    x (I,), h, c, w_c· (H,), W (G·H, I), R (G·H, H), b, b' (G·H,); rows i f g o, without f where it has no gate.
    """
    h, c = state
    a, u = project(params, x, h)
    z = dict(zip(_lstm_gates(forget), np.split(a + u, len(_lstm_gates(forget))), strict=True))
    peephole = "weight_ci" in params
    if peephole:
        z["i"] = z["i"] + params["weight_ci"] * c
        if "f" in z:
            z["f"] = z["f"] + params["weight_cf"] * c
    i, g = sigmoid(z["i"]), np.tanh(z["g"])
    f = _lstm_kept(forget, i, z)
    c = f * c + i * g
    if peephole:
        z["o"] = z["o"] + params["weight_co"] * c
    o = sigmoid(z["o"])
    h = o * np.tanh(c)
    return (h, c), (i, f, g, o) if forget == "gate" else (i, g, o)


def _lstm_gates(forget: str) -> str:
    return "ifgo" if forget == "gate" else "igo"


def _lstm_kept(forget: str, i: Array, z: Mapping[str, Array]) -> Array:
    """f, the share of c_{t-1} that is kept."""
    if forget == "gate":
        return sigmoid(z["f"])
    return 1 - i if forget == "coupled" else np.ones_like(i)


def lstm_step_backward(
    forget: str, params: Params, x: Array, state: Vectors, gates: Vectors, dstate: Vectors
) -> Adjoint:
    """c_t reaches the loss on its own, through h_t and, with peepholes, through o:

        dz_o     = o (1 - o) ∘ tanh(c_t) ∘ dh_t
        dc_t    += o ∘ (1 - tanh²(c_t)) ∘ dh_t + w_co ∘ dz_o
        dz_i     = i (1 - i) ∘ g ∘ dc_t                   coupled: (g - c_{t-1}) in the place of g
        dz_f     = f (1 - f) ∘ c_{t-1} ∘ dc_t
        dz_g     = (1 - g²) ∘ i ∘ dc_t
        dc_{t-1} = f ∘ dc_t + w_ci ∘ dz_i + w_cf ∘ dz_f
        dw_ci = c_{t-1} ∘ dz_i    dw_cf = c_{t-1} ∘ dz_f    dw_co = c_t ∘ dz_o

    dx_t, dh_{t-1} and the other parameters' gradients follow from dz by `project_backward`, here as in every cell.
    """
    (h, c), (dh, dc) = state, dstate
    named = dict(zip(_lstm_gates(forget), gates, strict=True))
    i, g, o = named["i"], named["g"], named["o"]
    f = named["f"] if forget == "gate" else 1 - i if forget == "coupled" else np.ones_like(i)
    c_after = f * c + i * g
    tanh_c = np.tanh(c_after)
    peephole = "weight_ci" in params
    dz = {"o": o * (1 - o) * tanh_c * dh}
    dc = dc + o * (1 - tanh_c**2) * dh
    if peephole:
        dc = dc + params["weight_co"] * dz["o"]
    dz["i"] = i * (1 - i) * (g - c if forget == "coupled" else g) * dc
    dz["g"] = (1 - g**2) * i * dc
    if forget == "gate":
        dz["f"] = f * (1 - f) * c * dc
    dc_before = f * dc
    dpeepholes = {}
    if peephole:
        dpeepholes = {"weight_ci": c * dz["i"], "weight_co": c_after * dz["o"]}
        dc_before = dc_before + params["weight_ci"] * dz["i"]
        if "f" in dz:
            dpeepholes["weight_cf"] = c * dz["f"]
            dc_before = dc_before + params["weight_cf"] * dz["f"]
    dz_rows = np.concatenate([dz[gate] for gate in _lstm_gates(forget)])
    dx, dh, dparams = project_backward(params, x, h, dz_rows, dz_rows)
    return dx, (dh, dc_before), dparams | dpeepholes


def _lstm(forget: str) -> Cell:
    step, step_backward = partial(lstm_step, forget), partial(lstm_step_backward, forget)
    options = frozenset({"projection", "layer_norm", "recurrent_dropout"})
    return Cell(tuple(_lstm_gates(forget)), (0.0, 0.0), step, step_backward, options)


CELLS = {
    "lstm": _lstm("gate"),
    "lstm_peephole": _lstm("gate"),
    "lstm_coupled": _lstm("coupled"),
    "lstm_coupled_peephole": _lstm("coupled"),
    "lstm_no_forget": _lstm("none"),
    "lstm_no_forget_peephole": _lstm("none"),
}
