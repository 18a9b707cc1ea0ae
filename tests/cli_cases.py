"""The command in a process of its own, and small work for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TEXT = "the cat sat on the mat.\nthe dog sat on the log.\n" * 20
SMALL = ["--embedding", "4", "--hidden", "16", "--batch", "4", "--window", "16"]
BRIEF = [*SMALL, "--steps", "5", "--eval-every", "2", "--sample-length", "20"]
COMMAND = [sys.executable, "-m", "rnnfast"]


def run(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, encoding="utf-8", timeout=100, **options)  # type: ignore[call-overload, no-any-return]


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}
