"""Gradients against central differences, through the public functions alone: every cell, option, argument, element."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rnnfast as rf
from shapes import Shape
from slopes import Differentiated, assert_gradients_are_slopes
from support import CELLS, make_problem, threads

pytestmark = pytest.mark.usefixtures("one_thread")
SHAPE = Shape(4, 3, 3, 5)

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no_state_given": {"given": False},
    "no_bias": {"bias": False},
    "ragged": {"ragged": True},
    "resets": {"cut": True},
    "ragged_with_resets": {"ragged": True, "cut": True},
    "stacked": {"num_layers": 2},
    "bidirectional": {"bidirectional": True},
    "bidirectional_ragged_with_resets": {"bidirectional": True, "ragged": True, "cut": True},
    "everything": {"num_layers": 2, "bidirectional": True, "ragged": True, "cut": True},
    "everything_but_bias": {"num_layers": 2, "bidirectional": True, "ragged": True, "cut": True, "bias": False},
}


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("options", OPTIONS)
def test_gradients_are_slopes(options: str, cell: str) -> None:
    assert_gradients_are_slopes(Differentiated(make_problem(cell, SHAPE, **OPTIONS[options])))


@pytest.mark.parametrize("cell", CELLS)
def test_gradients_are_slopes_with_batch_first(cell: str) -> None:
    problem = make_problem(cell, SHAPE, num_layers=2, ragged=True, cut=True)
    assert_gradients_are_slopes(Differentiated(problem, batch_first=True))


@pytest.mark.parametrize("cell", CELLS)
def test_gradients_are_slopes_with_dropout_between_layers(cell: str) -> None:
    problem = make_problem(cell, SHAPE, num_layers=2, bidirectional=True, ragged=True)
    assert_gradients_are_slopes(Differentiated(problem, dropout=0.4))


def test_dropout_drops_in_training_only() -> None:
    problem = make_problem("lstm", SHAPE, num_layers=2)
    dropping, plain = Differentiated(problem, dropout=0.4), Differentiated(problem)
    assert dropping.loss() != plain.loss()
    dropping.layer.eval()
    assert dropping.loss() == plain.loss()


def test_gradients_add_up_until_they_are_zeroed() -> None:
    function = Differentiated(make_problem("lstm", SHAPE, num_layers=2))
    layer = function.layer
    for times in (1, 2):
        layer.backward(function.forward()[2], function.dy)
        if times == 1:
            once = layer.flat_grads.copy()
    assert once.any()
    assert np.array_equal(layer.flat_grads, 2 * once)
    layer.zero_grad()
    assert not layer.flat_grads.any()


@settings(max_examples=60)
@given(
    batch=st.sampled_from([1, 3, 37, 85, 100, 128, 129, 200, 255, 256, 300, 513]),
    steps=st.integers(1, 12),
    ragged=st.booleans(),
    bidirectional=st.booleans(),
    number=st.integers(1, 3),
    seed=st.integers(0, 9),
)
def test_a_row_has_the_gradients_that_it_has_alone(
    batch: int, steps: int, ragged: bool, bidirectional: bool, number: int, seed: int
) -> None:
    """However the rows of all steps are cut into the chunks of backward: ∂L/∂x and the gradients of the initial state
    to the bit, those of the weights as the sum over the rows."""
    random = np.random.default_rng(seed)
    layer = rf.GRU(2, 5, bidirectional=bidirectional, dtype=np.float64, seed=seed)
    x, dy = random.standard_normal((steps, batch, 2)), random.standard_normal((steps, batch, 5 * (1 + bidirectional)))
    lengths = random.integers(0, steps + 1, batch) if ragged else None

    def gradients(rows: slice) -> tuple[Any, Any, Any]:
        layer.zero_grad()
        _, _, tape = layer.forward(x[:, rows], lengths=None if lengths is None else lengths[rows])
        return *layer.backward(tape, dy[:, rows]), layer.flat_grads.copy()

    with threads(number):
        dx, dstate, dweights = gradients(slice(None))
    alone = [gradients(slice(row, row + 1)) for row in range(batch)]
    assert np.array_equal(dx, np.concatenate([each[0] for each in alone], 1))
    assert np.array_equal(dstate, np.concatenate([each[1] for each in alone], 1))
    np.testing.assert_allclose(dweights, sum(each[2] for each in alone), rtol=1e-11, atol=1e-11)
