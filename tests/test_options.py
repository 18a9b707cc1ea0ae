"""The options that stand between a cell and its equations: against the reference, their gradients, what is refused."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rnnfast as rf
from shapes import Shape
from slopes import Differentiated, assert_gradients_are_slopes
from support import (
    DTYPES,
    Array,
    assert_accurate,
    assert_same_bits,
    cached_problem,
    make_problem,
    new_layer,
    solve,
    solve_by_reference,
    solve_in_single,
    threads,
)
from variants import EVERYTHING, IN_BFLOAT16, LSTMS, NORMED, RECURRENT, VARIANTS, WAYS

each_dtype = pytest.mark.parametrize("dtype", DTYPES)
WHOLE: dict[str, Any] = {"num_layers": 2, "bidirectional": True, "ragged": True, "cut": True}


def sequence(*shape: int) -> Array:
    return np.random.default_rng(0).standard_normal(shape, np.float32)


# ---- against the reference -------------------------------------------------------------------------------------------


@each_dtype
@pytest.mark.parametrize(
    "variant",
    [pytest.param(name, marks=[pytest.mark.kernel] if name in WAYS else []) for name in VARIANTS],
)
def test_layer_matches_reference(variant: str, dtype: type) -> None:
    """Ragged rows with resets through two layers in both directions; no size is a multiple of a vector."""
    cell, options = VARIANTS[variant]
    problem, exact, single = cached_problem(cell, Shape(4, 6, 7, 30), **WHOLE, **options)
    assert_accurate(solve(problem, dtype), exact, single)


@each_dtype
@pytest.mark.parametrize("variant", WAYS)
@pytest.mark.parametrize("shape", [Shape(7, 1, 11, 48), Shape(3, 29, 5, 42), Shape(2, 5, 40, 192)], ids=str)
def test_layer_matches_reference_on_other_shapes(shape: Shape, variant: str, dtype: type) -> None:
    """Of one row, of many, and of blocks of units; the state isn't given, or there is no bias."""
    cell, options = WAYS[variant]
    form = {"bias": shape.batch != 29, "given": shape.batch != 1}
    problem, exact, single = cached_problem(cell, shape, **form, **options)
    assert_accurate(solve(problem, dtype), exact, single)


@each_dtype
@pytest.mark.parametrize("variant", [name for name, (_, options) in WAYS.items() if "zoneout" in options])
def test_in_evaluation_mode_the_expectation_stands_for_the_masks(variant: str, dtype: type) -> None:
    """Zoneout mixes by its probability, dropout multiplies by one; gradients too."""
    cell, options = WAYS[variant]
    problem, exact, single = cached_problem(cell, Shape(4, 6, 7, 30), training=False, **WHOLE, **options)
    assert_accurate(solve(problem, dtype), exact, single)


