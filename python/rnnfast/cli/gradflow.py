"""`rnnfast gradflow`: how gradients vanish and explode on their way back in time, as a table and a picture."""

from __future__ import annotations

import argparse
import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rnnfast.cli.files import output_folder
from rnnfast.cli.interrupts import Interrupts
from rnnfast.cli.options import CommandError, Help, Parser, above_zero, whole
from rnnfast.flow import gradient_flow
from rnnfast.init import initialize
from rnnfast.layers import GRU, LSTM, RNN
from rnnfast.recurrent import Recurrent
from rnnfast.saving import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

INPUTS, ROWS, DRAWS = 16, 16, 4  # features of x, sequences of a network, networks with other weights
LOWEST, HIGHEST = 1e-12, 1e12  # what the picture shows at most
LOST = 2.0**-24  # added to one in float32, it leaves no trace


@dataclass(frozen=True)
class Network:
    name: str
    color: str  # the five are told apart with any colour vision
    kind: type[Recurrent]
    options: dict[str, Any]

    def make(self, hidden: int, steps: int, gain: float | None, seed: int) -> Recurrent:
        """In float64, whose range holds a gradient that has vanished or exploded.

        With PyTorch's initial values, or an orthogonal W_hh times a gain and gates for memories of so many steps.
        """
        layer = self.kind(INPUTS, hidden, dtype=np.float64, seed=seed, **self.options)
        if gain is not None:
            gates = {} if self.kind is RNN else {"chrono": max(steps, 3)}
            initialize(layer, weight_hh=("orthogonal", gain), bias="zeros", seed=seed, **gates)
        return layer


NETWORKS = (
    Network("GRU", "#11aa88", GRU, {}),
    Network("LSTM", "#bb2211", LSTM, {}),
    Network("tanh RNN", "#0055aa", RNN, {"nonlinearity": "tanh"}),
    Network("relu RNN", "#ddaa00", RNN, {"nonlinearity": "relu"}),
    Network("sigmoid RNN", "#cc77cc", RNN, {"nonlinearity": "sigmoid"}),
)


@dataclass(frozen=True)
class Curve:
    name: str
    color: str
    main: bool  # not the h of a network whose memory is c
    shares: np.ndarray[Any, Any]  # (sequences, T): by distance from the last step, ‖∂L/∂h‖ being 1 there

    @property
    def finite(self) -> bool:
        return bool(np.isfinite(self.shares).all())

    @property
    def median(self) -> np.ndarray[Any, Any]:
        middle: np.ndarray[Any, Any] = np.median(self.shares, axis=0)
        return middle


@dataclass(frozen=True)
class Panel:
    """The networks with the same kind of initial values."""

    title: str
    curves: list[Curve]


def add_parser(commands: argparse._SubParsersAction[Parser]) -> Parser:
    parser = commands.add_parser(
        "gradflow",
        help="show how gradients vanish and explode on their way back in time",
        description="Draw and print how the gradient of the last state shrinks and grows on its way back through "
        "untrained networks that read noise: with PyTorch's default initial values; with orthogonal recurrent weights "
        "and gates that are open for memories as long as the sequence (chrono); and with these recurrent weights times "
        "a gain.",
        formatter_class=Help,
    )
    parser.add_argument("--steps", type=whole(2), default=100, metavar="T", help="length of the sequences")
    parser.add_argument("--hidden", type=whole(1), default=64, metavar="N", help="units of a network")
    parser.add_argument("--gain", type=above_zero, default=2.0, metavar="G", help="factor of the recurrent weights")
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
            panels = _panels(arguments.steps, arguments.hidden, arguments.gain, arguments.seed)
        except ValueError as error:
            raise CommandError(str(error)) from error
        try:
            write_whole(arguments.out, picture(panels, arguments.hidden))
        except OSError as error:
            raise CommandError(f"cannot write {arguments.out}: {error.strerror}") from error
    print(table(panels))
    print(f"\npicture: {arguments.out}")
    return 0


def _panels(steps: int, hidden: int, gain: float, seed: int) -> list[Panel]:
    starts = {
        "PyTorch's initial values": None,
        "W_hh orthogonal, gates open": 1.0,
        f"W_hh orthogonal × {gain:g}, gates open": gain,
    }
    return [
        Panel(title, [curve for network in NETWORKS for curve in _curves(network, hidden, steps, start, seed)])
        for title, start in starts.items()
    ]


def _curves(network: Network, hidden: int, steps: int, gain: float | None, seed: int) -> list[Curve]:
    """One of each state: h, or c and h."""
    # Every network has the same seeds, so that all read the same noise.
    seeds = np.random.default_rng(seed).integers(2**63, size=DRAWS)
    draws = [_shares(network.make(hidden, steps, gain, int(s)), steps, int(s)) for s in seeds]
    h, *cell = (np.concatenate(state) for state in zip(*draws, strict=True))
    if not cell:
        return [Curve(network.name, network.color, True, h)]
    return [
        Curve(f"{network.name}, c", network.color, True, cell[0]),
        Curve(f"{network.name}, h", network.color, False, h),
    ]


