"""Character-level language models: from a text to a network that writes like it.

A model reads characters one at a time and predicts the next one:

    embedding -> stacked LSTM, GRU or RNN -> dropout -> softmax head

It is trained by truncated backpropagation through time (Williams and Peng, 1990): `batch` readers go through the text
side by side, `window` characters a step; the state is carried from window to window, gradients end at its border.

The measure is bits per character, the mean of -log2 p(next character): what a perfect compressor that uses the model
would need. A uniform guess over V characters costs log2 V.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rnnfast import checks, saving
from rnnfast.corpus import Corpus, Ids, Vocabulary, windows
from rnnfast.heads import SoftmaxHead
from rnnfast.layers import GRU, LSTM, RNN
from rnnfast.losses import softmax_cross_entropy
from rnnfast.modules import Dropout, Embedding, Sequential
from rnnfast.optim import Adam

CELLS: Mapping[str, type[LSTM] | type[GRU] | type[RNN]] = {"lstm": LSTM, "gru": GRU, "rnn": RNN}
WARM_UP = 0.05  # share of a training run in which the learning rate rises


class LanguageModel:
    """A network and the vocabulary whose ids it reads and predicts.

    >>> model = LanguageModel.create(Vocabulary.from_text("hello world"), embedding=4, hidden=8, layers=1, seed=1)
    >>> text = "".join(model.sample("hello", 5, seed=1))
    >>> len(text)
    5
    """

    def __init__(self, vocabulary: Vocabulary, network: Sequential) -> None:
        known, first, last = len(vocabulary), network[0], network[len(network) - 1]
        if not isinstance(first, Embedding) or first.num_embeddings != known:
            raise ValueError(f"network: expected an Embedding of {known} characters at its beginning, got {first}")
        if not isinstance(last, SoftmaxHead) or last.num_classes != known:
            raise ValueError(f"network: expected a SoftmaxHead of {known} classes at its end, got {last}")
        if network.batch_first:
            raise ValueError("network: expected batch_first=False, got True")
        self.vocabulary = vocabulary
        self.network = network
        self.head = last

    @classmethod
    def create(
        cls,
        vocabulary: Vocabulary,
        *,
        cell: str = "lstm",
        embedding: int = 64,
        hidden: int = 256,
        layers: int = 2,
        dropout: float = 0.2,
        seed: int | None = None,
    ) -> LanguageModel:
        """A new model; dropout acts between the recurrent layers and before the output."""
        if cell not in CELLS:
            raise ValueError(f"cell: expected one of {', '.join(CELLS)}, got {cell!r}")
        seeds = [int(s) for s in np.random.SeedSequence(seed).generate_state(4)]
        between = dropout if layers > 1 else 0.0
        network = Sequential(
            Embedding(len(vocabulary), embedding, seed=seeds[0]),
            CELLS[cell](embedding, hidden, layers, dropout=between, seed=seeds[1]),
            *([Dropout(dropout, seed=seeds[2])] if dropout else []),
            SoftmaxHead(hidden, len(vocabulary), seed=seeds[3]),
        )
        return cls(vocabulary, network)

    def bits_per_character(self, ids: Ids, *, readers: int = 16, window: int = 256) -> float:
        """Mean of -log2 p(next character) over a text of at least two ids, state carried, nothing dropped.

        The text is cut into `readers` equal pieces that are read side by side, each from the zero state; up to
        readers - 1 characters at the end are left out.
        """
        if len(ids) < 2:
            raise ValueError(f"ids: expected at least 2, got {len(ids)}")
        readers = max(1, min(readers, (len(ids) - 1) // window))
        length = (len(ids) - 1) // readers
        inputs = ids[: readers * length].reshape(readers, length).T
        targets = ids[1 : readers * length + 1].reshape(readers, length).T
        state: Any = None
        nats = 0.0
        for begin in range(0, length, window):
            part = slice(begin, begin + window)
            logits, state = self.network(inputs[part], state)
            nats += softmax_cross_entropy(logits, targets[part])[0] * len(targets[part])
        return nats / length / math.log(2)

    def sample(
        self, prompt: str, length: int, *, temperature: float = 1.0, top_k: int | None = None, seed: int | None = None
    ) -> Iterator[str]:
        """The `length` characters that the model writes after a prompt, one by one.

        Each is drawn from softmax(logits / temperature), of the `top_k` most likely characters if that is given;
        temperature 0 always takes the most likely one. An empty prompt stands for the beginning of a line.
        """
        checks.size("length", length, minimum=0)
        checks.real("temperature", temperature)
        if top_k is not None:
            checks.size("top_k", top_k)
        opening = "\n" if "\n" in self.vocabulary.characters else self.vocabulary.characters[0]
        ids = self.vocabulary.encode(prompt or opening)
        return self._write(ids, length, temperature, top_k, np.random.default_rng(seed))

    def _write(
        self, ids: Ids, length: int, temperature: float, top_k: int | None, rng: np.random.Generator
    ) -> Iterator[str]:
        state: Any = None
        for _ in range(length):
            logits, state = self.network(ids[:, None], state)
            chosen = choose(logits[-1, 0], temperature, top_k, rng)
            yield self.vocabulary.characters[chosen]
            ids = np.array([chosen], np.int64)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write network and vocabulary as one safetensors file, which appears whole or not at all."""
        saving.save(self.network, path, metadata={"vocabulary": self.vocabulary.characters})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> LanguageModel:
        """Read what `save` wrote. OSError if the file can't be read, ValueError if it holds something else."""
        network, metadata = saving.load_with_metadata(path)
        try:
            if not isinstance(network, Sequential) or "vocabulary" not in metadata:
                raise ValueError("it has no vocabulary")
            if not np.isfinite(network.flat_params).all():
                raise ValueError("it has weights that are NaN or infinite")
            model = cls(Vocabulary(metadata["vocabulary"]), network)
            network(np.zeros((1, 1), np.int64))  # refused if the modules don't fit together
            return model
        except (TypeError, ValueError) as error:
            raise ValueError(f"{os.fspath(path)}: not a language model, or damaged ({error})") from error


