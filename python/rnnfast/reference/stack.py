"""The stack: layers × directions of scans over a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from rnnfast.reference.cells import CELLS
from rnnfast.reference.sequence import scan, scan_backward
from rnnfast.reference.shared import Array, Cell, Params
from rnnfast.reference.tape import Tape, of_row, select, state_widths, suffixes


def forward(
    cell: str | Cell | Sequence[str | Cell],
    params: Mapping[str, Any],
    x: npt.ArrayLike,
    state: Any = None,
    lengths: npt.ArrayLike | None = None,
    resets: npt.ArrayLike | None = None,
    dtype: npt.DTypeLike = np.float64,
    *,
    keep: Any = None,
    recurrent_scale: npt.ArrayLike | None = None,
) -> tuple[Array, Array | tuple[Array, ...], Tape]:
    """A stack of recurrent layers over a batch of sequences: the library's forward pass, without dropout between them.

    Each row b of the batch is a sequence of its own. A layer scans its first lengths[b] steps, in one direction or two,
    and hands the h_t of its directions, side by side, to the layer above.

    Args:
        cell: a name of `CELLS`, or a `Cell`; or one for each layer, with the same states, such as
            ("sru_skip", "sru", "sru").
        params: name -> array, PyTorch's names and shapes. They also tell the number of layers and of directions:
            `weight_ih_l0` (G·H, I), `weight_hh_l0` (G·H, H), `bias_ih_l0`, `bias_hh_l0` (G·H,) or absent,
            `…_l1` with directions·H in the place of I, `…_l0_reverse`. And they tell what the cell is combined with:
            `weight_hr_l0` (P, H), a projection of h to P features, which y and R then have (`project_output`);
            `ln_ih_weight_l0`, `ln_ih_bias_l0`, `ln_hh_weight_l0`, `ln_hh_bias_l0` (G·H,), layer norm (`normalize`).
        x: (T, B, I).
        state: h or (h, c, …), each (layers·directions, B, H); the cell's initial values if None.
        lengths: (B,) integers from 0 to T; T if None. Nothing past a length is read.
        resets: (T, B) bool; where true the initial state is restored before that step (see `scan`).
        dtype: what everything is converted to and computed in.
        keep: zoneout, in the form of the state: for each state the share of it that stays as it was at each step,
            (layers·directions, T, B, H), or what broadcasts to that, from 0 to 1; None for a state without.
        recurrent_scale: recurrent dropout: (layers·directions, B, H), or what broadcasts to that, by which h_{t-1} is
            multiplied where R sees it.

    Returns:
        y (T, B, directions·H), zero past a length; the final state in the form of `state`; a `Tape` for `backward`.

    Raises:
        ValueError: the cell can't be combined with what `params` or the arguments ask for.

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
    arrays: dict[str, Array] = {name: np.asarray(array, dtype) for name, array in params.items()}
    endings = suffixes(arrays)
    rules = _rules(cell, len(endings))
    _check_options(rules, arrays, recurrent_scale is not None)
    below: Array = np.asarray(x, dtype)
    steps, batch, _ = below.shape
    widths = state_widths(rules[0], arrays)
    scans = sum(map(len, endings))
    each = np.full(batch, steps) if lengths is None else np.asarray(lengths)
    cuts = np.zeros((steps, batch), np.bool_) if resets is None else np.asarray(resets, np.bool_)
    if state is None:
        blank = zip(widths, rules[0].initial, strict=True)
        state = tuple(np.full((scans, batch, width), value, dtype) for width, value in blank)
    initial = [np.asarray(s, dtype) for s in _as_tuple(state)]
    final = [s.copy() for s in initial]
    kept = _keep(keep, [(scans, steps, batch, width) for width in widths], dtype)
    scale = _broadcast("recurrent_scale", recurrent_scale, (scans, batch, widths[0]), dtype)

    tape = Tape(rules, arrays, [], [], scale)
    for rule, layer in zip(rules, endings, strict=True):
        tape.inputs.append(below)
        outputs = []
        for suffix in layer:
            j = len(tape.steps)
            weights = select(arrays, suffix)
            y = np.zeros((steps, batch, widths[0]), dtype)
            rows = []
            for b in range(batch):
                row, last = scan(
                    rule,
                    of_row(weights, scale, j, b),
                    below[:, b],
                    tuple(s[j, b] for s in initial),
                    int(each[b]),
                    cuts[:, b],
                    suffix.endswith("_reverse"),
                    tuple(None if k is None else k[j, :, b] for k in kept),
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
    tape: Tape, dy: npt.ArrayLike | None = None, dstate: Any = None, *, clip: float = np.inf
) -> tuple[Array, Array | tuple[Array, ...], dict[str, Array]]:
    """The adjoint of `forward`: the gradients of a loss of which dy and dstate are the gradients of y and final state.

    Args:
        tape: from `forward`; it may be used again.
        dy: (T, B, directions·H), not read past a length; zero if None.
        dstate: in the form of the state; zero if None.
        clip: the bound of each element of dh_t, at every step of every layer (see `scan_backward`).

    Returns:
        dx (T, B, I), zero past a length; the gradient of the initial state, in its form; name -> gradient for every
        parameter, in its shape.

    Raises:
        ValueError: `clip` isn't positive or zero.
    """
    if not clip >= 0:
        raise ValueError(f"clip: expected a number from 0, got {clip}")
    dtype = tape.inputs[0].dtype
    steps, batch, _ = tape.inputs[0].shape
    endings = suffixes(tape.params)
    directions = len(endings[0])
    widths = state_widths(tape.cells[0], tape.params)
    above: Array = np.zeros((steps, batch, directions * widths[0]), dtype) if dy is None else np.asarray(dy, dtype)
    if dstate is None:
        dstate = tuple(np.zeros((len(tape.steps), batch, width), dtype) for width in widths)
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
                dx_row, first = scan_backward(
                    tape.cells[k],
                    of_row(weights, tape.recurrent_scale, j, b),
                    x[:, b],
                    tape.steps[j][b],
                    above[:, b, d * widths[0] : (d + 1) * widths[0]],
                    tuple(ds[j, b] for ds in dfinal),
                    dweights,
                    float(clip),
                )
                dx[:, b] += dx_row
                for ds, value in zip(dinitial, first, strict=True):
                    ds[j, b] = value
        above = dx
    return above, _as_state(dinitial), grads


