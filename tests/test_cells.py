"""What the options of a cell mean, beside its equations: names and shapes of parameters, limits, refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import rnnfast as rf
from rnnfast import _kernels, recurrent, reference
from support import CELLS, DTYPES, as_tuple, assert_same_bits, new_layer

LSTM_OPTIONS: dict[str, tuple[dict[str, bool], int, tuple[str, ...]]] = {
    "plain": ({}, 4, ()),
    "peephole": ({"peephole": True}, 4, ("weight_ci", "weight_cf", "weight_co")),
    "coupled": ({"coupled": True}, 3, ()),
    "coupled with peepholes": ({"coupled": True, "peephole": True}, 3, ("weight_ci", "weight_co")),
    "no forget gate": ({"forget_gate": False}, 3, ()),
    "no forget gate, with peepholes": ({"forget_gate": False, "peephole": True}, 3, ("weight_ci", "weight_co")),
}


def sequence(*shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def test_every_recurrent_layer_is_reached_by_a_cell_of_the_registry() -> None:
    """So that whatever enumerates the cells tests every layer; and each cell is the one that its layer computes."""
    exported = {value for value in vars(rf).values() if isinstance(value, type)}
    kinds = {kind for kind in exported if issubclass(kind, recurrent.Recurrent)}
    layers = {cell: new_layer(cell, 5 if cell == "sru" else 3, 5) for cell in CELLS}
    assert {type(layer) for layer in layers.values()} == kinds
    assert {layer._cell_of(0) for layer in layers.values()} == set(CELLS) == set(_kernels.cells())


def test_states_start_alike_in_the_kernels_and_in_the_reference() -> None:
    kernels = {name: tuple(cell["initial"]) for name, cell in _kernels.cells().items()}
    assert kernels == {name: cell.initial for name, cell in reference.CELLS.items()}
    assert all(len(new_layer(cell, 5, 5)._state_names) == len(kernels[cell]) for cell in CELLS)


@pytest.mark.parametrize("name", LSTM_OPTIONS)
def test_parameters_of_an_lstm(name: str) -> None:
    options, gates, unit_weights = LSTM_OPTIONS[name]
    layer = rf.LSTM(3, 5, num_layers=2, bidirectional=True, seed=0, **options)
    for end in ("_l0", "_l0_reverse", "_l1", "_l1_reverse"):
        shapes = {n.removesuffix(end): array.shape for n, array in layer.params.items() if n.endswith(end)}
        assert shapes == {
            "weight_ih": (gates * 5, 10 if "1" in end else 3),
            "weight_hh": (gates * 5, 5),
            **dict.fromkeys(unit_weights, (5,)),
            "bias_ih": (gates * 5,),
            "bias_hh": (gates * 5,),
        }
    _, _, tape = layer.forward(sequence(4, 2, 3))
    assert tape.gates.shape == (4, 4, 2, gates, 5)


@pytest.mark.parametrize(
    ("kind", "gates", "unit_weights"), [(rf.IndRNN, 1, {"weight_hh": (5,)}), (rf.MinGRU, 2, {}), (rf.MinLSTM, 3, {})]
)
def test_parameters_of_the_cells_without_a_recurrent_product(
    kind: Any, gates: int, unit_weights: dict[str, Any]
) -> None:
    layer = kind(3, 5, seed=0)
    shapes = {name.removesuffix("_l0"): array.shape for name, array in layer.params.items()}
    assert shapes == {"weight_ih": (gates * 5, 3), "bias_ih": (gates * 5,), **unit_weights}
    assert set(kind(3, 5, bias=False).params) == {"weight_ih_l0", *(f"{name}_l0" for name in unit_weights)}


def test_parameters_of_an_sru_depend_on_whether_x_has_as_many_features_as_units() -> None:
    """Without a skip there are three blocks of rows, with it four; layers above see h, of one direction or two."""
    for bidirectional, above in ((False, (15, 5)), (True, (20, 10))):
        layer = rf.SRU(3, 5, num_layers=2, bidirectional=bidirectional, seed=0)
        assert layer.params["weight_ih_l0"].shape == (20, 3) and layer.params["bias_ih_l0"].shape == (20,)
        assert layer.params["weight_ih_l1"].shape == above and layer.params["bias_ih_l1"].shape == above[:1]
        assert all(array.shape == (10,) for name, array in layer.params.items() if name.startswith("weight_c"))
        _, _, tape = layer.forward(sequence(4, 2, 3))
        assert tape.gates.shape == ((4, 4, 2, 4, 5) if bidirectional else (2, 4, 2, 3, 5))  # those that all layers have
    assert rf.SRU(5, 5, seed=0).params["weight_ih_l0"].shape == (15, 5)
    assert not any("_hh" in name for name in layer.params)


def test_parameters_of_an_slstm_with_heads() -> None:
    layer = rf.SLSTM(3, 12, num_layers=2, num_heads=3, seed=0)
    assert {name.removesuffix("_l1"): array.shape for name, array in layer.params.items() if name.endswith("_l1")} == {
        "weight_ih": (48, 12),
        "weight_hh": (48, 4),
        "bias_ih": (48,),
        "bias_hh": (48,),
    }
    _, state, tape = layer.forward(sequence(4, 2, 3))
    assert [s.shape for s in state] == [(2, 2, 12)] * 4
    assert tape.gates.shape == (2, 4, 2, 4, 12)


def test_a_head_sees_its_own_h_only() -> None:
    layer = rf.SLSTM(3, 12, num_heads=3, seed=0)
    x, state = sequence(6, 1, 3), (sequence(1, 1, 12), sequence(1, 1, 12), np.ones((1, 1, 12), np.float32))
    changed = state[0].copy()
    changed[..., 5] += 1
    m = np.zeros_like(changed)
    different = (layer(x, (*state, m))[0] != layer(x, (changed, *state[1:], m))[0]).any(axis=(0, 1))
    assert different.tolist() == [False] * 4 + [True] * 4 + [False] * 4


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_slstm_into_which_nothing_has_come_gives_zero(dtype: type) -> None:
    """An input gate that is shut to the last bit leaves m at minus infinity: c = n = h = 0, and gradients of zero."""
    layer = rf.SLSTM(3, 21, num_layers=2, dtype=dtype, seed=0)
    layer.params["bias_ih_l0"][:21] = -np.inf
    x = sequence(5, 3, 3).astype(dtype)
    x[2, 1] = 1e30  # even so
    y, (h, c, n, m), tape = layer.forward(x)
    assert not h[0].any() and not c[0].any() and not n[0].any() and np.isneginf(m[0]).all()
    assert not tape.hidden[0].any() and np.isfinite(y).all() and y.any()
    states = tuple(np.ones_like(s) for s in (h, c, n, m))
    dx, dinitial = layer.backward(tape, np.ones_like(y), states)
    assert dx is not None and not dx.any()
    assert all(np.isfinite(array).all() for array in (*as_tuple(dinitial), *layer.grads.values()))
    expected, _, _ = reference.forward("slstm", layer.params, x)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_slstm_whose_normaliser_is_zero_gives_zero(dtype: type) -> None:
    """A state of zeros, m too, and an input that is too small beside it to count."""
    layer = rf.SLSTM(3, 21, dtype=dtype, seed=0)
    layer.params["bias_ih_l0"][:21] = -1e4
    zeros = tuple(np.zeros((1, 2, 21), dtype) for _ in range(4))
    y, (_, c, n, m), tape = layer.forward(sequence(1, 2, 3).astype(dtype), zeros)
    assert not y.any() and not c.any() and not n.any() and np.isfinite(m).all()
    dx, dstate = layer.backward(tape, np.ones_like(y), tuple(np.ones_like(s) for s in zeros))
    assert not dx.any() and all(np.isfinite(ds).all() for ds in dstate)
    assert np.isfinite(layer.flat_grads).all()


def test_the_gates_of_an_slstm_may_be_open_as_far_as_they_like() -> None:
    """e^ĩ is past every number; what counts is c / n."""
    layer = rf.SLSTM(3, 21, seed=0)
    layer.params["bias_ih_l0"][:42] = 300
    x = sequence(50, 2, 3)
    y, _ = layer(x)
    expected, _, _ = reference.forward("slstm", layer.params, x)
    np.testing.assert_allclose(y, expected, rtol=0, atol=2e-3)  # ĩ and m have lost 2⁻¹⁵


def test_an_sru_keeps_what_is_small_beside_x() -> None:
    """With both gates open c passes whole, whatever x̃ and x are."""
    layer = rf.SRU(5, 5, seed=0)
    layer.params["bias_ih_l0"][5:] = np.inf
    c = sequence(1, 2, 5)
    y, (_, last) = layer(1e30 * sequence(3, 2, 5), (np.zeros_like(c), c))
    assert_same_bits(last, c)
    assert_same_bits(y, np.repeat(c, 3, axis=0))


def test_peepholes_of_zero_change_nothing() -> None:
    plain, peephole = rf.LSTM(3, 21, seed=0), rf.LSTM(3, 21, peephole=True, seed=0)
    zeros = {name: np.zeros(21, np.float32) for name in ("weight_ci_l0", "weight_cf_l0", "weight_co_l0")}
    peephole.load_state_dict(plain.state_dict() | zeros)
    x = sequence(5, 3, 3)
    assert_same_bits(peephole(x), plain(x))


def test_without_a_forget_gate_the_cell_is_a_constant_error_carousel() -> None:
    """With the input gate shut, c and its gradient pass unchanged."""
    layer = rf.LSTM(3, 5, forget_gate=False, seed=0)
    layer.flat_params[...] = 0
    layer.params["bias_ih_l0"][:5] = -np.inf
    c = sequence(1, 2, 5)
    _, (_, last), tape = layer.forward(sequence(50, 2, 3), (np.zeros_like(c), c))
    np.testing.assert_array_equal(last, c)
    _, (_, dc) = layer.backward(tape, None, (np.zeros_like(c), c))
    np.testing.assert_array_equal(dc, c)


def test_coupled_gates_share_one() -> None:
    """With i = 1 nothing is kept, with i = 0 everything."""
    layer = rf.LSTM(3, 5, coupled=True, seed=0)
    x, c = sequence(1, 2, 3), sequence(1, 2, 5)
    for bias, kept in ((np.inf, 0.0), (-np.inf, 1.0)):
        layer.params["bias_ih_l0"][:5] = bias
        _, (_, last), tape = layer.forward(x, (np.zeros_like(c), c))
        np.testing.assert_array_equal(last, tape.gates[0, :, :, 1] if kept == 0 else c)


def test_minimal_lstm_with_both_gates_shut_takes_the_mean() -> None:
    layer = rf.MinLSTM(3, 5, seed=0)
    layer.params["bias_ih_l0"][:10] = -np.inf
    h = sequence(1, 2, 5)
    y, _, tape = layer.forward(sequence(1, 2, 3), h)
    np.testing.assert_allclose(y[0], (h[0] + tape.gates[0, 0, :, 2]) / 2, rtol=1e-6)


def test_an_independent_unit_sees_its_own_state_only() -> None:
    layer = rf.IndRNN(3, 5, nonlinearity="tanh", seed=0)
    x, h = sequence(6, 1, 3), sequence(1, 1, 5)
    changed = h.copy()
    changed[..., 2] += 1
    different = (layer(x, h)[0] != layer(x, changed)[0]).any(axis=(0, 1))
    assert different.tolist() == [False, False, True, False, False]


def test_what_makes_no_sense_together_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="coupled: expected False with forget_gate=False"):
        rf.LSTM(3, 5, coupled=True, forget_gate=False)
    with pytest.raises(TypeError, match="peephole: expected"):
        rf.LSTM(3, 5, peephole=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="nonlinearity: expected"):
        rf.IndRNN(3, 5, nonlinearity="elu")


@pytest.mark.parametrize("name", LSTM_OPTIONS)
def test_options_are_part_of_the_description_and_of_a_file(name: str, tmp_path: Any) -> None:
    options, _, _ = LSTM_OPTIONS[name]
    layer = rf.LSTM(3, 5, seed=0, **options)
    for option in options:
        assert f"{option}=" in repr(layer)
    rf.save(layer, tmp_path / "model.safetensors")
    again = rf.load(tmp_path / "model.safetensors")
    assert again.config == layer.config
    x = sequence(4, 2, 3)
    assert_same_bits(again(x), layer(x))