def choose(logits: npt.NDArray[np.floating], temperature: float, top_k: int | None, rng: np.random.Generator) -> int:
    """Draw an index from softmax(logits / temperature) over the `top_k` largest; of equal ones the first counts."""
    scores = logits.astype(np.float64)
    kept = np.argsort(-scores, kind="stable")[: 1 if temperature == 0 else top_k]
    if len(kept) == 1:
        return int(kept[0])
    with np.errstate(over="ignore", under="ignore"):
        weights = np.exp((scores[kept] - scores[kept[0]]) / temperature)
    return int(rng.choice(kept, p=weights / weights.sum()))


def learning_rate_share(progress: float) -> float:
    """The learning rate's share of its peak when `progress` (0 to 1) of a run is over: a linear rise, half a cosine."""
    if progress < WARM_UP:
        return 0.1 + 0.9 * progress / WARM_UP
    return 0.5 * (1 + math.cos(math.pi * (progress - WARM_UP) / (1 - WARM_UP)))


def for_steps(count: int) -> Callable[[int], float]:
    """A run of `count` steps: the share of it that is done after so many."""
    return lambda steps: steps / count


def for_minutes(minutes: float) -> Callable[[int], float]:
    """A run of so many minutes from now: the share of it that is over."""
    begin = time.monotonic()
    return lambda steps: min(1.0, (time.monotonic() - begin) / (60 * minutes))


@dataclass(frozen=True)
class Step:
    """One training step: how many are done, share of the run that is over, characters seen so far, loss in nats per
    character, norm of the gradient before clipping."""

    number: int
    progress: float
    characters: int
    loss: float
    norm: float

    @property
    def bits(self) -> float:
        return self.loss / math.log(2)


@dataclass(frozen=True)
class Evaluation:
    """A measurement on the held-out text after so many characters of training."""

    characters: int
    bits: float


def train(
    model: LanguageModel,
    corpus: Corpus,
    *,
    progress: Callable[[int], float],
    batch: int = 32,
    window: int = 64,
    learning_rate: float = 8e-3,
    clip_norm: float = 1.0,
    evaluate_every: int = 250,
    updating: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Iterator[Step | Evaluation]:
    """Train by truncated backpropagation through time with Adam, and tell each step as it is done.

    `progress` maps the number of steps done to the share of the run that is over (`for_steps`, `for_minutes`); it
    ends at 1. The held-out text is measured every `evaluate_every` steps and at the end. The parameters change only
    inside `updating()`: a caller that interrupts the iteration elsewhere finds the model whole.

    Raises ValueError if the text is too short, FloatingPointError if the loss or its gradient is no longer finite.
    """
    corpus.check(batch, window)
    network = model.network
    optimizer = Adam(network, lr=learning_rate)
    state: Any = None
    for number, (inputs, targets) in enumerate(windows(corpus.training, batch, window), start=1):
        network.zero_grad()
        h, state, tape = network.forward(inputs, state)
        loss, dh = model.head.loss_and_grad(h, targets)
        _check_finite(loss, number)
        network.backward(tape, dh, need_dx=False)
        optimizer.lr = learning_rate * learning_rate_share(progress(number - 1))
        with updating():
            norm = optimizer.step(clip_norm=clip_norm)
        characters, done = number * batch * window, progress(number)
        yield Step(number, done, characters, loss, norm)
        if done >= 1 or number % evaluate_every == 0:
            bits = model.bits_per_character(corpus.held_out)
            _check_finite(bits, number)
            yield Evaluation(characters, bits)
        if done >= 1:
            return


def _check_finite(loss: float, step: int) -> None:
    if not math.isfinite(loss):
        raise FloatingPointError(f"the loss is {loss} at step {step}")
