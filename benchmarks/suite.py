"""A run of the suite: what is measured, in which order, and how often."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from importlib.metadata import version
from itertools import product
from pathlib import Path
from statistics import median

from tqdm import tqdm

import rnnfast as rf
from rnnfast import _kernels
from rnnfast.threads import config

from . import echo_state, language_model, levels, streaming
from .contenders import Contender, Kind, Match, layer_match, make_problem, ours, ours_in_float32, play, reason, work_of
from .limits import measure_bandwidth
from .peers import BFLOAT16, FAMILY, PACKAGES, RAGGED, SLOW, builders, installed, missing, of_cell
from .processes import measure_footprint, measure_memory
from .results import Results, Topic
from .shapes import Extent, Shape, shapes_of
from .targets import IN_FLOAT32, NATIVE_BFLOAT16, ONE_THREAD, WHOLE_TAPE, large_shape, next_multiple
from .timing import SETTLE_SECONDS, Turns
from .variants import BFLOAT16_CELLS, USUAL_CELLS, VARIANTS, variant

KINDS: tuple[Kind, ...] = ("forward", "training")
TURNS: dict[Extent, Turns] = {"quick": Turns(3, 0.03), "default": Turns(7, 0.1, 10.0), "full": Turns(7, 0.08, 3.0)}
LENGTHS: dict[Extent, tuple[int, ...]] = {
    "quick": (),
    "default": (64, 1024, 65536),
    "full": (64, 256, 1024, 4096, 16384, 65536),
}
IMPORTS: dict[Extent, int] = {"quick": 1, "default": 5, "full": 9}
LONG = {1: "one long row", 8: "long rows"}  # by rows; of 4,096 steps, trained with and without checkpoints
PADDED = (48, 100, 200, 650, 1500)  # hidden sizes of real networks that leave registers, lines or panels half empty


@dataclass(frozen=True)
class Plan:
    """What a run measures. The extras are all but float32's forward and training of the layers."""

    extent: Extent
    shapes: tuple[Shape, ...]
    cells: tuple[str, ...]
    threads: tuple[int, ...]
    turns: Turns
    extras: bool = True
    all_of_family: bool = True  # at every shape, with every number of threads

    @property
    def most_threads(self) -> int:
        return max(self.threads)

    @property
    def usual_cells(self) -> tuple[str, ...]:
        return tuple(cell for cell in self.cells if cell in USUAL_CELLS)

    def layers(self, threads: int) -> Iterator[tuple[Shape, str]]:
        """What is measured with so many threads."""
        for shape, cell in product(self.shapes, self.cells):
            of_family = self.all_of_family or (shape.family and threads == self.most_threads)
            if (cell in USUAL_CELLS or of_family) and shape.H % variant(cell).divisor == 0:
                yield shape, cell

    def left_out(self) -> Iterator[str]:
        """The cells that some shape can't have."""
        for cell in self.cells:
            divisor = variant(cell).divisor
            if any(shape.H % divisor for shape in self.shapes):
                yield f"{cell}: only where H is a multiple of {divisor}"


def make_plan(
    extent: Extent,
    *,
    shapes: Sequence[Shape] | None = None,
    cells: Sequence[str] | None = None,
    threads: Sequence[int] | None = None,
    rounds: int | None = None,
    extras: bool = True,
) -> Plan:
    """The plan of an extent, with what is given in place of its own. What is named is measured everywhere."""
    most = rf.get_num_threads()
    usual_threads = (most,) if extent == "quick" else (1, most)
    usual_cells = tuple(VARIANTS) if extent == "full" else USUAL_CELLS
    turns = TURNS[extent]
    return Plan(
        extent,
        tuple(replace(s, family=True) for s in shapes) if shapes else tuple(shapes_of(extent).values()),
        tuple(dict.fromkeys(cells or usual_cells)),
        tuple(dict.fromkeys(threads or usual_threads)),
        Turns(rounds, turns.seconds) if rounds else turns,
        extras,
        all_of_family=cells is not None,
    )


@dataclass(frozen=True)
class Job:
    """A part of a run, which adds to the results."""

    title: str
    run: Callable[[Results], None]


def run_plan(plan: Plan, results: Results, between: Callable[[], None]) -> None:
    """Measures everything of a plan into `results`; `between` two jobs is the place to interrupt it."""
    before = rf.get_num_threads()
    results.left_out += [f"{peer}: not installed ({', '.join(missing(peer))})" for peer in PACKAGES if missing(peer)]
    results.left_out += plan.left_out()
    jobs = list(jobs_of(plan, results))
    try:
        interval = 0.1 if sys.stderr.isatty() else 10.0
        with tqdm(total=len(jobs), unit="job", mininterval=interval, dynamic_ncols=True) as bar:
            for job in jobs:
                bar.set_postfix_str(job.title, refresh=False)
                job.run(results)
                if plan.most_threads > 1:
                    time.sleep(SETTLE_SECONDS)
                    results.round_trips.append(median(_kernels.line_round_trip() for _ in range(3)))
                bar.update()
                between()
    finally:
        rf.set_num_threads(before)


