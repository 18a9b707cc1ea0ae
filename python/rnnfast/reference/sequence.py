"""The scan: one sequence through time, and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rnnfast.reference.shared import Array, Cell, Params, Vectors


@dataclass(frozen=True)
class Step:
    """What one step leaves for the way back: when it was, the states that it saw and made, its gates.

    `cut` says that a reset had replaced the state that came in.
    """

    t: int
    cut: bool
    before: Vectors
    after: Vectors
    gates: Vectors


def scan(
    cell: Cell, params: Params, x: Array, state: Vectors, length: int, resets: npt.NDArray[np.bool_], reverse: bool
) -> tuple[list[Step], Vectors]:
    """Carry the state of one sequence x (T, I) through its first `length` steps, or from the last of them to the first.

    resets (T,): where resets[t], nothing passes between t-1 and t, in neither direction: the cell's initial state
    stands in for the state that would have. At t = 0 that is the state that the caller gave. A reverse scan has no step
    before the first and none after the last, so that its own ends are never cut.

    Returns the steps in the order in which they were taken, and the state after the last of them.
    """
    steps = []
    for t in reversed(range(length)) if reverse else range(length):
        boundary = t + 1 if reverse else t
        cut = boundary < length and bool(resets[boundary])
        if cut:
            state = tuple(np.full_like(s, value) for s, value in zip(state, cell.initial, strict=True))
        before = state
        state, gates = cell.step(params, x[t], before)
        steps.append(Step(t, cut, before, state, gates))
    return steps, state


def scan_backward(
    cell: Cell, params: Params, x: Array, steps: Sequence[Step], dy: Array, dstate: Vectors, grads: dict[str, Array]
) -> tuple[Array, Vectors]:
    """Walk the steps back: dy (T, H) joins the gradient of each h_t, and a cut lets no gradient through.

    Adds the parameters' gradients into `grads`. Returns dx (T, I), zero where no step was, and the gradient of the
    state that the scan began with.
    """
    dx = np.zeros_like(x)
    for step in reversed(steps):
        dh, *rest = dstate
        dstate = (dh + dy[step.t], *rest)
        dx[step.t], dstate, dparams = cell.step_backward(params, x[step.t], step.before, step.gates, dstate)
        for name, gradient in dparams.items():
            grads[name] += gradient
        if step.cut:
            dstate = tuple(np.zeros_like(ds) for ds in dstate)
    return dx, dstate
