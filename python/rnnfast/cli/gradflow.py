"""`rnnfast gradflow`: how far back in time a gradient reaches, network by network, as a table and a picture."""

from __future__ import annotations

import argparse
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rnnfast.cli.files import output_folder
from rnnfast.cli.interrupts import Interrupts
from rnnfast.cli.options import CommandError, Help, Parser, whole
from rnnfast.flow import gradient_flow
from rnnfast.init import initialize
from rnnfast.layers import GRU, LSTM, RNN
from rnnfast.recurrent import Recurrent
from rnnfast.saving import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

INPUTS, ROWS, DRAWS = 16, 16, 4  # features of x, sequences of a network, networks with other weights
LOWEST = 1e-12  # what the picture shows
LOST = 2.0**-24  # added to one in float32, it leaves no trace


@dataclass(frozen=True)
class Network:
    name: str
    color: str  # the five are told apart with any colour vision
    kind: type[Recurrent]
    options: dict[str, Any]

    def make(self, hidden: int, steps: int, prepared: bool, seed: int) -> Recurrent:
        """In float64, whose range holds a gradient that has vanished; `prepared` for memories of so many steps."""
        layer = self.kind(INPUTS, hidden, dtype=np.float64, seed=seed, **self.options)
        if prepared:
            gates = {} if self.kind is RNN else {"chrono": max(steps, 3)}
            initialize(layer, weight_hh="orthogonal", bias="zeros", seed=seed, **gates)
        return layer


NETWORKS = (
    Network("GRU", "#228833", GRU, {}),
    Network("LSTM", "#cc3311", LSTM, {}),
    Network("tanh RNN", "#4477aa", RNN, {"nonlinearity": "tanh"}),
    Network("relu RNN", "#ccaa00", RNN, {"nonlinearity": "relu"}),
    Network("sigmoid RNN", "#aa3377", RNN, {"nonlinearity": "sigmoid"}),
)


@dataclass(frozen=True)
class Curve:
    network: Network
    prepared: bool
    shares: np.ndarray[Any, Any]  # (sequences, T): ‖∂L/∂h‖ by distance from the last step, there being 1

    @property
    def median(self) -> np.ndarray[Any, Any]:
        middle: np.ndarray[Any, Any] = np.median(self.shares, axis=0)
        return middle


def add_parser(commands: argparse._SubParsersAction[Parser]) -> Parser:
    parser = commands.add_parser(
        "gradflow",
        help="show how far back in time gradients reach",
        description="Draw and print how the gradient of the last state shrinks on its way back through untrained "
        "networks that read noise: with PyTorch's default initial values, and with orthogonal recurrent weights and "
        "gates that are open for memories as long as the sequence (chrono).",
        formatter_class=Help,
    )
    parser.add_argument("--steps", type=whole(2), default=100, metavar="T", help="length of the sequences")
    parser.add_argument("--hidden", type=whole(1), default=64, metavar="N", help="units of a network")
    parser.add_argument("--seed", type=whole(0), default=0, metavar="N", help="of weights and noise")
    parser.add_argument("--out", type=Path, default=Path("gradflow.png"), metavar="FILE", help="picture to write")
    return parser


def run(arguments: argparse.Namespace, interrupts: Interrupts) -> int:
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        package = str(error.name).partition(".")[0]
        raise CommandError(f'{package} is not installed: pip install "rnnfast[cli]"') from error
    with output_folder(arguments.out.parent, (arguments.out.name,)):
        try:
            curves = list(_curves(arguments.steps, arguments.hidden, arguments.seed))
        except ValueError as error:
            raise CommandError(str(error)) from error
        try:
            write_whole(arguments.out, picture(curves, arguments.hidden))
        except OSError as error:
            raise CommandError(f"cannot write {arguments.out}: {error.strerror}") from error
    print(table(curves))
    print(f"\npicture: {arguments.out}")
    return 0


