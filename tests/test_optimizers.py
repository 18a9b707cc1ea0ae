"""The optimisers: step by step what torch.optim does, clipping, their state."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import rnnfast as rf

Make = Callable[..., Any]
Array = np.ndarray[Any, np.dtype[Any]]

OPTIMIZERS: dict[str, Make] = {
    "sgd": lambda model: rf.SGD(model, lr=0.1),
    "momentum": lambda model: rf.SGD(model, lr=0.1, momentum=0.9),
    "adam": lambda model: rf.Adam(model, lr=0.01),
    "adam_with_decay": lambda model: rf.Adam(model, lr=0.01, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1),
}
TORCH: dict[str, Callable[[Any, Any], Any]] = {
    "sgd": lambda torch, p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda torch, p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adam": lambda torch, p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.0),
    "adam_with_decay": lambda torch, p: torch.optim.AdamW(p, lr=0.01, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1),
}


def small_model(dtype: Any = np.float32) -> rf.Sequential:
    return rf.Sequential(rf.LSTM(3, 5, seed=1, dtype=dtype), rf.Linear(5, 37, seed=2, dtype=dtype))


def gradient(model: rf.Module, step: int) -> Array:
    """Gradients of very different sizes, another one each step."""
    generator = np.random.default_rng(step)
    size = model.flat_grads.size
    return (generator.standard_normal(size) * 10.0 ** generator.uniform(-6, 2, size)).astype(model.dtype)


# ---- against PyTorch -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("clip", ["none", "norm", "loose_norm", "value"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_step_is_pytorchs(name: str, clip: str, dtype: Any) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is the judge of optimisers")
    model = small_model(dtype)
    theirs = {key: torch.nn.Parameter(torch.from_numpy(view.copy())) for key, view in model.params.items()}
    ours, judge = OPTIMIZERS[name](model), TORCH[name](torch, theirs.values())
    tolerance: dict[str, Any] = {"rtol": 3e-6, "atol": 3e-7} if dtype == np.float32 else {"rtol": 1e-12, "atol": 1e-14}
    for step in range(12):
        model.flat_grads[...] = gradient(model, step)
        for key, parameter in theirs.items():
            parameter.grad = torch.from_numpy(model.grads[key].copy())
        if clip == "value":
            torch.nn.utils.clip_grad_value_(theirs.values(), 0.01)
        limit = {"norm": 0.5, "loose_norm": 1e6}.get(clip, math.inf)
        expected = torch.nn.utils.clip_grad_norm_(theirs.values(), limit)
        judge.step()
        norm = ours.step(
            clip_norm=limit if clip.endswith("norm") else None, clip_value=0.01 if clip == "value" else None
        )
        assert isinstance(norm, float)
        np.testing.assert_allclose(norm, expected.item(), rtol=1e-5 if dtype == np.float32 else 1e-12)
        for key, parameter in theirs.items():
            np.testing.assert_allclose(model.params[key], parameter.detach().numpy(), **tolerance)


# ---- clipping --------------------------------------------------------------------------------------------------------
def test_the_norm_is_taken_after_clip_value_and_before_clip_norm() -> None:
    layer = rf.Linear(1, 1, seed=0, dtype=np.float64)
    before = layer.flat_params.copy()
    layer.flat_grads[...] = 30.0, -4.0
    norm = rf.SGD(layer, lr=1.0).step(clip_norm=1.0, clip_value=3.0)
    assert norm == math.sqrt(18)
    np.testing.assert_allclose(before - layer.flat_params, np.array([3, -3]) / (math.sqrt(18) + 1e-6), rtol=1e-14)
    assert layer.flat_grads.tolist() == [30, -4]


def test_a_small_gradient_is_not_clipped() -> None:
    layer = rf.Linear(1, 1, seed=0, dtype=np.float64)
    before = layer.flat_params.copy()
    layer.flat_grads[...] = 0.3, 0.4
    assert rf.SGD(layer, lr=1.0).step(clip_norm=1.0, clip_value=1.0) == pytest.approx(0.5, rel=1e-15)
    np.testing.assert_allclose(before - layer.flat_params, [0.3, 0.4], rtol=1e-14)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_gradient_that_is_not_finite_changes_nothing(name: str, bad: float) -> None:
    model = small_model()
    opt = OPTIMIZERS[name](model)
    model.flat_grads[...] = 1
    opt.step()
    params, state = model.flat_params.copy(), opt.state_dict()
    model.flat_grads[7] = bad
    with pytest.raises(FloatingPointError, match=r"norm is (nan|inf); the parameters were left unchanged"):
        opt.step(clip_norm=1.0)
    assert np.array_equal(model.flat_params, params)
    for key, value in opt.state_dict().items():
        assert np.array_equal(value, state[key])
    if not math.isnan(bad):
        assert opt.step(clip_value=0.5) == pytest.approx(0.5 * math.sqrt(params.size), rel=1e-6)


# ---- learning rate, parts, state -------------------------------------------------------------------------------------
def test_the_learning_rate_may_change_between_steps() -> None:
    layer = rf.Linear(1, 1, bias=False, seed=0, dtype=np.float64)
    opt = rf.SGD(layer, lr=0.5)
    layer.flat_params[...], layer.flat_grads[...] = 0, 1
    opt.step()
    opt.lr = 0.25
    opt.step()
    assert opt.lr == 0.25
    assert layer.flat_params.tolist() == [-0.75]
    with pytest.raises(ValueError, match="lr: expected a number >= 0 and finite, got -1"):
        opt.lr = -1


def test_a_part_can_be_trained_alone_and_after_it_has_moved() -> None:
    part = rf.Linear(5, 2, seed=0)
    opt = rf.SGD(part, lr=1.0)
    model = rf.Sequential(rf.Linear(3, 5, seed=1), part)
    model.flat_grads[...] = 1
    before = model.flat_params.copy()
    opt.step()
    changed = model.flat_params != before
    assert not changed[: -part.flat_params.size].any()
    assert changed[-part.flat_params.size :].all()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_restored_state_continues_bit_for_bit(name: str) -> None:
    model = small_model()
    opt = OPTIMIZERS[name](model)
    for step in range(3):
        model.flat_grads[...] = gradient(model, step)
        opt.step(clip_norm=1.0)
    opt.lr = 0.02
    twin = copy.deepcopy(model)
    restored = OPTIMIZERS[name](twin)
    restored.load_state_dict(opt.state_dict())
    for step in range(3, 6):
        for network, optimizer in ((model, opt), (twin, restored)):
            network.flat_grads[...] = gradient(network, step)
            optimizer.step(clip_norm=1.0)
    assert np.array_equal(model.flat_params, twin.flat_params)
    assert restored.lr == 0.02


def test_load_state_dict_takes_nothing_that_does_not_fit() -> None:
    model = small_model()
    opt, other = rf.Adam(model), rf.Adam(rf.Linear(2, 2))
    model.flat_grads[...] = 1
    opt.step()
    state = opt.state_dict()
    with pytest.raises(ValueError, match=r"m: expected \(6,\), got"):
        other.load_state_dict(state)
    with pytest.raises(ValueError, match="state_dict: expected the state of Adam, got SGD"):
        opt.load_state_dict(state | {"class": "SGD"})
    with pytest.raises(ValueError, match=r"state_dict: expected the entries \['class', 'lr', 'momentum'"):
        rf.SGD(model, lr=0.1).load_state_dict(state)
    with pytest.raises(ValueError, match=r"betas\[0\]: expected a number >= 0 and < 1, got 2"):
        opt.load_state_dict(state | {"betas": (2.0, 0.5), "lr": 7.0})
    with pytest.raises(ValueError, match="steps: expected at least 0, got -1"):
        opt.load_state_dict(state | {"steps": -1, "lr": 7.0})
    assert opt.lr == 1e-3
    assert other.steps == 0


def test_repr_shows_the_settings() -> None:
    assert repr(rf.SGD(small_model(), lr=0.1)) == "SGD(lr=0.1, momentum=0.0)"
    assert repr(rf.Adam(small_model())) == "Adam(lr=0.001, betas=(0.9, 0.999), eps=1e-08, weight_decay=0.0)"


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: rf.Adam(rf.Last()), ValueError, "model: expected parameters to train, Last has none"),
        (lambda: rf.Adam([np.zeros(3)]), TypeError, "model: expected a module, got list"),  # type: ignore[arg-type]
        (lambda: rf.SGD(small_model(), lr=math.inf), ValueError, "lr: expected a number >= 0 and finite, got inf"),
        (lambda: rf.SGD(small_model(), lr="fast"), TypeError, "lr: expected a number, got str"),  # type: ignore[arg-type]
        (lambda: rf.SGD(small_model(), 0.1, momentum=1.0), ValueError, "momentum: expected a number >= 0 and < 1"),
        (lambda: rf.Adam(small_model(), betas=(0.9, 1.0)), ValueError, r"betas\[1\]: expected a number >= 0 and < 1"),
        (lambda: rf.Adam(small_model(), betas=0.9), ValueError, "betas: expected two numbers, got 0.9"),  # type: ignore[arg-type]
        (lambda: rf.Adam(small_model(), eps=-1.0), ValueError, "eps: expected a number >= 0 and finite, got -1"),
        (lambda: rf.Adam(small_model()).step(clip_norm=0.0), ValueError, "clip_norm: expected a number > 0 and finite"),
        (lambda: rf.Adam(small_model()).step(clip_value=-1.0), ValueError, "clip_value: expected a number > 0"),
        (lambda: rf.Adam(small_model()).step(clip_norm=math.nan), ValueError, "clip_norm: .* got nan"),
    ],
)
def test_rejects_wrong_settings(make: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_settings_are_checked_whenever_they_are_set() -> None:
    adam, sgd = rf.Adam(rf.Linear(3, 2, seed=0)), rf.SGD(rf.Linear(3, 2, seed=0), lr=0.1)
    for optimizer, name, value, said in (
        (adam, "betas", (2, 3), r"betas\[0\]: expected a number >= 0 and < 1, got 2"),
        (adam, "eps", -1, "eps: expected a number >= 0"),
        (sgd, "momentum", 1.0, "momentum: expected a number >= 0 and < 1, got 1"),
        (sgd, "lr", -1.0, "lr: expected a number >= 0"),
    ):
        before = getattr(optimizer, name)
        with pytest.raises(ValueError, match=said):
            setattr(optimizer, name, value)
        assert getattr(optimizer, name) == before
    adam.betas = [0.8, 0.9]  # type: ignore[assignment]
    assert adam.betas == (0.8, 0.9)
