"""Every module, and inputs for it: what the tests of modules share."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

import rnnfast as rf
from rnnfast import reference
from support import CELLS, new_layer

Array = np.ndarray[Any, np.dtype[Any]]
Make = Callable[..., Any]


def recurrent(cell: str, inputs: int, hidden: int, layers: int = 1, **options: Any) -> Any:
    return new_layer(cell, inputs, hidden, num_layers=layers, **options)


RECURRENT: dict[str, Make] = {name: partial(recurrent, name) for name in CELLS}
STATES = {name: len(cell.initial) for name, cell in reference.CELLS.items()}

# Every module with steps, for x (T, B, 4) and with y (T, B, 5) but for Dropout, Last and Embedding.
MODULES: dict[str, Make] = {
    **{name: lambda make=make, **options: make(4, 5, seed=1, **options) for name, make in RECURRENT.items()},
    "embedding": lambda **options: rf.Embedding(7, 5, seed=1, **options),
    "linear": lambda **options: rf.Linear(4, 5, seed=1, **options),
    "dropout": lambda **options: rf.Dropout(0.5, seed=1, **options),
    "last": lambda **options: rf.Last(**options),
}


def draw(*shape: int, seed: int = 0, dtype: Any = np.float32) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def input_of(name: str, steps: int, batch: int, seed: int = 0) -> Array:
    if name == "embedding":
        return np.random.default_rng(seed).integers(0, 7, (steps, batch))
    return draw(steps, batch, 4, seed=seed)


def leaves(state: Any) -> list[Array]:
    """The arrays of a state, however deep."""
    if state is None:
        return []
    return [state] if isinstance(state, np.ndarray) else [array for entry in state for array in leaves(entry)]


def same(first: Any, second: Any) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(leaves(first), leaves(second), strict=True))


def language_model(dropout: float = 0.0, **options: Any) -> rf.Sequential:
    """Embedding, two recurrent layers, dropout, linear: 7 tokens."""
    return rf.Sequential(
        rf.Embedding(7, 4, seed=1, **options),
        rf.LSTM(4, 5, 2, seed=2, dropout=dropout, **options),
        rf.Dropout(dropout, seed=3),
        rf.Linear(5, 7, seed=4, **options),
    )
