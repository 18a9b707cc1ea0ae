"""What the library is meant to reach, and whether a run has shown it. A target is a rule over the figures of a run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import geometric_mean
from typing import Literal

from .limits import LEVEL2
from .results import Figure, Results, Topic
from .shapes import Shape
from .variants import USUAL_CELLS

PYTORCH, PYTORCH_BFLOAT16 = "PyTorch", "PyTorch bf16"
FLOAT32_PEERS = (PYTORCH, "JAX", "ONNX Runtime", "torch.compile")
ONE_THREAD, IN_FLOAT32, WHOLE_TAPE = "rnnfast, 1 thread", "rnnfast float32", "rnnfast, whole tape"
LEVELS_WITHOUT_AVX512 = ("v3",)
NATIVE_BFLOAT16 = ("v4bf16",)
LEVEL2_BYTES = 768 << 10  # of weights that stay in any level-2 cache of our time beside what else a step touches
LANES = 16  # whole vectors at every level

Direction = Literal["at least", "at most"]


@dataclass(frozen=True)
class Check:
    """One number, where it was measured, and the bound that it should keep."""

    value: float
    bound: float
    where: str

    def margin(self, direction: Direction) -> float:
        """Above 1: kept with room; below 1: missed."""
        return self.value / self.bound if direction == "at least" else self.bound / max(self.value, 1e-300)


@dataclass(frozen=True)
class Target:
    """A promise: `checks` finds the numbers of a run that it is about; `form` writes one of them."""

    name: str
    direction: Direction
    form: str
    checks: Callable[[Results], Iterator[Check]]


@dataclass(frozen=True)
class Verdict:
    """How a target came out: its worst number, and how many of all kept their bounds."""

    target: Target
    worst: Check | None
    kept: int = 0
    of: int = 0

    @property
    def word(self) -> str:
        if self.worst is None:
            return "not measured"
        return "met" if self.kept == self.of else "missed"


def judge(results: Results) -> list[Verdict]:
    return [_judge(target, results) for target in TARGETS]


def _judge(target: Target, results: Results) -> Verdict:
    checks = list(target.checks(results))
    if not checks:
        return Verdict(target, None)
    margins = [check.margin(target.direction) for check in checks]
    return Verdict(target, checks[margins.index(min(margins))], sum(m >= 1 for m in margins), len(checks))


def _where(figure: Figure) -> str:
    work = figure.work
    return f"{work.cell} {work.shape.name}, {work.threads} thread{'s' * (work.threads > 1)}"


# ---- shares of the peak ----------------------------------------------------------------------------------------------
def large_shape(shape: Shape) -> bool:
    return shape.H >= 128 and shape.B >= 16


def large(figure: Figure) -> bool:
    return large_shape(figure.work.shape)


def small(figure: Figure) -> bool:
    return figure.work.shape.H < 128 and figure.work.shape.B >= 16


def forward_bound(figure: Figure, isa: str) -> float:
    """The share of the peak that forward should reach at a large shape."""
    shape = figure.work.shape
    if shape.name == "ptb-large":
        return 0.70
    if isa in LEVELS_WITHOUT_AVX512:
        return 0.75
    return 0.78 if shape.I + shape.H < 256 else 0.85


def training_bound(figure: Figure, isa: str) -> float:
    """The share of the peak that training should reach at a large shape."""
    shape, threads = figure.work.shape, figure.work.threads
    if shape.I + shape.H < 256:
        return 0.72
    return 0.80 if threads == 1 else 0.78


def shares(
    topic: Topic, applies: Callable[[Figure], bool], bound: Callable[[Figure, str], float]
) -> Callable[[Results], Iterator[Check]]:
    """Checks of the share of the peak, of the usual cells in float32 with one and two threads."""

    def checks(results: Results) -> Iterator[Check]:
        for figure in _usual(results, topic):
            if figure.work.threads <= 2 and applies(figure) and not math.isnan(figure.share):
                yield Check(figure.share, bound(figure, results.isa), _where(figure))

    return checks


def _usual(results: Results, *topics: Topic) -> Iterator[Figure]:
    for figure in results.of(*topics):
        if figure.work.cell in USUAL_CELLS and figure.work.dtype == "float32":
            yield figure


def level2_share(figure: Figure, results: Results) -> float:
    """The share of the measured reads from the level-2 cache at which the weights of every step pass."""
    work = figure.work
    return results.bandwidth_share(figure, LEVEL2, work.weights_a_step * work.shape.T)


def one_row(figure: Figure) -> bool:
    return figure.work.shape.B == 1 and figure.work.threads == 1 and figure.work.weights <= LEVEL2_BYTES


def level2_shares(results: Results) -> Iterator[Check]:
    """Checks where the recurrent product is most of the work."""
    for figure in _usual(results, "forward"):
        share = level2_share(figure, results)
        if one_row(figure) and figure.work.shape.I < figure.work.shape.H and not math.isnan(share):
            yield Check(share, 0.85, _where(figure))


# ---- beside the peers ------------------------------------------------------------------------------------------------
def ratios(
    topic: Topic, cell: str, bound: float, peers: tuple[str, ...] = (PYTORCH,), dtype: str = "float32"
) -> Callable[[Results], Iterator[Check]]:
    """Checks of each peer's time over ours."""

    def checks(results: Results) -> Iterator[Check]:
        for figure in results.of(topic):
            for peer in peers:
                ratio = figure.ratio(peer)
                if (figure.work.cell, figure.work.dtype) == (cell, dtype) and ratio is not None:
                    yield Check(ratio, bound, f"{_where(figure)}, {peer}")

    return checks


