"""Truncated backpropagation through time: a long sequence, or one that never ends, window by window."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from rnnfast import checks, init
from rnnfast.checks import Array
from rnnfast.heads import Loss, loss_of
from rnnfast.module import Module, State, Tape

__all__ = ["Window", "truncated_bptt"]

_FIELDS = ("x", "targets", "resets", "mask")  # of a chunk, in this order


@dataclass(frozen=True, slots=True)
class Window:
    """One step of training: the gradients of these steps are in the model's `grads`."""

    loss: float  # as the loss function gives it: usually a mean over the steps counted
    begin: int  # the first new step, counted from the beginning of the sequence
    steps: int  # new steps
    count: float  # what the loss is a mean over: new steps of rows that haven't ended, times the mask
    state: State  # after the last step


def truncated_bptt(
    model: Module,
    x: Any,
    targets: Any = None,
    window: int = 64,
    *,
    back: int | None = None,
    state: State = None,
    lengths: Any = None,
    resets: Any = None,
    mask: Any = None,
    loss: Loss | None = None,
    zero_grad: bool = True,
) -> Iterator[Window]:
    """Go through a sequence in windows; after each, the model's gradients are ready for an optimiser's step.

    Every `window` steps (k₁) the loss of these steps goes back through the last `back` steps (k₂ ≥ k₁), where the
    gradient is cut; the state goes on across the cut. This is BPTT(k₂; k₁) of Williams & Peng, 1990, "An efficient
    gradient-based algorithm for on-line training of recurrent network trajectories":

    ::

        n-th window:  L_n = loss of the steps n·k₁ … (n+1)·k₁ − 1
                      dL_n/dθ through the steps (n+1)·k₁ − k₂ … (n+1)·k₁ − 1, the state before them taken as constant

    With k₂ > k₁ a window first repeats the k₂ − k₁ steps before it with the present parameters, so that an early
    step isn't cut off from what came just before it; a step's loss still counts once. With k₁ at least the length of
    the sequence the gradients are bit for bit those of one plain forward and backward.

    Every forward call draws masks of its own (dropout, zoneout, recurrent dropout): those of a window differ from the
    last one's, and with k₂ > k₁ the steps that are repeated have other masks than at first, and the part of a window
    before the next one's first step other ones than the rest.

    Args:
        model: a module whose y has the steps of x; its layers read forward in time only.
        x: (T, B, …), (B, T, …) if the model has batch_first. Or an iterable of chunks (x, targets[, resets[, mask]])
            of any numbers of steps that follow one another: only what a window needs is held in memory.
        targets: what the loss takes, in x's leading layout; None if x is an iterable of chunks.
        window: k₁, the steps of a window; the last one may be shorter.
        back: k₂, the steps that a loss goes back; None stands for k₁.
        state: before the first step.
        lengths: (B,) integers: a row that has ended takes no further part, and the iteration ends with the last row.
            With chunks too they count from the beginning of the whole sequence.
        resets: bools in x's leading layout: where the state starts anew.
        mask: bools or weights in x's leading layout, for the loss.
        loss: loss(y, targets) → (loss, dy), also with a third argument, the mask, if there are lengths or a mask. None
            stands for that of the `SoftmaxHead` at the model's end, or else `softmax_cross_entropy`.
        zero_grad: whether the gradients are set to zero before each window; else they add up.

    Yields:
        A `Window` after each backward pass. Change the parameters then, or not at all.

    Raises:
        TypeError: an argument has another type than it should.
        ValueError: a shape or value is wrong, or the model has a bidirectional layer, whose second direction would
            need the steps after a window.

    Examples:
        >>> import numpy as np
        >>> import rnnfast as rf
        >>> model = rf.Sequential(rf.Embedding(9, 8, seed=0), rf.GRU(8, 16, seed=1), rf.Linear(16, 9, seed=2))
        >>> optimizer = rf.Adam(model, lr=1e-2)
        >>> text = np.arange(101)[:, None] % 9
        >>> for window in rf.truncated_bptt(model, text[:-1], text[1:], window=40):
        ...     norm = optimizer.step(clip_norm=1.0)
        ...     print(window.begin, window.steps)
        0 40
        40 40
        80 20
    """
    if not isinstance(model, Module):
        raise TypeError(f"model: expected a module, got {type(model).__name__}")
    for layer in init.leaves(model):
        if getattr(layer, "bidirectional", False):
            raise ValueError(f"model: expected layers that read forward only, got {layer!r}")
    new = checks.size("window", window)
    reach = new if back is None else checks.size("back", back)
    if reach < new:
        raise ValueError(f"back: expected at least window = {new}, got {reach}")
    checks.flag("zero_grad", zero_grad)
    loss = loss_of(model) if loss is None else loss
    if not callable(loss):
        raise TypeError(f"loss: expected a function, got {type(loss).__name__}")
    axis = 1 if model.batch_first else 0
    chunks: Iterable[Any]
    if targets is None:
        for name, value in (("resets", resets), ("mask", mask)):
            if value is not None:
                raise ValueError(f"{name}: expected None beside an iterable of chunks, which have their own")
        if isinstance(x, np.ndarray) or not isinstance(x, Iterable):
            raise TypeError(f"x: expected an iterable of chunks where there are no targets, got {type(x).__name__}")
        chunks = x
    else:
        chunks = [(x, targets, resets, mask)]
    stream = _Stream(chunks, axis)
    if targets is not None:
        stream.read(1)  # so that a wrong shape is refused here and not at the first window
    ends = None if lengths is None else _lengths(lengths, stream.stop if targets is not None else None)
    return _windows(_Run(model, loss, stream, ends), state, new, reach, zero_grad)


