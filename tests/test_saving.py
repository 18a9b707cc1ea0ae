"""Model files: whole, self-describing, readable by others, and nothing else is taken for one."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import rnnfast as rf
from rnnfast import saving
from support import CELLS, new_layer

Change = Callable[[dict[str, Any]], object]

MODELS: dict[str, Callable[[], rf.Module]] = {
    **{cell: partial(new_layer, cell, 3, 4, num_layers=2, seed=5) for cell in CELLS},
    "rnn": lambda: rf.RNN(3, 4, 2, nonlinearity="relu", bias=False, dropout=0.25, seed=5),
    "lstm": lambda: rf.LSTM(3, 4, 2, bidirectional=True, batch_first=True, dtype=np.float64),
    "gru": lambda: rf.GRU(3, 4),
    "echo_state": lambda: rf.EchoState(3, 20, 2, leak=0.5, feedback_scaling=0.3),
    "embedding": lambda: rf.Embedding(7, 3),
    "linear": lambda: rf.Linear(3, 4, bias=False),
    "softmax_head": lambda: rf.SoftmaxHead(3, 4, bias=False, batch_first=True),
    "dropout": lambda: rf.Dropout(0.3),
    "last": lambda: rf.Last(batch_first=True),
    "sequential": lambda: rf.Sequential(
        rf.Embedding(7, 3), rf.Sequential(rf.LSTM(3, 4), rf.Dropout(0.1)), rf.Linear(4, 7)
    ),
    "seq2seq": lambda: rf.Seq2Seq(
        rf.Sequential(rf.Linear(3, 2), rf.GRU(2, 4)),
        rf.Sequential(rf.Embedding(7, 3), rf.GRU(3, 4), rf.SoftmaxHead(4, 6)),
        start=6,
        end=5,
    ),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


@pytest.mark.parametrize("name", MODELS)
def test_a_loaded_model_is_the_saved_one(name: str, path: Path) -> None:
    model = MODELS[name]()
    rf.save(model, path)
    loaded = rf.load(path)
    assert type(loaded) is type(model)
    assert repr(loaded) == repr(model)
    assert loaded.config == model.config  # with the seed, also where it was drawn from the system
    assert list(loaded.params) == list(model.params)
    assert np.array_equal(loaded.flat_params, model.flat_params)
    assert loaded.dtype == model.dtype
    assert loaded.training


def test_a_loaded_model_computes_the_same_bits(path: Path) -> None:
    model, tokens = MODELS["sequential"](), np.arange(6).reshape(3, 2)
    rf.save(model, path)
    assert np.array_equal(rf.load(path)(tokens)[0], model(tokens)[0])


def test_a_loaded_seq2seq_writes_the_same(path: Path) -> None:
    model, source = MODELS["seq2seq"](), np.random.default_rng(0).standard_normal((5, 4, 3)).astype(np.float32)
    assert isinstance(model, rf.Seq2Seq)
    rf.save(model, path)
    loaded = rf.load(path)
    assert isinstance(loaded, rf.Seq2Seq)
    for got, expected in zip(loaded.greedy(source, max_length=9), model.greedy(source, max_length=9), strict=True):
        assert np.array_equal(got, expected)


def test_an_option_of_one_model_of_an_ensemble_is_not_lost_in_silence(path: Path) -> None:
    models = rf.Ensemble(rf.GRU, 2, 4, 8, seed=0)
    layer = models[1]
    assert isinstance(layer, rf.GRU)
    layer.zoneout = 0.5
    with pytest.raises(ValueError, match="model: expected an Ensemble whose models differ in their seeds alone"):
        rf.save(models, path)
    assert not path.exists()


def reservoirs(seed: int) -> rf.EchoState:
    return rf.EchoState(1, 30, seed=seed)


CONTAINERS: dict[str, Callable[[int], Any]] = {
    "sequential": lambda seed: rf.Sequential(rf.Linear(1, 1, seed=0), reservoirs(seed)),
    "ensemble": lambda seed: rf.Ensemble(rf.EchoState, 2, 1, 30, seed=seed),
    "ensemble_of_sequentials": lambda seed: rf.Ensemble(lambda seed: rf.Sequential(reservoirs(seed)), 2, seed=seed),
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_the_buffers_of_all_parts_go_along(name: str, path: Path) -> None:
    """A reservoir is no parameter; two of other seeds compute the same once one has taken the other's state_dict."""
    first, second = CONTAINERS[name](0), CONTAINERS[name](1)
    rng = np.random.default_rng(0)
    first.flat_params[...] = rng.standard_normal(first.flat_params.shape)
    x = rng.standard_normal((9, 2, 1), dtype=np.float32)
    second.load_state_dict(first.state_dict())
    np.testing.assert_array_equal(second(x)[0], first(x)[0])
    rf.save(second, path)  # its seeds are no longer those of its reservoirs
    np.testing.assert_array_equal(rf.load(path)(x)[0], first(x)[0])