# ---- what the caller gave --------------------------------------------------------------------------------------------


def _as_tuple(state: Any) -> tuple[Any, ...]:
    return state if isinstance(state, tuple) else (state,)


def _as_state(states: Sequence[Array]) -> Array | tuple[Array, ...]:
    """The caller's form of a state: the array itself where the cell has one, a tuple where it has more."""
    return states[0] if len(states) == 1 else tuple(states)


def _rules(cell: str | Cell | Sequence[str | Cell], layers: int) -> tuple[Cell, ...]:
    """The cell of each layer."""
    each = [cell] * layers if isinstance(cell, str | Cell) else list(cell)
    if len(each) != layers:
        raise ValueError(f"cell: expected one for each of {layers} layers, got {len(each)}")
    rules = tuple(CELLS[rule] if isinstance(rule, str) else rule for rule in each)
    if len({rule.initial for rule in rules}) > 1:
        raise ValueError(f"cell: expected the same states in every layer, got {[rule.initial for rule in rules]}")
    return rules


def _check_options(rules: Sequence[Cell], params: Params, recurrent_dropout: bool) -> None:
    named = {"projection": "weight_hr", "layer_norm": "ln_"}
    given = {option: next((n for n in params if n.startswith(prefix)), None) for option, prefix in named.items()}
    given["recurrent_dropout"] = "recurrent_scale" if recurrent_dropout else None
    for option, name in given.items():
        if name and not all(option in rule.options for rule in rules):
            raise ValueError(f"{name}: expected none, since this cell has no {option.replace('_', ' ')}")


def _broadcast(name: str, value: npt.ArrayLike | None, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array | None:
    if value is None:
        return None
    array: Array = np.asarray(value, dtype)
    try:
        return np.broadcast_to(array, shape)
    except ValueError:
        raise ValueError(f"{name}: expected {shape}, or what broadcasts to it, got {array.shape}") from None


def _keep(keep: Any, shapes: Sequence[tuple[int, ...]], dtype: npt.DTypeLike) -> tuple[Array | None, ...]:
    """An array or None for each state."""
    given = (None,) * len(shapes) if keep is None else _as_tuple(keep)
    if len(given) != len(shapes):
        raise ValueError(f"keep: expected {len(shapes)}, one for each state, got {len(given)}")
    return tuple(_broadcast(f"keep[{k}]", value, shapes[k], dtype) for k, value in enumerate(given))
