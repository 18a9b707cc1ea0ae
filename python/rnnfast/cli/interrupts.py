"""Ctrl-C and SIGTERM: the first one ends the command, but never in the middle of something that has to be whole."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Self


class Interrupts:
    """While entered, the first SIGINT or SIGTERM raises KeyboardInterrupt; in a held block it waits for `check`.

    Later ones do nothing: impatient fingers and process groups send several, and the second would hit the saving of
    the model.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._holding = False
        self._previous: dict[signal.Signals, signal._HANDLER] = {}

    @property
    def status(self) -> int:
        """The exit status that shells give to a command ended by this signal."""
        return 128 + (self.received or signal.SIGINT)

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @contextmanager
    def held(self) -> Iterator[None]:
        """A block that no interrupt ends; one that arrives here waits for `check`."""
        with self._mode(holding=True):
            yield

    @contextmanager
    def released(self) -> Iterator[None]:
        """Inside a held block: a block that an interrupt ends."""
        with self._mode(holding=False):
            self.check()
            yield

    def check(self) -> None:
        """Raise KeyboardInterrupt if an interrupt has come and nothing holds it."""
        if self.received is not None and not self._holding:
            raise KeyboardInterrupt

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received = number
            self.check()

    @contextmanager
    def _mode(self, holding: bool) -> Iterator[None]:
        before, self._holding = self._holding, holding
        try:
            yield
        finally:
            self._holding = before