def _lengths(value: Any, steps: int | None) -> Array:
    """(B,) integers ≥ 0, and ≤ T where T is known."""
    array = checks.integers("lengths", value)
    checks.shaped("lengths", array, ("B",))
    checked = checks.lengths(array, int(array.max(initial=0)) if steps is None else steps, len(array))
    assert checked is not None
    return checked


# ---- what is read ----------------------------------------------------------------------------------------------------
class _Stream:
    """A sequence that comes in chunks. It holds the steps from `start` to `stop`, in arrays of the caller's layout."""

    def __init__(self, chunks: Iterable[Any], axis: int) -> None:
        self._chunks = enumerate(chunks)
        self._axis = axis
        self._held: tuple[Array | None, ...] = ()
        self.start = self.stop = 0

    def read(self, stop: int) -> None:
        """Take chunks until the steps before `stop` are there, or there are no more."""
        while self.stop < stop:
            try:
                number, chunk = next(self._chunks)
            except StopIteration:
                return
            arrays = self._check(number, chunk)
            self._append(number, arrays)

    def forget(self, start: int) -> None:
        """Let go of the steps before `start`."""
        if start > self.start:
            self._held = tuple(None if a is None else self._cut(a, start, self.stop) for a in self._held)
            self.start = start

    def take(self, field: str, begin: int, end: int) -> Array | None:
        """A view of the steps from `begin` to `end`; None where the chunks have no such array."""
        array = self._held[_FIELDS.index(field)]
        return None if array is None else self._cut(array, begin, end)

    @property
    def batch(self) -> int:
        x = self._held[0]
        assert x is not None
        return int(x.shape[1 - self._axis])

    def _cut(self, array: Array, begin: int, end: int) -> Array:
        part = slice(begin - self.start, end - self.start)
        return array[:, part] if self._axis else array[part]

    def _check(self, number: int, chunk: Any) -> tuple[Array | None, ...]:
        """The four arrays of a chunk, None for what it hasn't."""
        if not isinstance(chunk, tuple | list) or not 2 <= len(chunk) <= len(_FIELDS):
            got = f"{len(chunk)} entries" if isinstance(chunk, tuple | list) else type(chunk).__name__
            raise TypeError(f"chunk {number}: expected (x, targets[, resets[, mask]]), got {got}")
        values = (*chunk, None, None)[: len(_FIELDS)]
        arrays = [None if v is None else checks.as_array(f, v) for f, v in zip(_FIELDS, values, strict=True)]
        for name, array in zip(_FIELDS[:2], arrays[:2], strict=True):
            if array is None or array.ndim < 2:
                got = "None" if array is None else checks.show(array.shape)
                raise ValueError(f"{name}: expected ({', '.join(checks.leading(bool(self._axis)))}, …), got {got}")
        assert arrays[0] is not None
        leading = arrays[0].shape[:2]
        for name, array in zip(_FIELDS, arrays, strict=True):
            if array is not None and array.shape[:2] != leading:
                raise ValueError(f"{name}: expected the steps and rows of x, {leading}, got {array.shape[:2]}")
        return tuple(arrays)

    def _append(self, number: int, arrays: tuple[Array | None, ...]) -> None:
        count = 0 if arrays[0] is None else arrays[0].shape[self._axis]
        if self.start == self.stop:  # nothing is held: no copy, and the first chunk shows which arrays there are
            kinds = [array is None for array in self._held] or [array is None for array in arrays]
        else:
            kinds = [array is None for array in self._held]
        for name, missing, array in zip(_FIELDS, kinds, arrays, strict=True):
            if missing != (array is None):
                raise ValueError(f"{name}: expected in every chunk or in none, chunk {number} differs from the first")
        if self.start == self.stop:
            self._held = arrays
        else:
            pairs = zip(self._held, arrays, strict=True)
            self._held = tuple(
                None if a is None or b is None else np.concatenate([a, b], axis=self._axis) for a, b in pairs
            )
        self.stop += count


