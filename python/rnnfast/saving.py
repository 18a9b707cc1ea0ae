"""Models as files: safetensors for the parameters, the architecture as JSON in its metadata. Never pickle."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rnnfast import echo_state, ensemble, heads, layers, modules, seq2seq
from rnnfast.module import Module

__all__ = ["load", "load_with_metadata", "save"]

_FORMAT = "1"
_HOMES = (layers, modules, heads, echo_state, ensemble, seq2seq)
_NAMED = {name: getattr(home, name) for home in _HOMES for name in home.__all__}
_CLASSES: dict[str, type[Module]] = {name: kind for name, kind in _NAMED.items() if issubclass(kind, Module)}


def save(model: Module, path: str | os.PathLike[str], *, metadata: Mapping[str, str] | None = None) -> None:
    """Write a model's architecture, parameters and buffers to one safetensors file.

    The file appears whole or not at all: it is written beside `path` and then takes its place. Other programs can read
    its tensors, which are named as in `state_dict`. Strings in `metadata` go along for `load_with_metadata`.

    Raises:
        TypeError: the model has a module that isn't rnnfast's own, or `metadata` isn't strings.
        ValueError: an option was set for some models of an `Ensemble` alone.
        OSError: the file can't be written.
    """
    from safetensors.numpy import save as to_bytes

    if not isinstance(model, Module):
        raise TypeError(f"model: expected a module, got {type(model).__name__}")
    given = _strings(metadata or {})
    # One entry, since safetensors writes several in an order that varies from run to run.
    header = {"rnnfast": json.dumps({"format": _FORMAT, "model": _describe(model), "metadata": given}, sort_keys=True)}
    tensors = {name: np.ascontiguousarray(array) for name, array in model.state_dict().items()}
    write_whole(path, to_bytes(tensors, header))


def load(path: str | os.PathLike[str]) -> Module:
    """The model that `save` wrote, in training mode like a new one.

    Raises:
        OSError: the file can't be read.
        ValueError: it isn't a model saved by rnnfast, or it is damaged.

    Examples:
        >>> import tempfile
        >>> import rnnfast as rf
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     rf.save(rf.Sequential(rf.LSTM(4, 8), rf.Linear(8, 2)), f"{folder}/model.safetensors")
        ...     rf.load(f"{folder}/model.safetensors")
        Sequential(
          (0): LSTM(4, 8)
          (1): Linear(8, 2)
        )
    """
    return load_with_metadata(path)[0]


def load_with_metadata(path: str | os.PathLike[str]) -> tuple[Module, dict[str, str]]:
    """The model that `save` wrote, and the strings that went along. Raises as `load` does."""
    from safetensors import SafetensorError, safe_open

    with open(path, "rb"):  # the errors of the system for what is missing or forbidden
        pass
    try:
        with safe_open(path, framework="numpy") as file:
            header = json.loads((file.metadata() or {}).get("rnnfast", "{}"))
            if header.get("format") != _FORMAT:
                raise ValueError(f"no model of format {_FORMAT}")
            model, metadata = _build(header["model"]), _strings(header["metadata"])
            model.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118  no mapping
    except (SafetensorError, ValueError, TypeError, KeyError, AttributeError, RecursionError, MemoryError) as error:
        raise ValueError(f"{os.fspath(path)}: not a model saved by rnnfast, or damaged ({error})") from None
    return model, metadata


def write_whole(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file that appears whole or not at all: under another name in the same folder, then renamed."""
    target = Path(path)
    draft = target.with_name(f".{target.name}.{os.getpid()}.{os.urandom(4).hex()}")
    try:
        with open(draft, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, target)
    except OSError as error:
        if error.filename == os.fspath(draft):  # nobody knows that name
            error.filename = os.fspath(path)
        raise
    finally:
        draft.unlink(missing_ok=True)


def _strings(metadata: Mapping[str, str]) -> dict[str, str]:
    strings = dict(metadata)
    if not all(isinstance(text, str) for item in strings.items() for text in item):
        raise TypeError("metadata: expected strings")
    return strings


def _describe(module: Module) -> dict[str, Any]:
    """Class and constructor's arguments, recursively."""
    name = type(module).__name__
    if _CLASSES.get(name) is not type(module):
        raise TypeError(f"model: expected modules of rnnfast, got {type(module).__module__}.{name}")
    if isinstance(module, modules.Sequential):
        return {"class": name, "arguments": {"modules": [_describe(part) for part in module]}}
    if isinstance(module, seq2seq.Seq2Seq):
        parts = [_describe(part) for part in module.modules]
        return {"class": name, "arguments": {"modules": parts, "start": module.start, "end": module.end}}
    if isinstance(module, ensemble.Ensemble):
        models = [_describe(model) for model in module]
        seeds = [[place["seed"] for place in _seeded(model)] for model in models]
        if any(_reseeded(models[0], own) != model for model, own in zip(models, seeds, strict=True)):
            raise ValueError("model: expected an Ensemble whose models differ in their seeds alone")
        return {"class": name, "arguments": {"model": models[0], "seeds": list(module.seeds), "own_seeds": seeds}}
    return {"class": name, "arguments": module.config}


def _build(architecture: dict[str, Any]) -> Module:
    """A new module of the architecture."""
    kind, arguments = _CLASSES[architecture["class"]], architecture["arguments"]
    if kind is modules.Sequential:
        return modules.Sequential(*map(_build, arguments["modules"]))
    if kind is seq2seq.Seq2Seq:
        parts: Any = map(_build, arguments["modules"])
        encoder, decoder = parts
        return kind(encoder, decoder, start=arguments["start"], end=arguments["end"])
    if kind is ensemble.Ensemble:
        models = iter([_build(_reseeded(arguments["model"], seeds)) for seeds in arguments["own_seeds"]])
        return ensemble.Ensemble(lambda seed: next(models), len(arguments["own_seeds"]), seed=arguments["seeds"])
    return kind(**arguments)


def _seeded(architecture: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The arguments with a seed among them, in their order."""
    arguments = architecture["arguments"]
    if "seed" in arguments:
        yield arguments
    for part in arguments.get("modules", ()):
        yield from _seeded(part)


def _reseeded(architecture: dict[str, Any], seeds: list[int]) -> dict[str, Any]:
    """The architecture with other seeds."""
    architecture = copy.deepcopy(architecture)
    for arguments, seed in zip(_seeded(architecture), seeds, strict=True):
        arguments["seed"] = seed
    return architecture
