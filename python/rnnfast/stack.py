"""A stack of layers through the kernels: forward, and back over what forward has recorded.

`Stack` knows sizes and names, no parameters and no options' meaning; `Recurrent` makes one of its arguments and checks
what it hands in. Everything here is time-major.

Letters: T steps, B batch, H hidden, L layers, D = 1 or 2 directions; k = layer·D + direction counts the scans.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np

from rnnfast import _kernels, checks, threads
from rnnfast.checks import Array, Float
from rnnfast.module import NO_MASKS, Arrays, Key

__all__ = ["MOST_LAYERS", "SCALES", "ZONEOUT", "Beside", "Run", "Scan", "Stack", "Watch"]

# Where the streams of random numbers of a scan begin; the dropout between layers has those from 0 on.
ZONEOUT, SCALES = 1 << 20, 1 << 21
MOST_LAYERS = 1 << 16  # whose streams, of every direction and state, find room between those two

# What runs at the same time, each with a part of the threads: the directions of a layer, or the layers of the stack,
# each some steps behind the one that it reads.
Beside: TypeAlias = Literal["nothing", "directions", "layers"]

_saved_size = functools.cache(_kernels.saved_size)
_side_by_side = functools.lru_cache(4096)(_kernels.side_by_side)


@dataclass(slots=True)
class Run:
    """What a forward call of a stack keeps. All arrays are time-major views or arrays."""

    initial: Sequence[Array] | None  # the states before the first step, (L·D, B, ·) each
    lengths: Array | None  # of the whole sequences
    resets: Array | None
    own_initial: bool = False  # the initial states are the layer's parameters
    zoneouts: Sequence[float] = ()  # the probability of each state; empty where none is kept
    masks: Key = NO_MASKS  # of the call's random masks; none at inference
    scales: list[Array] | None = None  # recurrent dropout: by k, what h is multiplied by, (B, ·)
    begin: int = 0  # the first step, where the run has a segment of longer sequences
    kept: Sequence[_kernels._Kept] | None = None  # by k, what the segments hand on to each other
    known: Array | None = None  # the output of the last layer, where an earlier run has found it: (T, B, D·H)
    inputs: list[Array] = field(default_factory=list)  # by layer, (T, B, ·)
    outputs: list[Array] = field(default_factory=list)  # by layer, (T, B, D·H), before dropout
    states: list[list[Array]] = field(default_factory=list)  # by k, the states beside h, (T, B, H) each
    saved: list[Array | None] = field(default_factory=list)  # by k, (T, B, ·): a step's values, the gates (G·H) first


# Sees what backward finds on its way: k, the run and the whole gradient of each state at each step, (T, B, H) each and
# zero past a row's length.
Watch: TypeAlias = Callable[[int, Run, tuple[Array, ...]], None]


@dataclass(frozen=True, slots=True)
class Scan:
    """One layer in one direction."""

    k: int
    layer: int
    reverse: bool
    cell: str  # its name in the kernels' registry
    inputs: int  # the features of x
    weights: Mapping[str, str]  # the kernels' names of what it has -> the parameters'
    unit_weights: Sequence[str]  # parameters of one number a unit, or of several blocks of such


class Stack:
    """Layers of scans, and how they are run: first one first, and back.

    `widths` are the features of each state, h first; `hidden` is H.
    """

    def __init__(
        self,
        layers: Sequence[Sequence[Scan]],
        widths: Sequence[int],
        hidden: int,
        dtype: Float,
        *,
        heads: int,
        layer_norm: bool,
        bfloat16: bool,
    ) -> None:
        self.layers, self.scans = layers, [scan for scans in layers for scan in scans]
        self.widths, self.hidden, self.dtype = widths, hidden, dtype
        self.heads, self.layer_norm, self.bfloat16 = heads, layer_norm, bfloat16
        self.double = dtype == np.float64

    # ---- arrays ------------------------------------------------------------------------------------------------------
    def state_shapes(self, batch: int) -> list[tuple[int, int, int]]:
        """(L·D, B, ·), one a state."""
        return [(len(self.scans), batch, width) for width in self.widths]

    def new_states(self, batch: int) -> tuple[Array, ...]:
        """One array for each state of all scans."""
        count = len(self.scans)
        return tuple([checks.empty("state", (count, batch, width), self.dtype) for width in self.widths])

    def new_sequence(self, steps: int, batch: int, width: int) -> Array:
        """(T, B, width)."""
        return checks.empty("y", (steps, batch, width), self.dtype)

    def new_kept(self) -> list[_kernels._Kept]:
        """For `Run.kept`, of runs one after the other with the same parameters."""
        return [_kernels.make_kept() for _ in self.scans]

    def part(self, array: Array, scan: Scan) -> Array:
        """The features of y that are a scan's h: a view."""
        width, directions = self.widths[0], len(self.layers[0])
        if directions == 1:
            return array
        begin = scan.k % directions * width
        return array[..., begin : begin + width]

    def weights(self, source: Mapping[str, Array], scan: Scan) -> dict[str, Any]:
        """What a scan has of parameters or gradients, by the kernels' names."""
        found = source.groups.get(scan.k) if isinstance(source, Arrays) else None
        if found is None:
            found = {name: source[full] for name, full in scan.weights.items()}
            blocks = [source[full].reshape(-1, self.hidden) for full in scan.unit_weights]
            found["unit_weights"] = tuple(unit for block in blocks for unit in block)
            if isinstance(source, Arrays):
                source.groups[scan.k] = found
        return found

    # ---- what is random ----------------------------------------------------------------------------------------------
    def draw_scales(self, probability: float, batch: int, masks: Key) -> list[Array]:
        """What h is multiplied by before it meets weight_hh, in a whole sequence: 0 or 1 / (1 - p), (B, ·) by k."""
        ones = np.ones((1, batch, self.widths[0]), self.dtype)
        scales = np.empty((len(self.scans), *ones.shape), self.dtype)
        _, seed, call = masks
        for scan, scale in zip(self.scans, scales, strict=True):
            _kernels.dropout(ones, scale, probability, seed, call, SCALES + scan.k, None, threads.resolve())
        return [scale[0] for scale in scales]

    def _drop(self, x: Array, layer: int, run: Run) -> Array:
        """The output of `layer`, or its gradient, with the call's mask applied."""
        if not run.masks[0]:
            return x
        dropped = self.new_sequence(*x.shape)
        _kernels.dropout(x, dropped, *run.masks, layer, run.lengths, threads.resolve(), run.begin)
        return dropped

    def _options(
        self, scan: Scan, run: Run, calls: _kernels._Calls | None
    ) -> tuple[int, Any, Array | None, bool, _kernels._Calls | None, _kernels._Kept | None]:
        """What a scan has but weights and arrays: heads, zoneout, recurrent dropout, bfloat16, the calls that it joins,
        what it takes from the segment before and leaves for the next."""
        zoneout = None
        if run.zoneouts:
            _, seed, call = run.masks
            zoneout = run.zoneouts, run.masks is not NO_MASKS, seed, call, ZONEOUT + scan.k * len(run.zoneouts)
        scale = run.scales[scan.k] if run.scales else None
        return self.heads, zoneout, scale, self.bfloat16, calls, run.kept[scan.k] if run.kept else None

    # ---- what runs side by side --------------------------------------------------------------------------------------
    def beside(self, steps: int, batch: int, dropout: bool = False) -> Beside:
        """What runs side by side in a call. It changes no bit.

        Dropout between layers is made of whole outputs: layers then wait for each other.
        """
        both = len(self.layers[0]) == 2
        if not both and (len(self.layers) == 1 or dropout):
            return "nothing"
        count, number = 2 if both else len(self.layers), threads.resolve()
        for scans in self.layers[:: max(len(self.layers) - 1, 1)]:  # those in between are like the last one
            sizes = steps, batch, scans[0].inputs, self.hidden, self.widths[0]
            if not _side_by_side(scans[0].cell, *sizes, self.layer_norm, self.double, not both, count, number):
                return "nothing"
        return "directions" if both else "layers"

    def _beside_in(self, run: Run, x: Array) -> Beside:
        steps, batch, _ = x.shape
        return "nothing" if len(self.scans) == 1 else self.beside(steps, batch, bool(run.masks[0]))

    # ---- forward -----------------------------------------------------------------------------------------------------
    def forward(
        self, params: Mapping[str, Array], x: Array, y: Array, final: Sequence[Array], run: Run, record: bool
    ) -> None:
        """Run the layers, first one first; record them in `run`."""
        beside = self._beside_in(run, x)
        of_all = _kernels.make_calls(True, len(self.layers)) if beside == "layers" else None
        for scans in self.layers:
            to = y if scans is self.layers[-1] else self.new_sequence(*y.shape)
            of_layer = _kernels.make_calls(False, 2) if beside == "directions" else None
            self._forward_layer(scans, params, x, to, final, run, record, of_all or of_layer)
            if of_layer:
                of_layer.run(threads.resolve())
            if to is not y:
                x = self._drop(to, scans[0].layer, run)
        if of_all:
            of_all.run(threads.resolve())

    def _forward_layer(
        self,
        scans: Sequence[Scan],
        params: Mapping[str, Array],
        x: Array,
        y: Array,
        final: Sequence[Array],
        run: Run,
        record: bool,
        calls: _kernels._Calls | None,
    ) -> None:
        steps, batch, _ = x.shape
        known = run.known if scans is self.layers[-1] else None
        if record:
            run.inputs.append(x)
            run.outputs.append(y)
        for scan in scans:
            states: list[Array] = []
            saved = None
            if record:
                states = [checks.empty("c", (steps, batch, width), self.dtype) for width in self.widths[1:]]
                projected = self.widths[0] if "weight_hr" in scan.weights else 0
                values = _saved_size(scan.cell, self.hidden, projected, bool(run.zoneouts), self.layer_norm)
                if values:
                    saved = checks.empty("gates", (steps, batch, values), self.dtype)
                run.states.append(states)
                run.saved.append(saved)
            _kernels.forward(
                scan.cell,
                x,
                self.weights(params, scan),
                None if run.initial is None else [array[scan.k] for array in run.initial],
                self.part(y, scan),
                states,
                saved,
                [array[scan.k] for array in final],
                run.lengths,
                run.resets,
                scan.reverse,
                threads.resolve(),
                run.begin,
                *self._options(scan, run, calls),
                known=None if known is None else self.part(known, scan),
            )

    # ---- backward ----------------------------------------------------------------------------------------------------
    def backward(
        self,
        params: Mapping[str, Array],
        grads: Mapping[str, Array],
        run: Run,
        dy: Array | None,
        dfinal: Sequence[Array] | None,
        dx: Array | None,
        dinitial: Sequence[Array],
        *,
        clip: float = math.inf,
        resume: bool = False,
        goes_on: bool = False,
        watch: Watch | None = None,
    ) -> None:
        """Backpropagate through the layers, last one first.

        `grads` are added to; `dx`, if it is wanted, and `dinitial` are written. `clip` bounds each element of ∂L/∂h at
        each step. With `resume`, `grads` hold sums that go on, of a run that follows in time; if there are
        more to come, `goes_on`, the sums stay in `run.kept` and `grads` are of no use meanwhile.
        """
        beside = self._beside_in(run, run.inputs[0])
        of_all = _kernels.make_calls(True, len(self.layers)) if beside == "layers" else None
        watched: list[tuple[int, tuple[Array, ...]]] = []
        for scans in reversed(self.layers):
            layer = scans[0].layer
            to = self.new_sequence(*run.inputs[layer].shape) if layer else dx
            of_layer = _kernels.make_calls(False, 2) if beside == "directions" else None
            for scan in scans:
                k, y = scan.k, self.part(run.outputs[layer], scan)
                over_time = None
                if watch:
                    over_time = tuple([np.zeros((*y.shape[:2], width), self.dtype) for width in self.widths])
                    watched.append((k, over_time))
                _kernels.backward(
                    scan.cell,
                    run.inputs[layer],
                    self.weights(params, scan),
                    None if run.initial is None else [array[k] for array in run.initial],
                    y,
                    run.states[k],
                    run.saved[k],
                    None if dy is None else self.part(dy, scan),
                    None if dfinal is None else [array[k] for array in dfinal],
                    to,
                    scan.reverse,  # the second direction adds into dx
                    [array[k] for array in dinitial],
                    self.weights(grads, scan),
                    run.lengths,
                    run.resets,
                    scan.reverse,
                    threads.resolve(),
                    run.begin,
                    resume,
                    goes_on,
                    clip,
                    over_time,
                    *self._options(scan, run, of_all or of_layer),
                )
            if of_layer:
                of_layer.run(threads.resolve())
            if of_all is None:
                _show(watch, watched, run)
            if layer and to is not None:
                dy = self._drop(to, layer - 1, run)
        if of_all:
            of_all.run(threads.resolve())
            _show(watch, watched, run)


def _show(watch: Watch | None, watched: list[tuple[int, tuple[Array, ...]]], run: Run) -> None:
    """Let the watch, if there is one, see what has been computed, and forget that."""
    if watch:
        for k, over_time in watched:
            watch(k, run, over_time)
    watched.clear()
