"""The same work for us and for every peer: prepared, answers compared, then timed side by side."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

import rnnfast as rf
from rnnfast import _kernels
from rnnfast.checkpointing import Checkpoint
from rnnfast.recurrent import Recurrent
from rnnfast.stack import ZONEOUT

from .results import DIFFERS, Figure, Topic, Work
from .shapes import Shape
from .timing import Call, Turns, take_turns, timed
from .variants import variant

Array = NDArray[Any]
Answer = Mapping[str, Array]
Kind = Literal["forward", "training"]

FLOAT32_TOLERANCE = 1e-4  # of the largest value of an array
# A network that grows whatever differs from step to step leaves its own exact result after enough of them, in float32:
# where answers over all steps differ, those over so many decide.
COMPARED_STEPS = 50
BFLOAT16_TOLERANCE = 0.02  # factors of eight bits, with sums of float32


def bfloat16_sums_tolerance(steps: int) -> float:
    """Where the sums over the steps are bfloat16 too: each addition may be wrong by 2⁻⁹ of the sum so far, now up, now
    down, √T of that together; four times as much is allowed."""
    return max(BFLOAT16_TOLERANCE, math.sqrt(steps) / 128)


@dataclass(frozen=True)
class Contender:
    """One library at some work: `run` does it, `answer` shows what came out, as arrays with names."""

    run: Callable[[], Any]
    answer: Callable[[Any], Answer]
    tolerance: float = FLOAT32_TOLERANCE


@dataclass(frozen=True)
class Problem:
    """A layer with its weights, its input and the gradient of its output, which is zero past a row's length."""

    cell: str  # a name in variants.py
    layer: Recurrent
    shape: Shape
    threads: int
    x: Array  # (T, B, I)
    dy: Array  # (T, B, D·H), or proj_size in the place of H
    lengths: Array | None = None  # (B,)

    @property
    def weights(self) -> dict[str, Array]:
        return self.layer.state_dict()

    @property
    def mask(self) -> Array:
        """(T, B, 1), true where a row still has a step."""
        T, B = self.x.shape[:2]
        lengths = np.full(B, T) if self.lengths is None else self.lengths
        mask: Array = (np.arange(T)[:, None] < lengths)[..., None]
        return mask

    def masks(self, kind: Kind) -> dict[str, Array]:
        """What zoneout and recurrent dropout do in a call of `ours`, which draws the same masks every time.

        `zoneout_h` and `zoneout_c` (T, B, H): the share of the state before; at inference (T, 1, 1).
        `recurrent_scale` (B, H): what h is multiplied by on its way to the product.
        """
        layer, (T, B) = self.layer, self.x.shape[:2]
        masks: dict[str, Array] = {}
        if kind == "training" and layer.recurrent_dropout:
            (masks["recurrent_scale"],) = layer._stack.draw_scales(layer.recurrent_dropout, B, (0.0, layer.seed, 0))
        for k, probability in enumerate(layer._zoneouts):
            share = np.full((T, 1, 1), probability, np.float32)
            if kind == "training":
                dropped = np.empty((T, B, layer.hidden_size), np.float32)
                ones, stream = np.ones_like(dropped), ZONEOUT + k
                _kernels.dropout(ones, dropped, probability, layer.seed, 0, stream, None, self.threads)
                share = (dropped == 0).astype(np.float32)
            masks[f"zoneout_{layer._state_names[k]}"] = share
        return masks


Builder = Callable[[Problem, Kind], Contender]


class UnavailableError(Exception):
    """A peer can't do some work; the message says why."""


def make_problem(
    cell: str, shape: Shape, threads: int, *, ragged: bool = False, options: Mapping[str, Any] | None = None
) -> Problem:
    """A problem with random values; ragged: lengths drawn uniformly from 1 to T, half of all steps on average."""
    rng = np.random.default_rng(0)
    layer = variant(cell).make(shape.I, shape.H, **(options or {}))
    x = rng.standard_normal((shape.T, shape.B, shape.I), dtype=np.float32)
    dy = rng.standard_normal((shape.T, shape.B, layer._directions * layer.output_size), dtype=np.float32)
    lengths = rng.integers(1, shape.T, size=shape.B, endpoint=True) if ragged else None
    problem = Problem(cell, layer, shape, threads, x, dy, lengths)
    dy *= problem.mask
    return problem


