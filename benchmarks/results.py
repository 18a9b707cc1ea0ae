"""What a run has measured, as data: what the tables, the pictures, the targets and the JSON file are made from."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from typing import Literal

from .limits import Bandwidth
from .shapes import Shape
from .timing import Sample

Topic = Literal[
    "forward",
    "training",
    "ragged",
    "step",
    "language model",
    "echo state",
    "length",
    "forward length",
    "threads",
    "padding",
    "checkpoint",
    "forward with AVX2",
]

LARGEST_SHARE = {"float32": 1.05, "bfloat16": 2.1}  # of the float32 peak; some processors do bfloat16 twice as fast


@dataclass(frozen=True)
class Work:
    """What was timed: one call does this."""

    topic: Topic
    cell: str
    shape: Shape
    threads: int
    operations: float  # floating-point operations of the products that the answer needs
    traffic: float = 0.0  # bytes of arrays that have to be read or written at least once
    dtype: str = "float32"
    weights: float = 0.0  # bytes of all matrices
    weights_a_step: float = (
        0.0  # bytes of those that every step reads: all but weight_ih, which meets many steps at once
    )

    @property
    def title(self) -> str:
        return f"{self.topic}, {self.cell}, {self.shape.name}, {self.threads} thread{'s' * (self.threads > 1)}"


@dataclass(frozen=True)
class Figure:
    """Our time at some work, that of each peer, and why a peer has none."""

    work: Work
    ours: Sample
    peers: dict[str, Sample] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)  # peer -> reason
    errors: dict[str, float] = field(default_factory=dict)  # peer -> largest difference of an answer over its maximum
    compared: dict[str, int] = field(default_factory=dict)  # peer -> the first steps alone whose answers were compared

    @property
    def share(self) -> float:
        """Our share of the float32 peak; NaN if it is more than can be: the measurement of the peak was disturbed."""
        share = self.ours.share(self.work.operations)
        return share if share < LARGEST_SHARE[self.work.dtype] else math.nan

    def ratio(self, peer: str) -> float | None:
        """The peer's time over ours: above 1, we are faster."""
        return self.peers[peer].over(self.ours) if peer in self.peers else None


@dataclass(frozen=True)
class Memory:
    """Peak bytes of a training step above weights, x and dy; a text where there is no number."""

    cell: str
    shape: Shape
    ours: int | str
    torch: int | str

    @property
    def ratio(self) -> float | None:
        """Ours over PyTorch's."""
        if isinstance(self.ours, str) or isinstance(self.torch, str):
            return None
        return self.ours / self.torch


@dataclass(frozen=True)
class Footprint:
    """A package as it is installed: seconds to import it after numpy (numpy itself: alone), bytes of its folder."""

    package: str
    version: str
    seconds: float
    bytes: int


@dataclass
class Results:
    """All of a run."""

    machine: dict[str, str]
    isa: str
    command: str = ""
    bandwidths: list[Bandwidth] = field(default_factory=list)
    round_trips: list[float] = field(default_factory=list)  # seconds of a cache line between two cores, after each job
    figures: list[Figure] = field(default_factory=list)
    memory: list[Memory] = field(default_factory=list)
    footprint: list[Footprint] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def of(self, *topics: Topic) -> list[Figure]:
        return [figure for figure in self.figures if figure.work.topic in topics]

    def bandwidth(self, array: str, threads: int) -> float:
        """Bytes a second of reads of such an array by so many threads; NaN if that wasn't measured."""
        return next((b.rate for b in self.bandwidths if (b.array, b.threads) == (array, threads)), math.nan)

    def bandwidth_share(self, figure: Figure, array: str, traffic: float) -> float:
        """The share of that bandwidth at which a call of `figure` reads or writes so many bytes; NaN without one."""
        return traffic / figure.ours.median / self.bandwidth(array, figure.work.threads)

    @property
    def disagreements(self) -> list[str]:
        return [
            f"{figure.work.title}: {peer}: {reason}"
            for figure in self.figures
            for peer, reason in figure.failures.items()
            if reason.startswith(DIFFERS)
        ]

    def to_json(self) -> bytes:
        return json.dumps(asdict(self), indent=1, ensure_ascii=False).encode()


DIFFERS = "answers differ"
