"""The command line, as a user meets it: files and texts that come out, errors in one line, interrupts."""

from __future__ import annotations

import inspect
import io
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import rnnfast as rf
from rnnfast import _kernels, language_model, layers
from rnnfast.cli import main
from rnnfast.cli.files import default_text
from rnnfast.corpus import Corpus, Vocabulary
from rnnfast.language_model import LanguageModel

ROOT = Path(__file__).resolve().parents[1]
TEXT = "the cat sat on the mat.\nthe dog sat on the log.\n" * 20
SMALL = ["--embedding", "4", "--hidden", "16", "--batch", "4", "--window", "16"]
BRIEF = [*SMALL, "--steps", "5", "--eval-every", "2", "--sample-length", "20"]
COMMAND = [sys.executable, "-m", "rnnfast"]


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """These models are too small for more; the number is as it was afterwards."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # for processes
    before = rf.get_num_threads()
    rf.set_num_threads(1)
    yield
    rf.set_num_threads(before)


@pytest.fixture
def text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small text in an empty folder, which is the working directory."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture
def model(text: Path) -> Path:
    """A model file beside the text."""
    path = text.with_name("some.safetensors")
    vocabulary = Vocabulary.from_text(TEXT)
    LanguageModel.create(vocabulary, embedding=4, hidden=8, layers=1, seed=1).save(path)
    return path


def run(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, encoding="utf-8", timeout=100, **options)  # type: ignore[call-overload, no-any-return]


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


# ---- what it makes ---------------------------------------------------------------------------------------------------
def test_train_makes_a_model_a_curve_and_a_sample(text: Path) -> None:
    done = run("train", text, *BRIEF, "--prompt", "the dog")
    assert done.returncode == 0, done.stderr
    assert files(text.parent) == {"text.txt", "rnnfast-out", "rnnfast-out/model.safetensors", "rnnfast-out/loss.png"}
    lines = done.stdout.splitlines()
    assert lines[0].startswith("trained:  5 steps, 320 characters, ")
    assert lines[1].startswith("held-out: ")
    assert lines[1].endswith(" bits per character")
    assert lines[2:5] == [f"model:    {Path('rnnfast-out/model.safetensors')}", "curve:    rnnfast-out/loss.png", ""]
    sample = done.stdout.split("\n\n", 1)[1]
    assert sample.startswith("the dog")
    assert len(sample) == len("the dog") + 20 + 1
    for shown in ("2 steps: held-out", "4 steps: held-out", "5 steps: held-out", "bits/char", "chars/s", "loss"):
        assert shown in done.stderr
    bits = float(lines[1].split()[1])
    trained = LanguageModel.load("rnnfast-out/model.safetensors")
    held_out = Corpus.from_text(TEXT).held_out
    assert trained.bits_per_character(held_out) == pytest.approx(bits, abs=6e-4)


def test_the_curve_is_a_picture(text: Path) -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.image import imread

    assert main(["train", str(text), *BRIEF]) == 0
    picture = imread("rnnfast-out/loss.png")
    assert picture.shape[0] > 400
    assert picture.shape[1] > 600
    for color in ("#4477aa", "#cc3311"):
        wanted = np.array([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)])
        assert (np.abs(picture[..., :3] - wanted).max(axis=-1) < 0.02).sum() > 100, f"no curve in {color}"


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_same_seed_same_bytes_whatever_the_threads(cell: str, text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outputs = []
    for name, seed, count in (("one", "7", "1"), ("two", "7", "2"), ("other", "8", "1")):
        options = ["--cell", cell, "--dropout", "0.3", "--seed", seed, "--threads", count, "--out", name]
        assert main(["train", str(text), *BRIEF, *options]) == 0
        sample = capsys.readouterr().out.split("\n\n", 1)[1]
        outputs.append((Path(name, "model.safetensors").read_bytes(), sample))
    assert outputs[0] == outputs[1]
    assert outputs[0] != outputs[2]


def test_train_for_minutes_ends(text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(text), *SMALL, "--minutes", "0.005", "--sample-length", "0"]) == 0
    assert "held-out" in capsys.readouterr().out


def test_train_reads_several_files_and_any_line_ends(text: Path) -> None:
    second = text.with_name("second.txt")
    second.write_bytes(b"\xef\xbb\xbf" + "Ünï\r\nend\r".encode())
    assert main(["train", str(text), str(second), *BRIEF]) == 0
    known = LanguageModel.load("rnnfast-out/model.safetensors").vocabulary.characters
    assert known == "".join(sorted({*TEXT, *"Ünï\nend\n"}))


def test_train_without_a_text_reads_what_python_carries(text: Path) -> None:
    assert main(["train", *SMALL, "--steps", "1", "--sample-length", "0"]) == 0
    vocabulary = LanguageModel.load("rnnfast-out/model.safetensors").vocabulary
    assert len(vocabulary.encode("The assignment statement")) == 24


@pytest.mark.long
def test_the_default_run_is_worth_looking_at(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most 1.80 bits per character of the held-out tenth, and a sample most of whose words are words."""
    monkeypatch.chdir(tmp_path)
    assert main(["train"]) == 0
    summary, sample = capsys.readouterr().out.split("\n\n", 1)
    bits = re.search(r"held-out: ([\d.]+) bits per character", summary)
    assert bits is not None and float(bits[1]) <= 1.80
    known, written = (re.findall(r"[A-Za-z]{3,}", text) for text in (default_text(), sample))
    assert sum(word in set(known) for word in written) > 0.7 * len(written) > 20


