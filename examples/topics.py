"""Topic of a text, many to one: which part of the standard library does a docstring come from?

The texts are those of the Python that runs the example. Needs scikit-learn, whose bag of words stands beside.
"""

from __future__ import annotations

import ast
import re
import sysconfig
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from common import Array, batches, decay, picture, run, tokens
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, confusion_matrix
from sklearn.model_selection import train_test_split

import rnnfast as rf

TOPICS = ("asyncio", "email", "http", "importlib", "logging", "unittest", "xml", "_pydecimal.py")


def docstrings(topic: str) -> list[str]:
    """The docstrings of at least five words in a module or package, each once."""
    place = Path(sysconfig.get_paths()["stdlib"], topic)
    files = [place] if place.suffix else sorted(path for path in place.rglob("*.py") if "test" not in path.parts)
    texts: dict[str, None] = {}
    for file in files:
        for node in ast.walk(ast.parse(file.read_bytes())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node) or ""
                if len(split(text)) >= 5:
                    texts[text] = None
    return list(texts)


def split(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower())


def new_model(words: int, hidden: int, seed: int) -> rf.Sequential:
    return rf.Sequential(
        rf.Embedding(words, hidden, seed=seed),
        rf.Dropout(0.5, seed=seed + 1),
        rf.GRU(hidden, hidden, bidirectional=True, seed=seed + 2),
        rf.Dropout(0.5, seed=seed + 3),
        rf.GRU(2 * hidden, hidden, seed=seed + 4),
        rf.Last(),
        rf.Linear(hidden, len(TOPICS), seed=seed + 5),
    )


def predict(model: rf.Sequential, texts: list[list[int]]) -> Array:
    x, lengths = tokens(texts)
    result: Array = model(x, lengths=lengths)[0].argmax(axis=-1)
    return result


def main(
    *, steps: int = 600, hidden: int = 64, longest: int = 40, seed: int = 0, plot: str | None = None
) -> dict[str, Any]:
    """Train on three quarters of the docstrings, read to their 40th word; accuracy on the others."""
    pairs = [(text, label) for label, topic in enumerate(TOPICS) for text in docstrings(topic)]
    texts, labels = [text for text, _ in pairs], np.array([label for _, label in pairs])
    train, test, y_train, y_test = train_test_split(texts, labels, test_size=0.25, stratify=labels, random_state=seed)
    counts = Counter(word for text in train for word in split(text)[:longest])
    index = {word: number for number, word in enumerate((word for word, n in counts.items() if n > 1), start=1)}
    read = [[[index.get(word, 0) for word in split(text)[:longest]] for text in part] for part in (train, test)]
    model = new_model(len(index) + 1, hidden, seed)
    optimizer = rf.Adam(model, lr=3e-3)
    for _, chosen in zip(decay(optimizer, 3e-3, steps), batches(len(train), 64, steps, seed), strict=True):
        x, lengths = tokens([read[0][i] for i in chosen])
        model.zero_grad()
        y, _, tape = model.forward(x, lengths=lengths)
        _, dy = rf.softmax_cross_entropy(y, y_train[chosen])
        model.backward(tape, dy, need_dx=False)
        optimizer.step(clip_norm=1.0)
    answers = predict(model, read[1])
    bag = TfidfVectorizer(tokenizer=lambda text: split(text)[:longest], token_pattern=None)
    linear = LogisticRegression(C=10.0, max_iter=1000).fit(bag.fit_transform(train), y_train)

    def draw(axes: Any) -> None:
        axes.imshow(confusion_matrix(y_test, answers, normalize="true"), cmap="Blues")
        names = [topic.strip("_").removesuffix(".py").removeprefix("py") for topic in TOPICS]
        axes.set_xticks(range(len(names)), names, rotation=60)
        axes.set_yticks(range(len(names)), names)
        axes.set(xlabel="answer", ylabel="topic")

    picture(plot, draw, size=(4.5, 4.5))
    return {
        "texts": f"{len(train)} + {len(test)}",
        "most frequent topic": float(np.bincount(y_test).max() / len(y_test)),
        "bag of words": float(accuracy_score(y_test, linear.predict(bag.transform(test)))),
        "test accuracy": float(accuracy_score(y_test, answers)),
    }


if __name__ == "__main__":
    run(main)