def ours(problem: Problem, kind: Kind, checkpoint: Checkpoint = None) -> Contender:
    layer, x, dy, lengths, threads = problem.layer, problem.x, problem.dy, problem.lengths, problem.threads
    masks, draws = layer.rng_state, bool(layer._zoneouts or layer.recurrent_dropout)

    def forward() -> Any:
        rf.set_num_threads(threads)
        return layer(x, lengths=lengths)[0]

    def training() -> Any:
        rf.set_num_threads(threads)
        layer.zero_grad()
        if draws:  # the same ones every time; to set their key would be a fifth of a small layer's step
            layer.rng_state = masks
        y, _, tape = layer.forward(x, lengths=lengths, checkpoint=checkpoint)
        dx = layer.backward(tape, dy)[0]
        del y  # alive until now, like that of whoever takes a loss of it
        return dx

    if kind == "forward":
        return Contender(forward, lambda y: {"y": y})
    return Contender(training, lambda dx: {"dx": dx, **layer.grads})


def ours_in_float32(problem: Problem, kind: Kind) -> Contender:
    """The same weights without `compute_dtype`: what bfloat16 is compared with."""
    layer = variant(problem.cell).make(problem.shape.I, problem.shape.H)
    layer.load_state_dict(problem.weights)
    return replace(ours(replace(problem, layer=layer), kind), tolerance=BFLOAT16_TOLERANCE)


# ---- how much work it is ---------------------------------------------------------------------------------------------
def operations(problem: Problem, kind: Kind) -> float:
    """Floating-point operations of the products: two for each weight and step of a row; training does them 3 times."""
    steps = problem.mask.sum()
    weights = sum(value.size for value in problem.layer.params.values() if value.ndim == 2)
    return float((1 if kind == "forward" else 3) * 2 * steps * weights)


def traffic(problem: Problem, kind: Kind) -> float:
    """Bytes of arrays that must be moved at least once if the caches hold everything else.

    Forward reads x and the parameters and writes y. Training also writes and reads what forward keeps for backward
    (the states beside h, and what the kernel saves), reads x, y, dy and the parameters once more, and writes dx and the
    gradients.
    """
    steps, layer = problem.mask.sum(), problem.layer
    scans, directions = layer._stack.scans, layer._directions
    inputs = steps * sum(scan.inputs for scan in scans) // directions  # both directions read the same
    outputs = steps * len(scans) * layer.output_size
    parameters = layer.flat_params.size
    if kind == "forward":
        return float(4 * (inputs + outputs + parameters))
    options = bool(layer.proj_size), bool(layer._zoneouts), layer.layer_norm
    saved = _kernels.saved_size(layer._cell_of(0), layer.hidden_size, *options)
    kept = steps * len(scans) * (saved + (len(layer._state_names) - 1) * layer.hidden_size)
    return float(4 * (3 * inputs + 3 * outputs + 2 * kept + 3 * parameters))


def weight_bytes(problem: Problem, *names: str) -> float:
    """Bytes of the matrices whose names begin so."""
    params = problem.layer.params
    return float(sum(a.nbytes for name, a in params.items() if a.ndim == 2 and name.startswith(names)))


def work_of(problem: Problem, kind: Kind, topic: Topic | None = None) -> Work:
    dtype = getattr(problem.layer, "compute_dtype", None) or problem.layer.dtype
    return Work(
        topic or kind,
        problem.cell,
        problem.shape,
        problem.threads,
        operations(problem, kind),
        traffic(problem, kind),
        str(dtype),
        weight_bytes(problem, "weight"),
        weight_bytes(problem, "weight_hh", "weight_hr"),
    )


# ---- side by side ----------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Match:
    """Some work, our contender, and a function that makes each peer's; `shorter`: the same over its first steps."""

    work: Work
    ours: Contender
    peers: Mapping[str, Callable[[], Contender]]
    shorter: Match | None = None


