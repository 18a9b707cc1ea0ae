"""The named shapes of shapes.toml."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Extent = Literal["quick", "default", "full"]
EXTENTS: tuple[Extent, ...] = ("quick", "default", "full")


@dataclass(frozen=True)
class Shape:
    """T steps, B rows, I input features, H units; `run` is the shortest run that has it.

    `family`: a full run measures not only the usual cells there.
    """

    name: str
    T: int
    B: int
    I: int  # noqa: E741
    H: int
    run: Extent = "full"
    family: bool = False

    @property
    def sizes(self) -> str:
        return f"{self.T}, {self.B}, {self.I}, {self.H}"


def load_shapes() -> dict[str, Shape]:
    data = tomllib.loads(Path(__file__).with_name("shapes.toml").read_text(encoding="utf-8"))
    shapes = {}
    for name, entry in data.items():
        T, B, I, H = entry["TBIH"]  # noqa: E741
        shapes[name] = Shape(name, T, B, I, H, entry["run"], entry.get("family", False))
    return shapes


def shapes_of(extent: Extent) -> dict[str, Shape]:
    """The shapes of a run of this extent; each extent has those of the shorter ones."""
    reach = EXTENTS.index(extent)
    return {name: shape for name, shape in load_shapes().items() if EXTENTS.index(shape.run) <= reach}
