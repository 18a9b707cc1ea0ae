"""One to many: the image of a digit is put into words, letter by letter.

A linear layer turns the 64 pixels into the initial state of a GRU, which writes "seven". The gradient of that state
comes back from `backward` and trains the linear layer. Needs scikit-learn for the images.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from common import Array, batches, picture, run, tokens
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import rnnfast as rf

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
LETTERS = "".join(sorted(set("".join(WORDS))))
STOP = len(LETTERS)  # ends a word, and is what the decoder reads first


class Captioner:
    """The linear layer and the decoder."""

    def __init__(self, pixels: int, hidden: int, seed: int) -> None:
        self.eye = rf.Linear(pixels, hidden, seed=seed)
        self.writer = rf.Sequential(
            rf.Embedding(STOP + 1, 8, seed=seed + 1),
            rf.GRU(8, hidden, seed=seed + 2),
            rf.Linear(hidden, STOP + 1, seed=seed + 3),
        )

    def loss_and_grad(self, images: Array, labels: Array) -> float:
        """Teacher forcing: the decoder reads stop, s, e, v, e, n and shall write s, e, v, e, n, stop."""
        words = [[LETTERS.index(c) for c in WORDS[label]] for label in labels]
        inputs, lengths = tokens([[STOP, *word] for word in words])
        targets, _ = tokens([[*word, STOP] for word in words])
        self.eye.zero_grad()
        self.writer.zero_grad()
        h, _, seen = self.eye.forward(images)  # (B, H)
        y, _, tape = self.writer.forward(inputs, (None, h[None], None), lengths)
        loss, dy = rf.softmax_cross_entropy(y, targets, np.arange(len(inputs))[:, None] < lengths)
        _, dstate = self.writer.backward(tape, dy)
        self.eye.backward(seen, dstate[1][0], need_dx=False)
        return loss

    def write(self, images: Array, longest: int = 8) -> list[str]:
        """The most likely letter at every step, up to the first stop."""
        h, _ = self.eye(images)
        state: Any = (None, h[None], None)
        letters = np.full((1, len(images)), STOP)
        texts = [""] * len(images)
        for _ in range(longest):
            logits, state = self.writer(letters, state)
            letters = logits.argmax(axis=-1)
            texts = [text + (LETTERS + ".")[letter] for text, letter in zip(texts, letters[0], strict=True)]
        return [text.partition(".")[0] for text in texts]


def main(*, steps: int = 800, hidden: int = 64, seed: int = 0, plot: str | None = None) -> dict[str, Any]:
    """Train on three quarters of the images; the share of whole words right on the others."""
    images, labels = load_digits(return_X_y=True)
    x = (images / 8 - 1).astype(np.float32)
    x_train, x_test, y_train, y_test = train_test_split(x, labels, test_size=0.25, stratify=labels, random_state=seed)
    model = Captioner(x.shape[1], hidden, seed)
    optimizers = [rf.Adam(model.eye, lr=3e-3), rf.Adam(model.writer, lr=3e-3)]
    losses = []
    for chosen in batches(len(x_train), 64, steps, seed):
        losses.append(model.loss_and_grad(x_train[chosen], y_train[chosen]))
        for optimizer in optimizers:
            optimizer.step(clip_norm=1.0)
    written = model.write(x_test)
    right = [text == WORDS[label] for text, label in zip(written, y_test, strict=True)]

    def draw(axes: Any) -> None:
        shown = np.concatenate(list(x_test[:8].reshape(-1, 8, 8)), axis=1)
        axes.imshow(shown, cmap="gray_r")
        axes.set_xticks(np.arange(8) * 8 + 3.5, written[:8])
        axes.set_yticks([])

    picture(plot, draw, size=(6.0, 1.2))
    return {"written": " ".join(written[:8]), "words right": float(np.mean(right))}


if __name__ == "__main__":
    run(main)
