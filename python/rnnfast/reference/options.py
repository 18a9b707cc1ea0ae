"""What may stand between a cell and time, whatever the cell: first a projection of its output, then zoneout.

Neither the cell nor the scan knows what they do: they replace the states that a step made by the states that go on.
"""

from __future__ import annotations

import numpy as np

from rnnfast.reference.shared import Array, Params, Vectors, product

Keep = tuple[Array | None, ...]


def project_output(params: Params, made: Vectors) -> Vectors:
    """Fewer features for h than units (Sak, Senior & Beaufays 2014): h_t = W_hr h̃_t, where h̃_t (H,) is the cell's h.

    With `weight_hr` (P, H), h and y have P features, R is (G·H, P), and the other states keep H.
    """
    h, *others = made
    return (product(params["weight_hr"], h), *others) if "weight_hr" in params else made


def project_output_backward(params: Params, made: Vectors, dstate: Vectors) -> tuple[Vectors, dict[str, Array]]:
    """dh̃_t = W_hrᵀ dh_t, dW_hr = dh_t h̃_tᵀ."""
    if "weight_hr" not in params:
        return dstate, {}
    dh, *others = dstate
    return (product(params["weight_hr"].T, dh), *others), {"weight_hr": np.outer(dh, made[0])}


def zoneout(keep: Keep, before: Vectors, new: Vectors) -> Vectors:
    """Some of a state stays as it was (Krueger et al. 2017): s_t = k ∘ s_{t-1} + (1 - k) ∘ s̃_t, s̃_t the step's result.

    k is 0 or 1 in training and the probability of 1 in evaluation; None is 0. What a step makes of its own new states
    it makes of those that it computed: an LSTM's h̃_t = o ∘ tanh(c̃_t), with the c̃_t that zoneout hasn't touched, as in
    the paper:

        c_t = k_c ∘ c_{t-1} + (1 - k_c) ∘ (f ∘ c_{t-1} + i ∘ g)
        h_t = k_h ∘ h_{t-1} + (1 - k_h) ∘ o ∘ tanh(f ∘ c_{t-1} + i ∘ g)

    The c, n and m of an sLSTM are one state between them: it stays whole, by one mask of zeros and ones for the three.
    """
    return tuple(s if k is None else _mix(k, old, s) for k, old, s in zip(keep, before, new, strict=True))


def _mix(k: Array, old: Array, new: Array) -> Array:
    """A state that doesn't enter may be infinite."""
    return k * np.where(k > 0, old, 0) + (1 - k) * np.where(k < 1, new, 0)


def zoneout_backward(keep: Keep, dstate: Vectors) -> tuple[Vectors, Vectors]:
    """ds̃_t = (1 - k) ∘ ds_t, and k ∘ ds_t goes to s_{t-1} past the cell."""
    dnew = tuple(ds if k is None else (1 - k) * ds for k, ds in zip(keep, dstate, strict=True))
    dbefore = tuple(np.zeros_like(ds) if k is None else k * ds for k, ds in zip(keep, dstate, strict=True))
    return dnew, dbefore
