"""The simple recurrent network."""

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
    project,
    project_backward,
)


def rnn_step(activation: Activation, params: Params, x: Array, state: Vectors) -> tuple[Vectors, Vectors]:
    """Simple recurrent network (Elman 1990, "Finding structure in time").

        h_t = φ(W x_t + b + R h_{t-1} + b')            φ = tanh, relu or σ

    x (I,), h (H,), W (H, I), R (H, H), b, b' (H,). Its only gate is h_t itself.
    """
    (h,) = state
    a, u = project(params, x, h)
    h = activation(a + u)
    return (h,), (h,)


def rnn_step_backward(
    slope: Activation, params: Params, x: Array, state: Vectors, gates: Vectors, dstate: Vectors
) -> Adjoint:
    """dz = φ'(z) ∘ dh_t, where φ' is written as a function of φ: 1 - φ² for tanh, φ (1 - φ) for σ, [φ > 0] for relu."""
    (h_before,), (h,), (dh,) = state, gates, dstate
    dz = slope(h) * dh
    dx, dh, dparams = project_backward(params, x, h_before, dz, dz)
    return dx, (dh,), dparams


def _rnn(name: str) -> Cell:
    activation, slope = ACTIVATIONS[name]
    step, step_backward = partial(rnn_step, activation), partial(rnn_step_backward, slope)
    return Cell(("h",), (0.0,), step, step_backward, frozenset({"projection", "layer_norm", "recurrent_dropout"}))


CELLS = {f"rnn_{name}": _rnn(name) for name in ACTIVATIONS}
