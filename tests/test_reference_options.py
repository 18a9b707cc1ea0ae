"""What a cell of the reference may be combined with: projection, layer norm, zoneout, recurrent dropout, clipping."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from family import CELLS, Family, all_options, assert_same_solution, make_family
from rnnfast import reference
from shapes import Shape
from support import Array, as_state, as_tuple, assert_same_bits

each_cell = pytest.mark.parametrize("cell", CELLS)


def that_take(option: str) -> Any:
    return pytest.mark.parametrize("cell", [name for name, cell in CELLS.items() if option in cell.options])


# ---- projection ------------------------------------------------------------------------------------------------------


def test_what_a_cell_may_be_combined_with() -> None:
    gated = {"lstm", "lstm_peephole", "lstm_coupled", "lstm_coupled_peephole"}
    simple = {"rnn_tanh", "rnn_relu", "rnn_sigmoid", *gated, "lstm_no_forget", "lstm_no_forget_peephole"}
    expected = {
        "projection": simple,
        "layer_norm": simple | {"gru", "gru_reset_before"},
        "recurrent_dropout": simple | {"gru", "gru_reset_before", "slstm"},
    }
    for option, cells in expected.items():
        assert {name for name, cell in CELLS.items() if option in cell.options} == cells


@that_take("projection")
def test_a_projection_by_the_identity_changes_nothing(cell: str) -> None:
    plain = make_family(cell)
    projected = plain.with_params(weight_hr_l0=np.eye(6)).solve()
    del projected["gradient of weight_hr_l0"]
    assert_same_solution(projected, plain.solve(), 0)


@that_take("projection")
def test_a_projection_is_the_same_as_to_project_where_h_is_read(cell: str) -> None:
    """In one layer: R W_hr in the place of R, and W_hr h for each output."""
    projected = make_family(cell, projection=True)
    assert projected.state is not None
    w = projected.params["weight_hr_l0"]
    params = {name: array for name, array in projected.params.items() if name != "weight_hr_l0"}
    params["weight_hh_l0"] = params["weight_hh_l0"] @ w
    state = (np.zeros((1, 4, 6)), *projected.state[1:])
    beginning = (np.zeros((1, 4, 4)), *projected.state[1:])
    y, _, _ = replace(projected, params=params, state=state).forward()
    np.testing.assert_allclose(replace(projected, state=beginning).forward()[0], y @ w.T, rtol=0, atol=1e-13)


def test_a_projected_h_has_fewer_features_and_the_cell_state_keeps_its_own() -> None:
    family = make_family("lstm", projection=True, num_layers=2, bidirectional=True)
    y, (h, c), tape = family.forward()
    assert y.shape == (5, 4, 2 * 4) and h.shape == (4, 4, 4) and c.shape == (4, 4, 6)
    assert tape.state(0).shape == (4, 5, 4, 4) and tape.state(1).shape == (4, 5, 4, 6)
    assert tape.gates.shape == (4, 5, 4, 4, 6)
    with pytest.raises(ValueError, match=r"states: expected states of one width, got \(4, 6\)"):
        _ = tape.states


# ---- layer norm ------------------------------------------------------------------------------------------------------


def test_normalized_gates_have_mean_zero_and_variance_one_each_by_itself() -> None:
    z = np.random.default_rng(0).normal(3, 5, (4, 50))
    y = reference.normalize(z.ravel(), np.ones(200), np.zeros(200), 50).reshape(4, 50)
    np.testing.assert_allclose(y.mean(axis=1), 0, atol=1e-14)
    np.testing.assert_allclose(y.var(axis=1), 1, rtol=1e-6)
    for gate, rows in zip(z, y, strict=True):
        assert_same_bits(reference.normalize(gate, np.ones(50), np.zeros(50), 50), rows)


def test_the_small_number_is_inside_the_root() -> None:
    y = reference.normalize(np.array([-1e-3, 1e-3]), np.ones(2), np.zeros(2), 2)
    np.testing.assert_allclose(y, np.array([-1e-3, 1e-3]) / np.sqrt(1e-6 + 1e-5), rtol=1e-14)


@that_take("layer_norm")
def test_constant_rows_are_normalized_to_the_bias(cell: str) -> None:
    """So that x counts no more, nor the size of the weights."""
    family = make_family(cell, layer_norm=True)
    units = len(family.dstate[0][0, 0])
    rows = np.repeat(family.params["weight_ih_l0"][::units], units, axis=0)
    constant = family.with_params(weight_ih_l0=rows).solve()
    blind = family.with_params(weight_ih_l0=np.zeros_like(rows)).solve()
    np.testing.assert_allclose(constant["y"], blind["y"], rtol=0, atol=1e-11)
    np.testing.assert_allclose(constant["dx"], 0, atol=1e-9)


@that_take("layer_norm")
def test_layer_norm_does_not_see_the_scale_of_the_weights(cell: str) -> None:
    """As far as 10⁻⁵ is little beside their variance; each of the two parts by itself."""
    family = make_family(cell, layer_norm=True)
    family = family.with_params(**{name: 1e4 * family.params[name] for name in ("weight_ih_l0", "weight_hh_l0")})
    y = family.forward()[0]
    for name, factor in (("weight_ih_l0", 7), ("weight_hh_l0", 0.5)):
        scaled = family.with_params(**{name: factor * family.params[name]})
        np.testing.assert_allclose(scaled.forward()[0], y, rtol=0, atol=1e-9)


# ---- zoneout ---------------------------------------------------------------------------------------------------------


@each_cell
def test_zoneout_of_nothing_changes_nothing(cell: str) -> None:
    """Whether by zeros or by None; also where what isn't kept is infinite."""
    for family in (make_family(cell, **all_options(cell)), make_family(cell, given=False)):
        zero = replace(family, keep=(0.0,) * len(family.dstate)).solve()
        none = replace(family, keep=(None,) * len(family.dstate)).solve()
        assert_same_solution(zero, none, 0)
        assert_same_bits(replace(family, keep=None).solve(), none)


