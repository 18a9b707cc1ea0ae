"""The examples do what docs/gallery.md says: small ones here in every run, in full with `pytest -m long`."""

from __future__ import annotations

import importlib
import importlib.util
import math
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import rnnfast as rf
from support import threads

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
NEEDS = {
    "digits_by_rows": "sklearn",
    "captions": "sklearn",
    "topics": "sklearn",
    "sunspots": "statsmodels",
}
ALL = sorted(path.stem for path in EXAMPLES.glob("*.py") if path.stem != "common")

pytestmark = pytest.mark.skipif(not EXAMPLES.is_dir(), reason="the examples are in the repository, not in the package")


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Any:
    """example(name, **options): what its main returns."""
    monkeypatch.syspath_prepend(EXAMPLES)

    def run(name: str, **options: Any) -> dict[str, Any]:
        if name in NEEDS:
            pytest.importorskip(NEEDS[name], reason=f"{name} takes data from it: pip install '.[examples]'")
        with threads(1):  # small networks: threads would mostly wait for each other where a machine is busy
            result: dict[str, Any] = importlib.import_module(name).main(**options)
        return result

    return run


@pytest.fixture
def plot(tmp_path: Path) -> Iterator[str | None]:
    """Where the example shall save its picture, which must be there afterwards; None without matplotlib."""
    if importlib.util.find_spec("matplotlib") is None:
        yield None
        return
    path = tmp_path / "plot.png"
    yield str(path)
    assert path.read_bytes().startswith(b"\x89PNG")


# ---- small -----------------------------------------------------------------------------------------------------------
def test_one_step_by_hand_then_dogs_and_hello(example: Any, plot: str | None) -> None:
    found = example("dogs", plot=plot)
    assert (found["a"], found["h"], found["y"]) == ("0.60 0.20 0.90", "0.54 0.20 0.72", "0.32 0.21 0.24 0.22")
    assert (found["spelt"], found["hello"]) == ("dogs", "hello")
    assert max(found["dogs loss"], found["hello loss"]) < 0.02


def test_one_to_one_cannot_tell_the_letters_of_hello(example: Any) -> None:
    """Without memory l is followed by l or by o: two of four letters cost ln 2 each at least."""
    found = example("dogs")
    assert found["l and o after l, T = 1"] == "0.50 0.50"
    assert math.log(2) / 2 < found["hello loss, T = 1"] < math.log(2) / 2 + 0.01


def test_digits(example: Any, plot: str | None) -> None:
    assert example("digits_by_rows", steps=300, hidden=32, plot=plot)["test accuracy"] > 0.9


def test_sunspots(example: Any, plot: str | None) -> None:
    found = example("sunspots", updates=150, hidden=8, members=1, plot=plot)
    assert found["GRU rmse"] < found["persistence rmse"]


def test_topics(example: Any, plot: str | None) -> None:
    found = example("topics", steps=250, hidden=32, longest=12, plot=plot)
    assert found["test accuracy"] > found["most frequent topic"] + 0.15


def test_tagging(example: Any, plot: str | None) -> None:
    found = example("tagging", epochs=1, hidden=24, batch=128, plot=plot)
    assert found["test accuracy"] > found["of each character"] > found["most frequent tag"]


def test_captions(example: Any, plot: str | None) -> None:
    assert example("captions", steps=250, hidden=32, plot=plot)["words right"] > 0.8


def test_reverse(example: Any, plot: str | None) -> None:
    """Shorter strings, of 3 to 5 letters, by either search."""
    found = example("translate", longest=5, steps=300, hidden=64, plot=plot)
    assert found["exact, greedy"] > 0.85 and found["exact, beam"] > 0.85


def test_dates(example: Any) -> None:
    """On the way: who knows how often each digit stands where, but not the date, pays 1.09 nats a letter."""
    assert example("translate", task="dates", steps=200, hidden=64)["held-out nats a letter"] < 0.85


def test_language_model(example: Any, plot: str | None) -> None:
    found = example("language_model", epochs=1, hidden=80, window=25, length=50, plot=plot)
    assert found["LSTM bits"] < found["trigram bits"] < found["unigram bits"]
    assert found["sample"].startswith("The ") and len(found["sample"]) == 54


def test_adding(example: Any, plot: str | None) -> None:
    """A short one: LSTM and GRU solve it, and 0.167 is what a network has that remembers nothing."""
    found = example("adding", length=30, updates=600, hidden=16, plot=plot)
    assert found["lstm mse"] < 0.05 and found["gru mse"] < 0.05
    assert 0.12 < found["rnn mse"] < 0.21


def test_mackey_glass(example: Any, plot: str | None) -> None:
    """A small reservoir: the standard deviation of the series would be an error of 1."""
    found = example("mackey_glass", units=200, density=0.1, leak=0.5, ridge=1e-12, plot=plot)
    assert float(found["nrmse 84 steps ahead"]) < 0.05


def test_a_plot_is_saved_only_where_asked(example: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    example("dogs", steps=2)
    assert list(tmp_path.iterdir()) == []
    pytest.importorskip("matplotlib", reason="it draws the plots: pip install '.[cli]'")
    example("dogs", steps=2, plot="curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_an_example_runs_as_a_command() -> None:
    done = subprocess.run(
        [sys.executable, EXAMPLES / "dogs.py", "--steps", "200"], capture_output=True, text=True, check=True
    )
    assert "spelt                    dogs" in done.stdout


@pytest.mark.parametrize("name", ALL)
def test_the_gallery_shows_every_example(name: str) -> None:
    gallery = EXAMPLES.parent / "docs" / "gallery.md"
    assert f"python examples/{name}.py" in gallery.read_text("utf-8")


def test_examples_use_public_names_alone() -> None:
    for path in EXAMPLES.glob("*.py"):
        names = set(re.findall(r"\brf\.(\w+)", path.read_text("utf-8")))
        assert names <= set(rf.__all__), path.name


# ---- in full ---------------------------------------------------------------------------------------------------------
@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "options", "metric", "least"),
    [
        ("digits_by_rows", {}, "test accuracy", 0.97),
        ("captions", {}, "words right", 0.95),
        ("tagging", {}, "test accuracy", 0.9),
        ("topics", {}, "test accuracy", 0.70),
    ],
)
def test_in_full(example: Any, name: str, options: dict[str, Any], metric: str, least: float) -> None:
    assert example(name, **options)[metric] >= least


@pytest.mark.long
@pytest.mark.parametrize("options", [{"task": "reverse"}, {"task": "dates", "steps": 1500}])
def test_translate_in_full(example: Any, options: dict[str, Any]) -> None:
    found = example("translate", **options)
    assert found["exact, greedy"] >= 0.99 and found["exact, beam"] >= 0.99


@pytest.mark.long
def test_language_model_in_full(example: Any) -> None:
    found = example("language_model")
    assert found["LSTM bits"] < 2.2
    assert found["LSTM bits"] < found["6-gram bits"] - 0.1 < found["trigram bits"] - 0.6


@pytest.mark.long
def test_adding_in_full(example: Any) -> None:
    found = example("adding")
    assert found["lstm mse"] < 0.01 and found["gru mse"] < 0.01
    assert 0.12 < found["rnn mse"] < 0.21


@pytest.mark.long
def test_mackey_glass_in_full(example: Any) -> None:
    found = example("mackey_glass")
    assert float(found["nrmse 84 steps ahead"]) < 5e-4
    assert float(found["nrmse 1 step ahead"]) < 1e-4


@pytest.mark.long
def test_sunspots_in_full(example: Any) -> None:
    found = example("sunspots")
    assert found["GRU rmse"] < 0.8 * found["persistence rmse"]
