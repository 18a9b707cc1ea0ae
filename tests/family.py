"""Problems for the reference alone: every cell of its family with every option, made without a layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rnnfast import reference
from rnnfast.reference import gru, slstm, sru
from shapes import Shape
from support import Array, Solution, as_state, as_tuple

# By the registry's names, whether or not it has them all yet.
CELLS: dict[str, reference.Cell] = {**reference.CELLS, **gru.CELLS, **sru.CELLS, **slstm.CELLS}
HEADS = 2  # of an sLSTM
SHAPE = Shape(5, 4, 3, 6)

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no_bias": {"bias": False},
    "stacked": {"num_layers": 2},
    "everything": {"num_layers": 2, "bidirectional": True, "ragged": True, "cut": True},
    "projection": {"projection": True},
    "layer_norm": {"layer_norm": True},
    "layer_norm_no_bias": {"layer_norm": True, "bias": False},
    "recurrent_dropout": {"recurrent_dropout": True},
    "zoneout": {"zoneout": True},
}


def takes(cell: str, options: Mapping[str, Any]) -> bool:
    """Whether the cell can be combined with these."""
    asked = {option for option in ("projection", "layer_norm", "recurrent_dropout") if options.get(option)}
    return asked <= CELLS[cell].options


def all_options(cell: str) -> dict[str, Any]:
    """All that the cell can be combined with, at once."""
    return {**OPTIONS["everything"], "zoneout": True, **dict.fromkeys(CELLS[cell].options, True)}


CASES = [
    *((cell, name, options) for cell in CELLS for name, options in OPTIONS.items() if takes(cell, options)),
    *((cell, "all", all_options(cell)) for cell in CELLS),
]


@dataclass(frozen=True, eq=False)
class Family:
    """What goes into `reference.forward` and `reference.backward`."""

    cells: tuple[reference.Cell, ...]  # of each layer
    params: Mapping[str, Array]
    x: Array
    state: tuple[Array, ...] | None
    dy: Array
    dstate: tuple[Array, ...]
    lengths: Array | None = None
    resets: Array | None = None
    keep: tuple[Array | None, ...] | None = None
    recurrent_scale: Array | None = None

    def forward(self, dtype: Any = np.float64) -> Any:
        state = None if self.state is None else as_state(self.state)
        keep = None if self.keep is None else as_state(self.keep)
        return reference.forward(
            self.cells,
            self.params,
            self.x,
            state,
            self.lengths,
            self.resets,
            dtype,
            keep=keep,
            recurrent_scale=self.recurrent_scale,
        )

    def solve(self, dtype: Any = np.float64, clip: float = np.inf) -> Solution:
        """Everything that comes out, by name."""
        y, final, tape = self.forward(dtype)
        dx, dinitial, grads = reference.backward(tape, self.dy, as_state(self.dstate), clip=clip)
        return {
            "y": y,
            "dx": dx,
            **{f"final state {k}": s for k, s in enumerate(as_tuple(final))},
            **{f"gradient of state {k}": s for k, s in enumerate(as_tuple(dinitial))},
            **{f"gradient of {name}": gradient for name, gradient in grads.items()},
        }

    def with_params(self, **changes: Array) -> Family:
        return replace(self, params={**self.params, **changes})


def layer_cells(cell: str, shape: Shape, num_layers: int, directions: int) -> list[str]:
    """The cell of each layer: an SRU with as many inputs as units has no fourth block of rows."""
    if not cell.startswith("sru"):
        return [cell] * num_layers
    above = "sru" if directions == 1 else "sru_skip"
    return [cell, *[above] * (num_layers - 1)]


def parameter_shapes(cell: str, inputs: int, hidden: int, outputs: int, bias: bool, layer_norm: bool) -> dict[str, Any]:
    """name -> shape, of one direction of one layer; `outputs` is `hidden` without a projection."""
    rows = len(CELLS[cell].gates) * hidden
    recurrent = "recurrent_dropout" in CELLS[cell].options
    shapes: dict[str, Any] = {"weight_ih": (rows, inputs)}
    if recurrent:
        shapes["weight_hh"] = (rows, hidden // HEADS if cell == "slstm" else outputs)
    if cell.startswith("ind_rnn"):
        shapes["weight_hh"] = (hidden,)
    if cell.startswith("sru"):
        shapes["weight_c"] = (2 * hidden,)
    if cell.endswith("peephole"):
        forget = ("weight_cf",) if cell == "lstm_peephole" else ()
        shapes |= dict.fromkeys(("weight_ci", *forget, "weight_co"), (hidden,))
    if outputs != hidden:
        shapes["weight_hr"] = (outputs, hidden)
    if layer_norm:
        shapes |= dict.fromkeys(("ln_ih_weight", "ln_ih_bias", "ln_hh_weight", "ln_hh_bias"), (rows,))
    if bias:
        shapes |= dict.fromkeys(("bias_ih", "bias_hh") if recurrent else ("bias_ih",), (rows,))
    return shapes


def make_family(
    cell: str,
    shape: Shape = SHAPE,
    *,
    num_layers: int = 1,
    bidirectional: bool = False,
    bias: bool = True,
    projection: bool = False,
    layer_norm: bool = False,
    recurrent_dropout: bool = False,
    zoneout: bool = False,
    given: bool = True,
    ragged: bool = False,
    cut: bool = False,
) -> Family:
    """Random numbers; `sru` gets as many features as units. The options are those of `support.make_problem` and more:
    `projection` leaves h two features fewer than units, `zoneout` has masks for an sLSTM's cell and shares elsewhere.
    """
    random = np.random.default_rng(0)
    steps, batch, inputs, hidden = shape._replace(input=shape.hidden) if cell == "sru" else shape
    directions = 2 if bidirectional else 1
    outputs = hidden - 2 if projection else hidden
    cells = layer_cells(cell, shape, num_layers, directions)
    params = {}
    for k, name in enumerate(cells):
        for end in ("", "_reverse")[:directions]:
            below = directions * outputs if k else inputs
            for part, size in parameter_shapes(name, below, hidden, outputs, bias, layer_norm).items():
                params[f"{part}_l{k}{end}"] = 0.5 * random.standard_normal(size)
    widths = [outputs, *[hidden] * (len(CELLS[cell].initial) - 1)]
    scans = num_layers * directions
    state = [random.standard_normal((scans, batch, width)) for width in widths]
    dstate = [random.standard_normal(s.shape) for s in state]
    if cell == "slstm":
        state[2] = random.uniform(1, 2, state[2].shape)  # n
        dstate[3][...] = 0  # m is no function of anything
    keep = None
    if zoneout:
        keep = tuple(random.random((scans, steps, batch, width)) for width in widths)
        if cell == "slstm":  # c, n and m mean something together
            keep = (keep[0], *[(keep[1] < 0.3).astype(float)] * 3)
    lengths = np.array([steps, 0, steps - 2, steps - 1] * batch)[:batch] if ragged else None
    padding = np.arange(steps)[:, None] >= (np.full(batch, steps) if lengths is None else lengths)
    x = random.standard_normal((steps, batch, inputs))
    dy = random.standard_normal((steps, batch, directions * outputs))
    x[padding], dy[padding] = np.nan, np.nan
    resets = random.random((steps, batch)) < 0.3
    resets[:1, ::2] = True
    return Family(
        cells=tuple(CELLS[name] for name in cells),
        params=params,
        x=x,
        state=tuple(state) if given else None,
        dy=dy,
        dstate=tuple(dstate),
        lengths=lengths,
        resets=resets if cut else None,
        keep=keep,
        recurrent_scale=random.uniform(0.5, 1.5, state[0].shape) if recurrent_dropout else None,
    )


def assert_same_solution(got: Solution, expected: Solution, tolerance: float = 1e-12) -> None:
    """To the rounding errors of another order of operations; of zero for the same values."""
    for name, array in expected.items():
        scale = max(1.0, float(np.max(np.abs(np.where(np.isfinite(array), array, 0)), initial=0)))
        np.testing.assert_allclose(got[name], array, rtol=0, atol=tolerance * scale, err_msg=name)
