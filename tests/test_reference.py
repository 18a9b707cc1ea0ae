"""The reference itself: derivatives against differences, and what it says about lengths, resets and directions.

Every cell of the family with every option that it takes. What single cells and options mean is in the files beside.
"""

from __future__ import annotations

import doctest
from dataclasses import replace
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

import numpy as np
import pytest

from family import CASES, CELLS, Family, all_options, make_family
from rnnfast import reference
from shapes import Shape
from support import Array, as_tuple, assert_same_bits

each_cell = pytest.mark.parametrize("cell", CELLS)
each_case = pytest.mark.parametrize(
    ("cell", "options"), [pytest.param(cell, options, id=f"{cell}-{name}") for cell, name, options in CASES]
)


def loss(family: Family, stabilizer: Array | None) -> float:
    """A function whose gradients with respect to y and the final state are the problem's dy and dstate.

    An sLSTM's m is a constant to its derivatives: c and n count at the scale that the unchanged problem's final m, the
    `stabilizer`, gives them. (Where both are -∞, there is nothing to scale.)
    """
    y, final, _ = family.forward()
    states = as_tuple(final)
    if stabilizer is not None:
        h, c, n, m = states
        scale = np.exp(np.nan_to_num(m, neginf=0) - np.nan_to_num(stabilizer, neginf=0))
        states = h, c * scale, n * scale, np.zeros_like(m)
    of_states = [np.vdot(s, ds) for s, ds in zip(states, family.dstate, strict=True)]
    return float(np.nansum(y * family.dy) + sum(of_states))


@each_case
def test_gradients_are_slopes(cell: str, options: dict[str, Any]) -> None:
    """Along a random direction of every argument at once, and of each alone."""
    family = make_family(cell, **options)
    assert family.state is not None
    solution = family.solve()
    stabilizer = solution["final state 3"] if cell == "slstm" else None
    random = np.random.default_rng(1)
    arguments = {"dx": family.x} | {f"gradient of state {k}": s for k, s in enumerate(family.state)}
    arguments |= {f"gradient of {name}": array for name, array in family.params.items()}
    directions = {name: random.standard_normal(array.shape) for name, array in arguments.items()}
    if stabilizer is not None:
        assert not solution["gradient of state 3"].any()
        directions["gradient of state 3"][...] = 0
    solution = {name: np.where(np.isnan(arguments[name]), 0, solution[name]) for name in arguments}

    def at(moved: set[str], distance: float) -> float:
        values = {
            name: array + (distance if name in moved else 0) * directions[name] for name, array in arguments.items()
        }
        changed = replace(
            family,
            params={name: values[f"gradient of {name}"] for name in family.params},
            x=values["dx"],
            state=tuple(values[f"gradient of state {k}"] for k in range(len(family.dstate))),
        )
        return loss(changed, stabilizer)

    for moved in [set(arguments), *({name} for name in arguments)]:
        slope = (at(moved, 1e-6) - at(moved, -1e-6)) / 2e-6
        expected = sum(np.vdot(solution[name], directions[name]) for name in moved)
        assert slope == pytest.approx(expected, rel=1e-5, abs=1e-7), moved


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.longdouble])
@each_cell
def test_computes_in_the_dtype_it_is_told(cell: str, dtype: type) -> None:
    family = make_family(cell, **all_options(cell))
    solution = family.solve(dtype, clip=10.0)
    assert {array.dtype for array in solution.values()} == {np.dtype(dtype)}


@each_cell
def test_without_a_state_begins_with_the_cells_own(cell: str) -> None:
    family = make_family(cell, num_layers=2)
    blank = tuple(np.full_like(s, value) for s, value in zip(family.dstate, CELLS[cell].initial, strict=True))
    assert_same_bits(replace(family, state=None).solve(), replace(family, state=blank).solve())


@each_cell
def test_a_reverse_direction_is_a_forward_one_on_the_reversed_sequence(cell: str) -> None:
    options = {**all_options(cell), "num_layers": 1, "ragged": False, "cut": False}
    both = make_family(cell, Shape(5, 3, 4, 6), **options)
    assert both.state is not None and both.keep is not None
    y, final, _ = both.forward()
    scale = both.recurrent_scale
    mirrored = replace(
        both,
        params={name.removesuffix("_reverse"): p for name, p in both.params.items() if name.endswith("_reverse")},
        x=both.x[::-1],
        state=tuple(s[1:] for s in both.state),
        keep=tuple(None if k is None else k[1:, ::-1] for k in both.keep),
        recurrent_scale=None if scale is None else scale[1:],
    )
    y_mirrored, final_mirrored, _ = mirrored.forward()
    assert_same_bits(y[..., y.shape[-1] // 2 :], y_mirrored[::-1])
    for s, mirrored_s in zip(as_tuple(final), as_tuple(final_mirrored), strict=True):
        assert_same_bits(s[1:], mirrored_s)


@each_cell
def test_a_reset_makes_two_sequences_of_one(cell: str) -> None:
    """In both directions; each half has one end of its own, where the cell's initial state stands."""
    family = make_family(cell, Shape(7, 1, 4, 6), bidirectional=True)
    assert family.state is not None
    y, final, _ = replace(family, resets=np.arange(7)[:, None] == 3).forward()
    blank = [np.full_like(s[:1], value) for s, value in zip(family.state, CELLS[cell].initial, strict=True)]
    left = tuple(np.concatenate([s[:1], nothing]) for s, nothing in zip(family.state, blank, strict=True))
    right = tuple(np.concatenate([nothing, s[1:]]) for s, nothing in zip(family.state, blank, strict=True))
    y_left, final_left, _ = replace(family, x=family.x[:3], state=left).forward()
    y_right, final_right, _ = replace(family, x=family.x[3:], state=right).forward()
    assert_same_bits(y, np.concatenate([y_left, y_right]))
    for whole, a, b in zip(as_tuple(final), as_tuple(final_left), as_tuple(final_right), strict=True):
        assert_same_bits(whole, np.concatenate([b[:1], a[1:]]))


@each_cell
def test_padding_changes_nothing(cell: str) -> None:
    """Nor does a reset within it."""
    options = {**all_options(cell), "ragged": False, "cut": False}
    family = make_family(cell, Shape(4, 2, 3, 6), **options)
    padded = replace(
        family,
        x=np.concatenate([family.x, np.full((3, *family.x.shape[1:]), np.nan)]),
        dy=np.concatenate([family.dy, np.full((3, *family.dy.shape[1:]), np.nan)]),
        keep=tuple(
            None if k is None else np.concatenate([k, np.full_like(k[:, :3], np.nan)], axis=1)
            for k in family.keep or ()
        ),
        lengths=np.array([4, 4]),
        resets=np.arange(7)[:, None] >= np.array([4, 4]),
    ).solve()
    for name in ("y", "dx"):
        assert not padded[name][4:].any()
        padded[name] = padded[name][:4]
    assert_same_bits(padded, family.solve())


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
