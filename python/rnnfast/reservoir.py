"""Random sparse matrices with a given spectral radius: the fixed part of an echo state network.

A matrix is drawn as two arrays (H, k), since every unit has the same number k of connections: the columns of its row,
ascending, and their weights.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from rnnfast import _kernels
from rnnfast.checks import Array

__all__ = ["connections", "draw_columns", "spectral_radius"]

# The kernels look up what 16 neighbouring units send in an instruction or two, for up to 16 units at once.
WINDOW, GROUP = 16, 16

_KEYS_AT_ONCE = 1 << 22  # random numbers of a part of the matrix: 16 MiB
_SMALL = 64  # units up to which all eigenvalues are found at once
_BASIS, _KEPT = 60, 20  # vectors before and after a restart
_TOLERANCE = 1e-10
_MOST_PRODUCTS = 20_000


def connections(hidden_size: int, density: float) -> int:
    """k, the connections into each unit: density·H, rounded, but at least two: one alone makes trees and rings."""
    return min(hidden_size, max(2, round(density * hidden_size)))


# ---- where the connections are ---------------------------------------------------------------------------------------
def draw_columns(hidden_size: int, count: int, generator: np.random.Generator) -> Array:
    """(H, k) columns, ascending and different in each row; each column is as likely as the others.

    Sixteen units at a time share the neighbourhoods that they listen to: `count` points at equal distances and with a
    random phase fall into windows of 16 units. Which units of a window it hears, each unit draws for itself.
    """
    groups = -(-hidden_size // GROUP)
    points = (np.arange(count) + generator.random((groups, 1))) * (hidden_size / count)
    windows = np.minimum(points.astype(np.int64), hidden_size - 1) // WINDOW  # ascending in each row
    owner = np.arange(hidden_size) // GROUP
    if count * WINDOW <= hidden_size:  # a window has one point at most
        start: Array = windows[owner] * WINDOW
        return np.asarray(start + generator.integers(0, np.minimum(WINDOW, hidden_size - start)))
    order = np.zeros_like(windows)  # of a point among those of its window
    for s in range(1, count):
        order[:, s] = np.where(windows[:, s] == windows[:, s - 1], order[:, s - 1] + 1, 0)
    columns = np.empty((hidden_size, count), np.int64)
    at_once = max(1, _KEYS_AT_ONCE // (hidden_size + WINDOW))
    for first in range(0, hidden_size, at_once):
        part = slice(first, min(first + at_once, hidden_size))
        places = _shuffled_windows(part.stop - part.start, hidden_size, generator)
        row, mine = np.arange(part.stop - part.start)[:, None], owner[part]
        columns[part] = windows[mine] * WINDOW + places[row, windows[mine], order[mine]]
    columns.sort(axis=1)
    return columns


def _shuffled_windows(rows: int, hidden_size: int, generator: np.random.Generator) -> Array:
    """(rows, windows, 16): the places of every window in a random order, those beyond the last unit at the end."""
    shape = (rows, -(-hidden_size // WINDOW), WINDOW)
    keys: Array = generator.integers(0, 1 << 27, shape, dtype=np.uint32) * np.uint32(WINDOW) + np.arange(
        WINDOW, dtype=np.uint32
    )
    beyond = shape[1] * WINDOW - hidden_size
    if beyond:
        keys[:, -1, WINDOW - beyond :] += np.uint32(1 << 31)
    keys.sort(axis=2)
    return np.asarray(keys % WINDOW)


# ---- how large they are ----------------------------------------------------------------------------------------------
def spectral_radius(weights: Array, columns: Array) -> float:
    """The largest modulus of an eigenvalue, to 1e-7 of itself: what is left of it as a float32 number.

    (So that it doesn't depend on the LAPACK.) Up to 64 units from all eigenvalues, beyond by Arnoldi's iteration with
    thick restarts (Stewart, 2001, "A Krylov-Schur algorithm for large eigenproblems"). Should that fail to converge,
    from all eigenvalues again, which takes seconds at 2,000 units and eight times as long for twice the units.
    """
    hidden_size = len(weights)
    radius = _arnoldi(_product(weights, columns), hidden_size) if hidden_size > _SMALL else None
    if radius is None:
        dense = np.zeros((hidden_size, hidden_size))
        np.put_along_axis(dense, columns, weights, axis=1)
        radius = np.abs(np.linalg.eigvals(dense)).max()
    return float(np.float32(radius))


def _product(weights: Array, columns: Array) -> Callable[[Array], Array]:
    """x -> W x."""
    size, count = weights.shape
    native = _kernels.make_reservoir(
        np.zeros((size, 0)),
        None,
        np.zeros(size),
        np.ascontiguousarray(weights).ravel(),
        np.ascontiguousarray(columns).ravel(),
        np.arange(size + 1) * count,
        1.0,
    )

    def product(x: Array) -> Array:
        y = np.empty(size)
        native.product(x, y)
        return y

    return product


def _arnoldi(product: Callable[[Array], Array], size: int) -> float | None:
    """The largest modulus of an eigenvalue; None if the two largest haven't converged in so many products.

    Rows of `basis` are orthonormal, and A basisᵀ[:, :n] = basisᵀ upper all along. A restart keeps the invariant
    subspace of the part that is square whose eigenvalues are largest: real, for a pair stays together. Where products
    leave no new direction, the space has something of every eigenvector, as the random first vector has.
    """
    most = min(_BASIS, size - 1)
    basis, upper = np.zeros((most + 1, size)), np.zeros((most + 1, most))
    first = np.random.default_rng(0).standard_normal(size)
    basis[0], begin, products = first / np.linalg.norm(first), 0, 0
    while products < _MOST_PRODUCTS:
        for n in range(begin, most):
            rest = product(basis[n])
            whole = np.linalg.norm(rest)
            for _ in range(2):  # once more, for what rounding left
                along = np.einsum("ij,j->i", basis[: n + 1], rest)  # small: a BLAS would wake its threads for it
                rest -= np.einsum("i,ij->j", along, basis[: n + 1])
                upper[: n + 1, n] += along
            upper[n + 1, n] = length = np.linalg.norm(rest)
            if length <= _TOLERANCE * whole:
                return float(np.abs(np.linalg.eigvals(upper[: n + 1, : n + 1])).max())
            basis[n + 1] = rest / length
        products += most - begin
        values, vectors = np.linalg.eig(upper[:most])
        largest = np.argsort(-np.abs(values))
        values, vectors = values[largest], vectors[:, largest]
        residuals = np.abs(upper[most] @ vectors)
        if np.all(residuals[:2] <= _TOLERANCE * np.abs(values[0])):
            return float(np.abs(values[0]))
        begin = _KEPT + bool(values[_KEPT - 1].imag and values[_KEPT - 1] == values[_KEPT].conj())
        parts = np.hstack([vectors[:, :begin].real, vectors[:, :begin].imag])
        kept = np.linalg.svd(parts, full_matrices=False)[0][:, :begin]
        square, last = kept.T @ upper[:most] @ kept, upper[most] @ kept
        basis[:begin], basis[begin] = kept.T @ basis[:most], basis[most]
        upper[...] = 0
        upper[:begin, :begin], upper[begin, :begin] = square, last
    return None
