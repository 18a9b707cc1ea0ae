"""Initial values: PyTorch's default distributions, and others by name; from a seed, reproducible."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import rnnfast as rf
from rnnfast import init, reference
from support import CELLS, new_layer

Array = np.ndarray[Any, np.dtype[Any]]
MODULES: dict[str, Callable[..., rf.Module]] = {
    "rnn": lambda **options: rf.RNN(30, 40, 2, **options),
    "lstm": lambda **options: rf.LSTM(30, 40, 2, bidirectional=True, **options),
    "gru": lambda **options: rf.GRU(30, 40, **options),
    "linear": lambda **options: rf.Linear(100, 30, **options),
    "embedding": lambda **options: rf.Embedding(100, 30, **options),
}
BOUNDS = {"rnn": 40**-0.5, "lstm": 40**-0.5, "gru": 40**-0.5, "linear": 0.1}


@pytest.mark.parametrize("name", BOUNDS)
def test_values_are_uniform_within_pytorchs_bound(name: str) -> None:
    values, bound = MODULES[name](seed=0).flat_params, BOUNDS[name]
    assert np.abs(values).max() <= bound * (1 + 1e-6)
    assert np.abs(values).max() > 0.99 * bound
    assert abs(values.mean()) < 0.05 * bound
    assert values.std() == pytest.approx(bound / 3**0.5, rel=0.05)


def test_an_embedding_is_normal() -> None:
    values = rf.Embedding(100, 100, seed=0).flat_params
    assert abs(values.mean()) < 0.05
    assert values.std() == pytest.approx(1, rel=0.05)
    assert np.abs(values).max() > 3


@pytest.mark.parametrize("theirs", ["RNN", "LSTM", "GRU", "Linear", "Embedding"])
def test_pytorch_draws_from_the_same_distribution(theirs: str) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is the judge of distributions")
    torch.manual_seed(0)
    judge, module = getattr(torch.nn, theirs)(200, 100).state_dict(), getattr(rf, theirs)(200, 100, seed=0)
    for name, tensor in judge.items():
        expected, values = tensor.numpy(), module.params[name]
        assert values.std() == pytest.approx(expected.std(), rel=0.25 if values.size < 1000 else 0.05)
        assert np.abs(values).max() == pytest.approx(np.abs(expected).max(), rel=0.3 if theirs == "Embedding" else 0.05)


@pytest.mark.parametrize("name", MODULES)
def test_a_seed_gives_the_same_values(name: str) -> None:
    first, second, other = MODULES[name](seed=3), MODULES[name](seed=3), MODULES[name](seed=4)
    assert np.array_equal(first.flat_params, second.flat_params)
    assert not np.array_equal(first.flat_params, other.flat_params)
    assert first.config["seed"] == 3
    assert np.array_equal(MODULES[name](seed=3, dtype=np.float64).flat_params.astype(np.float32), first.flat_params)


@pytest.mark.parametrize("name", MODULES)
def test_without_a_seed_values_differ_and_the_seed_drawn_gives_them_again(name: str) -> None:
    first, second = MODULES[name](), MODULES[name]()
    assert not np.array_equal(first.flat_params, second.flat_params)
    assert np.array_equal(MODULES[name](seed=first.config["seed"]).flat_params, first.flat_params)


def test_the_global_random_state_is_left_alone() -> None:
    generator = np.random.mtrand._rand  # what np.random.random and the like draw from
    before = pickle.dumps(generator)
    rf.LSTM(3, 4)
    rf.Dropout(0.5).forward(np.ones((3, 2, 4), np.float32))
    assert pickle.dumps(generator) == before


def test_gradients_start_at_zero() -> None:
    for make in MODULES.values():
        assert not make().flat_grads.any()


def test_import_loads_numpy_and_little_else() -> None:
    """safetensors, NumPy's random numbers and the command line wait until they are needed."""
    command = [sys.executable, "-c", "import sys, rnnfast; print(*sys.modules)"]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    for name in ("safetensors", "numpy.random", "numpy.testing", "tqdm", "matplotlib", "torch", "rnnfast.cli"):
        assert name not in loaded


