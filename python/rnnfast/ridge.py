"""Ridge regression over rows that come in pieces."""

from __future__ import annotations

import math

import numpy as np

from rnnfast.checks import Array

__all__ = ["Ridge"]


class Ridge:
    """A ridge regression with intercept that takes its rows in pieces: the triangle of a QR factorisation grows.

    Columns: 1, features, targets. The penalty is a row √ridge e_k for every feature; the intercept has none.
    """

    def __init__(self, features: int, outputs: int, ridge: float) -> None:
        self._known = 1 + features
        self._penalised = ridge > 0
        self._triangle: Array = np.zeros((features if self._penalised else 0, 1 + features + outputs))
        self._triangle[:, 1 : 1 + features] = math.sqrt(ridge) * np.eye(len(self._triangle), features)

    def add(self, features: Array, targets: Array) -> None:
        if not len(features):
            return
        rows = np.hstack([np.ones((len(features), 1)), features, targets], dtype=np.float64)
        if not np.isfinite(rows).all():
            raise ValueError("x, y: expected finite numbers where a step counts, got NaN or infinity")
        self._triangle = np.asarray(np.linalg.qr(np.vstack([self._triangle, rows]), mode="r"))

    def solve(self) -> tuple[Array, Array]:
        """W_out (O, features) and b_out (O,)."""
        left, right = np.hsplit(self._triangle[: self._known], [self._known])
        solution = np.linalg.solve(left, right) if self._penalised else np.linalg.lstsq(left, right, rcond=None)[0]
        return solution[1:].T, solution[0]