def describe_machine() -> dict[str, str]:
    """Processor, versions, time: what a figure depends on beside the code."""
    versions = {peer: version(packages[0]) for peer, packages in PACKAGES.items() if peer in installed()}
    return (
        {"measured": datetime.now().astimezone().isoformat(" ", "minutes"), "processor": _processor()}
        | config()
        | versions
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    told = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    name = told.get("model name", "unknown")
    if {"cpu family", "model"} <= told.keys():  # a name may be no more than a maker's
        name += f" (family {told['cpu family']}, model {told['model']})"
    return f"{name}, {os.cpu_count()} CPUs"


# ---- the jobs --------------------------------------------------------------------------------------------------------
def jobs_of(plan: Plan, results: Results) -> Iterator[Job]:
    """All parts of a run. Thread counts come one after the other, since some peers must begin anew for another one."""
    for threads in plan.threads:
        yield Job(f"memory bandwidth, threads {threads}", partial(_bandwidth, threads))
        yield from _layer_jobs(plan, threads)
    if plan.extras:
        yield from _extra_jobs(plan, results)


def _bandwidth(threads: int, results: Results) -> None:
    results.bandwidths += measure_bandwidth(threads)


def _job(title: str, matches: Callable[[], list[Match]], plan: Plan) -> Job:
    """A job that makes its contenders when its turn has come, and times them against each other."""
    return Job(title, lambda results: results.figures.extend(play(matches(), plan.turns)))


def _layer_jobs(plan: Plan, threads: int) -> Iterator[Job]:
    for (shape, cell), kind in product(plan.layers(threads), KINDS):
        peers = of_cell(cell) | (SLOW if plan.extent == "full" else {})
        matches = partial(_layer, cell, shape, threads, kind, peers)
        yield _job(f"{cell} {shape.name}, {kind}, threads {threads}", matches, plan)


def _layer(cell: str, shape: Shape, threads: int, kind: Kind, peers: dict[str, tuple[str, str]]) -> list[Match]:
    return [layer_match(make_problem(cell, shape, threads), kind, builders(peers))]


def _extra_jobs(plan: Plan, results: Results) -> Iterator[Job]:
    usual = plan.usual_cells
    if rf.isa in NATIVE_BFLOAT16:
        yield from _bfloat16_jobs(plan)
    else:
        results.left_out.append(f"bfloat16: level {rf.isa} has no instructions for it")
    yield from _ragged_jobs(plan, usual)
    yield from _thread_jobs(plan, usual)
    for cell in usual:
        for hidden in streaming.HIDDEN:
            yield _job(f"{cell}, step of {hidden}", partial(_step, cell, hidden), plan)
    for cell in usual:
        if cell != "RNN":
            yield _job(f"{cell} language model", partial(_language_model, plan, cell), plan)
    for shape, density in echo_state.SHAPES.items():
        yield _job(shape.name, partial(_echo_state, shape, density), plan)
    yield from _level_jobs(plan, usual, results)
    yield from _padding_jobs(plan, usual)
    yield from _length_jobs(plan)
    yield from _checkpoint_jobs(plan, usual)
    yield from _memory_jobs(plan, usual)
    yield Job("imports", lambda results: results.footprint.extend(measure_footprint(IMPORTS[plan.extent])))


def _bfloat16_jobs(plan: Plan) -> Iterator[Job]:
    cells = [cell for cell in plan.cells if cell in BFLOAT16_CELLS]
    for shape, cell, kind in product(plan.shapes, cells, KINDS):
        matches = partial(_bfloat16, cell, shape, plan.most_threads, kind)
        yield _job(f"{cell} {shape.name}, {kind}, bfloat16", matches, plan)


def _bfloat16(cell: str, shape: Shape, threads: int, kind: Kind) -> list[Match]:
    problem = make_problem(cell, shape, threads, options={"compute_dtype": "bfloat16"})
    return [layer_match(problem, kind, {IN_FLOAT32: ours_in_float32} | builders(BFLOAT16))]


def _ragged_jobs(plan: Plan, cells: Sequence[str]) -> Iterator[Job]:
    for shape, cell in product(plan.shapes, cells):
        if shape.B > 1:
            yield _job(f"{cell} {shape.name}, ragged", partial(_ragged, cell, shape, plan.most_threads), plan)


def _ragged(cell: str, shape: Shape, threads: int) -> list[Match]:
    problem = make_problem(cell, shape, threads, ragged=True)
    return [layer_match(problem, "training", builders(RAGGED), topic="ragged")]


def _thread_jobs(plan: Plan, cells: Sequence[str]) -> Iterator[Job]:
    """Training with all threads against one, round by round."""
    for shape, cell in product(plan.shapes, cells):
        if plan.most_threads > 1 and shape.B > 1:
            title = f"{cell} {shape.name}, {plan.most_threads} threads against 1"
            yield _job(title, partial(_many_against_one, cell, shape, plan.most_threads), plan)


def _many_against_one(cell: str, shape: Shape, threads: int) -> list[Match]:
    many, one = make_problem(cell, shape, threads), make_problem(cell, shape, 1)
    peers: dict[str, Callable[[], Contender]] = {ONE_THREAD: lambda: ours(one, "training")}
    return [Match(work_of(many, "training", topic="threads"), ours(many, "training"), peers)]


def _step(cell: str, hidden: int) -> list[Match]:
    return [streaming.match(cell, hidden)]


def _language_model(plan: Plan, cell: str) -> list[Match]:
    return [language_model.match(cell, plan.most_threads, language_model.Sizes(), "PyTorch" in installed())]


def _level_jobs(plan: Plan, cells: Sequence[str], results: Results) -> Iterator[Job]:
    """Forward with the kernels of another level, where this run has better ones."""
    if plan.extent != "full" or rf.isa == levels.AVX2:
        return
    if levels.AVX2 not in _kernels.isas_available:
        results.left_out.append(f"AVX2 alone: no level {levels.AVX2} is installed")
        return
    for shape, cell, threads in product(filter(large_shape, plan.shapes), cells, plan.threads):
        yield Job(f"{cell} {shape.name}, AVX2, threads {threads}", partial(_level, cell, shape, threads, plan.turns))


def _level(cell: str, shape: Shape, threads: int, turns: Turns, results: Results) -> None:
    try:
        results.figures.append(levels.measure(cell, shape, threads, turns))
    except RuntimeError as error:
        results.left_out.append(f"{cell} {shape.name}, AVX2 alone, threads {threads}: {reason(error)}")


def _padding_jobs(plan: Plan, cells: Sequence[str]) -> Iterator[Job]:
    """Training at each hidden size and at the next multiple of 16, in turns."""
    for cell, hidden in product(cells, () if plan.extent == "quick" else PADDED):
        yield _job(f"{cell}, H = {hidden}", partial(_padding, cell, hidden, plan.most_threads), plan)


def _padding(cell: str, hidden: int, threads: int) -> list[Match]:
    shapes = [Shape(f"H = {H}", 20, 32, 64, H) for H in (hidden, next_multiple(hidden))]
    return [layer_match(make_problem(cell, shape, threads), "training", {}, topic="padding") for shape in shapes]


def _echo_state(shape: Shape, density: float) -> list[Match]:
    return [echo_state.match(shape, density)]


def _length_jobs(plan: Plan) -> Iterator[Job]:
    """All lengths in one match, so that they take turns with each other."""
    shapes = [Shape(f"T = {T:,}", T, 1, 128, 128) for T in LENGTHS[plan.extent]]
    topics: dict[Kind, Topic] = {"forward": "forward length", "training": "length"}

    def matches(kind: Kind) -> list[Match]:
        problems = [make_problem("LSTM", shape, 1) for shape in shapes]
        return [layer_match(problem, kind, builders(FAMILY), topic=topics[kind]) for problem in problems]

    if shapes and "LSTM" in plan.cells:
        for kind in KINDS:
            yield _job(f"LSTM, {kind}, time against length", partial(matches, kind), plan)
        for shape in shapes:
            yield _memory_job("LSTM", shape, 1)


def _checkpoint_jobs(plan: Plan, cells: Sequence[str]) -> Iterator[Job]:
    """Training over a long sequence, with its tape computed again and with its tape kept."""
    rows = () if plan.extent == "quick" else LONG
    for threads, cell, B in product(plan.threads, [cell for cell in cells if cell != "RNN"], rows):
        matches = partial(_checkpoint, cell, Shape(LONG[B], 4096, B, 64, 128), threads)
        yield _job(f"{cell} {LONG[B]}, checkpoint, threads {threads}", matches, plan)


def _checkpoint(cell: str, shape: Shape, threads: int) -> list[Match]:
    problem = make_problem(cell, shape, threads)
    peers: dict[str, Callable[[], Contender]] = {WHOLE_TAPE: lambda: ours(problem, "training")}
    return [Match(work_of(problem, "training", topic="checkpoint"), ours(problem, "training", checkpoint=True), peers)]


def _memory_jobs(plan: Plan, cells: Sequence[str]) -> Iterator[Job]:
    for shape in plan.shapes:
        for cell in cells[:1] if plan.extent == "quick" else cells:
            yield _memory_job(cell, shape, plan.most_threads)


def _memory_job(cell: str, shape: Shape, threads: int) -> Job:
    def run(results: Results) -> None:
        results.memory.append(measure_memory(cell, shape, threads))

    return Job(f"{cell} {shape.name}, memory", run)
