"""The scan: one sequence through time, and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rnnfast.reference.options import Keep, project_output, project_output_backward, zoneout, zoneout_backward
from rnnfast.reference.shared import Array, Cell, Params, Vectors


@dataclass(frozen=True)
class Step:
    """What one step leaves for the way back: when it was, the states that it saw and made, its gates.

    `cut` says that a reset had replaced the state that came in. `made` is what the cell itself made, `after` what went
    on: the same without a projection and zoneout.
    """

    t: int
    cut: bool
    before: Vectors
    after: Vectors
    gates: Vectors
    made: Vectors
    keep: Keep


def scan(
    cell: Cell,
    params: Params,
    x: Array,
    state: Vectors,
    length: int,
    resets: npt.NDArray[np.bool_],
    reverse: bool,
    keep: Keep | None = None,
) -> tuple[list[Step], Vectors]:
    """Carry the state of one sequence x (T, I) through its first `length` steps, or from the last of them to the first.

    resets (T,): where resets[t], nothing passes between t-1 and t, in neither direction: the cell's initial state
    stands in for the state that would have. At t = 0 that is the state that the caller gave. A reverse scan has no step
    before the first and none after the last, so that its own ends are never cut.

    keep: for each state the share of it that each step leaves as it was, (T, H) or None; see `zoneout`.

    Returns the steps in the order in which they were taken, and the state after the last of them.
    """
    steps = []
    for t in reversed(range(length)) if reverse else range(length):
        boundary = t + 1 if reverse else t
        cut = boundary < length and bool(resets[boundary])
        if cut:
            state = tuple(np.full_like(s, value) for s, value in zip(state, cell.initial, strict=True))
        before = state
        kept = tuple(None if k is None else k[t] for k in keep or (None,) * len(state))
        made, gates = cell.step(params, x[t], before)
        state = zoneout(kept, before, project_output(params, made))
        steps.append(Step(t, cut, before, state, gates, made, kept))
    return steps, state


def scan_backward(
    cell: Cell,
    params: Params,
    x: Array,
    steps: Sequence[Step],
    dy: Array,
    dstate: Vectors,
    grads: dict[str, Array],
    clip: float = np.inf,
) -> tuple[Array, Vectors]:
    """Walk the steps back: dy (T, H) joins the gradient of each h_t, and a cut lets no gradient through.

    Each element of dh_t, once it is complete and before it goes on, is held within ±`clip`, so that a gradient can't
    explode on its way. (Graves 2013, "Generating sequences with recurrent neural networks", holds dz_t so.)

    Adds the parameters' gradients into `grads`. Returns dx (T, I), zero where no step was, and the gradient of the
    state that the scan began with.
    """
    dx = np.zeros_like(x)
    for step in reversed(steps):
        dh, *others = dstate
        dh = np.clip(dh + dy[step.t], -clip, clip)
        dnew, dkept = zoneout_backward(step.keep, (dh, *others))
        dmade, dprojection = project_output_backward(params, step.made, dnew)
        dx[step.t], dbefore, dparams = cell.step_backward(params, x[step.t], step.before, step.gates, dmade)
        for name, gradient in (dparams | dprojection).items():
            grads[name] += gradient
        dstate = tuple(ds + direct for ds, direct in zip(dbefore, dkept, strict=True))
        if step.cut:
            dstate = tuple(np.zeros_like(ds) for ds in dstate)
    return dx, dstate