# ---- by name ---------------------------------------------------------------------------------------------------------
STACKS: dict[str, Callable[..., rf.Module]] = {
    "rnn": lambda **options: rf.RNN(30, 40, 2, seed=0, **options),
    "lstm": lambda **options: rf.LSTM(30, 40, 2, bidirectional=True, seed=0, **options),
    "gru": lambda **options: rf.GRU(30, 40, seed=0, **options),
}


def language_model(layer: rf.Module, dtype: Any = np.float32) -> rf.Sequential:
    width = 40 * (2 if getattr(layer, "bidirectional", False) else 1)
    return rf.Sequential(rf.Embedding(50, 30, seed=1, dtype=dtype), layer, rf.Linear(width, 50, seed=2, dtype=dtype))


def of_kind(module: rf.Module, kind: str) -> list[Array]:
    """The parameters of a kind, in float64."""
    found = [array.astype(np.float64) for name, array in module.params.items() if kind in name]
    assert found
    return found


def blocks(array: Array) -> list[Array]:
    """One matrix or vector a gate of 40 units."""
    return np.split(array, len(array) // 40)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", STACKS)
def test_orthogonal_holds_for_every_gate(name: str, dtype: Any) -> None:
    model = rf.initialize(language_model(STACKS[name](dtype=dtype), dtype), weight_hh=("orthogonal", 1.5), seed=0)
    gates = [gate for weight in of_kind(model, "weight_hh") for gate in blocks(weight)]
    for gate in gates:
        np.testing.assert_allclose(gate.T @ gate, 2.25 * np.eye(40), atol=2e-6 if dtype == np.float32 else 1e-13)
    assert len({gate.tobytes() for gate in gates}) == len(gates)


def test_orthogonal_of_other_shapes_has_orthonormal_rows_or_columns() -> None:
    wide, tall = rf.Linear(30, 20, seed=0, dtype=np.float64), rf.Linear(20, 30, seed=0, dtype=np.float64)
    a, b = (rf.initialize(layer, weight="orthogonal", seed=0).params["weight"] for layer in (wide, tall))
    np.testing.assert_allclose(a @ a.T, np.eye(20), atol=1e-13)
    np.testing.assert_allclose(b.T @ b, np.eye(20), atol=1e-13)


def test_orthogonal_is_drawn_evenly_from_all_orthogonal_matrices() -> None:
    """Both signs of the determinant, and entries of mean zero: QR alone would favour some."""
    layers = [rf.initialize(rf.RNN(1, 3, dtype=np.float64), weight_hh="orthogonal", seed=seed) for seed in range(400)]
    matrices = np.array([layer.params["weight_hh_l0"] for layer in layers])
    assert 150 < (np.linalg.det(matrices) > 0).sum() < 250
    assert np.abs(matrices.mean(axis=0)).max() < 0.12
    np.testing.assert_allclose(matrices.std(axis=0), 3**-0.5, rtol=0.1)


@pytest.mark.parametrize("name", STACKS)
def test_xavier_counts_the_rows_of_one_gate(name: str) -> None:
    for kind in ("weight_ih", "weight_hh"):
        for shape in ("uniform", "normal"):
            layer = rf.initialize(STACKS[name](), **{kind: f"xavier_{shape}"}, seed=0)
            for weight in of_kind(layer, kind):
                deviation = (2 / (40 + weight.shape[1])) ** 0.5
                assert weight.std() == pytest.approx(deviation, rel=0.05)
                limit = deviation * 3**0.5
                assert (np.abs(weight).max() <= limit * (1 + 1e-6)) == (shape == "uniform")


def test_pytorch_draws_xavier_values_from_the_same_distribution() -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is the judge of distributions")
    torch.manual_seed(0)
    for shape in ("uniform", "normal"):
        expected = getattr(torch.nn.init, f"xavier_{shape}_")(torch.empty(200, 100), gain=2.0).numpy()
        values = rf.initialize(rf.Linear(100, 200), weight=(f"xavier_{shape}", 2.0), seed=0).params["weight"]
        assert values.std() == pytest.approx(expected.std(), rel=0.03)
        assert np.abs(values).max() == pytest.approx(np.abs(expected).max(), rel=0.2 if shape == "normal" else 0.01)


def test_an_identity_makes_an_irnn() -> None:
    """W_hh = scale · 1 and no bias, in every layer and direction; what isn't named stays."""
    layer = rf.RNN(30, 40, 2, nonlinearity="relu", bidirectional=True, seed=0)
    before = layer.state_dict()
    rf.initialize(layer, weight_hh=("identity", 0.5))
    assert all(np.array_equal(weight, 0.5 * np.eye(40)) for weight in of_kind(layer, "weight_hh"))
    assert not any(bias.any() for bias in of_kind(layer, "bias"))
    assert all(np.array_equal(layer.params[name], before[name]) for name in before if "weight_ih" in name)
    y, _ = rf.initialize(rf.RNN(1, 1, nonlinearity="relu"), weight_hh="identity", weight_ih=1.0)(
        np.ones((5, 1, 1), "f")
    )
    assert y.ravel().tolist() == [1, 2, 3, 4, 5]
    kept = rf.initialize(rf.RNN(3, 4), weight_hh="identity", bias_ih=0.25)
    assert (kept.params["bias_ih_l0"] == 0.25).all() and not kept.params["bias_hh_l0"].any()


@pytest.mark.parametrize("earlier", [{}, {"bias": "zeros"}])
def test_a_forget_bias_is_the_whole_bias_of_the_forget_gate(earlier: dict[str, Any]) -> None:
    model = language_model(rf.LSTM(30, 40, 2, bidirectional=True, seed=0))
    before = model.state_dict()
    rf.initialize(model, forget_bias=1.5, **earlier)
    for name, bias in model.params.items():
        for gate, (values, old) in enumerate(
            zip(blocks(bias), blocks(before[name]), strict=True) if "bias_" in name else ()
        ):
            expected = (1.5 if "bias_ih" in name else 0.0) if gate == 1 else 0.0 if earlier else old
            assert (values == np.float32(expected)).all()
    assert np.array_equal(model.params["0.weight"], before["0.weight"])


def test_chrono_spreads_the_memories_up_to_the_longest() -> None:
    """A unit keeps its state for 1 + e^b steps: even from 2 to T_max."""
    for layer, keep in ((rf.LSTM(3, 2000, seed=0), 1), (rf.GRU(3, 2000, seed=0), 1)):
        before = layer.state_dict()
        rf.initialize(layer, chrono=100, seed=0)
        gates = layer.params["bias_ih_l0"].reshape(-1, 2000).astype(np.float64)
        times = np.exp(gates[keep])
        assert 1 <= times.min() < 1.5 and 98.5 < times.max() <= 99
        assert times.mean() == pytest.approx(50, rel=0.05) and times.std() == pytest.approx(98 / 12**0.5, rel=0.05)
        others = [gate for gate in range(len(gates)) if gate != keep and not (len(gates) == 4 and gate == 0)]
        assert np.array_equal(gates[others], before["bias_ih_l0"].reshape(-1, 2000)[others])
        assert not layer.params["bias_hh_l0"].reshape(-1, 2000)[keep].any()
        if len(gates) == 4:
            assert np.array_equal(gates[0], -gates[1])


def test_layers_and_directions_get_different_values() -> None:
    model = rf.initialize(rf.LSTM(40, 40, 3, bidirectional=True), weight_hh="normal", chrono=50, seed=0)
    for kind in ("weight_hh", "bias_ih"):
        values = of_kind(model, kind)
        assert len({array[40:80].tobytes() for array in values}) == 6


@pytest.mark.parametrize("choice", ["default", "xavier_uniform", "orthogonal", "normal", "uniform"])
def test_a_seed_gives_the_same_values_in_both_dtypes(choice: str) -> None:
    def values(seed: int | None, dtype: Any = np.float32, **others: Any) -> Array:
        layer = rf.LSTM(30, 40, 2, seed=0, dtype=dtype)
        return rf.initialize(layer, weight_hh=choice, chrono=30, seed=seed, **others).params["weight_hh_l1"]

    assert np.array_equal(values(3), values(3))
    assert not np.array_equal(values(3), values(4))
    assert not np.array_equal(values(None), values(None))
    assert np.array_equal(values(3, np.float64).astype(np.float32), values(3))
    assert np.array_equal(values(3, weight_ih="normal", bias="ones"), values(3))


@pytest.mark.parametrize("name", ["linear", "embedding"])
def test_default_is_the_distribution_a_module_begins_with(name: str) -> None:
    module = MODULES[name](seed=0)
    before = module.flat_params.copy()
    rf.initialize(module, weight="default", seed=1)
    values = module.params["weight"]
    assert not np.array_equal(before[: values.size], values.ravel())
    assert values.std() == pytest.approx(before[: values.size].std(), rel=0.05)


def test_a_full_name_goes_before_a_kind_and_a_kind_before_bias() -> None:
    model = rf.initialize(
        language_model(rf.GRU(30, 40, 2)), weight_hh="zeros", bias=3.0, bias_ih=2, **{"1.weight_hh_l1": "ones"}
    )
    values = {name: set(array.ravel().tolist()) for name, array in model.params.items()}
    assert values["1.weight_hh_l0"] == {0} and values["1.weight_hh_l1"] == {1}
    assert values["1.bias_ih_l0"] == {2} and values["1.bias_hh_l0"] == values["2.bias"] == {3}
    assert len(values["2.weight"]) > 100


def test_a_part_of_a_model_and_tapes_of_before() -> None:
    model = language_model(rf.GRU(30, 40))
    tokens = np.zeros((3, 2), np.int64)
    y, _, tape = model.forward(tokens)
    assert rf.initialize(model[1], weight_hh="zeros") is model[1]
    assert not model.params["1.weight_hh_l0"].any()
    with pytest.raises(RuntimeError, match="changed"):
        model.backward(tape, np.zeros_like(y))


def test_an_encoder_and_decoder_are_initialised_as_one() -> None:
    parts = [rf.Sequential(rf.Embedding(5, 4), rf.LSTM(4, 6)) for _ in range(2)]
    model = rf.initialize(rf.Seq2Seq(parts[0], parts[1], start=0, end=1), weight_hh="orthogonal", forget_bias=1, seed=0)
    for part in ("encoder", "decoder"):
        assert (model.params[f"{part}.1.bias_ih_l0"][6:12] == 1).all()


NO_SENSE: dict[str, tuple[type[Exception], str, Callable[[], Any]]] = {
    "unknown name": (
        ValueError,
        "weight_hh: unknown initialiser 'ortogonal', there are default, identity, normal, ones, orthogonal, uniform",
        lambda: rf.initialize(rf.GRU(3, 4), weight_hh="ortogonal"),
    ),
    "unknown parameter": (
        ValueError,
        "weights: GRU has no such parameter, expected one of bias, bias_hh, bias_hh_l0, bias_ih, bias_ih_l0, weight_hh",
        lambda: rf.initialize(rf.GRU(3, 4), weights="zeros"),
    ),
    "bias of a layer without": (
        ValueError,
        "bias: RNN has no such parameter",
        lambda: rf.initialize(rf.RNN(3, 4, bias=False), bias="zeros"),
    ),
    "identity of gates": (
        ValueError,
        "'identity' is for the weight_hh of an RNN, got weight_hh_l0 of LSTM",
        lambda: rf.initialize(rf.LSTM(3, 4), weight_hh="identity"),
    ),
    "identity of another weight": (
        ValueError,
        "weight_ih: 'identity' is for the weight_hh of an RNN",
        lambda: rf.initialize(rf.RNN(4, 4), weight_ih="identity"),
    ),
    "orthogonal bias": (
        ValueError,
        r"bias_ih_l0: this initialiser needs a matrix, bias_ih_l0 of RNN has the shape \(4,\)",
        lambda: rf.initialize(rf.RNN(4, 4), bias="orthogonal"),
    ),
    "forget bias of an RNN": (
        ValueError,
        r"forget_bias: expected layers with a forget gate, got RNN\(3, 4\)",
        lambda: rf.initialize(rf.RNN(3, 4), forget_bias=1.0),
    ),
    "forget bias of a GRU": (ValueError, "forget gate, got GRU", lambda: rf.initialize(rf.GRU(3, 4), forget_bias=1.0)),
    "chrono of an RNN": (
        ValueError,
        "chrono: expected layers with a gate that keeps the state, got RNN",
        lambda: rf.initialize(rf.RNN(3, 4), chrono=10),
    ),
    "no biases": (
        ValueError,
        "chrono: expected layers with biases, got LSTM",
        lambda: rf.initialize(rf.LSTM(3, 4, bias=False), chrono=10),
    ),
    "nothing recurrent": (
        ValueError,
        "forget_bias: expected a recurrent layer, got none",
        lambda: rf.initialize(rf.Linear(3, 4), forget_bias=1.0),
    ),
    "both": (ValueError, "expected one of them", lambda: rf.initialize(rf.LSTM(3, 4), forget_bias=1.0, chrono=10)),
    "too short": (ValueError, "chrono: expected a number > 2", lambda: rf.initialize(rf.LSTM(3, 4), chrono=2)),
    "no pair": (TypeError, "weight_hh: expected a pair", lambda: rf.initialize(rf.RNN(3, 4), weight_hh=("zeros",))),  # type: ignore[arg-type]
    "no number": (TypeError, "weight_hh: expected a number", lambda: rf.initialize(rf.RNN(3, 4), weight_hh=None)),  # type: ignore[arg-type]
    "infinite": (ValueError, "bias_ih: expected a number", lambda: rf.initialize(rf.RNN(3, 4), bias_ih=np.inf)),
    "no module": (TypeError, "module: expected a module", lambda: rf.initialize("model", bias="zeros")),
    "seed": (ValueError, "seed: expected at least 0", lambda: rf.initialize(rf.RNN(3, 4), bias="zeros", seed=-1)),
}


@pytest.mark.parametrize("name", NO_SENSE)
def test_what_makes_no_sense_is_refused(name: str) -> None:
    error, message, call = NO_SENSE[name]
    with pytest.raises(error, match=message):
        call()


def test_a_refusal_changes_nothing() -> None:
    model = language_model(rf.RNN(30, 40))
    before = model.state_dict()
    with pytest.raises(ValueError, match="forget gate"):
        rf.initialize(model, weight="zeros", weight_hh="zeros", forget_bias=1.0)
    with pytest.raises(ValueError, match="identity"):
        rf.initialize(model, weight_hh="zeros", weight="identity")
    assert all(np.array_equal(model.params[name], before[name]) for name in before)


@pytest.mark.parametrize("cell", CELLS)
def test_the_gates_with_names_are_those_of_the_reference(cell: str) -> None:
    """In the order of the rows. Without a forget gate of its own a cell has no forget bias, else it has."""
    layer = new_layer(cell, 5 if cell == "sru" else 3, 5, num_layers=2, seed=0)
    gates = reference.CELLS[cell].gates
    if len(gates) > 1 and "no_forget" not in cell:  # which has no gate that says how long c is kept
        assert init._GATES[cell].replace("h", "n") == "".join(gates)
    if "f" not in gates:
        with pytest.raises(ValueError, match="forget_bias: expected layers with a forget gate"):
            rf.initialize(layer, forget_bias=2.0)
        return
    before = layer.state_dict()
    rf.initialize(layer, forget_bias=2.0)
    for name, array in layer.params.items():
        if name.startswith("bias"):
            value = 2.0 if name.startswith("bias_ih") else 0.0
            blocks, old = array.reshape(-1, 5), before[name].reshape(-1, 5)
            of_forget_gate = np.arange(len(blocks)) == gates.index("f")
            assert (blocks[of_forget_gate] == value).all()
            assert np.array_equal(blocks[~of_forget_gate], old[~of_forget_gate])
        else:
            assert np.array_equal(array, before[name])


def test_what_is_not_drawn_begins_as_it_is_neutral() -> None:
    """And begins so again by the name `default`: gains and biases of layer norm, initial states."""
    layer = rf.LSTM(3, 40, layer_norm=True, train_initial_state=True, proj_size=7, seed=0)
    for _ in range(2):
        for name, array in layer.params.items():
            if name.startswith(("ln_", "initial_")):
                assert (array == ("weight" in name)).all()
        layer.flat_params[...] = 3.0
        kinds = {name.removesuffix("_l0") for name in layer.params}
        rf.initialize(layer, seed=0, **dict.fromkeys(kinds, "default"))
    projection = layer.params["weight_hr_l0"]
    assert 0.9 * 40**-0.5 < np.abs(projection).max() <= 40**-0.5


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_orthogonal_holds_for_every_head(heads: int) -> None:
    layer = rf.initialize(rf.SLSTM(3, 40, num_heads=heads, dtype=np.float64), weight_hh="orthogonal", seed=0)
    for matrix in layer.params["weight_hh_l0"].reshape(4 * heads, 40 // heads, 40 // heads):
        np.testing.assert_allclose(matrix @ matrix.T, np.eye(40 // heads), atol=1e-13)


@pytest.mark.parametrize(
    ("layer", "gates"),
    [
        (rf.LSTM(3, 500, peephole=True, seed=0), {0: -1, 1: 1}),
        (rf.LSTM(3, 500, coupled=True, seed=0), {0: -1}),
        (rf.MinGRU(3, 500, seed=0), {0: -1}),
        (rf.MinLSTM(3, 500, seed=0), {0: 1, 1: -1}),
        (rf.GRU(3, 500, reset_after=False, seed=0), {1: 1}),
        (rf.SRU(500, 500, seed=0), {1: 1}),
        (rf.SRU(3, 500, seed=0), {1: 1}),
        (rf.SLSTM(3, 500, num_heads=2, seed=0), {1: 1}),
    ],
    ids=["peephole", "coupled", "min_gru", "min_lstm", "gru_reset_before", "sru", "sru_skip", "slstm"],
)
def test_chrono_knows_which_gates_of_the_family_keep_a_state(layer: rf.Module, gates: dict[int, int]) -> None:
    """Their rows, and the signs with which they keep it."""
    rf.initialize(layer, chrono=100, seed=0)
    bias = layer.params["bias_ih_l0"].reshape(-1, 500).astype(np.float64)
    for gate, sign in gates.items():
        assert 1 <= np.exp(sign * bias[gate]).min() < 2 and 97 < np.exp(sign * bias[gate]).max() <= 99
    with pytest.raises(ValueError, match="chrono: expected layers with a gate that keeps the state, got IndRNN"):
        rf.initialize(rf.IndRNN(3, 4), chrono=10)
    with pytest.raises(ValueError, match="forget_bias: expected layers with a forget gate, got LSTM"):
        rf.initialize(rf.LSTM(3, 4, coupled=True), forget_bias=1.0)