@st.composite
def layers(draw: st.DrawFn) -> tuple[str, int, dict[str, Any]]:
    """A cell, its hidden size and any options that it takes."""
    cell = draw(st.sampled_from(RECURRENT))
    heads = draw(st.integers(1, 5)) if cell == "slstm" else 1
    hidden = heads * draw(st.integers(1, 40 // heads))
    options: dict[str, Any] = {"recurrent_dropout": draw(st.sampled_from([0.0, 0.5]))}
    options["grad_clip"] = draw(st.sampled_from([None, 0.2]))
    if cell == "slstm":
        return cell, hidden, options | {"num_heads": heads}
    options["layer_norm"] = draw(st.booleans())
    if cell in LSTMS:
        options["proj_size"] = draw(st.just(0) | st.integers(1, 40))
    share = st.sampled_from([0.0, 0.1, 0.5, 0.9])
    return cell, hidden, options | {"zoneout": draw(st.tuples(share, share) if cell in LSTMS else share)}


@settings(max_examples=100)
@given(
    layer=layers(),
    dtype=st.sampled_from(DTYPES),
    sizes=st.tuples(st.integers(0, 4), st.integers(0, 7), st.integers(1, 20)),
    num_layers=st.integers(1, 2),
    training=st.booleans(),
    batch_first=st.booleans(),
    form=st.fixed_dictionaries(dict.fromkeys(("bidirectional", "bias", "given", "ragged", "cut"), st.booleans())),
    seed=st.integers(0, 1000),
)
def test_layer_matches_reference_with_any_options(
    layer: tuple[str, int, dict[str, Any]],
    dtype: type,
    sizes: tuple[int, int, int],
    num_layers: int,
    training: bool,
    batch_first: bool,
    form: dict[str, Any],
    seed: int,
) -> None:
    cell, hidden, options = layer
    problem = make_problem(cell, Shape(*sizes, hidden), num_layers=num_layers, seed=seed, **form, **options)
    problem = replace(problem, training=training)
    exact = solve_by_reference(problem)
    assert_accurate(solve(problem, dtype, batch_first=batch_first), exact, solve_in_single(problem, exact))


# ---- gradients -------------------------------------------------------------------------------------------------------


SMOOTH = [name for name, (_, options) in VARIANTS.items() if "grad_clip" not in options]
MODES = [(name, True) for name in SMOOTH] + [(name, False) for name in SMOOTH if "zoneout" in VARIANTS[name][1]]


@pytest.mark.parametrize(("variant", "training"), MODES, ids=lambda value: value if isinstance(value, str) else None)
def test_gradients_are_slopes(variant: str, training: bool) -> None:
    cell, options = VARIANTS[variant]
    problem = make_problem(cell, Shape(3, 3, 3, 6), bidirectional=True, ragged=True, cut=True, **options)
    with threads(1):
        assert_gradients_are_slopes(Differentiated(replace(problem, training=training)))


@pytest.mark.parametrize("cell", [*EVERYTHING, "projected"])
def test_gradients_are_slopes_with_all_options_and_dropout_between_layers(cell: str) -> None:
    cell, options = VARIANTS["lstm-everything_projected" if cell == "projected" else f"{cell}-everything"]
    options = {name: value for name, value in options.items() if name != "grad_clip"}
    problem = make_problem(cell, Shape(3, 2, 3, 6), num_layers=2, ragged=True, **options)
    with threads(1):
        assert_gradients_are_slopes(Differentiated(problem, batch_first=True, dropout=0.4))


# ---- what an option is -----------------------------------------------------------------------------------------------


def test_a_projection_may_be_wider_than_the_cell() -> None:
    problem, exact, single = cached_problem("lstm", Shape(4, 6, 7, 9), proj_size=37, **WHOLE)
    assert_accurate(solve(problem, np.float32), exact, single)


def test_a_projected_layer_has_fewer_features_and_the_cell_state_keeps_its_own() -> None:
    layer = rf.LSTM(3, 12, num_layers=2, bidirectional=True, proj_size=5, seed=0)
    shapes = {name.removesuffix("_l1"): array.shape for name, array in layer.params.items() if name.endswith("_l1")}
    assert shapes == {
        "weight_ih": (48, 10),
        "weight_hh": (48, 5),
        "bias_ih": (48,),
        "bias_hh": (48,),
        "weight_hr": (5, 12),
    }
    y, (h, c), tape = layer.forward(sequence(4, 2, 3))
    assert y.shape == (4, 2, 10) and h.shape == (4, 2, 5) and c.shape == (4, 2, 12)
    assert tape.hidden.shape == (4, 4, 2, 5) and tape.cell.shape == (4, 4, 2, 12)
    assert tape.gates.shape == (4, 4, 2, 4, 12)
    assert_same_bits(np.concatenate([tape.hidden[2], tape.hidden[3]], axis=-1), y)
    dx, (dh, dc) = layer.backward(tape, np.ones_like(y))
    assert dx is not None and dx.shape == (4, 2, 3) and dh.shape == h.shape and dc.shape == c.shape


def test_layer_norm_of_rows_that_do_not_vary_is_its_bias() -> None:
    """Zeros, and weights that are the same for every unit; gradients stay finite."""
    for cell in NORMED:
        layer = new_layer(cell, 3, 21, layer_norm=True, seed=0)
        layer.params["weight_ih_l0"][...] = 0.5
        y, _, tape = layer.forward(sequence(4, 2, 3))
        blind, _ = layer(np.zeros((4, 2, 3), np.float32))
        np.testing.assert_allclose(y, blind, rtol=0, atol=1e-3)  # 1/√ε times what rounding leaves of a difference
        layer.backward(tape, np.ones_like(y))
        assert np.isfinite(layer.flat_grads).all()


def test_zoneout_keeps_the_share_that_it_is_asked_for() -> None:
    """Of each state, in each layer and direction; another mask at each step, in each row and in each call."""
    layer = rf.LSTM(3, 64, num_layers=2, bidirectional=True, zoneout=(0.2, 0.6), seed=0)
    x = sequence(30, 8, 3)
    y, _, tape = layer.forward(x)
    for states, p in zip(tape.states, (0.2, 0.6), strict=True):
        kept = states[:, 1:] == states[:, :-1]
        assert np.abs(kept.mean(axis=(1, 2, 3)) - p).max() < 0.02
        assert (kept[:, 1:] != kept[:, :-1]).any(axis=(0, 2, 3)).all() and (kept[..., 1:, :] != kept[..., :1, :]).any()
    assert (layer.forward(x)[0] != y).any()
    layer.rng_state = {"seed": 0, "call": 0}
    assert_same_bits(layer.forward(x)[0], y)


def test_recurrent_dropout_drops_the_same_features_in_the_whole_sequence() -> None:
    """With the identity in the place of weight_hh and no x, h shows what has been dropped and how much is scaled."""
    layer = rf.RNN(1, 200, nonlinearity="relu", bias=False, recurrent_dropout=0.75, seed=0)
    layer.params["weight_ih_l0"][...], layer.params["weight_hh_l0"][...] = 0, np.eye(200)
    y, _, _ = layer.forward(np.zeros((5, 3, 1), np.float32), np.ones((1, 3, 200), np.float32))
    factors = y[0]
    assert set(np.unique(factors)) == {0.0, 4.0}
    assert abs((factors == 0).mean() - 0.75) < 0.06 and (factors[0] != factors[1]).any()
    for t in range(5):
        assert_same_bits(y[t], factors ** (t + 1))
    calm, _ = layer(np.zeros((5, 3, 1), np.float32), np.ones((1, 3, 200), np.float32))
    assert (calm == 1).all()


@pytest.mark.parametrize("cell", RECURRENT)
def test_options_that_are_off_change_no_bit(cell: str) -> None:
    problem = make_problem(cell, Shape(4, 6, 7, 30), **WHOLE)
    off: dict[str, Any] = {"recurrent_dropout": 0.0, "layer_norm": False, "compute_dtype": None, "grad_clip": None}
    off["zoneout"] = (0.0,) * 2 if cell in LSTMS else (0.0,) * 4 if cell == "slstm" else 0.0
    off |= {"proj_size": 0} if cell in LSTMS else {"num_heads": 1} if cell == "slstm" else {}
    again = replace(problem, options={**problem.options, **off})
    assert_same_bits(solve(again, np.float32), solve(problem, np.float32))


@pytest.mark.parametrize("heads", [2, 3])
@each_dtype
def test_heads_are_zeros_between_them_in_a_dense_recurrence(dtype: type, heads: int) -> None:
    """To the bit, whether or not a head begins at a vector; and so do their gradients."""
    problem = make_problem("slstm", Shape(5, 7, 4, 48), num_heads=heads, ragged=True, cut=True)
    width = 48 // heads
    own = np.arange(48)[:, None] // width == np.arange(48) // width
    spread = np.zeros((4, 48, 48), np.float32)
    spread[:, own] = problem.params["weight_hh_l0"].reshape(4, -1)
    params = {**problem.params, "weight_hh_l0": spread.reshape(192, 48)}
    dense = replace(problem, params=params, options={**problem.options, "num_heads": 1})
    got, expected = solve(problem, dtype), solve(dense, dtype)
    whole = expected["gradient of weight_hh_l0"].reshape(4, 48, 48)
    expected["gradient of weight_hh_l0"] = whole[:, own].reshape(192, width)
    assert_same_bits(got, expected)


# ---- what is refused -------------------------------------------------------------------------------------------------

NO_SENSE: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: rf.LSTM(3, 6, proj_size=-1), ValueError, "proj_size: expected at least 0, got -1"),
    (lambda: rf.LSTM(3, 6, proj_size=2.0), TypeError, "proj_size: expected an integer, got float"),
    (lambda: rf.LSTM(3, 6, zoneout=(0.1,)), ValueError, "zoneout: expected a number or 2, one a state, got 1"),
    (lambda: rf.GRU(3, 6, zoneout=(0.1, 0.2)), ValueError, "zoneout: expected a number or 1, one a state, got 2"),
    (lambda: rf.LSTM(3, 6, zoneout=(0.1, 1.0)), ValueError, r"zoneout\[1\]: expected .* got 1"),
    (lambda: rf.GRU(3, 6, zoneout=1.0), ValueError, "zoneout: expected .* got 1"),
    (lambda: rf.RNN(3, 6, zoneout=-0.1), ValueError, "zoneout: expected .* got -0.1"),
    (lambda: rf.RNN(3, 6, zoneout=np.nan), ValueError, "zoneout: expected .* got nan"),
    (lambda: rf.RNN(3, 6, zoneout="0.1"), TypeError, "zoneout: expected a number, got str"),
    (lambda: rf.SLSTM(3, 6, zoneout=0.1), ValueError, "zoneout: expected 0 for SLSTM"),
    (lambda: rf.SLSTM(3, 6, layer_norm=True), ValueError, "layer_norm: expected False for SLSTM"),
    (lambda: rf.SLSTM(3, 6, num_heads=4), ValueError, "num_heads: expected a divisor of hidden_size = 6, got 4"),
    (lambda: rf.SLSTM(3, 6, num_heads=0), ValueError, "num_heads: expected at least 1, got 0"),
    (lambda: rf.SLSTM(3, 6, num_heads=2.0), TypeError, "num_heads: expected an integer, got float"),
    (lambda: rf.GRU(3, 6, layer_norm=1), TypeError, "layer_norm: expected a bool, got int"),
    (lambda: rf.GRU(3, 6, reset_after=0), TypeError, "reset_after: expected a bool, got int"),
    (lambda: rf.GRU(3, 6, recurrent_dropout=1.0), ValueError, "recurrent_dropout: expected .* got 1"),
    (lambda: rf.GRU(3, 6, recurrent_dropout=None), TypeError, "recurrent_dropout: expected a number, got NoneType"),
    (
        lambda: rf.SRU(3, 6, compute_dtype="bfloat16", dtype=np.float64),
        ValueError,
        "compute_dtype: expected None with dtype float64, got 'bfloat16'",
    ),
    (
        lambda: rf.RNN(3, 6, compute_dtype="float16"),
        ValueError,
        "compute_dtype: expected None or 'bfloat16', got 'float16'",
    ),
    (lambda: rf.GRU(3, 6, proj_size=2), TypeError, "proj_size: GRU has no such option; it is one of LSTM"),
    (lambda: rf.IndRNN(3, 6, layer_norm=True), TypeError, "layer_norm: IndRNN has no .*; it is one of RNN, LSTM, GRU"),
    (lambda: rf.MinGRU(3, 6, recurrent_dropout=0.1), TypeError, "recurrent_dropout: MinGRU has no such option"),
    (lambda: rf.LSTM(3, 6, num_heads=2), TypeError, "num_heads: LSTM has no such option; it is one of SLSTM"),
    (lambda: rf.SRU(3, 6, hidden=2), TypeError, "hidden: SRU has no such option; it has input_size, .*, seed"),
]


