"""The smallest recurrent network: three tanh units spell "dogs", one letter after another."""

from __future__ import annotations

from typing import Any

import numpy as np
from common import picture, run

import rnnfast as rf

# One step by hand, as lectures do it: letters d o g s as unit vectors, three units, no biases.
W_X = [[0.6, 0.8, 0.4, 0.8], [0.2, 0.2, 0.8, 0.7], [0.9, 0.8, 0.1, 0.2]]
W_H = [[0.1, 0.5, 0.1], [0.5, 0.9, 0.3], [0.3, 0.2, 0.1]]
W_Y = [[0.9, 0.8, 0.3], [0.2, 0.3, 0.4], [0.6, 0.9, 0.1], [0.5, 0.0, 0.3]]


def by_hand() -> rf.Sequential:
    """The network with these weights: h = tanh(W_x x + W_h h), y = W_y h."""
    model = rf.Sequential(rf.RNN(4, 3, bias=False, dtype=np.float64), rf.Linear(3, 4, bias=False, dtype=np.float64))
    model.load_state_dict({"0.weight_ih_l0": W_X, "0.weight_hh_l0": W_H, "1.weight": W_Y})
    return model


def first_step() -> dict[str, np.ndarray[Any, Any]]:
    """What the network computes when it reads d from h = 0: the sum a, the state h, the probabilities y."""
    x = np.eye(4)[None, :1]  # (T, B, I) = (1, 1, 4)
    logits, (h, _) = by_hand()(x)
    exps = np.exp(logits[0, 0])
    return {"a": np.arctanh(h[0, 0]), "h": h[0, 0], "y": exps / exps.sum()}


def spell(model: rf.Sequential, letters: str, first: str, count: int) -> str:
    """`count` letters after the first, each the most likely one after those before it."""
    word, state = first, None
    for _ in range(count):
        logits, state = model(np.eye(len(letters))[[[letters.index(word[-1])]]], state)
        word += letters[int(logits[0, 0].argmax())]
    return word


def learn(model: rf.Sequential, letters: str, text: str, following: str, steps: int) -> list[float]:
    """Train the network to write `following` while it reads `text`; the losses."""
    x = np.eye(len(letters))[[letters.index(c) for c in text]][:, None]  # (T, 1, I)
    targets = np.array([letters.index(c) for c in following])[:, None]
    optimizer = rf.Adam(model, lr=0.05)
    losses = []
    for _ in range(steps):
        model.zero_grad()
        y, _, tape = model.forward(x)
        loss, dy = rf.softmax_cross_entropy(y, targets)
        model.backward(tape, dy, need_dx=False)
        optimizer.step()
        losses.append(loss)
    return losses


def main(*, steps: int = 200, plot: str | None = None) -> dict[str, Any]:
    """One step by hand; then d → o → g → s; then "hell" → "ello", where l is followed by l and then by o."""
    values = {name: " ".join(f"{v:.2f}" for v in vector) for name, vector in first_step().items()}
    dogs = by_hand()
    losses = learn(dogs, "dogs", "dog", "ogs", steps)
    hello = rf.Sequential(rf.RNN(4, 3, seed=1, dtype=np.float64), rf.Linear(3, 4, seed=2, dtype=np.float64))
    hello_losses = learn(hello, "helo", "hell", "ello", steps)

    def draw(axes: Any) -> None:
        axes.semilogy(losses, label="dogs")
        axes.semilogy(hello_losses, label="hello")
        axes.set(xlabel="step", ylabel="nats a letter")
        axes.legend()

    picture(plot, draw)
    return {
        **values,
        "spelt": spell(dogs, "dogs", "d", 3),
        "dogs loss": losses[-1],
        "hello": spell(hello, "helo", "h", 4),
        "hello loss": hello_losses[-1],
    }


if __name__ == "__main__":
    run(main)
