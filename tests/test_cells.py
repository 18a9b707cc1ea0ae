"""What the options of a cell mean, beside its equations: names and shapes of parameters, limits, refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import rnnfast as rf
from support import assert_same_bits

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
