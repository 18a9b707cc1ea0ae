"""What single cells of the reference promise: their equations written another way, special cases, limits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from family import CELLS, HEADS, Family, assert_same_solution, make_family
from rnnfast import reference
from shapes import Shape
from support import Array, assert_same_bits

FORGET = slice(6, 12)  # the rows of gates, H = 6
INPUT = RESET = slice(0, 6)


def bias(family: Family, rows: slice, value: float, name: str = "bias_ih_l0") -> Family:
    changed = family.params[name].copy()
    changed[rows] = value
    return family.with_params(**{name: changed})


# ---- GRU, reset gate before the product ------------------------------------------------------------------------------


def test_with_an_open_reset_gate_its_place_makes_no_difference() -> None:
    before = bias(make_family("gru_reset_before"), RESET, np.inf)
    after = replace(before, cells=(CELLS["gru"],))
    assert_same_solution(before.solve(), after.solve())


def test_with_a_shut_reset_gate_the_state_leaves_the_candidate_but_its_bias_stays() -> None:
    family = bias(make_family("gru_reset_before"), RESET, -np.inf)
    weight = family.params["weight_hh_l0"].copy()
    weight[12:] = 0
    without = family.with_params(weight_hh_l0=weight)
    np.testing.assert_array_equal(family.solve()["y"], without.solve()["y"])
    assert (bias(family, slice(12, 18), 1.0, "bias_hh_l0").solve()["y"] != family.solve()["y"]).all()


# ---- SRU -------------------------------------------------------------------------------------------------------------


def sru_by_hand(params: dict[str, Array], x: Array, c: Array) -> tuple[Array, Array]:
    """h over time and the last c, of a batch at once."""
    hidden = c.shape[-1]
    outputs = []
    for x_t in x:
        blocks = x_t @ params["weight_ih_l0"].T + params["bias_ih_l0"]
        candidate, f, r = (blocks[:, g * hidden : (g + 1) * hidden] for g in range(3))
        skip = blocks[:, 3 * hidden :] if blocks.shape[1] == 4 * hidden else x_t
        f = 1 / (1 + np.exp(-f - params["weight_c_l0"][:hidden] * c))
        r = 1 / (1 + np.exp(-r - params["weight_c_l0"][hidden:] * c))
        c = f * c + (1 - f) * candidate
        outputs.append(r * c + (1 - r) * skip)
    return np.stack(outputs), c


@pytest.mark.parametrize("cell", ["sru", "sru_skip"])
def test_sru_equals_its_equations_on_a_whole_batch(cell: str) -> None:
    family = make_family(cell)
    assert family.state is not None
    y, (_, c), _ = family.forward()
    y_by_hand, c_by_hand = sru_by_hand(dict(family.params), family.x, family.state[1][0])
    np.testing.assert_allclose(y, y_by_hand, rtol=0, atol=1e-13)
    np.testing.assert_allclose(c[0], c_by_hand, rtol=0, atol=1e-13)


@pytest.mark.parametrize("cell", ["sru", "sru_skip"])
def test_nothing_reads_the_hidden_state_of_an_sru(cell: str) -> None:
    family = make_family(cell)
    assert family.state is not None
    solution = family.solve()
    assert not solution["gradient of state 0"].any()
    assert_same_bits(replace(family, state=(family.state[0] + 1, family.state[1])).solve(), solution)


def test_sru_skip_with_the_identity_is_sru() -> None:
    plain = make_family("sru")
    projected = replace(plain, cells=(CELLS["sru_skip"],)).with_params(
        weight_ih_l0=np.concatenate([plain.params["weight_ih_l0"], np.eye(6)]),
        bias_ih_l0=np.concatenate([plain.params["bias_ih_l0"], np.zeros(6)]),
    )
    solution = projected.solve()
    for name in ("weight_ih_l0", "bias_ih_l0"):
        solution[f"gradient of {name}"] = solution[f"gradient of {name}"][:18]
    assert_same_solution(solution, plain.solve())


@pytest.mark.parametrize("features", [1, 5])
def test_sru_refuses_another_number_of_features_than_units(features: int) -> None:
    """One feature too, which NumPy would take for any number."""
    family = make_family("sru")
    wrong = replace(family, x=family.x[..., :features]).with_params(
        weight_ih_l0=family.params["weight_ih_l0"][:, :features]
    )
    with pytest.raises(ValueError, match=rf"x: expected .* 6, got {features}; sru_skip"):
        wrong.forward()


# ---- sLSTM -----------------------------------------------------------------------------------------------------------


def slstm_by_hand(params: dict[str, Array], x: Array, h: Array, c: Array, n: Array) -> Array:
    """h over time without a stabiliser, as the paper has it first: i = e^ĩ, which must not overflow."""
    hidden = h.shape[-1]
    dense = np.zeros((4 * hidden, hidden))
    width = hidden // HEADS
    for row, weights in enumerate(params["weight_hh_l0"]):
        head = row % hidden // width
        dense[row, head * width : (head + 1) * width] = weights
    outputs = []
    for x_t in x:
        rows = x_t @ params["weight_ih_l0"].T + params["bias_ih_l0"] + h @ dense.T + params["bias_hh_l0"]
        i, f, z, o = np.split(rows, 4, axis=1)
        i, f, z, o = np.exp(i), 1 / (1 + np.exp(-f)), np.tanh(z), 1 / (1 + np.exp(-o))
        c, n = f * c + i * z, f * n + i
        h = o * c / n
        outputs.append(h)
    return np.stack(outputs)


def test_slstm_equals_its_equations_without_a_stabilizer() -> None:
    family = make_family("slstm")
    blank = np.zeros((4, 6))
    y, _, _ = replace(family, state=None).forward()
    np.testing.assert_allclose(y, slstm_by_hand(dict(family.params), family.x, blank, blank, blank), rtol=0, atol=1e-13)


def test_slstm_goes_on_from_a_state_at_the_scale_of_its_m() -> None:
    family = make_family("slstm")
    assert family.state is not None
    h, c, n, m = (s[0] for s in family.state)
    by_hand = slstm_by_hand(dict(family.params), family.x, h, c * np.exp(m), n * np.exp(m))
    np.testing.assert_allclose(family.forward()[0], by_hand, rtol=0, atol=1e-13)


@given(shift=st.floats(-300, 300))
def test_h_of_an_slstm_does_not_depend_on_the_scale_of_its_state(shift: float) -> None:
    """m + s with c and n times e⁻ˢ is the same state; its gradients are those of c and n times eˢ."""
    family = make_family("slstm", Shape(3, 2, 3, 6))
    assert family.state is not None
    family = replace(family, dstate=(family.dstate[0], *[np.zeros_like(ds) for ds in family.dstate[1:]]))
    h, c, n, m = family.state
    shifted = replace(family, state=(h, c * np.exp(-shift), n * np.exp(-shift), m + shift)).solve()
    expected = family.solve()
    for k in (1, 2):
        shifted[f"gradient of state {k}"] *= np.exp(-shift)
        del shifted[f"final state {k}"], expected[f"final state {k}"]
    del shifted["final state 3"], expected["final state 3"]
    assert_same_solution(shifted, expected, 1e-10)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("value", [1000.0, -1000.0])
@pytest.mark.parametrize("rows", [INPUT, FORGET])
@pytest.mark.parametrize("given", [False, True])
def test_large_gates_of_an_slstm_overflow_nowhere(dtype: type, value: float, rows: slice, given: bool) -> None:
    family = bias(make_family("slstm", given=given), rows, value)
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        solution = family.solve(dtype)
    for name, array in solution.items():
        assert np.isfinite(array).all(), name
    assert given or np.abs(solution["y"]).max() < 1  # c / n is a mean of tanh


@pytest.mark.parametrize(
    "case",
    [
        lambda family: bias(family, FORGET, -np.inf),
        lambda family: bias(family, INPUT, -np.inf),
        lambda family: bias(bias(family, FORGET, -np.inf), INPUT, -np.inf),
    ],
    ids=["forgets_all", "takes_nothing", "both"],
)
@pytest.mark.parametrize("given", [False, True])
def test_shut_gates_of_an_slstm_make_no_infinity_less_infinity(case: Callable[[Family], Family], given: bool) -> None:
    family = case(make_family("slstm", given=given, cut=True))
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        solution = family.solve()
    for name, array in solution.items():
        assert np.isfinite(array).all() or (name == "final state 3" and not np.isnan(array).any()), name


def test_an_slstm_that_has_taken_nothing_in_outputs_zero() -> None:
    family = bias(make_family("slstm", given=False), INPUT, -np.inf)
    solution = family.solve()
    assert not solution["y"].any()
    assert np.isneginf(solution["final state 3"]).all()
    assert not solution["gradient of weight_ih_l0"][:12].any()


def test_an_slstm_averages_what_it_has_taken_in() -> None:
    """With gates that don't vary, c / n is the mean of z."""
    family = make_family("slstm", given=False)
    rows = np.zeros_like(family.params["bias_ih_l0"])
    rows[FORGET] = np.inf
    still = {name: array.copy() for name, array in family.params.items()}
    still |= {"bias_ih_l0": rows, "bias_hh_l0": np.zeros_like(rows), "weight_hh_l0": still["weight_hh_l0"] * 0}
    still["weight_ih_l0"][:12] = 0
    y, _, tape = replace(family, params=still).forward()
    z, o = tape.gates[0, :, :, 2], tape.gates[0, :, :, 3]
    steps = np.arange(1, 6)[:, None, None]
    np.testing.assert_allclose(y, o * np.cumsum(z, axis=0) / steps, rtol=0, atol=1e-14)


