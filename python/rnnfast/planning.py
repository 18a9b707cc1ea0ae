"""How a layer would lay out a call over threads, caches and tiles, and what share of the peak to expect of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from rnnfast import _kernels, checks, threads
from rnnfast.stack import Beside, Scan, Stack

__all__ = ["LayerPlan", "Plan", "plan"]

# What a call spends beside the multiply-adds of its products, in the time of one vector's multiply-add: of each vector
# of units and row for each gate (its activation, loads, stores), of each row, of each barrier; and the share of a
# tile's time that is not its multiply-adds. From measurements of LSTM, GRU and RNN on AVX-512.
_GATE, _ROW, _BARRIER, _TILE = 28.0, 40.0, 1500.0, 0.04


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """The layout of one layer's forward pass.

    Attributes:
        cell: the cell's name in the kernels.
        threads: how many work on a direction of the layer.
        beside: what runs side by side, each with its part of the threads: the "directions" of the layer, or the
            "layers" of the stack, each some steps behind the one that it reads; "nothing" where one follows the other.
            Two layers with dropout between them wait for each other, in training, all the same.
        split: what the threads of one share out: "rows" of the batch, "units" of the layer, or "none" where one thread
            has all.
        barrier: whether they wait for each other at every step.
        tile: rows × vectors of units whose sums are in registers at once.
        steps_ahead: steps whose product with x is made before their recurrence, or scanned together where no product
            has an h in it; 1: one step after the other.
        weight_bytes: of the packed weights that pass by at every step.
        share: the part of the multiply-add peak that is expected, 0 to 1; an estimate that knows nothing of memory.
    """

    cell: str
    threads: int
    beside: Beside
    split: Literal["rows", "units", "none"]
    barrier: bool
    tile: tuple[int, int]
    steps_ahead: int
    weight_bytes: int
    share: float

    def __str__(self) -> str:
        shared = "" if self.beside == "nothing" else f"{self.beside} side by side, "
        shared += "one thread" if self.split == "none" else f"{self.threads} threads by {self.split}"
        waits = ", a barrier a step" if self.barrier else ""
        ahead = ""
        if self.steps_ahead > 1:
            recurrent = _kernels.cells()[self.cell]["recurrent"]
            ahead = f", x {self.steps_ahead} steps ahead" if recurrent else f", {self.steps_ahead} steps together"
        rows, vectors = self.tile
        return (
            f"{self.cell}: {shared}{waits}, tiles of {rows} rows × {vectors} vectors{ahead}, "
            f"{self.weight_bytes / 1024:,.0f} KiB of weights, some {self.share:.0%} of the peak"
        )


@dataclass(frozen=True, slots=True)
class Plan:
    """The layouts of a stack's layers, first one first. Printed, a line for each."""

    layers: tuple[LayerPlan, ...]

    def __str__(self) -> str:
        return "\n".join(f"layer {k}  {layer}" for k, layer in enumerate(self.layers))

    def __iter__(self) -> Iterator[LayerPlan]:
        return iter(self.layers)


def plan(stack: Stack, steps: int, batch: int) -> Plan:
    """See `Recurrent.plan`."""
    steps, batch = checks.size("T", steps), checks.size("B", batch)
    beside = stack.beside(steps, batch)
    return Plan(tuple(_of_scan(stack, scans[0], steps, batch, beside) for scans in stack.layers))


def _of_scan(stack: Stack, scan: Scan, steps: int, batch: int, beside: Beside) -> LayerPlan:
    cell, inputs, hidden, output = scan.cell, scan.inputs, stack.hidden, stack.widths[0]
    number = threads.resolve()
    teams = {"nothing": 1, "directions": 2, "layers": len(stack.layers)}[beside]
    own, of_layers = max(number // teams, 1), beside == "layers"
    made = _kernels.plan(cell, steps, batch, inputs, hidden, output, stack.layer_norm, stack.double, own, of_layers)
    traits = _kernels.cells()[cell]
    vectors = -(-hidden // made["lanes"])
    terms = inputs + (output // stack.heads if traits["recurrent"] else 0)
    products = traits["gates"] * terms
    spent = vectors * (products * (1 + _TILE) + traits["gates"] * _GATE) + _ROW
    if made["barrier"]:
        spent += _BARRIER * made["threads"] / batch
    share = products * hidden / made["lanes"] / spent
    busy = made["threads"] * min(teams, number) / number  # of all threads
    return LayerPlan(
        cell,
        made["threads"],
        beside,
        made["split"],
        made["barrier"],
        (made["tile_rows"], made["panel_width"]),
        made["steps_ahead"],
        traits["gates"] * hidden * terms * (2 if stack.bfloat16 else stack.dtype.itemsize),
        share * busy,
    )