# ---- what is computed ------------------------------------------------------------------------------------------------
@dataclass(slots=True)
class _Run:
    """What stays the same in all windows."""

    model: Module
    loss: Loss
    stream: _Stream
    lengths: Array | None

    def within(self, begin: int, end: int) -> Array | None:
        """The rows' lengths inside the steps from `begin` to `end`."""
        return None if self.lengths is None else np.clip(self.lengths - begin, 0, end - begin)

    def forward(self, begin: int, end: int, state: State) -> tuple[Array, State, Tape[Any]]:
        x, resets = self.stream.take("x", begin, end), self.stream.take("resets", begin, end)
        y, state, tape = self.model.forward(x, state, self.within(begin, end), resets)
        assert x is not None
        if y.shape[:2] != x.shape[:2]:
            raise ValueError(f"model: expected a y with the steps of x, {x.shape[:2]}, got {checks.show(y.shape)}")
        return y, state, tape

    def weights(self, begin: int, end: int) -> Array | None:
        """The mask of the loss: the caller's, zero where a row has ended; None if there is neither."""
        mask, lengths = self.stream.take("mask", begin, end), self.within(begin, end)
        if lengths is None:
            return mask
        valid = checks.time_major(~checks.past(lengths, end - begin), self.stream._axis == 1)
        return valid if mask is None else np.where(valid, mask, 0)


def _windows(run: _Run, state: State, new: int, reach: int, zero_grad: bool) -> Iterator[Window]:
    """`state` is the one before step `start`, from where the present window is computed."""
    start = begin = 0
    last = None if run.lengths is None else int(run.lengths.max(initial=0))
    while last is None or begin < last:
        run.stream.read(begin + new)
        end = min(begin + new, run.stream.stop)
        if end <= begin:
            return
        following = max(start, end + new - reach)  # where the next window starts: its state is needed
        following = min(following, end)
        if zero_grad:
            run.model.zero_grad()
        loss, final, state = _window(run, state, (start, following, begin, end))
        mask = run.weights(begin, end)
        count = float((end - begin) * run.stream.batch if mask is None else mask.sum())
        yield Window(loss, begin, end - begin, count, final)
        start, begin = following, end
        run.stream.forget(start)


def _window(run: _Run, state: State, bounds: tuple[int, int, int, int]) -> tuple[float, State, State]:
    """Forward and backward through one window: (loss, state after it, state before the next one's first step).

    The window is cut in two where the next one starts, so that its state needs no pass of its own.
    """
    start, cut, begin, end = bounds
    pieces = [(a, b) for a, b in ((start, cut), (cut, end)) if a < b]
    tapes, outputs = [], []
    following = state
    for a, b in pieces:
        y, state, tape = run.forward(a, b, state)
        tapes.append(tape)
        outputs.append(y)
        if b == cut:
            following = state
    y = outputs[0] if len(outputs) == 1 else np.concatenate(outputs, axis=run.stream._axis)
    loss, dy = _loss(run, y, start, begin, end)
    dstate: State = None
    for (a, b), tape in zip(reversed(pieces), reversed(tapes), strict=True):
        part = slice(a - start, b - start)
        _, dstate = run.model.backward(tape, dy[:, part] if run.stream._axis else dy[part], dstate, need_dx=False)
    return loss, state, following


def _loss(run: _Run, y: Array, start: int, begin: int, end: int) -> tuple[float, Array]:
    """The loss of the new steps, and its gradient for all steps of the window."""
    fresh = slice(begin - start, end - start)
    mask = run.weights(begin, end)
    given = () if mask is None else (mask,)
    loss, dnew = run.loss(y[:, fresh] if run.stream._axis else y[fresh], run.stream.take("targets", begin, end), *given)
    if begin == start:
        return loss, dnew
    dy = np.zeros(y.shape, y.dtype)
    (dy[:, fresh] if run.stream._axis else dy[fresh])[...] = dnew
    return loss, dy