def layer_match(problem: Problem, kind: Kind, peers: Mapping[str, Builder], topic: Topic | None = None) -> Match:
    def match(problem: Problem, shorter: Match | None = None) -> Match:
        built = {name: (lambda build=build: build(problem, kind)) for name, build in peers.items()}
        return Match(work_of(problem, kind, topic), ours(problem, kind), built, shorter)

    return match(problem, match(first_steps(problem)) if problem.shape.T > COMPARED_STEPS else None)


def first_steps(problem: Problem) -> Problem:
    """The problem as it would be with COMPARED_STEPS steps."""
    steps, lengths = COMPARED_STEPS, problem.lengths
    return replace(
        problem,
        shape=replace(problem.shape, T=steps),
        x=problem.x[:steps],
        dy=problem.dy[:steps],
        lengths=None if lengths is None else np.minimum(lengths, steps),
    )


def play(matches: Sequence[Match], turns: Turns) -> list[Figure]:
    """Compares the answers in each match, then times all contenders of all matches in turns."""
    calls: dict[str, Call] = {}
    figures = []
    for number, match in enumerate(matches):
        first, answer = _first_call(match.ours)
        calls[f"{number} ours"] = Call(match.ours.run, match.work.threads, first)
        failures, errors, compared = {}, {}, {}
        for name, build in match.peers.items():
            try:
                contender = build()
                first, theirs = _first_call(contender)
                errors[name] = largest_error(answer, theirs)
                shorter = match.shorter if not errors[name] < contender.tolerance else None
                if shorter:
                    errors[name] = _compare(shorter, name)
                check(errors[name], contender.tolerance)
                if shorter:
                    compared[name] = shorter.work.shape.T
            except Exception as error:  # whatever a peer does wrong is told in the table, and the run goes on
                failures[name] = reason(error)
            else:
                calls[f"{number} {name}"] = Call(contender.run, match.work.threads, first)
        figures.append((match, failures, errors, compared))
    samples = take_turns(calls, turns)
    return [
        Figure(
            match.work,
            samples[f"{number} ours"],
            {name: samples[f"{number} {name}"] for name in match.peers if name not in failures},
            failures,
            errors,
            compared,
        )
        for number, (match, failures, errors, compared) in enumerate(figures)
    ]


def _compare(match: Match, peer: str) -> float:
    """The largest error of a peer's answer."""
    _, answer = _first_call(match.ours)
    return largest_error(answer, _first_call(match.peers[peer]())[1])


def _first_call(contender: Contender) -> tuple[float, Answer]:
    """Seconds of the first call, and its answer."""
    outcome: list[Any] = []
    seconds = timed(lambda: outcome.append(contender.run()))
    return seconds, contender.answer(outcome[0])


def largest_error(ours: Answer, theirs: Answer) -> float:
    """The largest difference in an array over the largest value of the array, of all arrays; NaN counts as infinite."""
    if ours.keys() != theirs.keys():
        raise ValueError(f"{DIFFERS}: we have {', '.join(ours)}, it has {', '.join(theirs)}")
    errors = [_error(np.asarray(ours[name], np.float64), np.asarray(theirs[name], np.float64)) for name in ours]
    return max(errors)


def _error(a: Array, b: Array) -> float:
    if a.shape != b.shape:
        raise ValueError(f"{DIFFERS}: shapes {a.shape} and {b.shape}")
    error = float(np.abs(a - b).max() / max(np.abs(b).max(), np.finfo(np.float32).tiny))
    return error if error == error else float("inf")


def check(error: float, tolerance: float) -> None:
    if not error < tolerance:
        raise ValueError(f"{DIFFERS} by {error:.1e} of the largest value, {tolerance:.0e} allowed")


def reason(error: Exception) -> str:
    """An error as one short line."""
    text = " ".join(str(error).split())
    said = (
        text if isinstance(error, UnavailableError) or text.startswith(DIFFERS) else f"{type(error).__name__}: {text}"
    )
    return said if len(said) <= 160 else f"{said[:157]}..."
