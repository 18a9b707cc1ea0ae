"""What the commands' parsers share: one-line errors, and numbers with their bounds."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import Any, NoReturn


class CommandError(Exception):
    """Something the user can mend, told in one line; `command` says who tells it, if that isn't the one that runs."""

    def __init__(self, message: str, command: str = "") -> None:
        super().__init__(message)
        self.command = command


class Parser(argparse.ArgumentParser):
    """An argument parser that knows no abbreviations and raises its errors."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        raise CommandError(message, self.prog)


class Help(argparse.ArgumentDefaultsHelpFormatter):
    """Tells the default of each option that has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return super()._get_help_string(action) if action.default not in (None, "", []) else action.help


def whole(low: int, high: int | None = None) -> Callable[[str], int]:
    """Reads a whole number of at least `low` and, if that is given, at most `high`."""
    bounds = f"of at least {low}" if high is None else f"from {low} to {high}"

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if value < low or (high is not None and value > high):
            raise argparse.ArgumentTypeError(f"expected a whole number {bounds}, got {text!r}")
        return value

    return read


def real(description: str, accepts: Callable[[float], bool]) -> Callable[[str], float]:
    """Reads a finite number that `accepts` takes; `description` says which those are."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or not accepts(value):
            raise argparse.ArgumentTypeError(f"expected a number {description}, got {text!r}")
        return value

    return read


above_zero = real("above 0", lambda value: value > 0)
zero_or_more = real("of 0 or more", lambda value: value >= 0)
share = real("from 0 to below 1", lambda value: 0 <= value < 1)
