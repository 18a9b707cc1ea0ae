"""Layers that PyTorch hasn't, made of its operations: what one writes for want of them.

The products of x are one product for all steps, and so is whatever doesn't wait for the state; a loop over the steps
does the rest, and autograd goes back. A loop takes the parameters by their names without `_l0`, with masks that were
drawn before the clock started, and x (T, B, I); it gives y (T, B, H).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.nn import functional

Params = Mapping[str, Any]
Onto = Callable[[Any, Any], Any]
Loop = Callable[[Params, Any], Any]


class Composition(torch.nn.Module):  # type: ignore[misc]
    """A loop with parameters of our names; it answers like a layer of PyTorch. `masks` are constants."""

    def __init__(self, cell: str, weights: Mapping[str, Any], masks: Mapping[str, Any]) -> None:
        super().__init__()
        self._masks = {name: torch.from_numpy(value) for name, value in masks.items()}
        self._loop = lstm_zoneout if "zoneout_h" in masks else LOOPS[cell]
        for name, value in weights.items():
            self.register_parameter(name, torch.nn.Parameter(torch.from_numpy(value)))

    def forward(self, x: Any) -> tuple[Any]:
        params = {name.removesuffix("_l0"): value for name, value in self.named_parameters()}
        return (self._loop(params | self._masks, x),)


# ---- products --------------------------------------------------------------------------------------------------------
def normalized(z: Any, gain: Any, shift: Any, gates: int) -> Any:
    """Layer norm of each gate's H numbers in (…, G·H)."""
    plain = functional.layer_norm(z.unflatten(-1, (gates, -1)), (z.shape[-1] // gates,)).flatten(-2)
    return torch.addcmul(shift, gain, plain)


def ahead(p: Params, x: Any, bias: Any, gates: int = 1) -> Any:
    """W x + b of all steps, or LN(W x) + b."""
    if "ln_ih_weight" not in p:
        return functional.linear(x, p["weight_ih"], bias)
    return normalized(x @ p["weight_ih"].t(), p["ln_ih_weight"], p["ln_ih_bias"], gates) + bias


def product_of_h(p: Params, gates: int, rows: slice = slice(None)) -> Onto:
    """z and h to z + R h, or z + LN(R h), for some rows of R; h is dropped on the way if there is a mask."""
    r = p["weight_hh"][rows].t()
    if "ln_hh_weight" in p:
        gain, shift = p["ln_hh_weight"][rows], p["ln_hh_bias"][rows]
        return lambda z, h: z + normalized(h @ r, gain, shift, gates)
    if "recurrent_scale" in p:
        scale = p["recurrent_scale"]
        return lambda z, h: torch.addmm(z, h * scale, r)
    return lambda z, h: torch.addmm(z, h, r)


def zeros(x: Any, features: int) -> Any:
    return x.new_zeros(x.shape[1], features)


def units(p: Params) -> int:
    count: int = p["weight_hh"].shape[1]
    return count


# ---- networks with a product of h ------------------------------------------------------------------------------------
def rnn(activation: Callable[[Any], Any]) -> Loop:
    def loop(p: Params, x: Any) -> Any:
        onto, h, ys = product_of_h(p, 1), zeros(x, units(p)), []
        for z in ahead(p, x, p["bias_ih"] + p["bias_hh"]).unbind():
            h = activation(onto(z, h))
            ys.append(h)
        return torch.stack(ys)

    return loop


def lstm(p: Params, x: Any) -> Any:
    onto, h, c, ys = product_of_h(p, 4), zeros(x, units(p)), zeros(x, units(p)), []
    for z in ahead(p, x, p["bias_ih"] + p["bias_hh"], 4).unbind():
        i, f, g, o = onto(z, h).chunk(4, 1)
        c = torch.addcmul(f.sigmoid() * c, i.sigmoid(), g.tanh())
        h = o.sigmoid() * c.tanh()
        ys.append(h)
    return torch.stack(ys)


def lstm_zoneout(p: Params, x: Any) -> Any:
    """The shares of the states before are 0 and 1 in training, the probability at inference."""
    onto, h, c, ys = product_of_h(p, 4), zeros(x, units(p)), zeros(x, units(p)), []
    keep_h, keep_c = p["zoneout_h"].unbind(), p["zoneout_c"].unbind()
    for t, z in enumerate(ahead(p, x, p["bias_ih"] + p["bias_hh"], 4).unbind()):
        i, f, g, o = onto(z, h).chunk(4, 1)
        c_new = torch.addcmul(f.sigmoid() * c, i.sigmoid(), g.tanh())
        h = torch.lerp(o.sigmoid() * c_new.tanh(), h, keep_h[t])
        c = torch.lerp(c_new, c, keep_c[t])
        ys.append(h)
    return torch.stack(ys)


def lstm_peephole(p: Params, x: Any) -> Any:
    onto, h, c, ys = product_of_h(p, 4), zeros(x, units(p)), zeros(x, units(p)), []
    ci, cf, co = p["weight_ci"], p["weight_cf"], p["weight_co"]
    for z in ahead(p, x, p["bias_ih"] + p["bias_hh"], 4).unbind():
        i, f, g, o = onto(z, h).chunk(4, 1)
        i, f = torch.addcmul(i, ci, c).sigmoid(), torch.addcmul(f, cf, c).sigmoid()
        c = torch.addcmul(f * c, i, g.tanh())
        h = torch.addcmul(o, co, c).sigmoid() * c.tanh()
        ys.append(h)
    return torch.stack(ys)


def lstm_coupled(p: Params, x: Any) -> Any:
    onto, h, c, ys = product_of_h(p, 3), zeros(x, units(p)), zeros(x, units(p)), []
    for z in ahead(p, x, p["bias_ih"] + p["bias_hh"], 3).unbind():
        i, g, o = onto(z, h).chunk(3, 1)
        c = torch.lerp(c, g.tanh(), i.sigmoid())
        h = o.sigmoid() * c.tanh()
        ys.append(h)
    return torch.stack(ys)


def lstm_no_forget(p: Params, x: Any) -> Any:
    onto, h, c, ys = product_of_h(p, 3), zeros(x, units(p)), zeros(x, units(p)), []
    for z in ahead(p, x, p["bias_ih"] + p["bias_hh"], 3).unbind():
        i, g, o = onto(z, h).chunk(3, 1)
        c = torch.addcmul(c, i.sigmoid(), g.tanh())
        h = o.sigmoid() * c.tanh()
        ys.append(h)
    return torch.stack(ys)


def gru(p: Params, x: Any) -> Any:
    onto, h, ys = product_of_h(p, 3), zeros(x, units(p)), []
    for z in ahead(p, x, p["bias_ih"], 3).unbind():
        (ar, au, an), (ur, uu, un) = z.chunk(3, 1), onto(p["bias_hh"], h).chunk(3, 1)
        n = torch.addcmul(an, (ar + ur).sigmoid(), un).tanh()
        h = torch.lerp(n, h, (au + uu).sigmoid())
        ys.append(h)
    return torch.stack(ys)


def gru_reset_before(p: Params, x: Any) -> Any:
    H = units(p)
    h, ys = zeros(x, H), []
    of_gates, of_candidate = product_of_h(p, 2, slice(0, 2 * H)), product_of_h(p, 1, slice(2 * H, 3 * H))
    z = ahead(p, x, p["bias_ih"] + p["bias_hh"], 3)
    for z_gates, z_candidate in zip(z[..., : 2 * H].unbind(), z[..., 2 * H :].unbind(), strict=True):
        r, u = of_gates(z_gates, h).sigmoid().chunk(2, 1)
        n = of_candidate(z_candidate, r * h).tanh()
        h = torch.lerp(n, h, u)
        ys.append(h)
    return torch.stack(ys)


def slstm(p: Params, x: Any) -> Any:
    """Heads side by side, as a batch of products: states (K, B, H/K), pre-activations (K, B, 4 H/K)."""
    rows, D = p["weight_hh"].shape
    K = rows // (4 * D)
    r = p["weight_hh"].view(4, K, D, D).permute(1, 3, 0, 2).reshape(K, D, 4 * D)
    z = ahead(p, x, p["bias_ih"] + p["bias_hh"])
    z = z.view(*x.shape[:2], 4, K, D).permute(0, 3, 1, 2, 4).reshape(x.shape[0], K, x.shape[1], 4 * D)
    h = c = n = x.new_zeros(K, x.shape[1], D)
    m, ys = torch.full_like(h, -torch.inf), []
    for z_t in z.unbind():
        i, f, g, o = torch.baddbmm(z_t, h, r).chunk(4, 2)
        log_f = functional.logsigmoid(f) + m
        m = torch.maximum(log_f, i).detach()
        i, f = (i - m).exp(), (log_f - m).exp()
        c, n = torch.addcmul(f * c, i, g.tanh()), torch.addcmul(i, f, n)
        h = o.sigmoid() * c / n
        ys.append(h)
    return torch.stack(ys).permute(0, 2, 1, 3).flatten(2)


# ---- networks without ------------------------------------------------------------------------------------------------
def ind_rnn(activation: Callable[[Any], Any]) -> Loop:
    def loop(p: Params, x: Any) -> Any:
        w, h, ys = p["weight_hh"], zeros(x, p["weight_hh"].shape[0]), []
        for z in ahead(p, x, p["bias_ih"]).unbind():
            h = activation(torch.addcmul(z, w, h))
            ys.append(h)
        return torch.stack(ys)

    return loop


def min_gru(p: Params, x: Any) -> Any:
    z, n = ahead(p, x, p["bias_ih"]).chunk(2, 2)
    return means(z.sigmoid(), n)


def min_lstm(p: Params, x: Any) -> Any:
    f, i, n = ahead(p, x, p["bias_ih"]).chunk(3, 2)
    f, i = f.sigmoid(), i.sigmoid()
    return means(i / (f + i), n)


def means(share: Any, n: Any) -> Any:
    """h_t = (1 − share_t) ∘ h_{t−1} + share_t ∘ n_t."""
    h, ys = zeros(n, n.shape[2]), []
    for share_t, n_t in zip(share.unbind(), n.unbind(), strict=True):
        h = torch.lerp(h, n_t, share_t)
        ys.append(h)
    return torch.stack(ys)


def sru(p: Params, x: Any) -> Any:
    """The loop makes c; r and h, which no step waits for, come after it."""
    H = p["weight_c"].shape[0] // 2
    vf, vr = p["weight_c"].chunk(2)
    candidate, f, r, *skip = ahead(p, x, p["bias_ih"]).split(H, 2)
    c, cs = zeros(x, H), []
    for n_t, f_t in zip(candidate.unbind(), f.unbind(), strict=True):
        cs.append(c)
        c = torch.lerp(n_t, c, torch.addcmul(f_t, vf, c).sigmoid())
    before = torch.stack(cs)
    after = torch.cat([before[1:], c[None]])
    return torch.lerp(skip[0] if skip else x, after, torch.addcmul(r, vr, before).sigmoid())


ACTIVATIONS: dict[str, Callable[[Any], Any]] = {"tanh": torch.tanh, "relu": torch.relu, "sigmoid": torch.sigmoid}

# By the kernels' names of the cells.
LOOPS: dict[str, Loop] = {
    **{f"rnn_{name}": rnn(activation) for name, activation in ACTIVATIONS.items()},
    **{f"ind_rnn_{name}": ind_rnn(activation) for name, activation in ACTIVATIONS.items()},
    "lstm": lstm,
    "lstm_peephole": lstm_peephole,
    "lstm_coupled": lstm_coupled,
    "lstm_no_forget": lstm_no_forget,
    "gru": gru,
    "gru_reset_before": gru_reset_before,
    "min_gru": min_gru,
    "min_lstm": min_lstm,
    "sru": sru,
    "sru_skip": sru,
    "slstm": slstm,
}
