"""Encoder and decoder: strings written backwards, and dates written in another format.

They are written greedily and by a beam search, which keeps the four best beginnings at every step.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from common import Array, batches, decay, heat, picture, run, softmax, tokens

import rnnfast as rf

FORMATS = ("%d %B %Y", "%A, %d %B %Y", "%B %d, %Y", "%d.%m.%Y", "%m/%d/%y")


def reversing(count: int, random: np.random.Generator, longest: int) -> list[tuple[str, str]]:
    """Different strings of 3 to `longest` of the first ten letters, and the same backwards."""
    if longest < 5:
        raise ValueError(f"longest: expected at least 5, as there are few shorter strings, got {longest}")
    words: dict[str, None] = {}
    while len(words) < count:
        word = "".join(random.choice(list("abcdefghij"), random.integers(3, longest + 1)))
        words[word] = None
    return [(word, word[::-1]) for word in words]


def dates(count: int, random: np.random.Generator) -> list[tuple[str, str]]:
    """Different days of 1970 to 2038, in one of five formats, and as ISO 8601 has them.

    The month's and day's names are English whatever the system's language, since the C locale is the default.
    """
    first = datetime.date(1970, 1, 1)
    days = [first + datetime.timedelta(int(day)) for day in random.permutation(25_000)[:count]]
    return [(day.strftime(FORMATS[random.integers(len(FORMATS))]), day.isoformat()) for day in days]


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


def write(model: rf.Seq2Seq, source: Array, lengths: Array, alphabet: str) -> tuple[list[str], list[str], list[float]]:
    """What the model makes of texts, greedily and by beam search, and the log probabilities of the latter."""

    def text(row: Array) -> str:
        return "".join(alphabet[token] if token < len(alphabet) else "?" for token in row)

    greedy = model.greedy(source, lengths, max_length=20)
    beam = [found[0] for found in model.beam(source, lengths, max_length=20, width=4)]
    return [text(row) for row in greedy], [text(best.tokens) for best in beam], [best.log_probability for best in beam]


def share(written: list[str], pairs: list[tuple[str, str]]) -> float:
    """How many are right to the last letter."""
    return float(np.mean([ours == target for ours, (_, target) in zip(written, pairs, strict=True)]))


def main(
    *,
    task: str = "reverse",
    steps: int = 3000,
    hidden: int = 128,
    longest: int = 8,
    seed: int = 0,
    plot: str | None = None,
) -> dict[str, Any]:
    """Train with teacher forcing; the share of held-out pairs that come out right to the last letter.

    The task is reverse, with strings of up to `longest` letters, or dates.
    """
    tasks: dict[str, Callable[..., list[tuple[str, str]]]] = {
        "reverse": partial(reversing, longest=longest),
        "dates": dates,
    }
    if task not in tasks:
        raise SystemExit(f"task: expected one of {', '.join(tasks)}, got {task!r}")
    pairs = tasks[task](12_000, np.random.default_rng(seed))
    held_out, training = pairs[:1000], pairs[1000:]
    alphabets = ["".join(sorted(set("".join(side)))) for side in zip(*pairs, strict=True)]
    test, test_targets = (encode(list(side), a) for side, a in zip(zip(*held_out, strict=True), alphabets, strict=True))
    model = new_model(*alphabets, hidden, seed)
    optimizer = rf.Adam(model, lr=3e-3)
    wrong = []  # (update, greedy, beam)
    for step, chosen in zip(decay(optimizer, 3e-3, steps), batches(len(training), 128, steps, seed), strict=True):
        source, lengths = encode([training[i][0] for i in chosen], alphabets[0])
        target, target_lengths = encode([training[i][1] for i in chosen], alphabets[1])
        model.zero_grad()
        model.loss_and_grad(source, target, lengths, target_lengths)
        optimizer.step(clip_norm=1.0)
        if plot and (step + 1) % max(1, steps // 12) == 0:
            greedy, beam, _ = write(model, *test, alphabets[1])
            wrong.append((step + 1, 1 - share(greedy, held_out), 1 - share(beam, held_out)))
    loss = model.loss_and_grad(test[0], test_targets[0], test[1], test_targets[1], backward=False)
    greedy, beam, sureness = write(model, *test, alphabets[1])

    def draw(axes: Any) -> None:
        """Errors while it learns; then the outputs of the beam search that have the least probability."""
        updates, *curves = zip(*wrong, strict=True)
        for curve, name in zip(curves, ("greedy", "beam, width 4"), strict=True):
            axes[0].semilogy(updates, curve, ".-", label=name)
        axes[0].set(xlabel="update", ylabel="share of held-out pairs that are wrong")
        axes[0].legend()
        rows = np.argsort(sureness)[:12]
        texts = [beam[i] for i in rows]
        letters, lengths = encode(texts, alphabets[1])
        inputs = np.concatenate([np.full((1, len(rows)), model.start), letters])
        y = softmax(model((test[0][:, rows], inputs), lengths=(test[1][rows], lengths + 1))[0][:-1])
        p = np.take_along_axis(y, letters[..., None], axis=-1)[..., 0].T  # (B, T)
        heat(axes[1], np.where(np.arange(p.shape[1]) < lengths[:, None], p, np.nan), texts)
        for row, (i, text) in enumerate(zip(rows, texts, strict=True)):
            for column, (ours, right) in enumerate(zip(text, held_out[i][1].ljust(len(text)), strict=False)):
                if ours != right:
                    axes[1].plot(column, row, "s", ms=15, mfc="none", mec="tab:red")
        axes[1].set_yticks(range(len(rows)), [held_out[i][0] for i in rows])
        axes[1].set_xticks([])
        axes[1].set_title("beam: probability of each letter")

    picture(plot, draw, size=(9.0, 3.8), ncols=2, width_ratios=[4, 5])
    return {
        "example": f"{held_out[0][0]} -> {greedy[0]}",
        "held-out nats a letter": loss,
        "exact, greedy": share(greedy, held_out),
        "exact, beam": share(beam, held_out),
    }


if __name__ == "__main__":
    run(main)
