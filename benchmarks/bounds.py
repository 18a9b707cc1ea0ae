"""What stands between a figure and its target: the equations of a cell, the caches, or how fast a peer is itself."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import geometric_mean

from rnnfast.recurrent import _CELLS

from .limits import LEVEL3, MEMORY
from .results import Figure, Memory, Results
from .targets import MOST_MEMORY, PYTORCH
from .variants import USUAL_CELLS, variant

# On whole vectors, of a vector of units and a row, forward and backward, loads and stores among them: counted in the
# innermost loops of forward_block and backward_block as GCC 12 compiles them for AVX-512 (objdump -d). A loop has some
# 30 more for addresses and counters.
CELL_INSTRUCTIONS = {"LSTM": (123, 75), "GRU": (77, 32), "RNN": (29, 18)}

# Bytes of weights that certainly fit no level-2 cache, and of those that may fit a level-3 cache.
BEYOND_LEVEL2, WITHIN_LEVEL3 = 2 << 20, 32 << 20


def ceilings(results: Results) -> Iterator[tuple[str, str, int, float, float]]:
    """Topic, cell, figures, the mean ratio to PyTorch, and what it would be if ours ran at the peak itself."""
    for topic in ("training", "ragged", "language model"):
        of_topic = results.of(topic)
        for cell in dict.fromkeys(figure.work.cell for figure in of_topic):
            found = [
                (ratio, ratio / figure.share)
                for figure in of_topic
                if figure.work.cell == cell and figure.work.dtype == "float32"
                if (ratio := best_ratio(figure)) is not None and not math.isnan(figure.share)
            ]
            if found:
                reached, possible = (geometric_mean(values) for values in zip(*found, strict=True))
                yield topic, cell, len(found), reached, possible


def best_ratio(figure: Figure) -> float | None:
    """The time of the faster one of PyTorch's ways over ours."""
    ratios = [ratio for peer in figure.peers if peer.startswith(PYTORCH) and (ratio := figure.ratio(peer)) is not None]
    return min(ratios, default=None)


def equations(results: Results) -> Iterator[tuple[Figure, int, int, int]]:
    """Figures of few units, with the multiply-adds of whole vectors and the cell's instructions, for a vector of units
    and a row: forward's products; the cell, forward; the cell, forward and backward."""
    seen = set()
    for figure in results.of("forward"):
        work = figure.work
        place = work.cell, work.shape.name
        if work.cell in CELL_INSTRUCTIONS and work.shape.H < 128 and work.dtype == "float32" and place not in seen:
            seen.add(place)
            forward, backward = CELL_INSTRUCTIONS[work.cell]
            gates = len(variant(work.cell).make(1, 1).params["weight_ih_l0"])
            products = gates * (work.shape.I + work.shape.H)
            yield figure, products, forward, forward + backward


def streams(results: Results) -> Iterator[tuple[Figure, str, float]]:
    """Forward passes whose weights fit no level-2 cache: which memory they come from at every step, and the share of
    the time that reading them takes at the measured bandwidth."""
    for figure in results.of("forward"):
        work = figure.work
        if work.cell not in USUAL_CELLS or work.dtype != "float32" or work.weights_a_step < BEYOND_LEVEL2:
            continue
        level = MEMORY if work.weights_a_step > WITHIN_LEVEL3 else LEVEL3
        rate = results.bandwidth(level, work.threads)
        if not math.isnan(rate):
            yield figure, level, work.weights_a_step * work.shape.T / rate / figure.ours.median


@dataclass(frozen=True)
class Holding:
    """What a training step of one layer has to hold when backward ends, and what ours holds beside it, in bytes."""

    memory: Memory
    tape: int  # y, the other states and what the equations keep for backward, of every step
    results: int  # dx and the gradients of the weights
    copies: int  # weights packed for backward, and the sums of their gradients

    @property
    def least(self) -> float:
        """Tape and results alone over PyTorch's peak."""
        assert not isinstance(self.memory.torch, str)
        return (self.tape + self.results) / self.memory.torch


def holdings(results: Results) -> Iterator[Holding]:
    """Of the shapes at which we hold more of PyTorch's memory than wanted."""
    for memory in results.memory:
        if memory.ratio is None or memory.ratio <= MOST_MEMORY:
            continue
        T, B, I, H = memory.shape.T, memory.shape.B, memory.shape.I, memory.shape.H  # noqa: E741
        layer = variant(memory.cell).make(I, H)
        cell = _CELLS[layer._cell_of(0)]
        weights = sum(value.nbytes for value in layer.params.values())
        yield Holding(memory, 4 * T * B * H * (cell["states"] + cell["saved"]), 4 * T * B * I + weights, 2 * weights)
