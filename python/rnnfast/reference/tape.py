"""What a forward pass leaves behind, and how the parameters' names tell the layers and directions of a stack."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from rnnfast.reference.sequence import Step
from rnnfast.reference.shared import Array, Cell, Params, Vectors


@dataclass(frozen=True)
class Tape:
    """What `forward` leaves for `backward`, and for those who want to look inside.

    `inputs[k]` is the input of layer k, (T, B, features); `steps[j][b]` are the steps of row b in layer · direction j.
    """

    cell: Cell
    params: Params
    inputs: list[Array]
    steps: list[list[list[Step]]]

    def _collect(self, values: Callable[[Step], Vectors], count: int) -> Array:
        """(layers·directions, T, B, count, H) of what `values` picks from each step, zero where no step was."""
        steps, batch, _ = self.inputs[0].shape
        hidden = hidden_size(self.cell, self.params)
        out = np.zeros((len(self.steps), steps, batch, count, hidden), self.inputs[0].dtype)
        for j, rows in enumerate(self.steps):
            for b, row in enumerate(rows):
                for step in row:
                    out[j, step.t, b] = values(step)
        return out

    @property
    def states(self) -> Array:
        """Every state after every step, (layers·directions, T, B, states, H); the first is h. Zero past a length."""
        return self._collect(lambda step: step.after, len(self.cell.initial))

    @property
    def gates(self) -> Array:
        """The gates after their activation, (layers·directions, T, B, G, H). Zero past a length."""
        return self._collect(lambda step: step.gates, len(self.cell.gates))


def hidden_size(cell: Cell, params: Params) -> int:
    rows: int = params["weight_ih_l0"].shape[0]
    return rows // len(cell.gates)


def suffixes(params: Params) -> list[list[str]]:
    """The endings of the parameters' names, a list of directions for each layer: [["_l0", "_l0_reverse"], …]."""
    layers = sum(name.startswith("weight_ih_l") and not name.endswith("_reverse") for name in params)
    directions = ["", "_reverse"] if "weight_ih_l0_reverse" in params else [""]
    return [[f"_l{k}{direction}" for direction in directions] for k in range(layers)]


def select(params: Params, suffix: str) -> dict[str, Array]:
    """The parameters of one direction of one layer, by the names that the cells use."""
    return {name.removesuffix(suffix): array for name, array in params.items() if name.endswith(suffix)}
