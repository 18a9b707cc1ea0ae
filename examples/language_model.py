"""A language model: which character comes next, and texts drawn from what it has learnt.

The text is the help topics of the Python that runs the example, their last tenth held out. The measure is bits per
character, the mean of −log₂ p(next character). `rnnfast train` does the same with two layers and any text.
"""

from __future__ import annotations

from collections import Counter
from pydoc_data.topics import topics
from typing import Any

import numpy as np
from common import Array, columns, decay, picture, run, softmax, typeset

import rnnfast as rf

PRIOR = 16  # how many characters the shorter context counts as


def read() -> str:
    """The help topics in the order of their names: no paragraph twice, as some are parts of others, and no tables."""
    parts = dict.fromkeys(part for name in sorted(topics) for part in topics[name].split("\n\n"))
    return "\n\n".join(part for part in parts if "---" not in part)


def counting(text: str, test: str, known: int, longest: int) -> list[float]:
    """Bits per character of who counts what followed the last 0, 1, … `longest` characters in a text.

    What a context has seldom shown is taken from the context that is one shorter (MacKay & Peto, 1995):
    p_n = (count + PRIOR p_{n−1}) / (total + PRIOR).
    """
    p, bits = np.full(len(test), 1 / known), []
    for n in range(longest + 1):
        totals = Counter(text[i - n : i] for i in range(n, len(text)))
        counts = Counter(text[i - n : i + 1] for i in range(n, len(text)))
        seen = np.array([counts[test[max(i - n, 0) : i + 1]] for i in range(len(test))])
        total = np.array([totals[test[max(i - n, 0) : i]] for i in range(len(test))])
        p = (seen + PRIOR * p) / (total + PRIOR)
        bits.append(float(-np.log2(p).mean()))
    return bits


def measure(model: rf.Module, ids: Array) -> float:
    """Bits per character of a text, read by 16 readers side by side."""
    x = columns(ids, 16)
    return float(rf.softmax_cross_entropy(model(x[:-1])[0], x[1:])[0] / np.log(2))


def write(model: rf.Module, letters: str, prompt: str, length: int, temperature: float, seed: int) -> str:
    """A prompt and what follows it: each character is drawn from softmax(logits / temperature) and then read."""
    random = np.random.default_rng(seed)
    text = prompt
    logits, state = model(np.array([[letters.index(c)] for c in prompt]))
    for _ in range(length):
        chosen = random.choice(len(letters), p=softmax(logits[-1, 0].astype(np.float64) / temperature))
        text += letters[chosen]
        logits, state = model(np.array([[chosen]]), state)
    return text


def main(
    *,
    epochs: int = 5,
    hidden: int = 192,
    batch: int = 16,
    window: int = 50,
    prompt: str = "The ",
    length: int = 300,
    temperature: float = 0.7,
    seed: int = 0,
    plot: str | None = None,
) -> dict[str, Any]:
    """Train an LSTM character by character; bits per held-out character, and a sample."""
    text = read()
    letters = "".join(sorted(set(text)))
    ids = np.array([letters.index(c) for c in text])
    cut = len(ids) * 9 // 10
    model = rf.Sequential(
        rf.Embedding(len(letters), 64, seed=seed),
        rf.LSTM(64, hidden, seed=seed + 1),
        rf.Dropout(0.2, seed=seed + 2),
        rf.SoftmaxHead(hidden, len(letters), seed=seed + 3),
    )
    optimizer = rf.Adam(model, lr=1e-2)
    x = columns(ids[:cut], batch)
    epoch = -(-(len(x) - 1) // window)
    windows = (step for _ in range(epochs) for step in rf.truncated_bptt(model, x[:-1], x[1:], window))
    losses, held_out = [], []
    for _, step in zip(decay(optimizer, 1e-2, epochs * epoch), windows, strict=True):
        optimizer.step(clip_norm=1.0)
        losses.append(step.loss / np.log(2))
        if len(losses) % epoch == 0:
            held_out.append((len(losses), measure(model, ids[cut:])))
    counted = counting(text[:cut], text[cut:], len(letters), 5)

    def draw(axes: Any) -> None:
        axes[0].plot(np.convolve(losses, np.full(20, 1 / 20), mode="valid"), label="training, 20 windows")
        axes[0].plot(*zip(*held_out, strict=True), "o", color="black", label="held out")
        for n, name in ((0, "unigram"), (2, "trigram"), (5, "6-gram")):
            axes[0].axhline(counted[n], color="grey", linewidth=0.8)
            axes[0].text(len(losses), counted[n], name, color="grey", ha="right", va="bottom")
        axes[0].set(xlabel="window", ylabel="bits per character", ylim=(1.4, 5.1))
        axes[0].legend(loc="upper center")
        begin = text.index("\n\n", cut) + 2
        end = text.rindex("\n", begin, begin + 700)
        costs = -np.log2(softmax(model(ids[cut : end - 1, None])[0][:, 0]))[begin - cut - 1 :]
        cost = costs[np.arange(end - begin), ids[begin:end]]
        shown = typeset(axes[1], text[begin:end], cost, ["white" if c > 6 else "black" for c in cost], 10)
        axes[1].figure.colorbar(shown, ax=axes[1], label="bits")

    picture(plot, draw, size=(7.0, 6.0), nrows=2)
    return {
        "characters": f"{cut} + {len(ids) - cut}",
        "unigram bits": counted[0],
        "trigram bits": counted[2],
        "6-gram bits": counted[5],
        "LSTM bits": held_out[-1][1],
        "sample": write(model, letters, prompt, length, temperature, seed),
    }


if __name__ == "__main__":
    run(main)