@each_cell
def test_zoneout_of_everything_freezes_the_state(cell: str) -> None:
    """Every output is the first h, and its gradient all that comes in."""
    family = replace(make_family(cell), keep=(1.0,) * len(CELLS[cell].initial))
    assert family.state is not None
    solution = family.solve()
    for k, s in enumerate(family.state):
        np.testing.assert_array_equal(solution[f"final state {k}"], s)
    np.testing.assert_array_equal(solution["y"], np.broadcast_to(family.state[0], solution["y"].shape))
    expected = family.dstate[0] + family.dy.sum(axis=0)
    np.testing.assert_allclose(solution["gradient of state 0"], expected, rtol=0, atol=1e-14)
    for k in range(1, len(family.state)):
        np.testing.assert_array_equal(solution[f"gradient of state {k}"], family.dstate[k])
    for name in ("dx", *(f"gradient of {name}" for name in family.params)):
        assert not solution[name].any(), name


@each_cell
def test_a_kept_unit_stays_and_the_others_are_what_the_cell_makes(cell: str) -> None:
    family = make_family(cell, Shape(1, 2, 3, 6))
    assert family.state is not None
    masks = [np.random.default_rng(k).random(s.shape) < 0.5 for k, s in enumerate(family.state)]
    _, final, _ = replace(family, keep=tuple(mask[:, None] for mask in masks)).forward()
    _, plain, _ = family.forward()
    for mask, before, s, new in zip(masks, family.state, as_tuple(final), as_tuple(plain), strict=True):
        np.testing.assert_array_equal(s, np.where(mask, before, new))


def test_a_new_h_of_an_lstm_is_made_of_the_new_c_and_not_of_what_zoneout_leaves() -> None:
    """As in the paper, whose authors also write h_t = k h_{t-1} + (1 - k) o tanh(f c_{t-1} + i g)."""
    family = make_family("lstm")
    assert family.state is not None
    y, (_, c), tape = replace(family, keep=(None, 1.0)).forward()
    np.testing.assert_array_equal(c, family.state[1])
    i, f, g, o = np.moveaxis(tape.gates[0], 2, 0)
    np.testing.assert_array_equal(y, o * np.tanh(f * family.state[1] + i * g))


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_a_number_is_the_share_of_every_unit_at_every_step(cell: str) -> None:
    family = make_family(cell, num_layers=2)
    shares = (0.25, 0.5)[: len(family.dstate)]
    full = tuple(np.full((2, 5, 4, 6), share) for share in shares)
    assert_same_bits(replace(family, keep=shares).solve(), replace(family, keep=full).solve())


def test_zoneout_between_the_values_of_an_lstm_is_their_weighted_mean() -> None:
    family = make_family("lstm", Shape(1, 2, 3, 6))
    assert family.state is not None
    _, final, _ = replace(family, keep=(0.25, 0.75)).forward()
    _, plain, _ = family.forward()
    for share, before, s, new in zip((0.25, 0.75), family.state, final, plain, strict=True):
        np.testing.assert_allclose(s, share * before + (1 - share) * new, rtol=1e-15)


def test_a_state_of_minus_infinity_may_stay() -> None:
    family = replace(make_family("slstm", given=False, cut=True), keep=(None, 1.0, 1.0, 1.0))
    with np.errstate(invalid="raise"):
        solution = family.solve()
    assert np.isneginf(solution.pop("final state 3")).all()
    for name, array in solution.items():
        assert np.isfinite(array).all(), name


# ---- recurrent dropout -----------------------------------------------------------------------------------------------


@that_take("recurrent_dropout")
def test_a_scale_of_one_changes_nothing(cell: str) -> None:
    options = {**all_options(cell), "recurrent_dropout": False}
    family = make_family(cell, **options)
    assert_same_bits(replace(family, recurrent_scale=1.0).solve(), family.solve())


