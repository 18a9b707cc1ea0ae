"""Layers against the reference: outputs, states, tapes and all gradients, within the bounds that are promised."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rnnfast import _kernels, reference
from shapes import LARGE, SMALL, Shape
from support import (
    CELLS,
    DTYPES,
    Array,
    as_state,
    as_tuple,
    assert_accurate,
    cached_problem,
    make_problem,
    new_layer,
    solve,
    solve_by_reference,
)

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no_state_given": {"given": False},
    "no_bias": {"bias": False},
    "ragged": {"ragged": True},
    "resets": {"cut": True},
    "stacked": {"num_layers": 3},
    "bidirectional": {"bidirectional": True},
    "everything": {"num_layers": 2, "bidirectional": True, "ragged": True, "cut": True},
}


def test_registries_agree() -> None:
    """Every cell of the kernels has its equations in the reference, with as many gates and states."""
    kernels = {name: (cell["gates"], cell["states"]) for name, cell in _kernels.cells().items()}
    assert kernels == {name: (len(cell.gates), len(cell.initial)) for name, cell in reference.CELLS.items()}


@pytest.mark.kernel
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("shape", SMALL)
def test_layer_matches_reference(shape: str, cell: str, dtype: type) -> None:
    size = SMALL[shape]
    if "no_forget" in cell:  # c is a sum over all steps: after many of them, what is left of it is a matter of chance
        size = size._replace(steps=min(size.steps, 60))
    problem, exact, single = cached_problem(cell, size)
    assert_accurate(solve(problem, dtype), exact, single)


# The driver knows no cell, so three of them show on every level where it cuts.
ON_EVERY_ISA = [("many_steps_and_rows", cell) for cell in ("rnn_tanh", "lstm", "gru")]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("shape", "cell"),
    [
        pytest.param(shape, cell, marks=[pytest.mark.kernel] if (shape, cell) in ON_EVERY_ISA else [])
        for shape in LARGE
        for cell in CELLS
    ],
)
def test_layer_matches_reference_where_it_works_in_blocks(shape: str, cell: str, dtype: type) -> None:
    problem, exact, single = cached_problem(cell, LARGE[shape])
    assert_accurate(solve(problem, dtype), exact, single)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("options", [*list(OPTIONS)[:-1], pytest.param("everything", marks=pytest.mark.kernel)])
def test_layer_matches_reference_with_options(options: str, cell: str, dtype: type) -> None:
    problem, exact, single = cached_problem(cell, Shape(7, 13, 6, 19), **OPTIONS[options])
    assert_accurate(solve(problem, dtype), exact, single)


@pytest.mark.parametrize("shape", [Shape(0, 3, 4, 5), Shape(3, 0, 4, 5), Shape(0, 0, 4, 5)])
@pytest.mark.parametrize("cell", CELLS)
def test_empty_calls_return_empty_outputs_and_the_state(cell: str, shape: Shape) -> None:
    problem = make_problem(cell, shape, num_layers=2, bidirectional=True, ragged=True, cut=True)
    solution = solve(problem, np.float32)
    assert solution["y"].shape == (shape.steps, shape.batch, 10)
    assert solution["dx"].shape == (shape.steps, shape.batch, problem.shape.input)
    for k, (state, dstate) in enumerate(zip(problem.state or (), problem.dstate, strict=True)):
        assert np.array_equal(solution[f"final state {k}"], state)
        assert np.array_equal(solution[f"gradient of state {k}"], dstate)
    assert not any(gradient.any() for name, gradient in solution.items() if "_l" in name)


@settings(max_examples=60)
@given(
    cell=st.sampled_from(CELLS),
    dtype=st.sampled_from(DTYPES),
    shape=st.builds(Shape, st.integers(0, 6), st.integers(0, 9), st.integers(1, 20), st.integers(1, 40)),
    num_layers=st.integers(1, 2),
    bidirectional=st.booleans(),
    bias=st.booleans(),
    state=st.booleans(),
    ragged=st.booleans(),
    cut=st.booleans(),
    batch_first=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_layer_matches_reference_on_any_shape_with_any_options(
    cell: str, dtype: type, shape: Shape, batch_first: bool, state: bool, **options: Any
) -> None:
    problem = make_problem(cell, shape, given=state, **options)
    got = solve(problem, dtype, batch_first=batch_first)
    assert_accurate(got, solve_by_reference(problem), solve_by_reference(problem, np.float32))


@pytest.mark.kernel
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("gain", [0.1, 1.0, 8.0], ids=["linear", "usual", "saturated"])
def test_one_step_errs_by_no_more_than_its_terms_allow(gain: float, cell: str, dtype: type) -> None:
    """|error| ≤ k·eps·√length·Σ|terms| for each unit: |W||x|, |R||h|, biases, the states and the activations (≤ 1).

    The bound that is promised has k = 8; rounding errors that add up like a random walk stay below k = 1.
    """
    problem = make_problem(cell, Shape(1, 64, 24, 40))
    _, _, inputs, hidden = problem.shape
    params = {name: gain * array for name, array in problem.params.items()}
    layer = new_layer(cell, inputs, hidden, dtype=dtype)
    layer.load_state_dict(params)
    assert problem.state is not None
    y, state = layer(problem.x.astype(dtype), as_state(tuple(s.astype(dtype) for s in problem.state)))
    exact_y, exact_state, _ = reference.forward(cell, layer.params, problem.x, as_state(problem.state))
    bound = np.finfo(dtype).eps * np.sqrt(inputs + hidden + 2) * sum_of_terms(params, problem.x[0], problem.state)
    assert np.all(np.abs(y[0] - exact_y[0]) <= bound)
    for got, exact in zip(as_tuple(state), as_tuple(exact_state), strict=True):
        assert np.all(np.abs(got[0] - exact[0]) <= bound)


def sum_of_terms(params: dict[str, Array], x: Array, state: tuple[Array, ...]) -> Array:
    """(B, H): of a unit, the pre-activations of all its gates and, times those, its previous states."""
    terms = {name.removesuffix("_l0"): np.abs(array) for name, array in params.items()}
    z = np.abs(x) @ terms["weight_ih"].T + terms["bias_ih"]
    if "bias_hh" in terms:
        z += np.abs(state[0][0]) @ terms["weight_hh"].T + terms["bias_hh"]
    of_unit = z.reshape(len(z), -1, state[0].shape[-1]).sum(axis=1)
    carried = np.sum([np.abs(s[0]) for s in state], axis=0)
    for name, weight in terms.items():  # those that a unit has for itself, times a state before or after the step
        if weight.ndim == 1 and name.startswith("weight"):
            of_unit += weight.reshape(-1, state[0].shape[-1]).sum(axis=0) * (1 + carried)
    bound: Array = (1 + carried) * (1 + of_unit)
    return bound


@pytest.mark.parametrize("cell", CELLS)
def test_inference_returns_what_training_returns(cell: str) -> None:
    """Also the types: y and state as arrays that the caller may write to."""
    problem = make_problem(cell, SMALL["hidden_tail"], num_layers=2)
    layer = problem.layer(np.float32)
    assert problem.state is not None
    y, state = layer(problem.x, as_state(problem.state))
    assert y.flags.writeable and all(s.flags.writeable for s in as_tuple(state))
    assert isinstance(state, tuple) == (len(problem.state) > 1)