def test_a_wrong_buffer_leaves_all_parts_as_they_were() -> None:
    model = rf.Sequential(rf.EchoState(1, 30, output_size=1, seed=0), rf.EchoState(1, 30, seed=1))
    before, other = model.state_dict(), rf.Sequential(rf.EchoState(1, 30, seed=2), rf.EchoState(1, 30, seed=3))
    wrong = other.state_dict() | {"1.weight_hh_indices": before["1.weight_hh_indices"] + 30}
    with pytest.raises(ValueError, match=r"state_dict: 1\.weight_hh_indices"):
        model.load_state_dict(wrong)
    for key, array in model.state_dict().items():
        np.testing.assert_array_equal(array, before[key])


def test_other_programs_can_read_the_tensors(path: Path) -> None:
    model = MODELS["sequential"]()
    rf.save(model, str(path))
    tensors = load_file(path)
    assert set(tensors) == set(model.params)
    assert all(np.array_equal(tensors[name], view) for name, view in model.params.items())


def test_strings_go_along(path: Path) -> None:
    metadata = {"vocabulary": "abc\nü😀", "": "{}"}
    saving.save(MODELS["gru"](), path, metadata=metadata)
    assert saving.load_with_metadata(path)[1] == metadata
    rf.save(MODELS["gru"](), path)
    assert saving.load_with_metadata(path)[1] == {}
    with pytest.raises(TypeError, match="metadata: expected strings"):
        saving.save(MODELS["gru"](), path, metadata={"size": 3})  # type: ignore[dict-item]


# ---- whole or not at all ---------------------------------------------------------------------------------------------
def test_a_file_appears_whole_or_not_at_all(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rf.save(MODELS["gru"](), path)
    before = path.read_bytes()

    def fail(_: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="no space left"):
        rf.save(MODELS["lstm"](), path)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_saving_replaces_and_leaves_nothing_beside(path: Path) -> None:
    for name in ("gru", "lstm"):
        rf.save(MODELS[name](), path)
    assert repr(rf.load(path)).startswith("LSTM")
    assert os.listdir(path.parent) == [path.name]


def test_errors_of_the_system_name_the_file(path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        rf.load(path)
    with pytest.raises(IsADirectoryError):
        rf.load(path.parent)
    missing = path.parent / "nowhere" / "model.safetensors"
    with pytest.raises(FileNotFoundError) as error:
        rf.save(MODELS["gru"](), missing)
    assert error.value.filename == str(missing)  # not the draft beside it


class Mine(rf.Linear):
    pass


def test_only_modules_of_the_library_can_be_saved(path: Path) -> None:
    for model in (Mine(2, 2), rf.Sequential(Mine(2, 2))):
        with pytest.raises(TypeError, match=r"model: expected modules of rnnfast, got .*\.Mine"):
            rf.save(model, path)
    with pytest.raises(TypeError, match="model: expected a module, got dict"):
        rf.save({}, path)  # type: ignore[arg-type]
    assert not path.exists()


# ---- foreign and damaged files ---------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "content",
    [b"", b"text", b"\x80\x04]\x94.", bytes(100), b"\xff" * 100, b"\x02" + bytes(7) + b"{}"],
    ids=["empty", "text", "pickle", "zeros", "ones", "no_tensors"],
)
def test_foreign_files_are_refused(content: bytes, path: Path) -> None:
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.safetensors: not a model saved by rnnfast, or damaged"):
        rf.load(path)


def test_safetensors_of_another_program_are_refused(path: Path) -> None:
    save_file({"weight": np.zeros(3, np.float32)}, path)
    with pytest.raises(ValueError, match="not a model saved by rnnfast, or damaged"):
        rf.load(path)


@pytest.mark.parametrize("size", [0, 7, 8, 50, -1])
def test_a_truncated_file_is_refused(size: int, path: Path) -> None:
    rf.save(MODELS["sequential"](), path)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match="not a model saved by rnnfast, or damaged"):
        rf.load(path)


