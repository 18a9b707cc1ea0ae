"""What the examples share: a command line, texts as arrays, minibatches, probabilities, pictures."""

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


def columns(array: Array, batch: int) -> Array:
    """A long text as `batch` shorter ones side by side: (T, B)."""
    return array[: len(array) // batch * batch].reshape(batch, -1).T


def softmax(logits: Array) -> Array:
    """Probabilities, over the last axis."""
    exps = np.exp(logits - logits.max(axis=-1, keepdims=True))
    result: Array = exps / exps.sum(axis=-1, keepdims=True)
    return result


def picture(path: str | None, draw: Callable[[Any], None], size: tuple[float, float] = (6.0, 3.0), **grid: Any) -> None:
    """Save what `draw` draws on the axes it is given, one or a `grid` of them; nothing without a path."""
    if path is None:
        return
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    draw(figure.subplots(**grid))
    figure.savefig(path, dpi=100)


def heat(axes: Any, values: Array, texts: Sequence[Sequence[str]]) -> None:
    """Probabilities as shades of blue, with a text on each."""
    axes.imshow(values, cmap="Blues", vmin=0, vmax=1.3, aspect="auto")
    for row, line in enumerate(texts):
        for column, text in enumerate(line):
            color = "white" if values[row, column] > 0.7 else "black"
            axes.text(column, row, text, ha="center", va="center", color=color)
    axes.tick_params(length=0)


def typeset(axes: Any, text: str, shades: Array, colors: Sequence[str], most: float) -> Any:
    """A text in letters of one width, each with its color, on a ground whose red goes from 0 to `most`."""
    lines = text.split("\n")
    page = np.full((len(lines), max(map(len, lines)) + 1), np.nan)
    row = column = 0
    for character, shade, color in zip(text, shades, colors, strict=True):
        page[row, column] = shade or np.nan
        axes.text(column, row, character, family="monospace", size=8, ha="center", va="center", color=color)
        row, column = (row + 1, 0) if character == "\n" else (row, column + 1)
    axes.set_axis_off()
    return axes.imshow(page, cmap="Reds", vmin=0, vmax=most, aspect="auto")
