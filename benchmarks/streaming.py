"""One step at a time, one sequence: what a sample costs when it arrives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .contenders import Contender, Match, Problem, make_problem, work_of
from .peers import installed, module
from .shapes import Shape

STEPS = 64  # of one timed call, from the zero state
HIDDEN = (64, 256)


def match(cell: str, hidden: int) -> Match:
    problem = make_problem(cell, Shape(f"step {hidden}", STEPS, 1, hidden, hidden), threads=1)
    built = {"ONNX Runtime": _onnx, "PyTorch": _torch}
    peers = {name: _bound(build, problem) for name, build in built.items() if name in installed()}
    return Match(work_of(problem, "forward", "step"), _ours(problem), peers)


def _bound(build: Callable[[Problem], Contender], problem: Problem) -> Callable[[], Contender]:
    return lambda: build(problem)


def _ours(problem: Problem) -> Contender:
    stream, inputs = problem.layer.stream(batch_size=1), list(problem.x)

    def run() -> Any:
        stream.reset()
        return [stream.step(x) for x in inputs]

    return Contender(run, _answer)


def _onnx(problem: Problem) -> Contender:
    onnx = module("peer_onnx")
    session = onnx.make_session(problem.layer, problem.threads, with_state=True)
    inputs = [x[None] for x in problem.x]
    names = onnx.initial_names(problem.layer)
    zeros = [np.zeros((1, 1, problem.shape.H), np.float32) for _ in names]

    def run() -> Any:
        outputs, state = [], zeros
        for x in inputs:
            y, *state = session.run(None, {"x": x, **dict(zip(names, state, strict=True))})
            outputs.append(y[0, 0])
        return outputs

    return Contender(run, _answer)


def _torch(problem: Problem) -> Contender:
    import torch

    layer = module("peer_torch").layer_of(problem)
    inputs = [torch.from_numpy(x[None]) for x in problem.x]

    def run() -> Any:
        outputs, state = [], None
        with torch.inference_mode():
            for x in inputs:
                y, state = layer(x, state)
                outputs.append(y[0])
        return outputs

    return Contender(run, _answer)


def _answer(outputs: list[Any]) -> dict[str, Any]:
    return {"y": np.stack([np.asarray(y) for y in outputs])}
