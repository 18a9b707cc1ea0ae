"""A long sequence backward in the memory of a short one.

A forward pass in segments keeps the states between them and nothing else over time. The backward pass takes the
segments last one first: it runs each forward again, now keeping what backward needs, and then back. The states come
out the same, and sums go on from segment to segment, so that every gradient has the bits of the pass in one piece.

Whoever takes a loss of y has y still, and with it what the last layer's recurrence waits for; so has a Sequential whose
next module keeps it. Where rows are few its steps are then computed again many at a time, as large products.

With some √T segments of some √T steps a tape needs O(√T) memory instead of O(T), for one more forward pass (Chen et
al., 2016, "Training deep nets with sublinear memory cost"; for recurrent networks Gruslys et al., 2016).
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from rnnfast import _kernels, checks, threads
from rnnfast.checks import Array
from rnnfast.module import Arrays
from rnnfast.stack import Run, Stack, Watch

__all__ = ["Checkpoint", "Checkpoints", "segment_steps", "while_held"]

Checkpoint: TypeAlias = int | bool | None  # the steps of a segment; True: 3√T; False, None: one piece


@dataclass(slots=True)
class Checkpoints:
    """What a forward call in segments keeps."""

    run: Run  # of the whole sequence, without its arrays over time
    x: Array  # (T, B, I)
    steps: int  # of a segment; the last may be shorter
    states: list[Sequence[Array]]  # before each segment but the first, (L, B, H) each
    y: Callable[[], Array | None] | None = None  # what forward gave, while somebody holds it

    def segments(self) -> list[tuple[int, int]]:
        """First step and end of each; one that is empty where there are no steps."""
        total = len(self.x)
        return [(begin, min(begin + self.steps, total)) for begin in range(0, max(total, 1), self.steps)]

    def piece(self, number: int, begin: int, end: int, kept: Sequence[_kernels._Kept], y: Array | None = None) -> Run:
        """A run of one segment, with nothing recorded yet; y is what it will give, if that is known. Its lengths are
        those of the whole sequences."""
        return replace(
            self.run,
            initial=self.states[number - 1] if number else self.run.initial,
            resets=None if self.run.resets is None else self.run.resets[begin:end],
            begin=begin,
            kept=kept,
            known=None if y is None else y[begin:end],
            inputs=[],
            outputs=[],
            states=[],
            saved=[],
        )


def while_held(array: Array) -> Callable[[], Array | None]:
    """Gives a new array again, or None once nobody holds it or a view of it. It keeps no memory alive."""
    owner = array
    while isinstance(owner.base, np.ndarray):  # views hold that, and not the array itself
        owner = owner.base
    reference, dtype, shape = weakref.ref(owner), array.dtype, array.shape

    def look() -> Array | None:
        found = reference()
        return None if found is None else found.view(dtype).reshape(shape)

    return look


def segment_steps(checkpoint: Checkpoint, steps: int) -> int | None:
    """The steps of a segment of a sequence that has so many; None: one piece."""
    if checkpoint is None or isinstance(checkpoint, bool | np.bool):
        # Each segment is a call of its own. Three times √T steps spread what that costs over more of them, and a tape
        # of 4,096 steps still needs less than 6 % of the memory.
        return max(3 * math.isqrt(steps), 1) if checkpoint else None
    return checks.size("checkpoint", checkpoint)


def forward(
    stack: Stack, params: Mapping[str, Array], x: Array, y: Array, final: Sequence[Array], run: Run, steps: int
) -> Checkpoints:
    """Run a stack over all segments and keep the states between them."""
    record = Checkpoints(run, x, steps, [])
    segments = record.segments()
    kept = stack.new_kept()
    for number, (begin, end) in enumerate(segments):
        last = number + 1 == len(segments)
        after = final if last else stack.new_states(x.shape[1])
        piece = record.piece(number, begin, end, kept)
        stack.forward(params, x[begin:end], y[begin:end], after, piece, record=False)
        if not last:
            record.states.append(after)
    return record


def backward(
    stack: Stack,
    params: Mapping[str, Array],
    grads: Mapping[str, Array],
    record: Checkpoints,
    y: Array | None,
    dy: Array | None,
    dfinal: Sequence[Array] | None,
    dx: Array | None,
    dinitial: Sequence[Array],
    *,
    clip: float,
    watch: Watch | None,
) -> None:
    """Run every segment again and back, last one first; what `Stack.backward` does for a whole sequence. y is what
    forward gave, or None if it is gone."""
    sums = Arrays(
        np.zeros(sum(array.size for array in grads.values()), stack.dtype),
        {name: array.shape for name, array in grads.items()},
    )
    batch, kept = record.x.shape[1], stack.new_kept()

    def segment(number: int, begin: int, end: int) -> None:
        """In a function of its own, so that what it has recorded is gone before the next one begins."""
        run = record.piece(number, begin, end, kept, y)
        again = stack.new_sequence(end - begin, batch, stack.widths[0])
        stack.forward(params, record.x[begin:end], again, stack.new_states(batch), run, record=True)
        dy_part = None if dy is None else dy[begin:end]
        dx_part = None if dx is None else dx[begin:end]
        # The gradient of a segment's first state is that of the last state of the one before.
        more = number > 0
        stack.backward(
            params, sums, run, dy_part, dfinal, dx_part, dinitial, clip=clip, resume=True, goes_on=more, watch=watch
        )

    for number, (begin, end) in reversed(list(enumerate(record.segments()))):
        segment(number, begin, end)
        dfinal = [array.copy() for array in dinitial]
    for name, total in sums.items():
        # grads −= −1 · total, by a kernel: subnormal numbers count as zero there, as in the pass in one piece.
        _kernels.sgd_step(grads[name].reshape(-1), total.reshape(-1), None, -1.0, 0.0, 1.0, math.inf, threads.resolve())
