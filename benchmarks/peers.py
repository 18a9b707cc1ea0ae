"""Which peers are installed. Their modules are imported when they are first used: some take seconds."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

from .contenders import Builder, Contender, Kind, Problem
from .variants import USUAL_CELLS

PACKAGES = {
    "PyTorch": ("torch",),
    "JAX": ("jax",),
    "ONNX Runtime": ("onnxruntime", "onnx"),
    "reservoirpy": ("reservoirpy",),
}

EAGER = {
    "PyTorch": ("peer_torch", "eager"),
    "JAX": ("peer_jax", "scan"),
    "ONNX Runtime": ("peer_onnx", "session"),
}
FAMILY = {"PyTorch": ("peer_torch", "eager")}
IN_ONNX = ("LSTM peephole", "LSTM coupled", "GRU reset before", "RNN relu")  # of the family, what its operators have
SLOW = {"torch.compile": ("peer_torch", "compiled")}
RAGGED = {"PyTorch packed": ("peer_torch", "packed"), "PyTorch padded": ("peer_torch", "padded")}
BFLOAT16 = {"PyTorch bf16": ("peer_torch", "bfloat16")}


def of_cell(cell: str) -> dict[str, tuple[str, str]]:
    """The peers of a name in variants.py."""
    if cell in USUAL_CELLS:
        return EAGER
    return FAMILY | ({"ONNX Runtime": EAGER["ONNX Runtime"]} if cell in IN_ONNX else {})


def missing(peer: str) -> list[str]:
    """The packages of a peer that are not installed."""
    return [package for package in PACKAGES[peer] if find_spec(package) is None]


def installed() -> list[str]:
    return [peer for peer in PACKAGES if not missing(peer)]


def module(name: str) -> Any:
    """A module of this package that imports a peer."""
    return import_module(f".{name}", __package__)


def builders(places: dict[str, tuple[str, str]]) -> dict[str, Builder]:
    """Peer -> builder, of those whose packages are installed."""
    modules = {"PyTorch": "peer_torch", "JAX": "peer_jax", "ONNX Runtime": "peer_onnx"}
    there = {modules[peer] for peer in installed() if peer in modules}
    return {peer: _builder(*place) for peer, place in places.items() if place[0] in there}


def _builder(file: str, function: str) -> Builder:
    def build(problem: Problem, kind: Kind) -> Contender:
        contender: Contender = getattr(module(file), function)(problem, kind)
        return contender

    return build
