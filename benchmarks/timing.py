"""Fair timing on a machine that others use too: everything that is compared takes turns, and medians are compared."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median, quantiles


@dataclass(frozen=True)
class Sample:
    """Times of one thing, in seconds a call."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return median(self.seconds)

    @property
    def spread(self) -> float:
        """The range of the middle half over the median."""
        low, _, high = quantiles(self.seconds, n=4)
        return (high - low) / self.median


def take_turns(calls: Mapping[str, Callable[[], object]], rounds: int, seconds_a_turn: float) -> dict[str, Sample]:
    """Times every call `rounds` times, one after the other in each round; the first call of each is not counted."""
    repeats = {name: _repeats(call, seconds_a_turn) for name, call in calls.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(_time(call, repeats[name]))
    return {name: Sample(tuple(seconds)) for name, seconds in times.items()}


def _repeats(call: Callable[[], object], seconds: float) -> int:
    call()
    return max(1, round(seconds / max(_time(call, 1), 1e-9)))


def _time(call: Callable[[], object], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats
