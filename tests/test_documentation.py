"""What the documentation says: examples that run, commands that exist, the order of the layers of the house."""

from __future__ import annotations

import ast
import doctest
import importlib
import pkgutil
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import rnnfast
from rnnfast.cli import _parser

ROOT = Path(__file__).resolve().parents[1]
README, CONTRIBUTING = (ROOT / name for name in ("README.md", "CONTRIBUTING.md"))
PACKAGE = Path(rnnfast.__file__).parent
MODULES = sorted(
    found.name
    for found in pkgutil.walk_packages(rnnfast.__path__, "rnnfast.")
    if not found.name.endswith("__main__") and not re.search(r"\._core_|\.peer_", found.name)
)


def blocks(document: Path, language: str = "") -> list[str]:
    """The fenced blocks of a language in a Markdown file."""
    fenced = document.read_text(encoding="utf-8").split("```")[1::2]
    return [text.partition("\n")[2] for text in fenced if text.partition("\n")[0] == language]


def commands(document: Path) -> list[str]:
    """The `rnnfast` commands in the blocks without a language."""
    lines = "\n".join(blocks(document)).splitlines()
    parts = [part.strip() for line in lines for part in line.split("#")[0].split("&&")]
    return [part for part in parts if part.startswith("rnnfast ")]


@pytest.mark.parametrize("name", ["rnnfast", *MODULES])
def test_examples_in_docstrings_run(name: str) -> None:
    results = doctest.testmod(importlib.import_module(name))
    assert not results.failed


CORE = ["RNN", "LSTM", "GRU", "Embedding", "Linear", "Dropout", "Last", "Sequential", "SGD", "Adam", "Stream"]
CORE += ["softmax_cross_entropy", "mse", "load", "set_num_threads"]


@pytest.mark.parametrize("name", CORE)
def test_public_names_have_an_example(name: str) -> None:
    """One that nobody wrote can't fail."""
    assert ">>>" in getattr(rnnfast, name).__doc__


def test_the_example_of_the_readme_learns_what_it_says() -> None:
    (example,) = blocks(README, "python")
    bound = re.search(r"# below ([\d.]+)$", example, re.MULTILINE)
    assert bound is not None
    done = subprocess.run([sys.executable, "-c", example], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("mean squared error ")
    assert float(done.stdout.split()[-1]) < float(bound[1])


def test_commands_of_the_readme_exist() -> None:
    """With every option that it shows."""
    assert len(commands(README)) >= 5
    for command in commands(README):
        _, unknown = _parser().parse_known_args(shlex.split(command)[1:])
        assert not unknown, command


def test_tools_have_the_versions_that_are_tested() -> None:
    """CONTRIBUTING tells what .ci/run takes."""
    ci = ROOT / ".ci" / "run"
    if not ci.exists():
        pytest.skip("not a clone: .ci is missing")
    pins = re.findall(r"^[A-Z_]+=((?:ruff|clang-format|mypy)==\S+)$", ci.read_text(), re.MULTILINE)
    assert len(pins) == 3
    assert f"pip install {' '.join(pins)}\n" in CONTRIBUTING.read_text(encoding="utf-8")


def imported(file: Path) -> set[str]:
    """The modules of the package that a file imports when it is loaded, by their names below `rnnfast`."""
    names = set()
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.level == 1 or (node.module or "").partition(".")[0] == "rnnfast"):
            path = (node.module or "").removeprefix("rnnfast").strip(".")
            names |= {path.partition(".")[0]} if path else {alias.name for alias in node.names}
    return names


def test_no_file_imports_from_above() -> None:
    """In the order that CONTRIBUTING gives, which has every file. Types alone may be named from anywhere."""
    row = re.search(r"from below: (.*); no file imports from above", CONTRIBUTING.read_text(encoding="utf-8"))
    assert row is not None
    order = re.findall(r"`(\w+)`", row[1])
    beside = {"__init__", "__main__", "reference"}  # above all, above all, and on its own
    assert {path.stem for path in PACKAGE.glob("*.py")} - beside | {"cli"} == set(order)
    for position, name in enumerate(order):
        for file in [PACKAGE / f"{name}.py"] if name != "cli" else (PACKAGE / "cli").glob("*.py"):
            source = imported(file) - {name}
            assert source & set(order) <= set(order[:position]) | typing_only(file), f"{file.name}: {source}"
    for file in (PACKAGE / "reference").glob("*.py"):
        assert imported(file) <= {"reference"}, file.name


def typing_only(file: Path) -> set[str]:
    """What a file imports under TYPE_CHECKING."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            for inner in ast.walk(node):
                if isinstance(inner, ast.ImportFrom):
                    names.add((inner.module or "").removeprefix("rnnfast").strip(".").partition(".")[0])
    return names
