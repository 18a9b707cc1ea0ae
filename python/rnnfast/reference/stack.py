"""The stack: layers × directions of scans over a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from rnnfast.reference.cells import CELLS
from rnnfast.reference.sequence import scan, scan_backward
from rnnfast.reference.shared import Array
from rnnfast.reference.tape import Tape, hidden_size, select, suffixes


def _as_tuple(state: Any) -> tuple[Any, ...]:
    return state if isinstance(state, tuple) else (state,)


def _as_state(states: Sequence[Array]) -> Array | tuple[Array, ...]:
    """The caller's form of a state: the array itself where the cell has one, a tuple where it has more."""
    return states[0] if len(states) == 1 else tuple(states)


def forward(
    cell: str,
    params: Mapping[str, Any],
    x: npt.ArrayLike,
    state: Any = None,
    lengths: npt.ArrayLike | None = None,
    resets: npt.ArrayLike | None = None,
    dtype: npt.DTypeLike = np.float64,
) -> tuple[Array, Array | tuple[Array, ...], Tape]:
    """A stack of recurrent layers over a batch of sequences: the library's forward pass, without dropout.

    Each row b of the batch is a sequence of its own. A layer scans its first lengths[b] steps, in one direction or two,
    and hands the h_t of its directions, side by side, to the layer above.

    Args:
        cell: a name of `CELLS`.
        params: name -> array, PyTorch's names and shapes. They also tell the number of layers and of directions:
            `weight_ih_l0` (G·H, I), `weight_hh_l0` (G·H, H), `bias_ih_l0`, `bias_hh_l0` (G·H,) or absent,
            `…_l1` with directions·H in the place of I, `…_l0_reverse`.
        x: (T, B, I).
        state: h or (h, c, …), each (layers·directions, B, H); the cell's initial values if None.
        lengths: (B,) integers from 0 to T; T if None. Nothing past a length is read.
        resets: (T, B) bool; where true the initial state is restored before that step (see `scan`).
        dtype: what everything is converted to and computed in.

    Returns:
        y (T, B, directions·H), zero past a length; the final state in the form of `state`; a `Tape` for `backward`.

    Example:
        >>> import numpy as np
        >>> from rnnfast import reference
        >>> params = {"weight_ih_l0": [[1.0]], "weight_hh_l0": [[0.5]]}
        >>> y, h, tape = reference.forward("rnn_relu", params, [[[1.0]], [[2.0]]])
        >>> y.ravel().tolist(), h.tolist()
        ([1.0, 2.5], [[[2.5]]])
        >>> dx, dh, grads = reference.backward(tape, np.ones((2, 1, 1)))
        >>> dx.ravel().tolist(), dh.tolist(), grads["weight_hh_l0"].tolist()
        ([1.5, 1.0], [[[0.75]]], [[1.0]])
    """
    rules = CELLS[cell]
    arrays: dict[str, Array] = {name: np.asarray(array, dtype) for name, array in params.items()}
    below: Array = np.asarray(x, dtype)
    steps, batch, _ = below.shape
    hidden = hidden_size(rules, arrays)
    endings = suffixes(arrays)
    scans = sum(map(len, endings))
    each = np.full(batch, steps) if lengths is None else np.asarray(lengths)
    cuts = np.zeros((steps, batch), np.bool_) if resets is None else np.asarray(resets, np.bool_)
    if state is None:
        state = tuple(np.full((scans, batch, hidden), value, dtype) for value in rules.initial)
    initial = [np.asarray(s, dtype) for s in _as_tuple(state)]
    final = [s.copy() for s in initial]

    tape = Tape(rules, arrays, [], [])
    for layer in endings:
        tape.inputs.append(below)
        outputs = []
        for suffix in layer:
            j = len(tape.steps)
            weights = select(arrays, suffix)
            y = np.zeros((steps, batch, hidden), dtype)
            rows = []
            for b in range(batch):
                first = tuple(s[j, b] for s in initial)
                row, last = scan(
                    rules, weights, below[:, b], first, int(each[b]), cuts[:, b], suffix.endswith("_reverse")
                )
                for step in row:
                    y[step.t, b] = step.after[0]
                for s, value in zip(final, last, strict=True):
                    s[j, b] = value
                rows.append(row)
            tape.steps.append(rows)
            outputs.append(y)
        below = np.concatenate(outputs, axis=-1)
    return below, _as_state(final), tape


def backward(
    tape: Tape, dy: npt.ArrayLike | None = None, dstate: Any = None
) -> tuple[Array, Array | tuple[Array, ...], dict[str, Array]]:
    """The adjoint of `forward`: the gradients of a loss of which dy and dstate are the gradients of y and final state.

    Args:
        tape: from `forward`; it may be used again.
        dy: (T, B, directions·H), not read past a length; zero if None.
        dstate: in the form of the state; zero if None.

    Returns:
        dx (T, B, I), zero past a length; the gradient of the initial state, in its form; name -> gradient for every
        parameter, in its shape.
    """
    dtype = tape.inputs[0].dtype
    steps, batch, _ = tape.inputs[0].shape
    endings = suffixes(tape.params)
    hidden = hidden_size(tape.cell, tape.params)
    directions = len(endings[0])
    above: Array = np.zeros((steps, batch, directions * hidden), dtype) if dy is None else np.asarray(dy, dtype)
    if dstate is None:
        dstate = tuple(np.zeros((len(tape.steps), batch, hidden), dtype) for _ in tape.cell.initial)
    dfinal = [np.asarray(ds, dtype) for ds in _as_tuple(dstate)]
    dinitial = [np.zeros_like(ds) for ds in dfinal]

    grads = {name: np.zeros_like(array) for name, array in tape.params.items()}
    for k in reversed(range(len(endings))):
        x = tape.inputs[k]
        dx = np.zeros_like(x)
        for d, suffix in enumerate(endings[k]):
            j = k * directions + d
            weights, dweights = select(tape.params, suffix), select(grads, suffix)
            for b in range(batch):
                dh = above[:, b, d * hidden : (d + 1) * hidden]
                last = tuple(ds[j, b] for ds in dfinal)
                dx_row, first = scan_backward(tape.cell, weights, x[:, b], tape.steps[j][b], dh, last, dweights)
                dx[:, b] += dx_row
                for ds, value in zip(dinitial, first, strict=True):
                    ds[j, b] = value
        above = dx
    return above, _as_state(dinitial), grads