def write_linear(path: Path, header: str) -> None:
    """The tensors of a Linear(4, 2), and whatever describes them."""
    save_file(rf.Linear(4, 2, seed=0).state_dict(), path, {"rnnfast": header})


def linear_header() -> dict[str, Any]:
    architecture = {"class": "Linear", "arguments": rf.Linear(4, 2, seed=0).config}
    return {"format": "1", "model": architecture, "metadata": {}}


def test_a_sound_header_is_taken(path: Path) -> None:
    """What the tests below damage would be a model otherwise."""
    write_linear(path, json.dumps(linear_header()))
    assert repr(rf.load(path)) == "Linear(4, 2)"
    assert np.array_equal(rf.load(path).flat_params, rf.Linear(4, 2, seed=0).flat_params)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda model: model.update({"class": "Module"}), "'Module'"),
        (lambda model: model.update({"class": "os.system"}), "'os.system'"),
        (lambda model: model.update({"class": ["Linear"]}), "unhashable"),
        (lambda model: model.pop("class"), "'class'"),
        (lambda model: model.pop("arguments"), "'arguments'"),
        (lambda model: model.update(arguments=None), "must be a mapping"),
        (lambda model: model["arguments"].update(in_features=7), r"weight: expected \(2, 7\), got \(2, 4\)"),
        (lambda model: model["arguments"].update(bias=False), "unexpected bias"),
        (lambda model: model["arguments"].update(in_features="4"), "in_features: expected an integer, got str"),
        (lambda model: model["arguments"].update(in_features=2**62), "too large to address"),
        (lambda model: model["arguments"].update(in_features=2**50), "Unable to allocate"),
        (lambda model: model["arguments"].update(dtype="object"), "dtype: expected float32 or float64"),
        (lambda model: model["arguments"].update(shell="rm"), "unexpected keyword argument 'shell'"),
        (lambda model: model.update({"class": "Sequential", "arguments": {"modules": 3}}), "not iterable"),
        (lambda model: model.update({"class": "Sequential", "arguments": {"modules": []}}), "expected at least one"),
        (lambda model: model.update({"class": "Sequential"}), "'modules'"),
    ],
)
def test_a_damaged_architecture_is_refused(change: Change, reason: str, path: Path) -> None:
    header = linear_header()
    change(header["model"])
    write_linear(path, json.dumps(header))
    with pytest.raises(ValueError, match=rf"not a model saved by rnnfast, or damaged \(.*{reason}"):
        rf.load(path)


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ('{"format": "2"}', "no model of format 1"),
        ("{}", "no model of format 1"),
        ('{"format": "1", "model": {', "Expecting"),
        ("[" * 100_000, "recursion"),
        ("3", "'int' object has no attribute"),
        ('{"format": "1", "model": 3, "metadata": {}}', "not subscriptable"),
        ('{"format": "1", "metadata": {}}', "'model'"),
        (json.dumps({k: v for k, v in linear_header().items() if k != "metadata"}), "'metadata'"),
        (json.dumps(linear_header() | {"metadata": 3}), "not iterable"),
        (json.dumps(linear_header() | {"metadata": {"vocabulary": ["a"]}}), "expected strings"),
    ],
)
def test_a_damaged_header_is_refused(header: str, reason: str, path: Path) -> None:
    write_linear(path, header)
    with pytest.raises(ValueError, match=rf"not a model saved by rnnfast, or damaged \(.*{reason}"):
        rf.load(path)