def _curves(steps: int, hidden: int, seed: int) -> Iterator[Curve]:
    for network in NETWORKS:
        for prepared in (True, False):
            # Every network has the same seeds, so that all read the same noise.
            seeds = np.random.default_rng(seed).integers(2**63, size=DRAWS)
            draws = [_shares(network.make(hidden, steps, prepared, int(s)), steps, int(s)) for s in seeds]
            yield Curve(network, prepared, np.concatenate(draws))


def _shares(layer: Recurrent, steps: int, seed: int) -> np.ndarray[Any, Any]:
    """(ROWS, T): the gradient of a random function of the last h, by distance, over its norm at the last step."""
    random = np.random.default_rng(seed)
    _, state, tape = layer.forward(random.standard_normal((steps, ROWS, INPUTS)))
    h = state[0] if isinstance(state, tuple) else state
    dh = random.standard_normal(h.shape)
    dstate = (dh, np.zeros_like(dh)) if isinstance(state, tuple) else dh
    norms = gradient_flow(layer, tape, None, dstate).hidden[0]
    shares: np.ndarray[Any, Any] = (norms[::-1] / norms[-1]).T
    return shares


def table(curves: list[Curve]) -> str:
    """The medians at some distances."""
    last = curves[0].shares.shape[1] - 1
    distances = [*[d for d in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if d < last][-6:], last]
    lines = [
        "‖∂L/∂h‖ some steps before the last, over that at the last (medians)",
        "",
        f"{'steps back':<12}{'initial values':<16}" + "".join(f"{d:>10}" for d in distances),
    ]
    for curve in curves:
        values = "".join(f"{curve.median[d]:>10.1e}" for d in distances)
        lines.append(f"{curve.network.name:<12}{'prepared' if curve.prepared else 'default':<16}{values}")
    return "\n".join(lines)


def picture(curves: list[Curve], hidden: int) -> bytes:
    """The medians over distance, and the middle four fifths of the sequences around them, as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.add_subplot()
    for curve in curves:
        _draw_curve(axes, curve)
    axes.axhline(LOST, color="#666666", linewidth=0.8, zorder=1)
    axes.annotate(
        "below 2⁻²⁴: lost beside\nthe last step's in a\nfloat32 sum",
        (1.02, LOST),
        xycoords=("axes fraction", "data"),
        annotation_clip=False,
        va="center",
        color="#666666",
        fontsize=9,
    )
    axes.set_yscale("log")
    axes.set_ylim(LOWEST, 4)
    axes.set_xlim(0, curves[0].shares.shape[1] - 1)
    axes.set_title(f"How far back gradients reach in untrained networks of {hidden} units", pad=12)
    axes.set_xlabel("steps before the last")
    axes.set_ylabel("‖∂L/∂h‖, over that at the last step")
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(handles=_legend(), frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.02))
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=120)
    return png.getvalue()


def _draw_curve(axes: Axes, curve: Curve) -> None:
    distances = np.arange(curve.shares.shape[1])
    axes.plot(distances, curve.median, color=curve.network.color, **_style(curve.prepared))
    if curve.prepared:
        low, high = np.quantile(curve.shares, [0.1, 0.9], axis=0)
        axes.fill_between(distances, low, high, color=curve.network.color, alpha=0.15, linewidth=0)


def _style(prepared: bool) -> dict[str, Any]:
    return {"linewidth": 2.2} if prepared else {"linewidth": 1.2, "linestyle": (0, (4, 2))}


def _legend() -> list[Line2D]:
    """Colours name the networks, lines their initial values."""
    from matplotlib.lines import Line2D

    colors = [Line2D([], [], color=network.color, label=network.name, **_style(True)) for network in NETWORKS]
    names = {True: "W_hh orthogonal,\ngates open (chrono)", False: "PyTorch's\ninitial values"}
    return colors + [Line2D([], [], color="#333333", label=name, **_style(kind)) for kind, name in names.items()]
