"""How a gradient fares on its way back through time, and a penalty where it vanishes or grows.

A backward pass knows ∂L/∂h_t, the whole gradient of every state at every step; here it is looked at on its way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from rnnfast import checks
from rnnfast.checks import Array
from rnnfast.module import Arrays, State, Tape
from rnnfast.recurrent import Recurrent, Run, Watch

__all__ = ["GradientFlow", "gradient_flow"]


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
    clamped one.

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
