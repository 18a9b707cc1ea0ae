"""What the examples share: a command line, words as arrays of tokens, minibatches, a curve as a picture."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

import rnnfast as rf

Array = np.ndarray[Any, np.dtype[Any]]


def run(main: Callable[..., Mapping[str, Any]]) -> None:
    """Call `main` with its keyword arguments from the command line, and print the metrics that it returns."""
    parser = argparse.ArgumentParser(description=inspect.getdoc(main))
    for name, parameter in inspect.signature(main).parameters.items():
        kind = str if parameter.default is None else type(parameter.default)
        parser.add_argument(f"--{name}", type=kind, default=parameter.default, help="default: %(default)s")
    for name, value in main(**vars(parser.parse_args())).items():
        print(f"{name:24s} {value:.4f}" if isinstance(value, float) else f"{name:24s} {value}")


def batches(count: int, size: int, steps: int, seed: int) -> Iterator[Array]:
    """`steps` times the indices of a minibatch: all examples in a new order, again and again."""
    random = np.random.default_rng(seed)
    order = np.empty(0, np.int64)
    for _ in range(steps):
        if len(order) < size:
            order = random.permutation(count)
        yield order[:size]
        order = order[size:]


def decay(optimizer: rf.Adam, peak: float, steps: int) -> Iterator[int]:
    """Count to `steps` while the learning rate falls from its peak to zero along half a cosine."""
    for step in range(steps):
        optimizer.lr = peak * 0.5 * (1 + np.cos(np.pi * step / steps))
        yield step


def tokens(texts: Sequence[Sequence[int]]) -> tuple[Array, Array]:
    """Sequences of tokens as one array (T, B), zero after their ends, and their lengths (B,)."""
    lengths = np.array([len(text) for text in texts])
    array = np.zeros((lengths.max(initial=0), len(texts)), np.int64)
    for row, text in enumerate(texts):
        array[: len(text), row] = text
    return array, lengths


def picture(path: str | None, draw: Callable[[Any], None], size: tuple[float, float] = (6.0, 3.0)) -> None:
    """Save what `draw` draws on the axes it is given; nothing without a path."""
    if path is None:
        return
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    draw(figure.subplots())
    figure.savefig(path, dpi=80)
