"""Fair timing on a machine that others use too: everything that is compared takes turns in one process.

Beside each turn stands the peak of the arithmetic units, measured just before and just after it; the larger one
counts, since what disturbs only takes away. Shares of the peak and ratios between contenders are taken within a
round, and their medians are reported: a slow moment hits both sides.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from statistics import median, quantiles

from rnnfast import _kernels

# Worker threads of some libraries spin for a few milliseconds after a call and would take the next one's processor.
SETTLE_SECONDS = 0.01

PEAK_SECONDS = 0.02  # long enough that a moment without a processor doesn't count for much
BESIDE_SECONDS = 2 * (SETTLE_SECONDS + PEAK_SECONDS)  # of a turn, beside the work

LEAST_ROUNDS = 3


@dataclass(frozen=True)
class Sample:
    """Times of one thing, in seconds a call, one for each round."""

    seconds: tuple[float, ...]
    peaks: tuple[float, ...]  # floating-point operations a second of as many threads, beside each
    first: float = math.nan  # seconds of the first call, which is in no other number

    @property
    def median(self) -> float:
        return median(self.seconds)

    @property
    def spread(self) -> float:
        """The range of the middle half over the median; NaN for one round."""
        if len(self.seconds) < 2:
            return math.nan
        low, _, high = quantiles(self.seconds, n=4, method="inclusive")
        return (high - low) / self.median

    @property
    def peak(self) -> float:
        return median(self.peaks)

    def share(self, operations: float) -> float:
        """The share of the peak that a call of so many floating-point operations reaches."""
        return median(operations / (s * p) for s, p in zip(self.seconds, self.peaks, strict=True))

    def over(self, other: Sample) -> float:
        """This time over the other's of the same round: above 1, the other is faster."""
        return median(a / b for a, b in zip(self.seconds, other.seconds, strict=True))


@dataclass(frozen=True)
class Call:
    """Something to time, and the threads that it uses."""

    run: Callable[[], object]
    threads: int
    first: float = math.nan


@dataclass(frozen=True)
class Turns:
    """How often each contender's turn comes, and how many seconds one lasts at least.

    Where calls are long there are fewer rounds, so that all of them take no more than `limit` seconds, but three.
    """

    rounds: int
    seconds: float
    limit: float = math.inf

    def fitting(self, calls: Iterable[float]) -> int:
        """The number of rounds, for contenders whose calls take so many seconds."""
        a_round = sum(max(self.seconds, call) + BESIDE_SECONDS for call in calls)
        return int(min(self.rounds, max(LEAST_ROUNDS, self.limit / a_round)))


def take_turns(calls: Mapping[str, Call], turns: Turns) -> dict[str, Sample]:
    """Times every call, one after the other in each round. Each must have been called before."""
    once = {name: max(timed(call.run), 1e-9) for name, call in calls.items()}
    repeats = {name: max(1, round(turns.seconds / seconds_once)) for name, seconds_once in once.items()}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    peaks: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(turns.fitting(once.values())):
        for name, call in calls.items():
            time.sleep(SETTLE_SECONDS)
            before = _peak(call.threads)
            seconds[name].append(timed(call.run, repeats[name]))
            time.sleep(SETTLE_SECONDS)
            peaks[name].append(max(before, _peak(call.threads)))
    return {name: Sample(tuple(seconds[name]), tuple(peaks[name]), call.first) for name, call in calls.items()}


def timed(run: Callable[[], object], repeats: int = 1) -> float:
    """Seconds a call."""
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    return (time.perf_counter() - start) / repeats


def _peak(threads: int) -> float:
    return _kernels.fma_peak(False, PEAK_SECONDS, threads)
