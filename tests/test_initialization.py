"""Initial values: PyTorch's default distributions, from a seed, reproducible."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest

import rnnfast as rf

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
