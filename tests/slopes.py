"""Gradients against central differences, through the public functions alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from support import Array, Problem, as_state, as_tuple

DISTANCE = 1e-6


class Differentiated:
    """A layer with its arguments in float64, and the loss Σ y·dy + Σ state·dstate."""

    def __init__(self, problem: Problem, *, batch_first: bool = False, dropout: float = 0.0) -> None:
        def outer(sequence: Array) -> Array:
            return sequence.swapaxes(0, 1) if batch_first else sequence

        self.layer = problem.layer(np.float64, batch_first=batch_first, dropout=dropout, seed=7)
        self.masks = self.layer.rng_state
        self.x = outer(problem.x.astype(np.float64)).copy()
        self.dy = outer(problem.dy.astype(np.float64)).copy()
        self.state = None if problem.state is None else tuple(s.astype(np.float64) for s in problem.state)
        self.dstate = tuple(s.astype(np.float64) for s in problem.dstate)
        # m of sLSTM carries no gradient: c, n and m depend on it, but h, the loss's only way to them, does not.
        self.constant = (3,) if problem.cell == "slstm" else ()
        if self.constant:
            self.dstate = self.dstate[0], *(np.zeros_like(s) for s in self.dstate[1:])
        self.lengths = problem.lengths
        self.resets = None if problem.resets is None else outer(problem.resets)

    def forward(self) -> Any:
        self.layer.rng_state = self.masks  # every call drops alike
        state = None if self.state is None else as_state(self.state)
        return self.layer.forward(self.x, state, self.lengths, self.resets)

    def loss(self) -> float:
        y, final, _ = self.forward()
        of_states = [np.vdot(s, ds) for s, ds in zip(as_tuple(final), self.dstate, strict=True)]
        return float(np.nansum(y * self.dy) + sum(of_states))

    def arguments_and_gradients(self) -> Iterator[tuple[str, Array, Array]]:
        _, _, tape = self.forward()
        dx, dinitial = self.layer.backward(tape, self.dy, as_state(self.dstate))
        yield "x", self.x, dx
        if self.state is not None:
            for k, (s, ds) in enumerate(zip(self.state, as_tuple(dinitial), strict=True)):
                if k not in self.constant:
                    yield f"state {k}", s, ds
        for name, gradient in self.layer.grads.items():
            yield name, self.layer.params[name], gradient

    def slopes(self, argument: Array) -> Array:
        """The central difference of the loss for each element of an argument, which is moved in place."""
        slopes = np.zeros_like(argument)
        for element in np.ndindex(*argument.shape):
            before = argument[element]
            argument[element] = before + DISTANCE
            above = self.loss()
            argument[element] = before - DISTANCE
            below = self.loss()
            argument[element] = before
            slopes[element] = (above - below) / (2 * DISTANCE)
        return slopes


def assert_gradients_are_slopes(function: Differentiated) -> None:
    for name, argument, gradient in list(function.arguments_and_gradients()):
        np.testing.assert_allclose(gradient, function.slopes(argument), rtol=1e-3, atol=1e-5, err_msg=name)
