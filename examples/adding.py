"""The adding problem: two marked numbers among 200 are to be added at the end (Hochreiter & Schmidhuber, 1997).

Every step shows a number from U(0, 1) and a mark, which is 1 at one step of the first half and at one of the second,
else 0. A network that remembers nothing answers 1 and has the mean squared error 1/6 = 0.167, the variance of the sum.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from common import Array, decay, picture, run

import rnnfast as rf

CELLS = {"lstm": rf.LSTM, "gru": rf.GRU, "rnn": rf.RNN}


def problem(random: np.random.Generator, steps: int, batch: int) -> tuple[Array, Array]:
    """x (T, B, 2) and the sums (B, 1)."""
    x = np.zeros((steps, batch, 2), np.float32)
    x[..., 0] = random.random((steps, batch))
    rows = np.arange(batch)
    first, second = random.integers(0, steps // 2, batch), random.integers(steps // 2, steps, batch)
    x[first, rows, 1] = x[second, rows, 1] = 1
    return x, (x[first, rows, :1] + x[second, rows, :1])


def train(cell: str, length: int, updates: int, hidden: int, seed: int) -> tuple[list[float], float]:
    """The losses of the training and the error on 1,000 new sequences."""
    layer = rf.initialize(CELLS[cell](2, hidden, seed=seed), weight_hh="orthogonal", seed=seed)
    if cell != "rnn":
        rf.initialize(layer, bias="zeros", chrono=length, seed=seed)  # memories of all lengths up to the sequence's
    model = rf.Sequential(layer, rf.Last(), rf.Linear(hidden, 1, seed=seed))
    optimizer = rf.Adam(model, lr=1e-2)
    random = np.random.default_rng(seed)
    losses = []
    for _ in decay(optimizer, 1e-2 if cell != "rnn" else 1e-3, updates):
        x, target = problem(random, length, 32)
        model.zero_grad()
        y, _, tape = model.forward(x)
        loss, dy = rf.mse(y, target)
        model.backward(tape, dy, need_dx=False)
        optimizer.step(clip_norm=1.0)
        losses.append(loss)
    x, target = problem(np.random.default_rng(seed + 1), length, 1000)
    return losses, rf.mse(model(x)[0], target)[0]


def main(
    *, length: int = 200, updates: int = 1500, hidden: int = 32, seed: int = 0, plot: str | None = None
) -> dict[str, Any]:
    """Train an LSTM, a GRU and a plain tanh RNN in the same way; mean squared errors on new sequences."""
    results = {cell: train(cell, length, updates, hidden, seed) for cell in CELLS}

    def draw(axes: Any) -> None:
        for cell, (losses, _) in results.items():
            axes.semilogy(np.convolve(losses, np.full(20, 1 / 20), mode="valid"), label=cell)
        axes.axhline(1 / 6, color="grey", linewidth=0.8)
        axes.set(xlabel="update", ylabel="mean squared error")
        axes.legend()

    picture(plot, draw)
    return {f"{cell} mse": error for cell, (_, error) in results.items()}


if __name__ == "__main__":
    run(main)
