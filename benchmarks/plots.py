"""A run as pictures: beside the peers, under the roofs of the machine, against the length of the sequence."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import EngFormatter, FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from .results import Figure, Results
from .variants import USUAL_CELLS

# Told apart with any colour vision (Paul Tol), and by their marks.
OURS = "#4477aa"
PEERS = {
    "PyTorch": ("#ee6677", "o"),
    "JAX": ("#228833", "s"),
    "ONNX Runtime": ("#aa3377", "D"),
    "torch.compile": ("#ccbb44", "^"),
    "PyTorch bf16": ("#66ccee", "v"),
}
CELLS = {
    "LSTM": ("#4477aa", "o"),
    "GRU": ("#ee6677", "s"),
    "RNN": ("#228833", "D"),
    "IndRNN": ("#ccbb44", "^"),
    "MinGRU": ("#66ccee", "v"),
    "MinLSTM": ("#aa3377", "<"),
    "SRU": ("#777777", ">"),
}  # the usual ones, and the scans, which memory bounds
OTHER = ("#777777", "P")
ROOF_STYLES = (":", "-.", "--")


def pictures(results: Results) -> dict[str, bytes]:
    """File name -> PNG, of every picture that the run has figures for."""
    drawn = {
        "ratios.png": ratios(results, lambda cell: cell in USUAL_CELLS),
        "family.png": ratios(results, lambda cell: cell not in USUAL_CELLS),
        "roofline.png": roofline(results),
        "length.png": length(results),
    }
    return {name: _png(canvas) for name, canvas in drawn.items() if canvas is not None}


NAMES = ("ratios.png", "family.png", "roofline.png", "length.png")


def _png(canvas: Canvas) -> bytes:
    data = io.BytesIO()
    canvas.savefig(data, format="png", dpi=150)
    return data.getvalue()


def _tidy(axes: Axes) -> None:
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def _most_threads(results: Results, *topics: str) -> list[Figure]:
    """The float32 figures of some topics with the most threads of the run."""
    figures = [f for f in results.figures if f.work.topic in topics and f.work.dtype == "float32"]
    most = max((f.work.threads for f in figures), default=0)
    return [f for f in figures if f.work.threads == most]


# ---- beside the peers ------------------------------------------------------------------------------------------------
def ratios(results: Results, chosen: Callable[[str], bool]) -> Canvas | None:
    """Each peer's time over ours, a line for each shape and chosen cell, on a logarithmic axis."""
    figures = [f for f in _most_threads(results, "forward", "training") if f.peers and chosen(f.work.cell)]
    if not figures:
        return None
    lines = list(dict.fromkeys((f.work.cell, f.work.shape.name) for f in figures))
    lines.sort(key=lambda line: list(dict.fromkeys(f.work.cell for f in figures)).index(line[0]))
    canvas = Canvas(figsize=(11, 1.9 + 0.27 * len(lines)), layout="constrained")
    panels = canvas.subplots(1, 2, sharey=True, sharex=True)
    for axes, topic in zip(panels, ("forward", "training"), strict=True):
        _draw_ratios(axes, [f for f in figures if f.work.topic == topic], lines)
        axes.set_title(topic)
    panels[0].set_yticks(range(len(lines)), [f"{cell}  {shape}" for cell, shape in lines])
    panels[0].set_ylim(len(lines) - 0.5, -0.5)
    _ratio_axis(panels[0], [ratio for f in figures for peer in f.peers if (ratio := f.ratio(peer))])
    handles = {handle.get_label(): handle for axes in panels for handle in axes.get_legend_handles_labels()[0]}
    threads = figures[0].work.threads
    canvas.legend(handles=list(handles.values()), loc="outside lower center", ncols=len(handles), frameon=False)
    canvas.suptitle(
        f"Time of the peer over ours, {threads} thread{'s' * (threads > 1)}, float32 (right of 1: we are faster)"
    )
    return canvas


def _draw_ratios(axes: Axes, figures: Sequence[Figure], lines: Sequence[tuple[str, str]]) -> None:
    peers = list(dict.fromkeys(peer for f in figures for peer in f.peers))
    for number, peer in enumerate(peers):
        having = [f for f in figures if peer in f.peers]
        aside = 0.16 * (number - (len(peers) - 1) / 2)  # so that equal ratios don't hide each other
        heights = [lines.index((f.work.cell, f.work.shape.name)) + aside for f in having]
        color, marker = PEERS.get(peer, OTHER)
        values = [f.peers[peer].over(f.ours) for f in having]
        axes.plot(values, heights, marker, color=color, markersize=6, label=peer, alpha=0.9, markeredgewidth=0)
    for number in range(1, len(lines)):
        if lines[number][0] != lines[number - 1][0]:
            axes.axhline(number - 0.5, color="0.6", linewidth=0.8)
    axes.axvline(1, color="0.2", linewidth=1.2)
    _tidy(axes)


