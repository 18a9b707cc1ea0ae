"""The reference itself: derivatives against differences, and what it says about lengths, resets and directions."""

from __future__ import annotations

import doctest
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

import numpy as np
import pytest

from rnnfast import reference
from shapes import Shape
from support import CELLS, Problem, as_state, as_tuple, assert_same_bits, make_problem, solve_by_reference

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no_bias": {"bias": False},
    "stacked": {"num_layers": 2},
    "everything": {"num_layers": 2, "bidirectional": True, "ragged": True, "cut": True},
}


def loss(problem: Problem, params: Any, x: Any, state: Any) -> float:
    """A function whose gradients with respect to y and the final state are the problem's dy and dstate."""
    y, final, _ = reference.forward(problem.cell, params, x, state, problem.lengths, problem.resets)
    of_states = [np.vdot(s, ds) for s, ds in zip(as_tuple(final), problem.dstate, strict=True)]
    return float(np.nansum(y * problem.dy) + sum(of_states))


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("options", OPTIONS)
def test_gradients_are_slopes(options: str, cell: str) -> None:
    """Along a random direction of every argument at once, and of each alone."""
    problem = make_problem(cell, Shape(5, 4, 3, 6), **OPTIONS[options])
    assert problem.state is not None
    solution = solve_by_reference(problem)
    random = np.random.default_rng(1)
    arguments = {"dx": problem.x} | {f"gradient of state {k}": s for k, s in enumerate(problem.state)}
    arguments |= {f"gradient of {name}": array for name, array in problem.params.items()}
    directions = {name: random.standard_normal(array.shape) for name, array in arguments.items()}

    def at(moved: set[str], distance: float) -> float:
        values = {
            name: array + (distance if name in moved else 0) * directions[name] for name, array in arguments.items()
        }
        params = {name: values[f"gradient of {name}"] for name in problem.params}
        state = as_state(tuple(values[f"gradient of state {k}"] for k in range(len(problem.dstate))))
        return loss(problem, params, values["dx"], state)

    for moved in [set(arguments), *({name} for name in arguments)]:
        slope = (at(moved, 1e-6) - at(moved, -1e-6)) / 2e-6
        expected = sum(np.vdot(solution[name], directions[name]) for name in moved)
        assert slope == pytest.approx(expected, rel=1e-5, abs=1e-7), moved


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.longdouble])
@pytest.mark.parametrize("cell", CELLS)
def test_computes_in_the_dtype_it_is_told(cell: str, dtype: type) -> None:
    solution = solve_by_reference(make_problem(cell, Shape(3, 2, 4, 5), num_layers=2, bidirectional=True), dtype)
    assert {array.dtype for array in solution.values()} == {np.dtype(dtype)}


@pytest.mark.parametrize("cell", CELLS)
def test_a_reverse_direction_is_a_forward_one_on_the_reversed_sequence(cell: str) -> None:
    problem = make_problem(cell, Shape(5, 3, 4, 6), bidirectional=True)
    assert problem.state is not None
    both = solve_by_reference(problem)
    mirrored = {
        name.removesuffix("_reverse"): array for name, array in problem.params.items() if name.endswith("_reverse")
    }
    y, final, _ = reference.forward(
        problem.cell, mirrored, problem.x[::-1], as_state(tuple(s[1:] for s in problem.state))
    )
    assert_same_bits(both["y"][..., 6:], y[::-1])
    for k, s in enumerate(as_tuple(final)):
        assert_same_bits(both[f"final state {k}"][1:], s)


@pytest.mark.parametrize("cell", CELLS)
def test_a_reset_makes_two_sequences_of_one(cell: str) -> None:
    """In both directions; each half has one end of its own, where the cell's initial state stands."""
    problem = make_problem(cell, Shape(7, 1, 4, 6), bidirectional=True)
    assert problem.state is not None
    resets = np.arange(7)[:, None] == 3
    y, final, _ = reference.forward(cell, problem.params, problem.x, as_state(problem.state), resets=resets)
    nothing = [np.zeros_like(s[:1]) for s in problem.state]
    left = as_state(tuple(np.concatenate([s[:1], n]) for s, n in zip(problem.state, nothing, strict=True)))
    right = as_state(tuple(np.concatenate([n, s[1:]]) for s, n in zip(problem.state, nothing, strict=True)))
    y_left, final_left, _ = reference.forward(cell, problem.params, problem.x[:3], left)
    y_right, final_right, _ = reference.forward(cell, problem.params, problem.x[3:], right)
    assert_same_bits(y, np.concatenate([y_left, y_right]))
    for whole, a, b in zip(as_tuple(final), as_tuple(final_left), as_tuple(final_right), strict=True):
        assert_same_bits(whole, np.concatenate([b[:1], a[1:]]))


@pytest.mark.parametrize("cell", CELLS)
def test_padding_changes_nothing(cell: str) -> None:
    """Nor does a reset within it."""
    problem = make_problem(cell, Shape(4, 2, 3, 5), bidirectional=True)
    padded_x = np.concatenate([problem.x, np.full((3, 2, 3), np.nan)])
    padded_dy = np.concatenate([problem.dy, np.full((3, 2, 10), np.nan)])
    resets = np.arange(7)[:, None] >= np.array([4, 4])
    y, final, tape = reference.forward(cell, problem.params, padded_x, as_state(problem.state or ()), [4, 4], resets)
    dx, dinitial, grads = reference.backward(tape, padded_dy, as_state(problem.dstate))
    expected = solve_by_reference(problem)
    assert_same_bits(y[:4], expected["y"])
    assert_same_bits(dx[:4], expected["dx"])
    assert not y[4:].any() and not dx[4:].any()
    for k, (s, ds) in enumerate(zip(as_tuple(final), as_tuple(dinitial), strict=True)):
        assert_same_bits(s, expected[f"final state {k}"])
        assert_same_bits(ds, expected[f"gradient of state {k}"])
    assert_same_bits(grads, {name: expected[f"gradient of {name}"] for name in grads})


def test_logistic_function_neither_overflows_nor_loses_its_tail() -> None:
    z = np.array([-1000.0, -40.0, 0.0, 40.0, 1000.0, np.inf, -np.inf])
    with np.errstate(over="raise"):
        values = reference.sigmoid(z)
    assert values == pytest.approx([0.0, np.exp(-40.0), 0.5, 1.0, 1.0, 1.0, 0.0], rel=1e-15)


def test_example_in_the_documentation_runs() -> None:
    names = [f"{reference.__name__}.{module.name}" for module in iter_modules(reference.__path__)]
    results = [doctest.testmod(import_module(name)) for name in names]
    assert sum(result.attempted for result in results)
    assert not any(result.failed for result in results)
