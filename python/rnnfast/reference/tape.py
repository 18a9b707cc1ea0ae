"""What a forward pass leaves behind, and how the parameters' names tell the layers and directions of a stack."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from rnnfast.reference.sequence import Step
from rnnfast.reference.shared import Array, Cell, Params


@dataclass(frozen=True)
class Tape:
    """What `forward` leaves for `backward`, and for those who want to look inside.

    `cells[k]` is the cell of layer k and `inputs[k]` its input, (T, B, features); `steps[j][b]` are the steps of row b
    in layer · direction j.
    """

    cells: tuple[Cell, ...]
    params: Params
    inputs: list[Array]
    steps: list[list[list[Step]]]
    recurrent_scale: Array | None = None

    def _collect(self, value: Callable[[Step], Array], *sizes: int) -> Array:
        """(layers·directions, T, B, *sizes) of what `value` picks from each step, zero where no step was."""
        steps, batch, _ = self.inputs[0].shape
        out = np.zeros((len(self.steps), steps, batch, *sizes), self.inputs[0].dtype)
        for j, rows in enumerate(self.steps):
            for b, row in enumerate(rows):
                for step in row:
                    out[j, step.t, b] = value(step)
        return out

    def state(self, k: int) -> Array:
        """State k after every step, (layers·directions, T, B, H), with P for H in a projected h. Zero past a length."""
        return self._collect(lambda step: step.after[k], state_widths(self.cells[0], self.params)[k])

    @property
    def states(self) -> Array:
        """Every state after every step, (layers·directions, T, B, states, H); the first is h. Zero past a length.

        ValueError if they differ in width, as projected ones do.
        """
        widths = state_widths(self.cells[0], self.params)
        if len(set(widths)) > 1:
            raise ValueError(f"states: expected states of one width, got {widths}; state(k) gives one of them")
        return np.stack([self.state(k) for k in range(len(widths))], axis=3)

    @property
    def gates(self) -> Array:
        """The gates after their activation, (layers·directions, T, B, G, H). Zero past a length.

        ValueError if the layers' cells differ in G.
        """
        counts = tuple(len(cell.gates) for cell in self.cells)
        if len(set(counts)) > 1:
            raise ValueError(f"gates: expected as many in every layer, got {counts}; steps has them")
        sizes = counts[0], hidden_size(self.cells[0], self.params)
        return self._collect(lambda step: np.stack(step.gates), *sizes)


def hidden_size(cell: Cell, params: Params) -> int:
    """H, from the first layer, of which `cell` is."""
    rows: int = params["weight_ih_l0"].shape[0]
    return rows // len(cell.gates)


def state_widths(cell: Cell, params: Params) -> tuple[int, ...]:
    """The features of each state: H, but P for h where it is projected."""
    hidden = hidden_size(cell, params)
    output = len(params["weight_hr_l0"]) if "weight_hr_l0" in params else hidden
    return (output, *[hidden] * (len(cell.initial) - 1))


def suffixes(params: Params) -> list[list[str]]:
    """The endings of the parameters' names, a list of directions for each layer: [["_l0", "_l0_reverse"], …]."""
    layers = sum(name.startswith("weight_ih_l") and not name.endswith("_reverse") for name in params)
    directions = ["", "_reverse"] if "weight_ih_l0_reverse" in params else [""]
    return [[f"_l{k}{direction}" for direction in directions] for k in range(layers)]


def select(params: Params, suffix: str) -> dict[str, Array]:
    """The parameters of one direction of one layer, by the names that the cells use."""
    return {name.removesuffix(suffix): array for name, array in params.items() if name.endswith(suffix)}


def of_row(weights: Params, recurrent_scale: Array | None, j: int, b: int) -> Params:
    """What a cell sees as parameters in row b of layer · direction j: with the row's scale of h, if there is one."""
    return weights if recurrent_scale is None else {**weights, "recurrent_scale": recurrent_scale[j, b]}