def test_generate_writes_after_the_prompt(model: Path) -> None:
    done = run("generate", model, "--prompt", "the dog", "--length", "50", "--seed", "3")
    assert done.returncode == 0
    assert done.stderr == ""
    assert done.stdout.startswith("the dog")
    assert len(done.stdout) == len("the dog") + 50 + 1


def test_generate_is_determined_by_its_seed(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def text_of(*options: str) -> str:
        assert main(["generate", str(model), "--length", "100", *options]) == 0
        return capsys.readouterr().out

    assert text_of("--seed", "1") == text_of("--seed", "1")
    assert text_of("--seed", "1") != text_of("--seed", "2")
    assert text_of() != text_of()
    likeliest = text_of("--temperature", "0")
    assert likeliest == text_of("--top-k", "1") == text_of("--temperature", "0", "--seed", "9")
    assert text_of("--seed", "1", "--top-k", "2") != text_of("--seed", "1")


def test_info_names_the_parts(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    shown = capsys.readouterr().out
    for part in (rf.__version__, rf.isa, np.__version__, str(rf.get_num_threads()), "safetensors"):
        assert part in shown


def test_info_has_every_cell_of_the_kernels_and_its_twin(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--cells"]) == 0
    cells, parameters, _ = capsys.readouterr().out.split("\n\n")
    assert {line[9:].split()[0] for line in cells.splitlines()[2:]} == set(_kernels.cells())
    header = ROOT / "cpp" / "cells" / "lstm.h"
    lines = len(header.read_text().splitlines()) if header.exists() else 0
    assert re.search(rf"^LSTM +lstm +i f g o +h c +lstm\.h +{lines or '[0-9]+'} +lstm\.py +\d+$", cells, re.MULTILINE)
    assert re.search(r"^ +lstm_no_forget_peephole +peephole, forget_gate=False +i g o +h c$", cells, re.MULTILINE)
    assert "–" not in cells  # no file is missing
    for line in (
        "LSTM weight_ih (4H, I), weight_hh (4H, H), bias_ih (4H,), bias_hh (4H,)",
        "proj_size=P weight_hh (4H, P), weight_hr (P, H)",
        "I = H weight_ih (3H, H), bias_ih (3H,)",
        "num_heads=K weight_hh (4H, H/K)",
        "reset_after, recurrent_dropout –",
        "every, as bias=False no bias_ih, no bias_hh",
        "feedback_scaling weight_fb (H, O)",
    ):
        assert line in [" ".join(row.split()) for row in parameters.splitlines()]


@pytest.mark.parametrize("name", [*layers.__all__, "EchoState"])
def test_info_has_every_option_of_a_layer(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--cells"]) == 0
    shown = capsys.readouterr().out
    refused = {"SLSTM": {"layer_norm", "zoneout"}}.get(name, set())
    for option, parameter in inspect.signature(getattr(rf, name)).parameters.items():
        if parameter.kind is parameter.KEYWORD_ONLY and option not in refused:
            assert option in shown


def test_gradflow_makes_a_table_and_a_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["gradflow", "--steps", "30", "--hidden", "12"]) == 0
    assert files(tmp_path) == {"gradflow.png"}
    assert Path("gradflow.png").read_bytes().startswith(b"\x89PNG")
    shown = capsys.readouterr().out
    assert shown.endswith("\npicture: gradflow.png\n")
    default, open_gates, scaled = parts = gradients(shown)
    assert list(parts[0]) == ["GRU", "LSTM, c", "LSTM, h", "tanh RNN", "relu RNN", "sigmoid RNN"]
    for part in parts:
        assert part.keys() == default.keys()
        for values in part.values():
            assert len(values) == 6  # 1, 2, 5, 10, 20, 29 steps back
            assert np.isfinite(values).all()
    assert "\nW_hh orthogonal × 2, gates open\n" in shown
    assert open_gates["GRU"][-1] > 100 * default["GRU"][-1]
    assert open_gates["tanh RNN"][-1] > 100 * open_gates["sigmoid RNN"][-1]
    assert scaled["relu RNN"][-1] > 100 * open_gates["relu RNN"][-1]


def gradients(shown: str) -> list[dict[str, list[float]]]:
    """The values of the table that gradflow prints: part by part, curve by curve."""
    blocks = shown.split("\n\n")[2:-1]
    return [{line[:13].strip(): [float(v) for v in line[13:].split()] for line in b.splitlines()[1:]} for b in blocks]


def test_gradflow_shows_what_vanishes_what_explodes_and_what_an_lstm_keeps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["gradflow", "--steps", "51", "--out", str(tmp_path / "flow.png")]) == 0
    default, open_gates, scaled = gradients(capsys.readouterr().out)
    assert all(values[-1] < 1e-8 for values in default.values())  # 50 steps back
    assert all(values[-1] < 1 for values in open_gates.values())
    assert scaled["tanh RNN"][-1] > 1e2
    assert scaled["relu RNN"][-1] > 1e6
    for part in (open_gates, scaled):
        assert 0.05 < part["LSTM, c"][-1] < 1
        assert part["LSTM, c"][-1] > 10 * part["LSTM, h"][-1]


def test_gradflow_takes_a_gain_and_says_what_overflows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts = []
    for gain in ("1", "3", "1e200"):
        assert main(["gradflow", "--steps", "6", "--gain", gain, "--out", str(tmp_path / f"{gain}.png")]) == 0
        parts.append(capsys.readouterr().out)
    _, one, same = gradients(parts[0])
    assert one == same
    assert gradients(parts[1])[2]["relu RNN"][-1] > 10
    assert "× 1e+200, gates open\n" in parts[2]
    assert re.search("relu RNN( +overflow){3}\n", parts[2])
    assert not re.search("nan|inf", parts[2])


@pytest.mark.parametrize("sizes", [["--steps", "2"], ["--hidden", "1", "--steps", "3"]])
def test_gradflow_of_the_smallest_sizes(sizes: list[str], tmp_path: Path) -> None:
    out = tmp_path / "new" / "flow.png"
    assert main(["gradflow", *sizes, "--hidden", "1", "--out", str(out)]) == 0
    assert out.read_bytes().startswith(b"\x89PNG")


def test_gradflow_is_determined_by_its_seed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tables = []
    for seed in ("7", "7", "8", str(2**70)):
        assert main(["gradflow", "--steps", "5", "--hidden", "3", "--seed", seed, "--out", str(tmp_path / "x")]) == 0
        tables.append(capsys.readouterr().out)
    assert tables[0] == tables[1]
    assert len(set(tables)) == 3


@pytest.mark.parametrize("command", [[], ["train"], ["generate"], ["gradflow"], ["info"]])
def test_help_tells_the_options_and_their_defaults(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, "--help"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(" ".join(["usage: rnnfast", *command]))
    assert "None" not in shown
    if command == ["train"]:
        for option in ("--hidden", "--lr", "--steps", "--eval-every", "--seed"):
            assert "(default: " in shown.split(f"\n  {option} ")[1].split("\n  --")[0]


# ---- bad input -------------------------------------------------------------------------------------------------------
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


# ---- interrupts ------------------------------------------------------------------------------------------------------
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
