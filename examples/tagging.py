"""Tagging, many to many in step: what is every character of a Python program part of?

The network reads source code of the standard library, character by character, and says of each whether it belongs to a
name, a keyword, a number, a string, a comment, an operator or the space between. Python's own tokenizer is the teacher.
What a character is shows only later (`in` or `index`?), so the answer may wait: at step t the network tags the
character that it has read DELAY steps before (Graves & Schmidhuber, 2005). Files are long: `rf.truncated_bptt`.
"""

from __future__ import annotations

import io
import keyword
import sysconfig
import tokenize
from pathlib import Path
from typing import Any

import numpy as np
from common import Array, columns, decay, picture, run, typeset

import rnnfast as rf

TRAINING = (
    *("argparse.py", "ast.py", "cmd.py", "codecs.py", "configparser.py", "copy.py", "csv.py", "difflib.py"),
    *("functools.py", "inspect.py", "optparse.py", "pickle.py", "shutil.py", "tarfile.py", "traceback.py"),
)
HELD_OUT = ("calendar.py", "fractions.py", "heapq.py", "textwrap.py")
TAGS = ("space", "name", "keyword", "number", "string", "comment", "operator")
COLORS = ("tab:pink", "black", "tab:blue", "tab:purple", "tab:green", "grey", "tab:brown")
DELAY = 10


def tag(source: str) -> Array:
    """The tag of every character."""
    starts = np.cumsum([0] + [len(line) for line in source.splitlines(keepends=True)])
    tags = np.zeros(len(source), np.int64)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        name = tokenize.tok_name[token.type]
        if name == "NAME":
            kind = "keyword" if keyword.iskeyword(token.string) else "name"
        elif name.startswith(("FSTRING", "TSTRING")):
            kind = "string"
        else:
            kind = {"NUMBER": "number", "STRING": "string", "COMMENT": "comment", "OP": "operator"}.get(name, "space")
        (first, begin), (last, end) = token.start, token.end
        if kind != "space":
            tags[starts[first - 1] + begin : starts[last - 1] + end] = TAGS.index(kind)
    return tags


def read(names: tuple[str, ...]) -> tuple[Array, Array]:
    """Characters, as their codes (others than ASCII as 0), and tags of some files, one after another."""
    sources = [Path(sysconfig.get_paths()["stdlib"], name).read_text("utf-8") for name in names]
    codes = np.array([ord(c) if ord(c) < 128 else 0 for source in sources for c in source])
    return codes, np.concatenate([tag(source) for source in sources])


def delayed(codes: Array, tags: Array) -> tuple[Array, Array, Array]:
    """What is read, what shall be said DELAY steps later, and where there is something to say."""
    reading = np.pad(codes, ((0, DELAY), (0, 0)))
    saying = np.pad(tags, ((DELAY, 0), (0, 0)))
    return reading, saying, np.broadcast_to(np.arange(len(reading))[:, None] >= DELAY, reading.shape)


def baseline(codes: Array, tags: Array, test_codes: Array, test_tags: Array) -> float:
    """Accuracy of the tag that each character most often has in the training text."""
    counts = np.zeros((128, len(TAGS)), np.int64)
    np.add.at(counts, (codes, tags), 1)
    return float(np.mean(counts.argmax(axis=1)[test_codes] == test_tags))


def main(
    *, epochs: int = 3, hidden: int = 96, batch: int = 16, window: int = 50, seed: int = 0, plot: str | None = None
) -> dict[str, Any]:
    """Train on fifteen files; the share of characters tagged rightly in four others."""
    codes, tags = read(TRAINING)
    test_codes, test_tags = read(HELD_OUT)
    model = rf.Sequential(
        rf.Embedding(128, 32, seed=seed), rf.GRU(32, hidden, seed=seed + 1), rf.Linear(hidden, len(TAGS), seed=seed + 2)
    )
    optimizer = rf.Adam(model, lr=5e-3)
    x, targets, mask = delayed(columns(codes, batch), columns(tags, batch))
    windows = (step for _ in range(epochs) for step in rf.truncated_bptt(model, x, targets, window, mask=mask))
    for _ in zip(decay(optimizer, 5e-3, epochs * -(-len(x) // window)), windows, strict=True):
        optimizer.step(clip_norm=1.0)
    x, _, _ = delayed(columns(test_codes, 1), columns(test_tags, 1))
    said = model(x)[0].argmax(axis=-1)[DELAY:, 0]

    def draw(axes: Any) -> None:
        """Some lines of fractions.py; in the long string is a piece of a program."""
        text = "".join(map(chr, test_codes))
        first = text[: text.index("    def _operator_fallbacks(")].count("\n") - 4
        ends = np.flatnonzero(test_codes == ord("\n"))
        part = slice(ends[first - 1] + 1, ends[first + 31])
        typeset(axes, text[part], said[part] != test_tags[part], [COLORS[tag] for tag in said[part]], 6)
        for name, color in zip((*TAGS, "wrong"), (*COLORS, (0.99, 0.83, 0.76)), strict=True):
            axes.plot([], [], "s", color=color, label=name)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, 0), ncols=8, fontsize=8, columnspacing=1, handletextpad=0)

    picture(plot, draw, size=(6.6, 4.6))
    return {
        "characters": f"{len(codes)} + {len(test_codes)}",
        "most frequent tag": float(np.bincount(test_tags).max() / len(test_tags)),
        "of each character": baseline(codes, tags, test_codes, test_tags),
        "test accuracy": float(np.mean(said == test_tags)),
    }


if __name__ == "__main__":
    run(main)