def mean_ratio(
    topic: Topic, cell: str, bound: float, peer: str = PYTORCH, dtype: str = "float32"
) -> Callable[[Results], Iterator[Check]]:
    """One check: the geometric mean of the peer's times over ours."""

    def checks(results: Results) -> Iterator[Check]:
        found = [check.value for check in ratios(topic, cell, bound, (peer,), dtype)(results)]
        work = [figure.work for figure in results.of(topic) if peer in figure.peers | figure.failures]
        all_of = sum((w.cell, w.dtype) == (cell, dtype) for w in work)
        if found:
            count = f"{len(found)}" if len(found) == all_of else f"{len(found)} of {all_of}"
            yield Check(geometric_mean(found), bound, f"{count} figures")

    return checks


def ragged(cell: str, bound: float) -> Callable[[Results], Iterator[Check]]:
    """Checks of the better of PyTorch's packed and padded time over ours."""

    def checks(results: Results) -> Iterator[Check]:
        for figure in results.of("ragged"):
            found = [ratio for peer in figure.peers if (ratio := figure.ratio(peer)) is not None]
            if figure.work.cell == cell and found:
                yield Check(min(found), bound, _where(figure))

    return checks


def step(hidden: int, bound: float) -> Callable[[Results], Iterator[Check]]:
    """Checks of our time of a step over ONNX Runtime's."""

    def checks(results: Results) -> Iterator[Check]:
        for figure in results.of("step"):
            ratio = figure.ratio("ONNX Runtime")
            if ratio is not None and hidden == figure.work.shape.H:
                yield Check(1 / ratio, bound, _where(figure))

    return checks


def over_float32(results: Results) -> Iterator[Check]:
    """Our float32's time over our bfloat16's, where the weights are large and the rows many."""
    for figure in results.of("training"):
        ratio, shape = figure.ratio(IN_FLOAT32), figure.work.shape
        if ratio is not None and shape.H >= 256 and shape.B >= 16:
            yield Check(ratio, 1.6, _where(figure))


def echo_state(results: Results) -> Iterator[Check]:
    """Reservoirpy's time over ours."""
    for figure in results.of("echo state"):
        ratio = figure.ratio("reservoirpy")
        if ratio is not None:
            yield Check(ratio, 10.0, _where(figure))


# ---- the rest --------------------------------------------------------------------------------------------------------
def second_core(results: Results) -> Iterator[Check]:
    """One thread's time over that of two threads."""
    for figure in _usual(results, "threads"):
        ratio = figure.ratio(ONE_THREAD)
        if figure.work.threads == 2 and large(figure) and ratio is not None:
            yield Check(ratio, 1.8, f"{figure.work.cell} {figure.work.shape.name}")


