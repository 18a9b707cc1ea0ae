"""The command line, as a user meets it: files, tables and texts that come out."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import numpy as np
import pytest

import rnnfast as rf
from cli_cases import BRIEF, ROOT, SMALL, TEXT, files, run
from rnnfast import _kernels, layers
from rnnfast.cli import main
from rnnfast.cli.files import default_text
from rnnfast.corpus import Corpus
from rnnfast.language_model import LanguageModel

pytestmark = pytest.mark.usefixtures("one_thread")


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


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"rnnfast {rf.__version__}\n"


def test_info_names_the_parts(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    shown = capsys.readouterr().out
    for part in (rf.__version__, rf.isa, np.__version__, str(rf.get_num_threads()), "safetensors"):
        assert part in shown


def test_info_has_every_cell_of_the_kernels_and_its_twin(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--cells"]) == 0
    cells, parameters, legend = capsys.readouterr().out.split("\n\n")
    assert re.search(r"equations in NumPy are reference/reservoir\.py, \d+ lines", legend)
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
        "batch_first, dropout, zoneout (not SLSTM), grad_clip, compute_dtype, dtype, seed –",
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
