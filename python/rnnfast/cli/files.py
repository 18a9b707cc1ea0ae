"""Texts to read and a folder to write to; what is wrong with them is told before anything is done."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from rnnfast.cli.options import CommandError


def read_text(paths: Sequence[Path]) -> str:
    """The UTF-8 texts of some files, one after the other, line ends as newlines."""
    return "".join(map(_read_one, paths))


def _read_one(path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CommandError(f"{path}: {error.strerror}") from error
    if b"\0" in content:
        raise CommandError(f"{path}: not a text (NUL byte at offset {content.index(0)})")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CommandError(f"{path}: not a UTF-8 text (byte {content[error.start]:#04x} at {error.start})") from error
    if not text:
        raise CommandError(f"{path}: the file is empty")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def default_text() -> str:
    """English that every Python carries: the help topics of its language reference, in the order of their names."""
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise CommandError("this Python comes without pydoc_data.topics: name a text file to train on") from error
    return "\n".join(topics[name] for name in sorted(topics))


@contextmanager
def output_folder(folder: Path, names: Sequence[str]) -> Iterator[None]:
    """A folder where files of these names can be written, made if it is missing and removed if it stays empty."""
    made = [p for p in (folder, *folder.parents) if not p.exists()]
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise CommandError(f"cannot write to the folder {folder}: {error.strerror}") from error
        for name in names:
            if (folder / name).is_dir():
                raise CommandError(f"cannot write {folder / name}: it is a folder")
        yield
    finally:
        with suppress(OSError):
            for path in made:
                path.rmdir()