def next_multiple(hidden: int) -> int:
    """The first multiple of 16 above H: the size that padding is held against."""
    return (hidden // LANES + 1) * LANES


def padding(results: Results) -> Iterator[Check]:
    """Our time at each hidden size over that at the next multiple of 16, round by round."""
    figures = {(f.work.cell, f.work.threads, f.work.shape.H): f for f in results.of("padding")}
    for (cell, threads, hidden), figure in figures.items():
        padded = figures.get((cell, threads, next_multiple(hidden)))
        if padded is not None:
            yield Check(figure.ours.over(padded.ours), 1.1, _where(figure))


MOST_MEMORY = 0.45  # of PyTorch's


def peak_memory(results: Results) -> Iterator[Check]:
    for memory in results.memory:
        if memory.ratio is not None:
            yield Check(memory.ratio, MOST_MEMORY, f"{memory.cell} {memory.shape.name}")


def long_sequences(topic: Topic) -> Callable[[Results], Iterator[Check]]:
    """Time per step at T = 65,536 over that at T = 64, round by round."""

    def checks(results: Results) -> Iterator[Check]:
        figures = {figure.work.shape.T: figure for figure in results.of(topic)}
        if {64, 65536} <= figures.keys():
            longest, shortest = figures[65536], figures[64]
            yield Check(longest.ours.over(shortest.ours) * 64 / 65536, 1.05, _where(longest))

    return checks


def checkpointed(results: Results) -> Iterator[Check]:
    """Training that computes its tape again, segment by segment, over training that keeps it, round by round."""
    for figure in results.of("checkpoint"):
        if WHOLE_TAPE in figure.peers:
            yield Check(figure.ours.over(figure.peers[WHOLE_TAPE]), 1.4, _where(figure))


# What the geometric means over PyTorch should be: of its compositions, and of its bfloat16.
COMPOSITIONS = {"LSTM layer_norm": 8.0, "LSTM peephole": 15.0, "IndRNN": 10.0, "MinGRU": 10.0, "SRU": 10.0}
BFLOAT16_MEANS = {"LSTM": 1.3, "GRU": 2.0}

TARGETS = (
    Target(
        "forward, share of the peak, H ≥ 128 and B ≥ 16", "at least", "{:.0%}", shares("forward", large, forward_bound)
    ),
    Target("training, share of the peak, same shapes", "at least", "{:.0%}", shares("training", large, training_bound)),
    Target(
        "forward with AVX2 alone, share of its own peak, same shapes",
        "at least",
        "{:.0%}",
        shares("forward with AVX2", large, lambda figure, _: forward_bound(figure, "v3")),
    ),
    Target(
        "forward, share of the peak, H < 128 and B ≥ 16",
        "at least",
        "{:.0%}",
        shares("forward", small, lambda *_: 0.70),
    ),
    Target(
        "training, share of the peak, same shapes", "at least", "{:.0%}", shares("training", small, lambda *_: 0.62)
    ),
    Target(
        "forward, share of the peak, B = 1, I ≥ H, 1 thread",
        "at least",
        "{:.0%}",
        shares(
            "forward",
            lambda f: f.work.shape.B == 1 and f.work.shape.I >= f.work.shape.H and f.work.threads == 1,
            lambda *_: 0.50,
        ),
    ),
    Target(
        "forward, share of the level-2 cache's bandwidth, B = 1, I < H, 1 thread", "at least", "{:.0%}", level2_shares
    ),
    Target("LSTM training, each float32 peer", "at least", "{:.2f}", ratios("training", "LSTM", 1.0, FLOAT32_PEERS)),
    Target("LSTM training, geometric mean over PyTorch", "at least", "{:.2f}", mean_ratio("training", "LSTM", 1.8)),
    Target("GRU training, each over PyTorch", "at least", "{:.2f}", ratios("training", "GRU", 1.5)),
    Target("GRU training, geometric mean over PyTorch", "at least", "{:.2f}", mean_ratio("training", "GRU", 4.0)),
    Target("RNN training, each over PyTorch", "at least", "{:.2f}", ratios("training", "RNN", 1.8)),
    Target("RNN training, geometric mean over PyTorch", "at least", "{:.2f}", mean_ratio("training", "RNN", 4.5)),
    *(
        Target(
            f"{cell} training, geometric mean over PyTorch's composition",
            "at least",
            "{:.2f}",
            mean_ratio("training", cell, bound),
        )
        for cell, bound in COMPOSITIONS.items()
    ),
    Target("bfloat16 training over our float32, H ≥ 256 and B ≥ 16", "at least", "{:.2f}", over_float32),
    *(
        target
        for cell, mean in BFLOAT16_MEANS.items()
        for target in (
            Target(
                f"{cell} bfloat16 training, each over PyTorch's",
                "at least",
                "{:.2f}",
                ratios("training", cell, 1.0, (PYTORCH_BFLOAT16,), "bfloat16"),
            ),
            Target(
                f"{cell} bfloat16 training, geometric mean over PyTorch's",
                "at least",
                "{:.2f}",
                mean_ratio("training", cell, mean, PYTORCH_BFLOAT16, "bfloat16"),
            ),
        )
    ),
    Target("LSTM ragged training, fill 0.5, better of packed and padded", "at least", "{:.2f}", ragged("LSTM", 3.0)),
    Target("GRU ragged training, fill 0.5, better of packed and padded", "at least", "{:.2f}", ragged("GRU", 4.0)),
    Target(
        "ragged training, share of the peak in steps that count, H ≥ 128",
        "at least",
        "{:.0%}",
        shares("ragged", lambda f: f.work.shape.H >= 128, lambda *_: 0.62),
    ),
    Target("training at H = 48, 100, 200, … over the next multiple of 16", "at most", "{:.2f}", padding),
    Target("second core, H ≥ 128 and B ≥ 16", "at least", "{:.2f}", second_core),
    Target("language model, LSTM, over PyTorch", "at least", "{:.2f}", ratios("language model", "LSTM", 1.5)),
    Target("language model, GRU, over PyTorch", "at least", "{:.2f}", ratios("language model", "GRU", 2.4)),
    Target("peak memory of training, share of PyTorch's", "at most", "{:.2f}", peak_memory),
    Target("streaming step, H = 64, share of ONNX Runtime's time", "at most", "{:.2f}", step(64, 0.25)),
    Target("streaming step, H = 256, share of ONNX Runtime's time", "at most", "{:.2f}", step(256, 0.5)),
    Target("echo state network, states, over reservoirpy", "at least", "{:.1f}", echo_state),
    Target("forward, time per step, T = 65,536 over T = 64", "at most", "{:.2f}", long_sequences("forward length")),
    Target("training, time per step, T = 65,536 over T = 64", "at most", "{:.2f}", long_sequences("length")),
    Target("training with checkpoint=True over without, T = 4,096", "at most", "{:.2f}", checkpointed),
)
