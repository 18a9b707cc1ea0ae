"""Handwritten digits read from top to bottom, one row of pixels a step: many to one.

Needs scikit-learn, which brings the 1,797 images of 8 × 8 pixels along.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from common import batches, decay, picture, run, softmax
from sklearn.datasets import load_digits
from sklearn.metrics import accuracy_score
from sklearn.model_selection import train_test_split

import rnnfast as rf


def main(*, steps: int = 1500, hidden: int = 64, seed: int = 0, plot: str | None = None) -> dict[str, Any]:
    """Train a GRU that reads the rows in both directions; accuracy on a quarter of the images, held out."""
    images, labels = load_digits(return_X_y=True)
    x = (images / 8 - 1).reshape(-1, 8, 8).astype(np.float32)  # (B, T, I), from −1 to 1
    x_train, x_test, y_train, y_test = train_test_split(x, labels, test_size=0.25, stratify=labels, random_state=seed)
    model = rf.Sequential(
        rf.GRU(8, hidden, bidirectional=True, batch_first=True, seed=seed),
        rf.Linear(2 * hidden, hidden, batch_first=True, seed=seed + 1),
        rf.Dropout(0.3, batch_first=True, seed=seed + 2),
        rf.RNN(hidden, hidden, nonlinearity="relu", batch_first=True, seed=seed + 3),
        rf.Last(batch_first=True),
        rf.Linear(hidden, 10, seed=seed + 4),
    )
    optimizer = rf.Adam(model, lr=3e-3)
    for _, chosen in zip(decay(optimizer, 3e-3, steps), batches(len(x_train), 64, steps, seed), strict=True):
        model.zero_grad()
        y, _, tape = model.forward(x_train[chosen])
        _, dy = rf.softmax_cross_entropy(y, y_train[chosen])
        model.backward(tape, dy, need_dx=False)
        optimizer.step(clip_norm=1.0)
    answers = model(x_test)[0].argmax(axis=-1)

    def draw(axes: Any) -> None:
        """Images, and beside each row the probabilities of the ten digits after it: the first right and wrong ones."""
        right, wrong = np.flatnonzero(answers == y_test)[:4], np.flatnonzero(answers != y_test)[:4]
        y = np.stack([softmax(model(x_test[:, :rows])[0]) for rows in range(1, 9)], axis=1)  # (B, rows, 10)
        for axis in axes.flat:
            axis.set_axis_off()
        for line, chosen in zip(axes, (right, wrong), strict=True):
            for image, table, i in zip(line[::2], line[1::2], chosen, strict=False):
                image.imshow(x_test[i], cmap="gray_r", aspect="auto")
                image.set_title(f"a {y_test[i]}")
                table.imshow(y[i], cmap="Blues", vmin=0, vmax=1, aspect="auto")
                table.set_axis_on()
                table.set_xticks(range(10))
                table.tick_params(labelsize=7)
                table.set_yticks([])
                table.set_title(f"read as {answers[i]}")

    picture(plot, draw, size=(9.0, 3.6), nrows=2, ncols=8, width_ratios=[8, 10] * 4)
    return {
        "training accuracy": float(accuracy_score(y_train, model(x_train)[0].argmax(axis=-1))),
        "test accuracy": float(accuracy_score(y_test, answers)),
    }


if __name__ == "__main__":
    run(main)