@pytest.mark.parametrize(("call", "error", "message"), NO_SENSE, ids=[message for *_, message in NO_SENSE])
def test_what_makes_no_sense_is_refused_by_name(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("kind", [rf.RNN, rf.IndRNN, rf.MinGRU, rf.SRU])
def test_a_warning_points_at_the_line_that_made_the_layer(kind: Any) -> None:
    with pytest.warns(UserWarning, match="dropout acts between layers") as warned:
        kind(3, 6, dropout=0.1)
    assert [entry.filename for entry in warned] == [__file__]


# ---- description, copies and files -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "name", "value"),
    [
        (rf.RNN(3, 4, seed=0), "nonlinearity", "relu"),
        (rf.LSTM(3, 4, seed=0), "peephole", True),
        (rf.GRU(3, 4, seed=0), "compute_dtype", "bfloat16"),
        (rf.MinGRU(3, 4, seed=0), "hidden_size", 8),
        (rf.SRU(3, 4, 2, dropout=0.5, seed=0), "seed", 1),
    ],
)
def test_what_makes_parameters_and_kernels_is_fixed(layer: Any, name: str, value: Any) -> None:
    before = layer.config
    with pytest.raises(AttributeError, match=f"{name}: fixed when the {type(layer).__name__} was made, got {value!r}"):
        setattr(layer, name, value)
    assert layer.config == before


