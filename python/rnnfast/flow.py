"""How a gradient fares on its way back through time, and a penalty where it vanishes or grows.

A backward pass knows ∂L/∂h_t, the whole gradient of every state at every step; here it is looked at on its way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from rnnfast import _kernels, checks, threads
from rnnfast.checks import Array
from rnnfast.layers import RNN
from rnnfast.module import Arrays, State, Tape
from rnnfast.recurrent import Recurrent
from rnnfast.stack import Run, Watch

__all__ = ["GradientFlow", "gradient_flow", "vanishing_penalty"]


@dataclass(frozen=True, slots=True, eq=False)
class GradientFlow:
    """The norms of the gradients of the states: an array (L·D, T, B) in float64 for each state.

    Time-major whatever the layer's `batch_first`; layer l in direction d stands at l·D + d. Zero past a row's length.
    """

    states: tuple[Array, ...]

    @property
    def hidden(self) -> Array:
        """‖∂L/∂h_t‖."""
        return self.states[0]

    @property
    def cell(self) -> Array:
        """‖∂L/∂c_t‖. AttributeError if the cell has no state but h."""
        if len(self.states) == 1:
            raise AttributeError("cell: this layer has no state but h")
        return self.states[1]

    def __repr__(self) -> str:
        return f"GradientFlow({len(self.states)} × {checks.show(self.hidden.shape)})"


def gradient_flow(layer: Recurrent, tape: Tape[Any], dy: Any, dstate: State = None) -> GradientFlow:
    """The norm of the gradient of each state at each step, ‖∂L/∂h_t‖ (and ‖∂L/∂c_t‖) over the units.

    ∂L/∂h_t is the whole gradient: what comes from y_t and from all steps after. Where it shrinks to nothing over some
    distance, what lies that far back can't be learnt; where it grows without bound, training breaks off (Bengio, Simard
    & Frasconi, 1994, "Learning long-term dependencies with gradient descent is difficult"). With `grad_clip` it is the
    clamped one. With zoneout, ∂L/∂c_t is that of what zoneout leaves: h of the same step is made before, of the new c.

    Computes one backward pass. The tape stays for others, no gradient of the layer changes.

    Args:
        layer: any recurrent layer. Of a Sequential take one of its layers, its tape, and the gradient of its output,
            which the modules after it give.
        tape: from ``layer.forward``, with `checkpoint` or without.
        dy: the gradient of y, as in backward; None stands for zeros.
        dstate: that of the final state.

    Raises:
        TypeError: `layer` isn't a recurrent layer, or dy has another dtype.
        ValueError: a shape is wrong.
        RuntimeError: the tape is consumed, of another layer, or older than the parameters.

    Examples:
        >>> import numpy as np
        >>> import rnnfast as rf
        >>> layer = rf.RNN(3, 16, seed=0)
        >>> y, state, tape = layer.forward(np.ones((50, 2, 3), np.float32))
        >>> flow = rf.gradient_flow(layer, tape, None, np.ones_like(state))
        >>> flow.hidden.shape, bool(flow.hidden[0, 0, 0] < 1e-6 * flow.hidden[0, -1, 0])
        ((1, 50, 2), True)
    """
    shape = _stack_shape(layer, tape)
    norms = tuple(np.zeros(shape) for _ in layer._state_names)

    def watch(k: int, run: Run, gradients: tuple[Array, ...]) -> None:
        for norm, gradient in zip(norms, gradients, strict=True):
            norm[k, run.begin : run.begin + len(gradient)] = _norm(gradient)

    watched_backward(layer, tape, dy, dstate, watch)
    return GradientFlow(norms)


def vanishing_penalty(
    layer: RNN,
    tape: Tape[Any],
    dy: Any,
    dstate: State = None,
    *,
    weight: float = 1.0,
    grads: Mapping[str, Array] | Array | None = None,
) -> float:
    """A penalty where the gradient of an RNN shrinks or grows from a step to the one before; adds its gradient.

    ::

        Ω = 1/B Σ_b Σ_t (‖g_t J_t‖ / ‖g_t‖ − 1)²      g_t = ∂L/∂h_t,  J_t = ∂h_t/∂h_{t−1} = diag(φ′) W_hh

    (Pascanu, Mikolov & Bengio, 2013, "On the difficulty of training recurrent neural networks", section 3.3), over the
    steps t = 1 … of each row, of all layers and directions: a sum over time as in the paper, a mean over the rows. Not
    counted are a row's first step, a step before which the state was reset, and one whose gradient is zero.

    As in the paper, only the immediate derivative with respect to W_hh is used: g_t and h_t (and so φ′) are taken as
    constants. ``weight`` times it is added to the gradients of `weight_hh_l{k}`, the others stay. Call it between
    forward and backward: it keeps the tape, for the price of one more backward pass.

    Args:
        layer: an `RNN` of any nonlinearity, without layer_norm, zoneout and recurrent_dropout.
        tape: from ``layer.forward``, with `checkpoint` or without.
        dy: the gradient of y, as in backward; None stands for zeros.
        dstate: that of the final state.
        weight: what Ω counts beside the loss, ≥ 0.
        grads: where to add, as in backward; None for the layer's own.

    Returns:
        Ω, without the weight.

    Raises:
        TypeError: `layer` isn't an `RNN`: the states of the others have other ways back beside W_hh.
        ValueError: the RNN has one of these options, or a shape or value is wrong.
        RuntimeError: the tape is consumed, of another layer, or older than the parameters.

    Examples:
        >>> import numpy as np
        >>> import rnnfast as rf
        >>> layer = rf.RNN(3, 16, seed=0)
        >>> y, state, tape = layer.forward(np.ones((20, 2, 3), np.float32))
        >>> dstate = np.ones_like(state)
        >>> omega = rf.vanishing_penalty(layer, tape, None, dstate, weight=0.1)
        >>> dx, dstate = layer.backward(tape, None, dstate)
        >>> 0 < omega < 19
        True
    """
    if not isinstance(layer, RNN):
        raise TypeError(f"layer: expected an RNN, got {type(layer).__name__}")
    changes = {"layer_norm": layer.layer_norm, "zoneout": layer._zoneouts, "recurrent_dropout": layer.recurrent_dropout}
    for option in (name for name, value in changes.items() if value):
        given = getattr(layer, option)
        raise ValueError(f"layer: expected an RNN without {option}, which changes ∂h_t/∂h_{{t−1}}, got {given}")
    weight = checks.real("weight", weight)
    rows = max(_stack_shape(layer, tape)[2], 1)
    to = layer._gradients(grads)
    total = 0.0

    def watch(k: int, run: Run, gradients: tuple[Array, ...]) -> None:
        nonlocal total
        scan = layer._stack.scans[k]
        name = scan.weights["weight_hh"]
        norm = _norm(gradients[0])
        counted = _continues(run, norm.shape, scan.reverse) & (norm != 0)
        h = layer._stack.part(run.outputs[scan.layer], scan)[counted]
        unit = gradients[0][counted] / norm[counted][:, None]  # (steps and rows, H), each of norm 1
        passed = (unit * _slope(layer.nonlinearity, h)).astype(layer.dtype)[None]  # g φ′ / ‖g‖
        before = np.empty_like(passed)  # g J / ‖g‖
        across = np.ascontiguousarray(layer.params[name].T)
        _kernels.linear_forward(passed, across, None, before, None, threads.resolve())
        ratio = np.sqrt(np.einsum("nh,nh->n", before[0], before[0], dtype=np.float64))
        total += float(np.square(ratio - 1).sum()) / rows
        # Where nothing passes there is no direction in which more would.
        factor = 2 * weight / rows * np.divide(ratio - 1, ratio, out=np.zeros_like(ratio), where=ratio != 0)
        passed *= factor[:, None].astype(layer.dtype)
        _kernels.linear_backward(before, across, passed, None, to[name], None, None, threads.resolve())

    watched_backward(layer, tape, dy, dstate, watch)
    return total


def _continues(run: Run, shape: tuple[int, ...], reverse: bool) -> Array:
    """(T, B) bools: whether a step goes on from the one before it in its direction."""
    valid = np.ones(shape, np.bool)
    if run.lengths is not None:
        valid = ~checks.past(run.lengths - run.begin, shape[0])
    resets = np.zeros(shape, np.bool) if run.resets is None else run.resets
    if not reverse:
        valid &= ~resets
        if run.begin == 0:
            valid[:1] = False
        return valid
    valid[:-1] &= valid[1:] & ~resets[1:]
    valid[-1:] = False
    return valid


def _slope(nonlinearity: str, h: Array) -> Array:
    """φ′ where φ is h."""
    if nonlinearity == "tanh":
        return 1 - h * h
    return h * (1 - h) if nonlinearity == "sigmoid" else (h > 0).astype(h.dtype)


def watched_backward(layer: Recurrent, tape: Tape[Any], dy: Any, dstate: State, watch: Watch) -> None:
    """A backward pass for the sake of what is seen on its way: it leaves tape and gradients as they were."""
    tape.check(layer)
    if dy is not None:
        dy = checks.features("dy", dy, tape.shape, tape.dtype)
    unused = Arrays(np.zeros(layer._count(), layer.dtype), layer._shapes)
    layer._backward(tape, dy, layer._check_dstate(tape, dstate), False, unused, watch)


def _stack_shape(layer: Recurrent, tape: Tape[Any]) -> tuple[int, int, int]:
    """(L·D, T, B)."""
    if not isinstance(layer, Recurrent):
        raise TypeError(f"layer: expected a recurrent layer, got {type(layer).__name__}")
    if not isinstance(tape, Tape):
        raise TypeError(f"tape: expected the tape of a forward call, got {type(tape).__name__}")
    tape.check(layer)
    batch, steps = tape.shape[:2] if layer.batch_first else tape.shape[1::-1]
    return layer.num_layers * layer._directions, steps, batch


def _norm(gradient: Array) -> Array:
    """(T, B, H) → (T, B), in float64. No number is too small or too large for its square."""
    largest = np.abs(gradient).max(axis=-1, initial=0).astype(np.float64)
    scale = np.where((largest > 0) & np.isfinite(largest), largest, 1.0)
    scaled = gradient / scale[..., None]
    norm: Array = scale * np.sqrt(np.einsum("tbh,tbh->tb", scaled, scaled))
    return norm
