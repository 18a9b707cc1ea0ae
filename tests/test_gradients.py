"""Gradients against central differences, through the public functions alone: every cell, option, argument, element."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from shapes import Shape
from slopes import Differentiated, assert_gradients_are_slopes
from support import CELLS, make_problem, threads

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


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """These calls are too small to be shared; that threads change nothing is tested by itself."""
    with threads(1):
        yield


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