def test_what_is_looked_at_in_each_call_may_be_set_later() -> None:
    layer, x = rf.LSTM(3, 4, seed=0), sequence(5, 2, 3)
    kept = rf.LSTM(3, 4, zoneout=0.5, seed=0)
    layer.zoneout, layer.grad_clip, layer.batch_first = 0.5, 0.1, False
    assert_same_bits(layer(x)[0], kept(x)[0])


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("zoneout", 1.5, "zoneout: expected a number >= 0 and < 1, got 1.5"),
        ("zoneout", (0.1, 0.2, 0.3), "zoneout: expected a number or 2"),
        ("grad_clip", 0.0, "grad_clip: expected a number > 0"),
        ("recurrent_dropout", 1.0, "recurrent_dropout: expected a number >= 0 and < 1"),
        ("dropout", -0.1, "dropout: expected a number >= 0 and < 1"),
    ],
)
def test_what_is_set_later_is_checked_as_at_first(name: str, value: Any, said: str) -> None:
    layer = rf.LSTM(3, 4, 2, seed=0)
    before = layer.config
    with pytest.raises(ValueError, match=re.escape(said)):
        setattr(layer, name, value)
    with pytest.raises(ValueError, match=re.escape(said)):
        rf.LSTM(3, 4, 2, seed=0, **{name: value})
    with pytest.raises(TypeError, match="batch_first: expected a bool, got int"):
        layer.batch_first = 1  # type: ignore[assignment]
    assert layer.config == before