def _shares(layer: Recurrent, steps: int, seed: int) -> list[np.ndarray[Any, Any]]:
    """(ROWS, T) of each state: the gradient of a random function of the last h, by distance, over that of this h.

    Infinite where the network, or its gradient, grows out of float64.
    """
    random = np.random.default_rng(seed)
    y, state, tape = layer.forward(random.standard_normal((steps, ROWS, INPUTS)))
    h = state[0] if isinstance(state, tuple) else state
    dh = random.standard_normal(h.shape)
    dstate = (dh, np.zeros_like(dh)) if isinstance(state, tuple) else dh
    with np.errstate(over="ignore", invalid="ignore"):
        flow = gradient_flow(layer, tape, None, dstate)
        shares = [(norms[0, ::-1] / flow.hidden[0, -1]).T for norms in flow.states]
    finite = all(np.isfinite(array).all() for array in (y, *shares))
    return shares if finite else [np.full_like(share, np.inf) for share in shares]


def table(panels: list[Panel]) -> str:
    """The medians at some distances."""
    last = panels[0].curves[0].shares.shape[1] - 1
    distances = [*[d for d in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if d < last][-6:], last]
    lines = [
        "‖∂L/∂h‖, and ‖∂L/∂c‖ of the LSTM, some steps before the last, over ‖∂L/∂h‖ at the last (medians)",
        "",
        f"{'steps back':<13}" + "".join(f"{d:>10}" for d in distances),
    ]
    for panel in panels:
        lines += ["", panel.title]
        for curve in panel.curves:
            values = [f"{value:.1e}" if curve.finite else "overflow" for value in curve.median[distances]]
            lines.append(f"{curve.name:<13}" + "".join(f"{value:>10}" for value in values))
    return "\n".join(lines)


def picture(panels: list[Panel], hidden: int) -> bytes:
    """The medians over distance, and the middle four fifths of the sequences around them, as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5), layout="constrained")
    parts = figure.subplots(1, len(panels), sharex=True, sharey=True)
    medians = np.concatenate([curve.median for panel in panels for curve in panel.curves])
    low, high = _limits(medians)
    for axes, panel in zip(parts, panels, strict=True):
        axes.axhline(1, color="#666666", linewidth=0.8, zorder=1)
        axes.axhline(LOST, color="#666666", linewidth=0.8, linestyle=(0, (1, 2)), zorder=1)
        for curve in panel.curves:
            _draw_curve(axes, curve)
        axes.set_title(panel.title, fontsize=10)
        axes.set_xlabel("steps before the last")
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlim(0, panels[0].curves[0].shares.shape[1] - 1)
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    parts[0].set_ylabel("‖∂L/∂h‖ or ‖∂L/∂c‖, over ‖∂L/∂h‖ at the last step")
    _note(axes, 1, "↑ exploding\n↓ vanishing")
    if low < LOST:
        _note(axes, LOST, "below 2⁻²⁴: lost beside\nthe last step's in a\nfloat32 sum")
    if medians.min() < low:
        _note(axes, low, "cut off at 10⁻¹²")
    if medians.max() > high:
        _note(axes, high, "cut off at 10¹²")
    figure.legend(handles=_legend(panels[0]), loc="outside lower center", ncols=len(panels[0].curves), frameon=False)
    figure.suptitle(f"Gradients on their way back through untrained networks of {hidden} unit{'s' * (hidden > 1)}")
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=100)
    return png.getvalue()


def _limits(medians: np.ndarray[Any, Any]) -> tuple[float, float]:
    """The powers of ten around the medians, within what the picture shows at most."""
    low, high = np.log10(np.clip([medians.min(), medians.max()], LOWEST, HIGHEST))
    return 10.0 ** math.floor(low), 10.0 ** max(math.ceil(high), 1)


def _note(axes: Axes, height: float, text: str) -> None:
    """To the right of the axes."""
    place = axes.get_yaxis_transform()
    axes.text(1.03, height, text, transform=place, verticalalignment="center", color="#666666", fontsize=9)


def _draw_curve(axes: Axes, curve: Curve) -> None:
    if not curve.finite:
        return
    distances = np.arange(curve.shares.shape[1])
    axes.plot(distances, curve.median, color=curve.color, **_style(curve))
    low, high = np.quantile(curve.shares, [0.1, 0.9], axis=0)
    axes.fill_between(distances, low, high, color=curve.color, alpha=0.15, linewidth=0)


def _style(curve: Curve) -> dict[str, Any]:
    return {"linewidth": 2.2} if curve.main else {"linewidth": 1.1}


def _legend(panel: Panel) -> list[Line2D]:
    from matplotlib.lines import Line2D

    return [Line2D([], [], color=curve.color, label=curve.name, **_style(curve)) for curve in panel.curves]
