"""The Mackey-Glass series, τ = 17, forecast 84 steps ahead by an echo state network that runs freely.

As in Jaeger (2001, "The 'echo state' approach", section 6): Euler's method with steps of 1/10, every tenth value,
squashed by tanh(y − 1); 3,000 values for training, the first 1,000 of them to forget the first state; then 50 stretches
of another series, the network hearing 1,000 values of each and going on by itself. The error is that of the original
values over their standard deviation.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from common import Array, picture, run

import rnnfast as rf

TRIALS, HEARD, AHEAD = 50, 1000, 84
# NRMSE 84 steps ahead, as reported
JAEGER_2001 = 0.00028  # 400 units, 3,000 values
JAEGER_HAAS_2004 = 10**-4.2  # 1,000 units


def mackey_glass(steps: int, seed: int, tau: int = 17, rate: int = 10) -> Array:
    """(steps,) values of dy/dt = 0.2 y(t−τ) / (1 + y(t−τ)¹⁰) − 0.1 y at t = 1000, 1001, …, on the attractor."""
    delay, settle = tau * rate, 1000
    y = np.full(delay + (settle + steps) * rate, 1.2 + 0.2 * np.random.default_rng(seed).uniform(-1, 1))
    for n in range(delay, len(y)):
        late = y[n - delay]
        y[n] = y[n - 1] + (0.2 * late / (1 + late**10) - 0.1 * y[n - 1]) / rate
    return y[delay + settle * rate :: rate]


def squash(y: Array) -> Array:
    return np.tanh(y - 1)


def main(
    *,
    units: int = 1000,
    density: float = 0.02,
    leak: float = 0.7,
    ridge: float = 1e-14,
    steps: int = 3000,
    seed: int = 0,
    plot: str | None = None,
) -> dict[str, Any]:
    """Fit the readout to a series, then forecast another one 1 and 84 steps ahead."""
    network = rf.EchoState(
        1, units, density=density, leak=leak, input_scaling=0.56, bias_scaling=0.2, dtype=np.float64, seed=seed
    )
    series = squash(mackey_glass(steps + 1, seed))[:, None, None]  # (T, 1, 1)
    network.fit(series[:-1], series[1:], washout=1000, ridge=ridge)

    length = HEARD + (600 if plot else AHEAD)
    truth = mackey_glass(TRIALS * length, seed + 1000).reshape(TRIALS, length).T  # (T, trials): a batch
    y, state = network(squash(truth[:HEARD, :, None]))
    free, _ = network.free_run(length - HEARD - 1, y[-1], state)
    forecast = np.arctanh(np.concatenate([y[-1:], free])[..., 0].clip(-1 + 1e-9, 1 - 1e-9)) + 1
    nrmse = np.sqrt(np.mean((forecast - truth[HEARD:]) ** 2, axis=1)) / truth.std()  # by steps ahead

    def draw(axes: Any) -> None:
        axes.semilogy(1 + np.arange(len(nrmse)), nrmse, label=f"{units} units")
        axes.plot([AHEAD], [JAEGER_2001], "s", color="black", label="Jaeger 2001, 400 units")
        axes.plot([AHEAD], [JAEGER_HAAS_2004], "^", color="black", label="Jaeger & Haas 2004, 1,000 units")
        axes.set(xlabel="steps ahead", ylabel="NRMSE")
        axes.legend()

    picture(plot, draw)
    return {
        "nrmse 1 step ahead": f"{nrmse[0]:.1e}",
        "nrmse 84 steps ahead": f"{nrmse[AHEAD - 1]:.1e}",
        "Jaeger 2001": f"{JAEGER_2001:.1e}",
        "Jaeger & Haas 2004": f"{JAEGER_HAAS_2004:.1e}",
    }


if __name__ == "__main__":
    run(main)
