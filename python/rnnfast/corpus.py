"""Texts as numbers: the characters that a model knows, a text split in two, the windows that are read of it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]


class UnknownCharacterError(ValueError):
    """A text has characters that the vocabulary lacks; `characters` holds each once, in order of code points."""

    def __init__(self, characters: str) -> None:
        shown = ", ".join(repr(c) for c in characters[:5]) + (", ..." if len(characters) > 5 else "")
        super().__init__(f"unknown character{'s' if len(characters) > 1 else ''} {shown}")
        self.characters = characters


@dataclass(frozen=True)
class Vocabulary:
    """The characters that a model knows, each once, ascending; a character's id is its position.

    >>> vocabulary = Vocabulary.from_text("dogs")
    >>> vocabulary.characters, vocabulary.encode("good").tolist()
    ('dgos', [1, 2, 2, 0])
    >>> vocabulary.decode([0, 2, 1])
    'dog'
    """

    characters: str

    def __post_init__(self) -> None:
        if not self.characters or list(self.characters) != sorted(set(self.characters)):
            raise ValueError(f"characters: expected each once and ascending, got {self.characters[:40]!r}")

    @classmethod
    def from_text(cls, text: str) -> Vocabulary:
        return cls("".join(sorted(set(text))))

    def __len__(self) -> int:
        return len(self.characters)

    @cached_property
    def _code_points(self) -> npt.NDArray[np.uint32]:
        return _code_points(self.characters)

    def encode(self, text: str) -> Ids:
        """The ids of a text's characters, int64 (len(text),). Raises UnknownCharacterError."""
        wanted = _code_points(text)
        ids = np.minimum(np.searchsorted(self._code_points, wanted), len(self) - 1)
        unknown = np.unique(wanted[self._code_points[ids] != wanted])
        if unknown.size:
            raise UnknownCharacterError("".join(map(chr, unknown)))
        return ids.astype(np.int64, copy=False)

    def decode(self, ids: npt.ArrayLike) -> str:
        return "".join(self.characters[i] for i in np.asarray(ids, np.int64).tolist())


def _code_points(text: str) -> npt.NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4").astype(np.uint32)


@dataclass(frozen=True)
class Corpus:
    """A text as ids, its beginning to train on and its end held out to measure on.

    The vocabulary is that of the whole text, so that the held-out part has no unknown character.
    """

    vocabulary: Vocabulary
    training: Ids
    held_out: Ids

    @classmethod
    def from_text(cls, text: str, held_out: float = 0.1) -> Corpus:
        """Split a text; `held_out` is the share at its end, in (0, 1)."""
        if not 0 < held_out < 1:
            raise ValueError(f"held_out: expected a share between 0 and 1, got {held_out}")
        if not text:
            raise ValueError("text: expected characters, got none")
        vocabulary = Vocabulary.from_text(text)
        ids = vocabulary.encode(text)
        cut = len(ids) - round(len(ids) * held_out)
        return cls(vocabulary, ids[:cut], ids[cut:])

    def check(self, batch: int, window: int) -> None:
        """Raise ValueError if the text is too short for these many readers and this window."""
        if len(self.training) < batch * window + 1:
            raise ValueError(
                f"the text is too short: {len(self.training)} characters to train on, "
                f"but {batch} readers with windows of {window} need at least {batch * window + 1}"
            )
        if len(self.held_out) < 2:
            raise ValueError(f"the text is too short: {len(self.held_out)} held-out characters, but 2 are needed")


def windows(ids: Ids, batch: int, window: int) -> Iterator[tuple[Ids, Ids]]:
    """Endless pairs (inputs, targets), each (window, batch), of a text read round and round.

    Reader b begins at b·len(ids)/batch and goes on where its last window ended, so its state can be carried; the
    targets are the inputs one character later. Past the end the text begins again.

    >>> inputs, targets = next(windows(np.arange(10), batch=2, window=3))
    >>> inputs.T.tolist(), targets.T.tolist()
    ([[0, 1, 2], [5, 6, 7]], [[1, 2, 3], [6, 7, 8]])
    """
    starts = np.arange(batch) * len(ids) // batch
    offsets = np.arange(window + 1)[:, None]
    for number in itertools.count():
        block = ids[(starts + number * window + offsets) % len(ids)]
        yield block[:-1], block[1:]
