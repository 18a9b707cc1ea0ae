"""Seeds, and PyTorch's default initial values.

Every module draws its own values, in the order of its parameters, from ``np.random.default_rng(seed)`` in float64, so
that a float32 module holds the rounded values of its float64 twin.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from rnnfast import checks
from rnnfast.checks import Array


def choose_seed(seed: Any) -> int:
    """The seed given, an integer in 0 … 2⁶⁴ − 1, or for None one drawn from the system."""
    if seed is None:
        return int.from_bytes(os.urandom(8), "little")
    number = checks.size("seed", seed, minimum=0)
    if number >= 2**64:
        raise ValueError(f"seed: expected an integer below 2**64, got {number}")
    return number


def uniform(params: Mapping[str, Array], bound: float, seed: int) -> None:
    """Fill every array from U(−bound, bound)."""
    generator = np.random.default_rng(seed)
    for array in params.values():
        array[...] = generator.uniform(-bound, bound, array.shape)


def normal(params: Mapping[str, Array], seed: int) -> None:
    """Fill every array from N(0, 1)."""
    generator = np.random.default_rng(seed)
    for array in params.values():
        array[...] = generator.standard_normal(array.shape)
