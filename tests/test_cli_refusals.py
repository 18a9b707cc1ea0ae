"""What the command line refuses: an error in one line that says what is wrong, and nothing half done."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import rnnfast as rf
from cli_cases import BRIEF, SMALL, files, run
from rnnfast.cli import main

pytestmark = pytest.mark.usefixtures("one_thread")


def check_refused(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Status 2, one line on stderr with `said` in it, no file written or changed."""
    before = files(Path.cwd())
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith(f"rnnfast {arguments[0]}: error: " if arguments else "rnnfast: error: ")
    assert said in captured.err
    assert files(Path.cwd()) == before


BAD_TEXTS: dict[str, tuple[bytes | None, str]] = {
    "missing": (None, "bad.txt: No such file"),
    "empty": (b"", "bad.txt: the file is empty"),
    "binary": (b"abc\0def", "bad.txt: not a text (NUL byte at offset 3)"),
    "latin1": (b"abc\xe9def", "bad.txt: not a UTF-8 text (byte 0xe9 at 3)"),
    "only_a_mark": (b"\xef\xbb\xbf", "bad.txt: the file is empty"),
    "short": (b"some words", "the text is too short: 9 characters"),
}


@pytest.mark.parametrize("name", BAD_TEXTS)
def test_train_refuses_bad_texts(name: str, text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content, said = BAD_TEXTS[name]
    if content is not None:
        Path("bad.txt").write_bytes(content)
    check_refused(["train", *([] if name == "short" else [str(text)]), "bad.txt"], said, capsys)


def test_train_refuses_a_folder_as_text(text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check_refused(["train", "."], ".: Is a directory", capsys)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--unknown", "3"], "unknown arguments: --unknown"),
        (["--hid", "3"], "unknown arguments: --hid"),
        (["--hidden"], "--hidden: expected one argument"),
        (["--hidden", "0"], "--hidden: expected a whole number of at least 1, got '0'"),
        (["--hidden", "1.5"], "--hidden: expected a whole number of at least 1, got '1.5'"),
        (["--embedding", "-3"], "--embedding: expected a whole number of at least 1, got '-3'"),
        (["--layers", "two"], "--layers: expected a whole number"),
        (["--hidden", "9" * 15], "too large"),
        (["--hidden", "9" * 7], "not enough memory"),
        (["--cell", "elman"], "--cell: invalid choice: 'elman'"),
        (["--dropout", "1"], "--dropout: expected a number from 0 to below 1, got '1'"),
        (["--dropout", "-0.1"], "--dropout: expected a number from 0 to below 1"),
        (["--lr", "0"], "--lr: expected a number above 0, got '0'"),
        (["--lr", "nan"], "--lr: expected a number above 0, got 'nan'"),
        (["--clip", "-1"], "--clip: expected a number above 0"),
        (["--minutes", "inf"], "--minutes: expected a number above 0"),
        (["--steps", "0"], "--steps: expected a whole number of at least 1"),
        (["--steps", "5", "--minutes", "1"], "not allowed with argument"),
        (["--window", "0"], "--window: expected"),
        (["--batch", "0"], "--batch: expected"),
        (["--batch", "1000"], "too short"),
        (["--eval-every", "0"], "--eval-every: expected"),
        (["--threads", "0"], "--threads: expected a whole number from 1 to 4096, got '0'"),
        (["--threads", "4097"], "--threads: expected a whole number from 1 to 4096, got '4097'"),
        (["--seed", "-1"], "--seed: expected a whole number of at least 0"),
        (["--sample-length", "-1"], "--sample-length: expected"),
        (["--temperature", "-1"], "--temperature: expected a number of 0 or more"),
        (["--top-k", "0"], "--top-k: expected"),
        (["--prompt", "THE"], "--prompt: unknown characters 'E', 'H', 'T'"),
        (["--out", "text.txt"], "cannot write to the folder text.txt: File exists"),
        (["--out", "text.txt/below"], "cannot write to the folder text.txt/below: Not a directory"),
        (["--out", "folder"], "cannot write folder/loss.png: it is a folder"),
    ],
)
def test_train_refuses_bad_options(
    options: list[str], said: str, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("folder", "loss.png").mkdir(parents=True)
    check_refused(
        ["train", str(text), *BRIEF, *options] if options[0] != "--steps" else ["train", *options], said, capsys
    )


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_train_refuses_a_folder_that_is_not_ours(text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("locked").mkdir(mode=0o500)
    for out in ("locked", "locked/below"):
        check_refused(["train", str(text), *BRIEF, "--out", out], "Permission denied", capsys)


@pytest.mark.parametrize("missing", ["tqdm", "matplotlib"])
def test_train_says_how_to_install_what_is_missing(
    missing: str, text: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "rnnfast.cli.display", raising=False)
    for name in [name for name in sys.modules if name.split(".")[0] == missing]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    check_refused(["train", str(text), *SMALL], f'{missing} is not installed: pip install "rnnfast[cli]"', capsys)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--steps", "1"], "--steps: expected a whole number of at least 2, got '1'"),
        (["--hidden", "0"], "--hidden: expected a whole number of at least 1, got '0'"),
        (["--hidden", str(2**40)], "is too large to address"),
        (["--gain", "0"], "--gain: expected a number above 0, got '0'"),
        (["--gain", "-2"], "--gain: expected a number above 0, got '-2'"),
        (["--gain", "nan"], "--gain: expected a number above 0, got 'nan'"),
        (["--gain", "two"], "--gain: expected a number above 0, got 'two'"),
        (["--seed", "-1"], "--seed: expected a whole number of at least 0"),
        (["--out", "folder"], "cannot write folder: it is a folder"),
        (["--out", "text.txt/flow.png"], "cannot write to the folder text.txt"),
        (["picture.png"], "unknown arguments: picture.png"),
    ],
)
def test_gradflow_refuses_bad_options(
    options: list[str], said: str, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("folder").mkdir()
    check_refused(["gradflow", *options], said, capsys)


def test_gradflow_says_how_to_install_what_is_missing(
    text: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    check_refused(["gradflow"], 'matplotlib is not installed: pip install "rnnfast[cli]"', capsys)


def test_train_that_diverges_says_so(
    text: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rf.SoftmaxHead, "loss_and_grad", lambda head, h, targets: (float("nan"), h))
    assert main(["train", str(text), *BRIEF]) == 2
    captured = capsys.readouterr()
    assert captured.err.endswith("rnnfast train: error: training diverged (the loss is nan at step 1): lower --lr\n")
    assert files(text.parent) == {"text.txt"}


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ([], "required: COMMAND"),
        (["fly"], "invalid choice: 'fly'"),
        (["generate"], "required: MODEL"),
        (["info", "--cell"], "unknown arguments: --cell"),
        (["info", "--all"], "unknown arguments: --all"),
    ],
)
def test_commands_and_their_arguments_are_checked(
    command: list[str], said: str, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if command == ["fly"]:
        assert main(command) == 2
        assert said in capsys.readouterr().err
    else:
        check_refused(command, said, capsys)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--prompt", "the €"], "--prompt: unknown character '€'"),
        (["--length", "-1"], "--length: expected"),
        (["--temperature", "hot"], "--temperature: expected a number of 0 or more, got 'hot'"),
        (["--top-k", "0"], "--top-k: expected"),
        (["--seed", "x"], "--seed: expected"),
    ],
)
def test_generate_refuses_bad_options(
    options: list[str], said: str, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check_refused(["generate", str(model), *options], said, capsys)


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flipped(content: bytes) -> bytes:
    return content[:20] + b"\xff\xff" + content[22:]


def foreign(content: bytes) -> bytes:
    from safetensors.numpy import save

    return save({"weight": np.zeros(3, np.float32)})


@pytest.mark.parametrize("damage", [cut, flipped, foreign, lambda content: b"", lambda content: b"not a model\n" * 9])
def test_generate_refuses_damaged_and_foreign_files(
    damage: Callable[[bytes], bytes], model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model.write_bytes(damage(model.read_bytes()))
    check_refused(["generate", str(model)], "some.safetensors: not a", capsys)


def test_generate_refuses_what_is_no_language_model(text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check_refused(["generate", "nothing"], "nothing: No such file", capsys)
    check_refused(["generate", "."], ".: Is a directory", capsys)
    rf.save(rf.Sequential(rf.Linear(2, 2, seed=0)), "linear.safetensors")
    check_refused(["generate", "linear.safetensors"], "linear.safetensors: not a language model", capsys)


def test_an_error_is_one_line_in_a_process_too(text: Path) -> None:
    done = run("train", text, "--out", "no\nfolder/../text.txt", *BRIEF)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr
