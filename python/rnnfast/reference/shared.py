"""What the cells share: what a cell is, its activations, and the products of input and state that most begin with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rnnfast.reference.layer_norm import normalize, normalize_backward

Array = npt.NDArray[np.floating[Any]]
Vectors = tuple[Array, ...]
Params = Mapping[str, Array]
Adjoint = tuple[Array, Vectors, dict[str, Array]]  # dx, dstate, dparams
Activation = Callable[[Array], Array]


@dataclass(frozen=True)
class Cell:
    """A cell as the scan sees it: its gates' names in the order of the rows, its states' initial values, its equations.

    The first state is h, the one that other layers and other steps see. `options` names what it may be combined with,
    beside what any cell may: "projection", where h_{t-1} enters through R alone; "layer_norm" and "recurrent_dropout",
    where it begins with `project` or its parts.
    """

    gates: tuple[str, ...]
    initial: tuple[float, ...]
    step: Callable[[Params, Array, Vectors], tuple[Vectors, Vectors]]  # params, x, state -> state, gates
    step_backward: Callable[[Params, Array, Vectors, Vectors, Vectors], Adjoint]  # …, state, gates, dstate
    options: frozenset[str] = frozenset()


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
    return project_input(params, x), project_state(params, h)


def project_backward(params: Params, x: Array, h: Array, da: Array, du: Array) -> tuple[Array, Array, dict[str, Array]]:
    """The adjoint of `project`: dx, dh and the parameters' gradients, from those of its two parts."""
    dx, dinput = project_input_backward(params, x, da)
    dh, dstate = project_state_backward(params, h, du)
    return dx, dh, dinput | dstate


def project_input(params: Params, x: Array) -> Array:
    """a = W x + b (G·H,), all that the cells need whose gates don't see h; LN(W x) + b with `ln_ih_weight`."""
    return _affine("ih", params, x)


def project_input_backward(params: Params, x: Array, da: Array) -> tuple[Array, dict[str, Array]]:
    """The adjoint of `project_input`: dx = Wᵀ da, dW = da xᵀ, db = da."""
    return _affine_backward("ih", params, x, da)


def project_state(params: Params, h: Array) -> Array:
    """u = R h + b' (G·H,); LN(R h) + b' with `ln_hh_weight`.

    With `recurrent_scale` (the shape of h) R sees scale ∘ h in the place of h: recurrent dropout (Gal & Ghahramani
    2016, "A theoretically grounded application of dropout in recurrent neural networks").
    """
    return _affine("hh", params, _scaled(params, h))


def project_state_backward(params: Params, h: Array, du: Array) -> tuple[Array, dict[str, Array]]:
    """The adjoint of `project_state`: dh = scale ∘ Rᵀ du, dR = du (scale ∘ h)ᵀ, db' = du."""
    dh, dparams = _affine_backward("hh", params, _scaled(params, h), du)
    return _scaled(params, dh), dparams


def _scaled(params: Params, h: Array) -> Array:
    return params["recurrent_scale"] * h if "recurrent_scale" in params else h


def _affine(kind: str, params: Params, v: Array) -> Array:
    """W v + b, or LN(W v) + b, by the parameters of that kind, "ih" or "hh"."""
    z = product(params[f"weight_{kind}"], v)
    if f"ln_{kind}_weight" in params:
        z = normalize(z, params[f"ln_{kind}_weight"], params[f"ln_{kind}_bias"], units(params))
    return z + params[f"bias_{kind}"] if f"bias_{kind}" in params else z


def _affine_backward(kind: str, params: Params, v: Array, dz: Array) -> tuple[Array, dict[str, Array]]:
    weight = params[f"weight_{kind}"]
    dparams = {f"bias_{kind}": dz} if f"bias_{kind}" in params else {}
    if f"ln_{kind}_weight" in params:
        gain = params[f"ln_{kind}_weight"]
        dz, dgain, dbias = normalize_backward(product(weight, v), gain, units(params), dz)
        dparams |= {f"ln_{kind}_weight": dgain, f"ln_{kind}_bias": dbias}
    return product(weight.T, dz), dparams | {f"weight_{kind}": np.outer(dz, v)}


def units(params: Params) -> int:
    """H, where there is an R: its columns, unless they are the features of a projected h."""
    columns: int = params["weight_hr" if "weight_hr" in params else "weight_hh"].shape[1]
    return columns
