"""JAX at the same work: the input's product for all steps at once, then a scan, compiled as one function."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.extend.backend
import jax.numpy as jnp
import numpy as np

from .contenders import Answer, Contender, Kind, Problem, UnavailableError

Weights = Mapping[str, Any]

_threads = 0  # of the backend


def scan(problem: Problem, kind: Kind) -> Contender:
    if problem.cell not in STEPS:
        raise UnavailableError(f"there is no {problem.cell} in this suite for it")
    use_threads(problem.threads)
    weights = {name: jnp.asarray(value) for name, value in problem.weights.items()}
    x, dy, step = jnp.asarray(problem.x), jnp.asarray(problem.dy), STEPS[problem.cell]

    def layer(weights: Weights, x: Any) -> Any:
        zeros = jnp.zeros((x.shape[1], problem.shape.H), x.dtype)
        ahead = x @ weights["weight_ih_l0"].T + weights["bias_ih_l0"]
        return jax.lax.scan(lambda state, z: step(weights, state, z), (zeros, zeros), ahead)[1]

    def gradients(weights: Weights, x: Any, dy: Any) -> Any:
        return jax.vjp(layer, weights, x)[1](dy)

    forward, training = jax.jit(layer), jax.jit(gradients)

    def answer(outcome: Any) -> Answer:
        dweights, dx = outcome
        return {"dx": np.asarray(dx), **{name: np.asarray(value) for name, value in dweights.items()}}

    if kind == "forward":
        return Contender(lambda: jax.block_until_ready(forward(weights, x)), lambda y: {"y": np.asarray(y)})
    return Contender(lambda: jax.block_until_ready(training(weights, x, dy)), answer)


def use_threads(threads: int) -> None:
    """Makes a backend with so many worker threads; what was compiled for another is lost."""
    global _threads
    if threads != _threads:
        os.environ["NPROC"] = str(threads)  # read when a backend is made
        jax.config.update("jax_platforms", "cpu")
        jax.clear_caches()
        jax.extend.backend.clear_backends()
        _threads = threads


# ---- cells: (h, c) and the input's part of the pre-activations, to (h, c) and y --------------------------------------
def _recurrent(weights: Weights, h: Any) -> Any:
    return h @ weights["weight_hh_l0"].T + weights["bias_hh_l0"]


def _lstm(weights: Weights, state: Any, z: Any) -> Any:
    h, c = state
    i, f, g, o = jnp.split(z + _recurrent(weights, h), 4, axis=-1)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    h = jax.nn.sigmoid(o) * jnp.tanh(c)
    return (h, c), h


def _gru(weights: Weights, state: Any, z: Any) -> Any:
    h, c = state
    (zr, zz, zn), (ur, uz, un) = jnp.split(z, 3, axis=-1), jnp.split(_recurrent(weights, h), 3, axis=-1)
    n = jnp.tanh(zn + jax.nn.sigmoid(zr + ur) * un)
    keep = jax.nn.sigmoid(zz + uz)
    h = (1 - keep) * n + keep * h
    return (h, c), h


def _rnn(weights: Weights, state: Any, z: Any) -> Any:
    h, c = state
    h = jnp.tanh(z + _recurrent(weights, h))
    return (h, c), h


STEPS: dict[str, Callable[[Weights, Any, Any], Any]] = {"LSTM": _lstm, "GRU": _gru, "RNN": _rnn}