def test_a_unit_of_an_slstm_sees_the_hidden_states_of_its_own_head() -> None:
    family = make_family("slstm", Shape(1, 1, 3, 6))
    assert family.state is not None
    h, *others = family.state
    changed = h.copy()
    changed[..., 1] += 1
    y, _, _ = replace(family, state=(changed, *others)).forward()
    assert (y != family.forward()[0]).ravel().tolist() == [True] * 3 + [False] * 3


def test_the_heads_of_an_slstm_are_blocks_of_one_matrix() -> None:
    """With the zeros between them written out, it is an sLSTM of one head."""
    heads = make_family("slstm")
    dense = np.zeros((24, 6))
    own = np.zeros((24, 6), np.bool_)
    for row in range(24):
        first = row % 6 // 3 * 3
        dense[row, first : first + 3] = heads.params["weight_hh_l0"][row]
        own[row, first : first + 3] = True
    solution = heads.with_params(weight_hh_l0=dense).solve()
    gradient = solution["gradient of weight_hh_l0"]
    solution["gradient of weight_hh_l0"] = gradient[own].reshape(24, 3)
    assert_same_solution(solution, heads.solve(), 0)


def test_an_slstms_stabilizer_takes_no_gradient() -> None:
    family = make_family("slstm")
    dm = np.ones_like(family.dstate[3])
    solution = replace(family, dstate=(*family.dstate[:3], dm)).solve()
    assert_same_bits(solution, family.solve())
    assert not solution["gradient of state 3"].any()


# ---- the registry ----------------------------------------------------------------------------------------------------


def test_a_cell_is_taken_by_itself_or_by_its_name() -> None:
    family = make_family("lstm")
    y, _, _ = reference.forward("lstm", family.params, family.x)
    assert_same_bits(reference.forward(reference.CELLS["lstm"], family.params, family.x)[0], y)
    assert_same_bits(reference.forward(("lstm",), family.params, family.x)[0], y)


def test_each_layer_may_have_a_cell_of_its_own_with_the_same_states() -> None:
    family = make_family("sru_skip", num_layers=3)
    assert [len(cell.gates) for cell in family.cells] == [4, 3, 3]
    y, _, tape = family.forward()
    assert y.shape == (5, 4, 6) and tape.states.shape == (3, 5, 4, 2, 6)
    with pytest.raises(ValueError, match=r"gates: expected as many in every layer, got \(4, 3, 3\)"):
        _ = tape.gates
    with pytest.raises(ValueError, match="cell: expected one for each of 3 layers, got 2"):
        replace(family, cells=family.cells[:2]).forward()
    with pytest.raises(ValueError, match="cell: expected the same states in every layer"):
        replace(family, cells=(CELLS["gru"], *family.cells[1:])).forward()
