"""Layer normalisation of pre-activations (Ba, Kiros & Hinton 2016, "Layer normalization").

The cells that have it (simple networks, LSTM, GRU) normalise the input's and the state's part apart, each gate's H rows
by themselves, before the biases:

    z = LN(W x; g, s) + LN(R h; g', s') + b + b'        g, s: `ln_ih_weight`, `ln_ih_bias`, g', s': `ln_hh_…`, (G·H,)

Where a cell keeps the two parts apart, it sees LN(W x) + b and LN(R h) + b' as its two parts. The cell state isn't
normalised.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating[Any]]

EPS = 1e-5  # inside the root


def normalize(z: Array, gain: Array, bias: Array, units: int) -> Array:
    """LN of each gate of z (G·H,), H = `units`:

        ẑ = (z - μ) / √(v + 10⁻⁵)        y = gain ∘ ẑ + bias

    with mean μ and variance v = Σ (z - μ)² / H over the H rows of a gate.
    """
    normal, _ = _standardize(z.reshape(-1, units))
    return gain * normal.ravel() + bias


def normalize_backward(z: Array, gain: Array, units: int, dy: Array) -> tuple[Array, Array, Array]:
    """With dẑ = gain ∘ dy and means over the H rows of a gate:

        dz = (dẑ - mean(dẑ) - ẑ ∘ mean(dẑ ∘ ẑ)) / √(v + 10⁻⁵)    dgain = ẑ ∘ dy    dbias = dy

    Returns dz, dgain, dbias, each (G·H,).
    """
    normal, root = _standardize(z.reshape(-1, units))
    dnormal = (gain * dy).reshape(-1, units)
    dz = (dnormal - _mean(dnormal) - normal * _mean(dnormal * normal)) / root
    return dz.ravel(), normal.ravel() * dy, dy


def _standardize(z: Array) -> tuple[Array, Array]:
    """ẑ (G, H) and the root (G, 1)."""
    centred = z - _mean(z)
    root = np.sqrt(_mean(centred**2) + EPS)
    return centred / root, root


def _mean(z: Array) -> Array:
    """Of each row, (G, 1), summed from the first value to the last, as in `product`."""
    mean: Array = np.cumsum(z, axis=1)[:, -1:] / z.shape[1]
    return mean
