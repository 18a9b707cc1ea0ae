"""The independently recurrent network."""

from __future__ import annotations

from functools import partial

from rnnfast.reference.shared import (
    ACTIVATIONS,
    Activation,
    Adjoint,
    Array,
    Cell,
    Params,
    Vectors,
    project_input,
    project_input_backward,
)


def ind_rnn_step(activation: Activation, params: Params, x: Array, state: Vectors) -> tuple[Vectors, Vectors]:
    """Independently recurrent network (Li et al. 2018): a unit sees its own state only.

        h_t = φ(W x_t + b + w ∘ h_{t-1})               φ = relu, tanh or σ; w = weight_hh

    x (I,), h, w, b (H,), W (H, I). Its only gate is h_t itself.
    """
    (h,) = state
    h = activation(project_input(params, x) + params["weight_hh"] * h)
    return (h,), (h,)


def ind_rnn_step_backward(
    slope: Activation, params: Params, x: Array, state: Vectors, gates: Vectors, dstate: Vectors
) -> Adjoint:
    """dz = φ'(z) ∘ dh_t, dh_{t-1} = w ∘ dz, dw = h_{t-1} ∘ dz."""
    (h_before,), (h,), (dh,) = state, gates, dstate
    dz = slope(h) * dh
    dx, dparams = project_input_backward(params, x, dz)
    return dx, (params["weight_hh"] * dz,), dparams | {"weight_hh": h_before * dz}


def _ind_rnn(name: str) -> Cell:
    activation, slope = ACTIVATIONS[name]
    return Cell(("h",), (0.0,), partial(ind_rnn_step, activation), partial(ind_rnn_step_backward, slope))


CELLS = {f"ind_rnn_{name}": _ind_rnn(name) for name in ACTIVATIONS}
