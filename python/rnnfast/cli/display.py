"""A training run as people see it: the bar while it goes, its summary, the picture of its loss."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Iterable

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter
from numpy.typing import NDArray
from tqdm import tqdm

from rnnfast.language_model import Evaluation, Step

Values = NDArray[np.float64]

TRAINING_COLOR, HELD_OUT_COLOR = "#4477aa", "#cc3311"  # told apart with any colour vision


class Display:
    """Collects what a run tells, and shows it."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.steps: list[Step] = []
        self.evaluations: list[Evaluation] = []
        self._begin = self._end = time.monotonic()

    def follow(self, events: Iterable[Step | Evaluation]) -> None:
        """Show a run until it ends; on a terminal the bar moves, in a log it gets a line now and then."""
        interval = 0.1 if sys.stderr.isatty() else 10.0
        form = "{percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
        with tqdm(total=1.0, bar_format=form, mininterval=interval, miniters=0, dynamic_ncols=True) as bar:
            self._begin = time.monotonic()
            for event in events:
                self._end = time.monotonic()
                if isinstance(event, Step):
                    self.steps.append(event)
                    bar.set_postfix_str(self._state(), refresh=False)
                    bar.update(event.progress - bar.n)
                else:
                    self.evaluations.append(event)
                    told = f"{len(self.steps):>7,} steps: held-out {event.bits:.3f} bits per character"
                    bar.write(told, file=sys.stderr)

    def _state(self) -> str:
        recent = [step.loss for step in self.steps[-50:]]
        loss = sum(recent) / len(recent)
        speed = self.steps[-1].characters / (self._end - self._begin)
        return f"loss {loss:.2f}, {loss / np.log(2):.2f} bits/char, {speed:,.0f} chars/s"

    def tell_interrupted(self) -> None:
        if self.steps:
            told = f"interrupted after {len(self.steps):,} steps: saving the model as it is"
        else:
            told = "interrupted before the first step: there is nothing to save"
        print(told, file=sys.stderr)

    def summary(self) -> str:
        seconds, last = self._end - self._begin, self.steps[-1]
        lines = [f"trained:  {last.number:,} steps, {last.characters:,} characters, {seconds:.0f} s"]
        if self.evaluations:
            lines.append(f"held-out: {self.evaluations[-1].bits:.3f} bits per character")
        return "\n".join(lines)

    def picture(self) -> bytes:
        """Training and held-out bits per character against characters seen, as a PNG."""
        figure = Figure(figsize=(8, 5), layout="constrained")
        axes = figure.add_subplot()
        characters, bits = np.array([(step.characters, step.bits) for step in self.steps]).T
        reach = len(bits) // 100
        mean, name = smoothed(bits, reach), "training (smoothed)" if reach else "training"
        axes.plot(characters, bits, color=TRAINING_COLOR, alpha=0.2, linewidth=0.6)
        measured = np.array([(evaluation.characters, evaluation.bits) for evaluation in self.evaluations])
        above = not measured.size or mean[-1] > measured[-1, 1]  # the higher curve's value goes up, the other's down
        _draw_curve(axes, characters, mean, TRAINING_COLOR, name, above)
        if measured.size:
            _draw_curve(axes, measured[:, 0], measured[:, 1], HELD_OUT_COLOR, "held-out", not above)
        # The first steps fall from log2 V and would take most of the picture.
        shown = [*mean[len(mean) // 40 :], *measured.T[1:].ravel()]
        axes.set_ylim(0.9 * min(shown), 1.05 * max(shown))
        axes.set_xlim(0, characters[-1] * 1.08)  # room for the last values
        axes.set_title(self.title)
        axes.set_xlabel("characters seen")
        axes.set_ylabel("bits per character")
        axes.xaxis.set_major_formatter(EngFormatter())
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
        png = io.BytesIO()
        figure.savefig(png, format="png", dpi=150)
        return png.getvalue()


def _draw_curve(axes: Axes, characters: Values, bits: Values, color: str, label: str, above: bool) -> None:
    """A curve with its last value beside its end, above or below it; few points are marked."""
    marker = "o" if len(bits) <= 50 else ""
    axes.plot(characters, bits, color=color, linewidth=1.6, marker=marker, markersize=4, label=label)
    axes.annotate(
        f"{bits[-1]:.2f}",
        (characters[-1], bits[-1]),
        xytext=(6, 1 if above else -1),
        textcoords="offset points",
        va="bottom" if above else "top",
        color=color,
        weight="bold",
    )


def smoothed(values: Values, reach: int) -> Values:
    """The mean of each value and its neighbours, up to `reach` on both sides.

    The early values fall steeply: there it reaches no further forward than there are values before.
    """
    sums = np.concatenate([[0.0], np.cumsum(values)])
    here = np.arange(len(values))
    reaches = np.minimum(reach, here)
    begins, ends = here - reaches, np.minimum(here + reaches + 1, len(values))
    means: Values = (sums[ends] - sums[begins]) / (ends - begins)
    return means
