"""The smallest recurrent network: three tanh units spell "dogs", one letter after another.

With sequences of one step the same layer is one to one, a network without memory: it can't learn "hello".
"""

from __future__ import annotations

from typing import Any

import numpy as np
from common import Array, heat, picture, run, softmax

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


def new_model() -> rf.Sequential:
    return rf.Sequential(rf.RNN(4, 3, seed=1, dtype=np.float64), rf.Linear(3, 4, seed=2, dtype=np.float64))


def first_step() -> dict[str, Array]:
    """What the network computes when it reads d from h = 0: the sum a, the state h, the probabilities y."""
    x = np.eye(4)[None, :1]  # (T, B, I) = (1, 1, 4)
    logits, (h, _) = by_hand()(x)
    return {"a": np.arctanh(h[0, 0]), "h": h[0, 0], "y": softmax(logits[0, 0])}


def one_hot(letters: str, text: str) -> Array:
    """Letters as unit vectors, one sequence: (T, 1, letters)."""
    return np.eye(len(letters))[[letters.index(c) for c in text]][:, None]


def spell(model: rf.Sequential, letters: str, first: str, count: int) -> str:
    """`count` letters after the first, each the most likely one after those before it."""
    word, state = first, None
    for _ in range(count):
        logits, state = model(one_hot(letters, word[-1]), state)
        word += letters[int(logits[0, 0].argmax())]
    return word


def learn(model: rf.Sequential, x: Array, letters: str, following: str, steps: int) -> float:
    """Train the network to write `following` while it reads x; the last loss."""
    targets = np.array([letters.index(c) for c in following]).reshape(x.shape[:2])
    optimizer = rf.Adam(model, lr=0.05)
    loss = np.nan
    for _ in range(steps):
        model.zero_grad()
        y, _, tape = model.forward(x)
        loss, dy = rf.softmax_cross_entropy(y, targets)
        model.backward(tape, dy, need_dx=False)
        optimizer.step()
    return loss


def main(*, steps: int = 200, plot: str | None = None) -> dict[str, Any]:
    """One step by hand; then d → o → g → s; then "hell" → "ello", where l is followed by l and then by o."""
    values = {name: " ".join(f"{v:.2f}" for v in vector) for name, vector in first_step().items()}
    dogs, hello, alone = by_hand(), new_model(), new_model()
    dog, hell = one_hot("dogs", "dog"), one_hot("helo", "hell")
    before = softmax(dogs(dog)[0][:, 0])  # (T, letters)
    dogs_loss = learn(dogs, dog, "dogs", "ogs", steps)
    hello_loss = learn(hello, hell, "helo", "ello", steps)
    apart = hell.reshape(1, 4, 4)  # the letters as a batch: four sequences with T = 1
    alone_loss = learn(alone, apart, "helo", "ello", steps)
    after_l = softmax(alone(apart)[0][0, 2])

    def draw(axes: Any) -> None:
        shown = [
            ("dogs: weights by hand", "dogs", "dog", "ogs", before),
            ("dogs: trained", "dogs", "dog", "ogs", softmax(dogs(dog)[0][:, 0])),
            ("hello: trained", "helo", "hell", "ello", softmax(hello(hell)[0][:, 0])),
            ("hello: trained, T = 1", "helo", "hell", "ello", softmax(alone(apart)[0][0])),
        ]
        for place, (title, letters, read, following, y) in zip(axes, shown, strict=True):
            heat(place, y, [[f"{p:.2f}" for p in row] for row in y])
            place.plot(
                [letters.index(c) for c in following], range(len(read)), "s", ms=33, mfc="none", mec="tab:orange"
            )
            place.set_xticks(range(4), letters)
            place.set_yticks(range(len(read)), read)
            place.set(title=title, xlabel="next letter")
        axes[0].set_ylabel("letter read, from top to bottom")

    picture(plot, draw, size=(10.0, 3.0), ncols=4)
    return {
        **values,
        "spelt": spell(dogs, "dogs", "d", 3),
        "dogs loss": dogs_loss,
        "hello": spell(hello, "helo", "h", 4),
        "hello loss": hello_loss,
        "l and o after l, T = 1": f"{after_l[2]:.2f} {after_l[3]:.2f}",
        "hello loss, T = 1": alone_loss,
    }


if __name__ == "__main__":
    run(main)
