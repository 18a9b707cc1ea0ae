from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

import rnnfast
from cli_cases import TEXT
from rnnfast import _kernels
from rnnfast.corpus import Vocabulary
from rnnfast.language_model import LanguageModel

# No deadline: a busy machine is no failure. On CI the examples are the same in every run.
hypothesis.settings.register_profile("rnnfast", deadline=None, derandomize="CI" in os.environ)
hypothesis.settings.load_profile("rnnfast")


@pytest.fixture
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """For calls that are too small to be shared; that threads change nothing is tested by itself."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # for processes
    before = rnnfast.get_num_threads()
    rnnfast.set_num_threads(1)
    yield
    rnnfast.set_num_threads(before)


@pytest.fixture(autouse=True, scope="session")
def no_crowd() -> Iterator[None]:
    """Calls have the threads that a test asks for, on a busy machine too, and seven on two cores."""
    before = _kernels.watch_crowd(False)
    yield
    _kernels.watch_crowd(before)


@pytest.fixture
def text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small text in an empty folder, which is the working directory."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture
def model(text: Path) -> Path:
    """A language model's file beside the text."""
    path = text.with_name("some.safetensors")
    LanguageModel.create(Vocabulary.from_text(TEXT), embedding=4, hidden=8, layers=1, seed=1).save(path)
    return path


def pytest_report_header(config: pytest.Config) -> str:
    available = ", ".join(_kernels.isas_available)
    return f"rnnfast: isa {_kernels.isa} (available: {available}), {rnnfast.get_num_threads()} threads"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Long tests are run when `-m` names them: neither by default nor as a part of `-m kernel`."""
    if "long" not in config.option.markexpr:
        chosen = [item for item in items if item.get_closest_marker("long") is None]
        config.hook.pytest_deselected(items=[item for item in items if item not in set(chosen)])
        items[:] = chosen
