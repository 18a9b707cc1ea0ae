"""What the cells share: what a cell is, its activations, and the products of input and state that most begin with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating[Any]]
Vectors = tuple[Array, ...]
Params = Mapping[str, Array]
Adjoint = tuple[Array, Vectors, dict[str, Array]]  # dx, dstate, dparams
Activation = Callable[[Array], Array]


@dataclass(frozen=True)
class Cell:
    """A cell as the scan sees it: its gates' names in the order of the rows, its states' initial values, its equations.

    The first state is h, the one that other layers and other steps see.
    """

    gates: tuple[str, ...]
    initial: tuple[float, ...]
    step: Callable[[Params, Array, Vectors], tuple[Vectors, Vectors]]  # params, x, state -> state, gates
    step_backward: Callable[[Params, Array, Vectors, Vectors, Vectors], Adjoint]  # …, state, gates, dstate


# ---- activations -----------------------------------------------------------------------------------------------------


def sigmoid(z: Array) -> Array:
    """σ(z) = 1 / (1 + e⁻ᶻ), in the form that can't overflow: for z < 0 it is eᶻ / (1 + eᶻ)."""
    e = np.exp(-np.abs(z))
    s: Array = np.where(z >= 0, 1, e) / (1 + e)
    return s


# φ and its derivative as a function of φ
ACTIVATIONS: dict[str, tuple[Activation, Activation]] = {
    "tanh": (np.tanh, lambda h: 1 - h**2),
    "relu": (lambda z: np.maximum(z, 0), lambda h: (h > 0).astype(h.dtype)),
    "sigmoid": (sigmoid, lambda h: h * (1 - h)),
}


# ---- products --------------------------------------------------------------------------------------------------------


def product(weight: Array, vector: Array) -> Array:
    """W v (`weight @ vector`), each sum taken from its first term to its last.

    So in float32 it rounds alike on every machine, and as a sum in this order does, where a BLAS would choose its own.
    """
    z: Array = np.cumsum(weight * vector, axis=1)[:, -1]
    return z


def project(params: Params, x: Array, h: Array) -> tuple[Array, Array]:
    """The input's and the state's part of the pre-activations, a = W x + b and u = R h + b', each (G·H,)."""
    a = product(params["weight_ih"], x)
    u = product(params["weight_hh"], h)
    if "bias_ih" in params:
        a = a + params["bias_ih"]
        u = u + params["bias_hh"]
    return a, u


def project_backward(params: Params, x: Array, h: Array, da: Array, du: Array) -> tuple[Array, Array, dict[str, Array]]:
    """The adjoint of `project`: dx = Wᵀ da, dh = Rᵀ du, dW = da xᵀ, dR = du hᵀ, db = da, db' = du."""
    dparams = {"weight_ih": np.outer(da, x), "weight_hh": np.outer(du, h)}
    if "bias_ih" in params:
        dparams |= {"bias_ih": da, "bias_hh": du}
    return product(params["weight_ih"].T, da), product(params["weight_hh"].T, du), dparams


def project_input(params: Params, x: Array) -> Array:
    """W x + b (G·H,), all that the cells need whose gates don't see h."""
    a = product(params["weight_ih"], x)
    return a + params["bias_ih"] if "bias_ih" in params else a


def project_input_backward(params: Params, x: Array, da: Array) -> tuple[Array, dict[str, Array]]:
    """The adjoint of `project_input`: dx = Wᵀ da, dW = da xᵀ, db = da."""
    dparams = {"weight_ih": np.outer(da, x)} | ({"bias_ih": da} if "bias_ih" in params else {})
    return product(params["weight_ih"].T, da), dparams
