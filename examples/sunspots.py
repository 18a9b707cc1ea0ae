"""Sunspots: next year's number from all years before it, beside a classical autoregression.

Needs statsmodels, which brings the yearly numbers of 1700 to 2008 along.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from common import Array, picture, run
from statsmodels.datasets import sunspots
from statsmodels.tsa.ar_model import AutoReg

import rnnfast as rf

VALIDATION, TEST = 1900, 1940  # the first years of these parts


def rms(errors: Array) -> float:
    return float(np.sqrt(np.mean(errors**2)))


def train(x: Array, target: Array, fitted: Array, checked: Array, updates: int, hidden: int, seed: int) -> rf.Module:
    """A GRU fitted to the steps `fitted`, as it was when it was best at the steps `checked`."""
    model = rf.Sequential(rf.GRU(1, hidden, seed=seed), rf.Linear(hidden, 1, seed=seed + 1000))
    optimizer = rf.Adam(model, lr=5e-3)
    best, kept = np.inf, model.state_dict()
    for _ in range(updates):
        model.zero_grad()
        y, _, tape = model.forward(x)
        _, dy = rf.mse(y, target, mask=fitted)
        model.backward(tape, dy, need_dx=False)
        optimizer.step(clip_norm=1.0)
        error = rf.mse(model(x)[0], target, mask=checked)[0]
        if error < best:
            best, kept = error, model.state_dict()
    model.load_state_dict(kept)
    return model


def main(
    *, updates: int = 400, hidden: int = 16, members: int = 5, seed: int = 0, plot: str | None = None
) -> dict[str, Any]:
    """One-step forecasts of the years from 1940 on: root mean square errors, in sunspots.

    The years to 1899 are fitted, those to 1939 say when to stop; the forecast is the mean of some networks. The AR(9)
    is fitted to all years to 1939. Both see square roots, whose noise is about the same at every height.
    """
    table = sunspots.load_pandas().data
    years, numbers = table["YEAR"].to_numpy().astype(int), table["SUNACTIVITY"].to_numpy()
    roots = np.sqrt(numbers)
    known = roots[years < VALIDATION]
    series = ((roots - known.mean()) / known.std()).astype(np.float32)
    x, target = series[:-1, None, None], series[1:, None, None]  # (T, 1, 1)
    ahead = years[1:, None]  # the year that a step forecasts
    fitted, checked, test = ahead < VALIDATION, (ahead >= VALIDATION) & (ahead < TEST), years[1:] >= TEST

    outputs = [train(x, target, fitted, checked, updates, hidden, seed + k)(x)[0][:, 0, 0] for k in range(members)]
    forecast = (np.mean(outputs, axis=0) * known.std() + known.mean()) ** 2
    regression = AutoReg(roots[years < TEST], lags=9).fit().params  # the constant, then lags 1 to 9
    past = np.lib.stride_tricks.sliding_window_view(roots, 9)[:-1, ::-1]
    classical = np.concatenate([np.full(8, np.nan), (regression[0] + past @ regression[1:]) ** 2])

    def draw(axes: Any) -> None:
        axes.plot(years[1:][test], numbers[1:][test], color="black", label="sunspots")
        axes.plot(years[1:][test], forecast[test], label="GRU")
        axes.plot(years[1:][test], classical[test], label="AR(9)", linewidth=0.8)
        axes.set(xlabel="year")
        axes.legend()

    picture(plot, draw)
    truth = numbers[1:][test]
    return {
        "persistence rmse": rms(numbers[:-1][test] - truth),
        "AR(9) rmse": rms(classical[test] - truth),
        "GRU rmse": rms(forecast[test] - truth),
    }


if __name__ == "__main__":
    run(main)
