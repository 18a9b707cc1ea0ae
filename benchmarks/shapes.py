"""The named shapes of shapes.toml, and the layers that are measured at them."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import rnnfast as rf
from rnnfast.recurrent import Recurrent

Extent = Literal["quick", "default", "full"]
EXTENTS: tuple[Extent, ...] = ("quick", "default", "full")

USUAL_CELLS = ("LSTM", "GRU", "RNN")


@dataclass(frozen=True)
class Shape:
    """T steps, B rows, I input features, H units; `run` is the shortest run that has it."""

    name: str
    T: int
    B: int
    I: int  # noqa: E741
    H: int
    run: Extent = "full"

    @property
    def sizes(self) -> str:
        return f"{self.T}, {self.B}, {self.I}, {self.H}"


def load_shapes() -> dict[str, Shape]:
    data = tomllib.loads(Path(__file__).with_name("shapes.toml").read_text(encoding="utf-8"))
    shapes = {}
    for name, entry in data.items():
        T, B, I, H = entry["TBIH"]  # noqa: E741
        shapes[name] = Shape(name, T, B, I, H, entry["run"])
    return shapes


def shapes_of(extent: Extent) -> dict[str, Shape]:
    """The shapes of a run of this extent; each extent has those of the shorter ones."""
    reach = EXTENTS.index(extent)
    return {name: shape for name, shape in load_shapes().items() if EXTENTS.index(shape.run) <= reach}


def all_cells() -> tuple[str, ...]:
    """The names of every recurrent layer, the usual ones first."""
    layers = (name for name in rf.__all__ if isinstance(getattr(rf, name), type))
    recurrent = {name for name in layers if issubclass(getattr(rf, name), Recurrent)}
    return (*USUAL_CELLS, *sorted(recurrent.difference(USUAL_CELLS)))
