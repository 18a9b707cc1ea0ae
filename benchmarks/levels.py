"""Forward at an instruction set level that this process doesn't have, since kernels are loaded once: in one of its own.

As a program (`python -m rnnfast.benchmarks.levels CELL T B I H THREADS ROUNDS SECONDS LIMIT`) it is that process, and
prints what `Sample` holds as JSON.
"""

from __future__ import annotations

import json
import sys
from dataclasses import astuple

from .contenders import layer_match, make_problem, play, work_of
from .processes import output
from .results import Figure
from .shapes import Shape
from .timing import Sample, Turns

AVX2 = "v3"


def measure(cell: str, shape: Shape, threads: int, turns: Turns) -> Figure:
    """Our time with the kernels of `AVX2`, beside their own peak. RuntimeError if that process fails."""
    numbers = (shape.T, shape.B, shape.I, shape.H, threads, turns.rounds, turns.seconds, turns.limit)
    told = output("-m", __name__, cell, *map(str, numbers), RNNFAST_ISA=AVX2)
    seconds, peaks, first = json.loads(told)
    work = work_of(make_problem(cell, shape, threads), "forward", "forward with AVX2")
    return Figure(work, Sample(tuple(seconds), tuple(peaks), first))


def _measure_here(cell: str, shape: Shape, threads: int, turns: Turns) -> Sample:
    (figure,) = play([layer_match(make_problem(cell, shape, threads), "forward", {})], turns)
    return figure.ours


if __name__ == "__main__":
    name, *numbers = sys.argv[1:]
    T, B, I, H, count, rounds = map(int, numbers[:6])  # noqa: E741
    turns = Turns(rounds, *map(float, numbers[6:]))
    print(json.dumps(astuple(_measure_here(name, Shape("measured", T, B, I, H), count, turns))))
