"""A command that is cut short: by Ctrl-C, a reader that leaves, a full disk."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import rnnfast as rf
from cli_cases import BRIEF, COMMAND, SMALL, TEXT, files
from rnnfast import language_model
from rnnfast.cli import main
from rnnfast.corpus import Vocabulary
from rnnfast.language_model import LanguageModel

pytestmark = pytest.mark.usefixtures("one_thread")


def interrupting(function: Callable[..., object], number: int = signal.SIGINT) -> Callable[..., object]:
    """The function, with a signal that arrives when it is called; twice, as impatient fingers send it."""

    def call(*arguments: object, **options: object) -> object:
        signal.raise_signal(number)
        signal.raise_signal(number)
        return function(*arguments, **options)

    return call


PLACES = {  # where the signal arrives: object and attribute, and whether there is a model to save by then
    "loss of the first step": (rf.SoftmaxHead, "loss_and_grad", False),
    "update": (language_model.Adam, "step", True),
    "evaluation": (LanguageModel, "bits_per_character", True),
    "saving": (LanguageModel, "save", True),
    "sample": (language_model, "choose", True),
}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("place", PLACES)
def test_an_interrupt_leaves_whole_files_or_none(
    place: str, number: int, text: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, name, saves = PLACES[place]
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, interrupting(getattr(owner, name), number))
        assert main(["train", str(text), *BRIEF]) == 128 + number
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    made = {"rnnfast-out", "rnnfast-out/model.safetensors", "rnnfast-out/loss.png"} if saves else set()
    assert files(text.parent) == {"text.txt"} | made
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    if not saves:
        assert captured.err.endswith("interrupted before the first step: there is nothing to save\n")
    else:
        assert len(list(LanguageModel.load("rnnfast-out/model.safetensors").sample("the", 5))) == 5
        assert captured.out.startswith("trained:  ")
    if place in ("update", "evaluation"):
        assert f"interrupted after {1 if place == 'update' else 2} steps: saving the model as it is" in captured.err


def test_an_interrupt_during_an_update_waits_for_its_end(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["train", str(text), *BRIEF, "--out", "before", "--steps", "1", "--lr", "1e-9"]) == 0
    original = language_model.Adam.step
    monkeypatch.setattr(language_model.Adam, "step", interrupting(original))
    assert main(["train", str(text), *BRIEF, "--lr", "1"]) == 130
    before, after = (
        LanguageModel.load(f"{out}/model.safetensors").network.flat_params for out in ("before", "rnnfast-out")
    )
    assert (before != after).mean() > 0.5


def wait_for(said: bytes, process: subprocess.Popen[bytes]) -> None:
    """Read the process's stderr until it says something."""
    assert process.stderr is not None
    seen = b""
    while said not in seen:
        more = os.read(process.stderr.fileno(), 4096)
        assert more, f"ended without saying {said!r}: {seen!r}"
        seen += more


def test_ctrl_c_ends_training_and_saves(text: Path) -> None:
    command = [*COMMAND, "train", str(text), *SMALL, "--steps", "1000000", "--eval-every", "5"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        wait_for(b"held-out", process)
        process.send_signal(signal.SIGINT)
        wait_for(b"interrupted after", process)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"Traceback" not in err
    assert out.startswith(b"trained:  ")
    assert files(text.parent) == {"text.txt", "rnnfast-out", "rnnfast-out/model.safetensors", "rnnfast-out/loss.png"}
    LanguageModel.load("rnnfast-out/model.safetensors")


def test_ctrl_c_ends_a_step_of_many_seconds(text: Path) -> None:
    text.write_text(TEXT * 50)
    command = [*COMMAND, "train", str(text), "--hidden", "1500", "--window", "256"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        wait_for(b"0%", process)
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        wait_for(b"interrupted before the first step", process)  # which goes on for seconds
        process.communicate(timeout=60)
    assert process.returncode == 130
    assert files(text.parent) == {"text.txt"}


def test_ctrl_c_ends_generation(model: Path) -> None:
    command = [*COMMAND, "generate", str(model), "--length", "100000000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.read(10)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err == b""


def test_a_reader_that_leaves_is_no_error(model: Path) -> None:
    command = [*COMMAND, "generate", str(model), "--length", "100000000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(10)
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no full device")
def test_a_full_disk_is_told_in_one_line(model: Path) -> None:
    with open("/dev/full", "w") as full:
        command = [*COMMAND, "generate", str(model), "--length", "5"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, encoding="utf-8", timeout=100, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("rnnfast: error: ")
    assert done.stderr.count("\n") == 1


def test_characters_that_the_terminal_lacks_are_escaped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = LanguageModel.create(Vocabulary("é€"), embedding=2, hidden=2, layers=1, seed=0)
    model.save(tmp_path / "model.safetensors")
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    monkeypatch.setattr(sys, "stdout", terminal)
    assert main(["generate", str(tmp_path / "model.safetensors"), "--prompt", "é€", "--length", "0"]) == 0
    terminal.seek(0)
    assert terminal.buffer.read() == b"\xe9\\u20ac\n"
