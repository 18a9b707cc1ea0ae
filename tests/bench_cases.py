"""What the tests of the benchmark suite share: small shapes, and figures that nobody has measured."""

from __future__ import annotations

from typing import Any

from rnnfast.benchmarks.results import Figure, Results, Topic, Work
from rnnfast.benchmarks.shapes import Shape
from rnnfast.benchmarks.timing import Sample, Turns

TINY = Shape("tiny", 5, 3, 4, 16)
SQUARE = Shape("square", 5, 3, 16, 16)
SOME = Shape("some", 100, 32, 128, 256)
RESERVOIR = Shape("reservoir 30", 9, 2, 3, 30)
BRIEF = Turns(1, 0.0001)
USUAL = ("LSTM", "GRU", "RNN")


def sample(*times: float, peak: float = 1e11) -> Sample:
    return Sample(times, (peak,) * len(times), 2 * times[0])


def figure(
    topic: Topic = "training",
    cell: str = "LSTM",
    shape: Shape = SOME,
    *,
    share: float = 0.9,
    threads: int = 1,
    dtype: str = "float32",
    **ratios: float,
) -> Figure:
    """One second a call, at a share of a peak of 100 GF/s, 1 GB of arrays, 10 MB of weights of which a step reads 6;
    ratios by peer, blanks as underscores."""
    work = Work(topic, cell, shape, threads, share * 1e11, 1e9, dtype, 1e7, 6e6)
    return Figure(work, sample(1.0), {name.replace("_", " "): sample(ratio) for name, ratio in ratios.items()})


def results(*figures: Figure, isa: str = "v4", **more: Any) -> Results:
    return Results({"processor": "some"}, isa, figures=list(figures), **more)