def test_an_option_is_not_set_where_there_is_none() -> None:
    with pytest.raises(ValueError, match="zoneout: expected 0 for SLSTM"):
        rf.SLSTM(3, 4, seed=0).zoneout = 0.1
    for layer, name in ((rf.MinGRU(3, 4, seed=0), "layer_norm"), (rf.IndRNN(3, 4, seed=0), "recurrent_dropout")):
        with pytest.raises(
            AttributeError, match=f"{name}: {type(layer).__name__} has no such option; it is one of RNN"
        ):
            setattr(layer, name, 0.5)
    dropout = rf.Dropout(0.2)
    with pytest.raises(ValueError, match="p: expected a number >= 0 and < 1, got 3"):
        dropout.p = 3
    with pytest.raises(AttributeError, match="in_features: fixed when the Linear was made, got 7"):
        rf.Linear(3, 4).in_features = 7


def test_the_layout_of_a_part_is_that_of_the_whole() -> None:
    network = rf.Sequential(rf.LSTM(3, 4, seed=0), rf.Linear(4, 2, seed=1))
    with pytest.raises(AttributeError, match="batch_first: fixed while the LSTM is a part of another module, got True"):
        network[0].batch_first = True


@pytest.mark.parametrize("variant", VARIANTS | IN_BFLOAT16)
def test_options_are_part_of_the_description_of_copies_and_of_files(variant: str, tmp_path: Path) -> None:
    cell, options = (VARIANTS | IN_BFLOAT16)[variant]
    layer = new_layer(cell, 12 if cell == "sru" else 5, 12, num_layers=2, seed=3, **options)
    for option, value in options.items():
        assert f"{option}={value!r}" in repr(layer)
    rf.save(layer, tmp_path / "model.safetensors")
    built = eval(repr(layer), {**vars(rf)})
    built.load_state_dict(layer.state_dict())
    built.rng_state = layer.rng_state
    x = sequence(4, 3, layer.input_size)
    expected = layer.forward(x)[:2]
    layer.rng_state = built.rng_state
    twins = (rf.load(tmp_path / "model.safetensors"), copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)))
    for twin in (*twins, built):
        assert twin.config == {**layer.config, "seed": twin.config["seed"]}
        assert_same_bits(twin.forward(x)[:2], expected)


@pytest.mark.parametrize("variant", WAYS)
def test_state_dicts_of_other_options_are_refused_by_name(variant: str) -> None:
    cell, options = WAYS[variant]
    layer, plain = new_layer(cell, 5, 12, seed=3, **options), new_layer(cell, 5, 12, seed=3)
    if {name: a.shape for name, a in layer.params.items()} == {name: a.shape for name, a in plain.params.items()}:
        layer.load_state_dict(plain.state_dict())  # what has no parameters of its own
        assert_same_bits(layer.state_dict(), plain.state_dict())
        return
    with pytest.raises(ValueError, match="state_dict: "):
        layer.load_state_dict(plain.state_dict())
    with pytest.raises(ValueError, match="state_dict: "):
        plain.load_state_dict(layer.state_dict())