@that_take("recurrent_dropout")
def test_the_scale_is_one_of_the_columns_of_the_recurrent_matrix(cell: str) -> None:
    """And of nothing else that reads h: not of z ∘ h_{t-1} in a GRU."""
    family = make_family(cell, Shape(5, 1, 3, 6))
    scale = np.array([0.0, 2.0, 1.0, 0.5, 4.0, 0.0])
    seen = scale if cell != "slstm" else np.tile(np.repeat(scale.reshape(2, 3), 3, axis=0), (4, 1))
    scaled = replace(family, recurrent_scale=scale).solve()
    expected = family.with_params(weight_hh_l0=family.params["weight_hh_l0"] * seen).solve()
    expected["gradient of weight_hh_l0"] = expected["gradient of weight_hh_l0"] * seen
    assert_same_solution(scaled, expected, 1e-14)


@that_take("recurrent_dropout")
def test_each_row_and_direction_has_a_scale_of_its_own(cell: str) -> None:
    options = {**all_options(cell), "ragged": False, "cut": False, "zoneout": False}
    family = make_family(cell, **options)
    assert family.recurrent_scale is not None and family.state is not None
    y, _, _ = family.forward()
    for b in range(4):
        row = replace(
            family,
            x=family.x[:, [b]],
            state=tuple(s[:, [b]] for s in family.state),
            recurrent_scale=family.recurrent_scale[:, [b]],
        )
        assert_same_bits(row.forward()[0], y[:, [b]])


# ---- clipping --------------------------------------------------------------------------------------------------------


def step_by_step(family: Family, clip: float) -> dict[str, Array]:
    """The gradients of one layer in one direction by passes over single steps, dh clipped between them."""
    assert family.state is not None
    tapes = []
    for t in range(len(family.x)):
        keep = None if family.keep is None else tuple(None if k is None else k[:, [t]] for k in family.keep)
        _, final, tape = replace(family, x=family.x[[t]], keep=keep).forward()
        family = replace(family, state=as_tuple(final))
        tapes.append(tape)
    total: dict[str, Array] = {f"gradient of {name}": np.zeros_like(p) for name, p in family.params.items()}
    total["dx"] = np.zeros_like(family.x)
    dstate = family.dstate
    for t, tape in reversed(list(enumerate(tapes))):
        dh = np.clip(dstate[0] + family.dy[t], -clip, clip)
        total["dx"][[t]], dinitial, grads = reference.backward(tape, None, as_state((dh, *dstate[1:])))
        dstate = as_tuple(dinitial)
        for name, gradient in grads.items():
            total[f"gradient of {name}"] += gradient
    return total | {f"gradient of state {k}": ds for k, ds in enumerate(dstate)}


@each_cell
@pytest.mark.parametrize("clip", [0.05, 0.5, 2.0])
def test_clipping_holds_dh_at_every_step(cell: str, clip: float) -> None:
    """Complete with dy, and before a projection and zoneout pass it on."""
    family = make_family(cell, Shape(4, 2, 3, 6), zoneout=True, **dict.fromkeys(CELLS[cell].options, True))
    assert_same_solution(family.solve(clip=clip), step_by_step(family, clip))


@each_cell
def test_a_bound_that_nothing_reaches_changes_nothing(cell: str) -> None:
    family = make_family(cell, **all_options(cell))
    assert_same_bits(family.solve(clip=1e6), family.solve())


def test_clipping_to_zero_leaves_no_gradient() -> None:
    family = make_family("gru", num_layers=2, bidirectional=True)
    solution = family.solve(clip=0.0)
    assert not any(array.any() for name, array in solution.items() if name.startswith(("dx", "gradient")))


@pytest.mark.parametrize("clip", [-1.0, np.nan])
def test_a_bound_below_zero_is_refused(clip: float) -> None:
    with pytest.raises(ValueError, match="clip: expected a number from 0, got"):
        make_family("gru").solve(clip=clip)


# ---- what is refused -------------------------------------------------------------------------------------------------


@each_cell
def test_an_option_that_a_cell_has_no_place_for_is_refused_by_name(cell: str) -> None:
    family = make_family(cell)
    ones = np.ones(len(CELLS[cell].gates) * 6)
    given = {
        "projection": ("weight_hr_l0", family.with_params(weight_hr_l0=np.eye(6))),
        "layer_norm": ("ln_ih_weight_l0", family.with_params(ln_ih_weight_l0=ones, ln_ih_bias_l0=ones)),
        "recurrent_dropout": ("recurrent_scale", replace(family, recurrent_scale=1.0)),
    }
    for option, (name, asked) in given.items():
        if option in CELLS[cell].options:
            asked.forward()
        else:
            with pytest.raises(
                ValueError, match=f"{name}: expected none, since this cell has no {option.replace('_', ' ')}"
            ):
                asked.forward()


def test_masks_of_another_shape_are_refused_by_name() -> None:
    family = make_family("lstm")
    with pytest.raises(ValueError, match=r"keep: expected 2, one for each state, got 1"):
        replace(family, keep=(0.5,)).forward()
    with pytest.raises(ValueError, match=r"keep\[1\]: expected \(1, 5, 4, 6\), or what broadcasts to it, got \(7,\)"):
        replace(family, keep=(None, np.zeros(7))).forward()
    with pytest.raises(ValueError, match=r"recurrent_scale: expected \(1, 4, 6\), or what .* got \(2, 4, 6\)"):
        replace(family, recurrent_scale=np.zeros((2, 4, 6))).forward()
