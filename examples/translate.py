"""Encoder and decoder: strings written backwards, and dates written in another format."""

from __future__ import annotations

import datetime
from typing import Any

import numpy as np
from common import Array, batches, decay, picture, run, tokens

import rnnfast as rf

FORMATS = ("%d %B %Y", "%A, %d %B %Y", "%B %d, %Y", "%d.%m.%Y", "%m/%d/%y")


def reversing(count: int, random: np.random.Generator) -> list[tuple[str, str]]:
    """Different strings of 3 to 8 of the first ten letters, and the same backwards."""
    words: dict[str, None] = {}
    while len(words) < count:
        word = "".join(random.choice(list("abcdefghij"), random.integers(3, 9)))
        words[word] = None
    return [(word, word[::-1]) for word in words]


def dates(count: int, random: np.random.Generator) -> list[tuple[str, str]]:
    """Different days of 1970 to 2038, in one of five formats, and as ISO 8601 has them.

    The month's and day's names are English whatever the system's language, since the C locale is the default.
    """
    first = datetime.date(1970, 1, 1)
    days = [first + datetime.timedelta(int(day)) for day in random.permutation(25_000)[:count]]
    return [(day.strftime(FORMATS[random.integers(len(FORMATS))]), day.isoformat()) for day in days]


TASKS = {"reverse": reversing, "dates": dates}


def encode(texts: list[str], alphabet: str) -> tuple[Array, Array]:
    return tokens([[alphabet.index(c) for c in text] for text in texts])


def new_model(source: str, target: str, hidden: int, seed: int) -> rf.Seq2Seq:
    """Start and end come after the letters of the target."""
    encoder = rf.Sequential(rf.Embedding(len(source), 32, seed=seed), rf.GRU(32, hidden, seed=seed + 1))
    decoder = rf.Sequential(
        rf.Embedding(len(target) + 2, 32, seed=seed + 2),
        rf.GRU(32, hidden, seed=seed + 3),
        rf.Linear(hidden, len(target) + 2, seed=seed + 4),
    )
    return rf.Seq2Seq(encoder, decoder, start=len(target), end=len(target) + 1)


def write(model: rf.Seq2Seq, texts: list[str], source: str, target: str) -> list[str]:
    """What the model makes of texts."""
    written = model.greedy(*encode(texts, source), max_length=20)
    return ["".join(target[token] if token < len(target) else "?" for token in row) for row in written]


def main(
    *, task: str = "reverse", steps: int = 3000, hidden: int = 128, seed: int = 0, plot: str | None = None
) -> dict[str, Any]:
    """Train with teacher forcing; the share of held-out pairs that come out right to the last letter."""
    pairs = TASKS[task](12_000, np.random.default_rng(seed))
    held_out, training = pairs[:1000], pairs[1000:]
    alphabets = ["".join(sorted(set("".join(side)))) for side in zip(*pairs, strict=True)]
    model = new_model(*alphabets, hidden, seed)
    optimizer = rf.Adam(model, lr=3e-3)
    losses = []
    for _, chosen in zip(decay(optimizer, 3e-3, steps), batches(len(training), 128, steps, seed), strict=True):
        source, lengths = encode([training[i][0] for i in chosen], alphabets[0])
        target, target_lengths = encode([training[i][1] for i in chosen], alphabets[1])
        model.zero_grad()
        losses.append(model.loss_and_grad(source, target, lengths, target_lengths))
        optimizer.step(clip_norm=1.0)
    pair = [encode(list(side), alphabet) for side, alphabet in zip(zip(*held_out, strict=True), alphabets, strict=True)]
    held_out_loss = model.loss_and_grad(pair[0][0], pair[1][0], pair[0][1], pair[1][1], backward=False)
    written = write(model, [source for source, _ in held_out], *alphabets)
    right = [ours == target for ours, (_, target) in zip(written, held_out, strict=True)]

    def draw(axes: Any) -> None:
        axes.semilogy(losses)
        axes.set(xlabel="step", ylabel="nats a letter")

    picture(plot, draw)
    return {
        "example": f"{held_out[0][0]} -> {written[0]}",
        "held-out nats a letter": held_out_loss,
        "held-out exact": float(np.mean(right)),
    }


if __name__ == "__main__":
    run(main)