def _ratio_axis(axes: Axes, values: Sequence[float]) -> None:
    """A logarithmic axis with round numbers that holds all values, and 1."""
    low, high = min(0.9, *values) / 1.1, max(1.2, *values) * 1.1
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    steps = (1, 2, 5) if high / low < 2000 else (1,)
    ticks = [step * 10.0**power for power in range(-3, 5) for step in steps]
    axes.xaxis.set_major_locator(FixedLocator([tick for tick in ticks if low <= tick <= high]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} ×"))


# ---- under the roofs -------------------------------------------------------------------------------------------------
def roofline(results: Results) -> Canvas | None:
    """Operations a second against operations a byte, under the measured limits of arithmetic and memory."""
    figures = [f for f in _most_threads(results, "forward", "training") if f.work.cell in CELLS]
    figures = [f for f in figures if f.work.traffic and f.share > 0]  # not NaN
    if not figures or not results.bandwidths:
        return None
    threads = figures[0].work.threads
    peak = float(np.median([f.ours.peak for f in figures]))
    intensities = [f.work.operations / f.work.traffic for f in figures]
    rates = [f.share * peak for f in figures]
    canvas = Canvas(figsize=(10, 6), layout="constrained")
    axes = canvas.add_subplot()
    left, right = min(0.5, *intensities) / 1.5, max(intensities) * 2
    low, high = min(peak / 8, *rates) / 1.3, peak * 1.5
    axes.set(xscale="log", yscale="log", xlim=(left, right), ylim=(low, high))
    _draw_roofs(axes, results, peak, threads)
    for cell in dict.fromkeys(f.work.cell for f in figures):
        color, marker = CELLS[cell]
        for topic, filled in (("forward", False), ("training", True)):
            chosen = [i for i, f in enumerate(figures) if (f.work.cell, f.work.topic) == (cell, topic)]
            x, y = [intensities[i] for i in chosen], [rates[i] for i in chosen]
            face = color if filled else "white"
            axes.plot(x, y, marker, color=color, markerfacecolor=face, markersize=7, label=f"{cell} {topic}", zorder=3)
    axes.set_xlabel("operations a byte of arrays that must be moved (FLOP/byte)")
    axes.set_ylabel("useful operations a second (FLOP/s)")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(EngFormatter())
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_title(f"Under the limits of the machine, {threads} thread{'s' * (threads > 1)}, float32")
    _tidy(axes)
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return canvas


def _draw_roofs(axes: Axes, results: Results, peak: float, threads: int) -> None:
    left, right = axes.get_xlim()
    axes.plot([left, right], [peak, peak], color="0.2", linewidth=1.4)
    text = f"multiply-add peak, {peak / 1e9:.0f} GFLOP/s"
    axes.annotate(text, (right, peak), xytext=(-4, 4), textcoords="offset points", ha="right", color="0.2", fontsize=9)
    roofs = [bandwidth for bandwidth in results.bandwidths if bandwidth.threads == threads]
    for bandwidth, style in zip(roofs, ROOF_STYLES, strict=False):
        label = f"{bandwidth.array}: {bandwidth.rate / 1e9:.0f} GB/s"
        ends = [left, peak / bandwidth.rate], [left * bandwidth.rate, peak]
        axes.plot(*ends, color="0.45", linewidth=1.2, linestyle=style, label=label)


# ---- against the length ----------------------------------------------------------------------------------------------
def length(results: Results) -> Canvas | None:
    """Time of a training step per time step, and its peak memory, against T."""
    figures = sorted(results.of("length"), key=lambda f: f.work.shape.T)
    if not figures:
        return None
    work = figures[0].work
    canvas = Canvas(figsize=(11, 4.8), layout="constrained")
    times, memory = canvas.subplots(1, 2)
    _draw_line(times, [(f.work.shape.T, f.ours.median / f.work.shape.T) for f in figures], "rnnfast", OURS, "o")
    for peer in dict.fromkeys(peer for f in figures for peer in f.peers):
        points = [(f.work.shape.T, f.peers[peer].median / f.work.shape.T) for f in figures if peer in f.peers]
        _draw_line(times, points, peer, *PEERS.get(peer, OTHER))
    _length_axes(times, "training, time per step", "s")
    measured = [m for m in results.memory if m.shape.name.startswith("T = ")]
    for label, color, marker, value in _memory_lines():
        points = [(m.shape.T, float(v)) for m in measured if not isinstance(v := value(m), str)]
        _draw_line(memory, points, label, color, marker)
    _length_axes(memory, "training, peak memory above weights, x and dy", "B")
    canvas.suptitle(
        f"{work.cell}, B = {work.shape.B}, I = {work.shape.I}, H = {work.shape.H}, "
        f"{work.threads} thread{'s' * (work.threads > 1)}, float32"
    )
    return canvas


def _memory_lines() -> list[tuple[str, str, str, Callable[..., int | str]]]:
    return [("rnnfast", OURS, "o", lambda m: m.ours), ("PyTorch", *PEERS["PyTorch"], lambda m: m.torch)]


def _draw_line(axes: Axes, points: Sequence[tuple[int, float]], label: str, color: str, marker: str) -> None:
    if points:
        x, y = zip(*points, strict=True)
        axes.plot(x, y, marker=marker, color=color, linewidth=1.6, markersize=6, label=label)


def _length_axes(axes: Axes, title: str, unit: str) -> None:
    axes.set(xscale="log", yscale="log", title=title, xlabel="T, steps of the sequence")
    if axes.lines:
        lengths = sorted({float(x) for line in axes.lines for x in np.asarray(line.get_xdata())})
        axes.xaxis.set_major_locator(FixedLocator(lengths))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.xaxis.set_minor_locator(NullLocator())
        values = [float(y) for line in axes.lines for y in np.asarray(line.get_ydata())]
        axes.set_ylim(min(values) / 2, max(values) * 2)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if max(values) / min(values) < 100 else (1,)))
        axes.yaxis.set_major_formatter(EngFormatter(unit=unit))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.legend(frameon=False)
    _tidy(axes)
