"""The losses: their values and gradients, masks, stability, refusals."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import rnnfast as rf

Array = np.ndarray[Any, np.dtype[Any]]
SHAPES = [(), (1,), (6,), (5, 3), (2, 5, 3)]


def draw(*shape: int, seed: int = 0, dtype: Any = np.float64) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def plain_cross_entropy(logits: Array, targets: Array, weights: Array) -> tuple[float, Array]:
    """The definition, step by step in float64."""
    rows, gradient = logits.reshape(-1, logits.shape[-1]).astype(np.float64), np.zeros(logits.shape)
    total, losses = weights.sum(), 0.0
    for n in range(len(rows)):
        if weights.ravel()[n]:
            shifted = np.exp(rows[n] - rows[n].max())
            chances = shifted / shifted.sum()
            losses -= weights.ravel()[n] * (rows[n] - rows[n].max() - math.log(shifted.sum()))[targets.ravel()[n]]
            chances[targets.ravel()[n]] -= 1
            gradient.reshape(rows.shape)[n] = weights.ravel()[n] / total * chances
    return (losses / total if total else 0.0), gradient


def plain_mse(y: Array, target: Array, weights: Array) -> tuple[float, Array]:
    total = weights.sum()
    if not total:
        return 0.0, np.zeros(y.shape)
    error = y.astype(np.float64) - target
    scaled = weights[..., None] / total / y.shape[-1]
    return float((scaled * error**2).sum()), 2 * scaled * error


# ---- values ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("mask", ["none", "bools", "weights"])
@pytest.mark.parametrize("shape", SHAPES)
def test_losses_match_their_definition(shape: tuple[int, ...], mask: str, dtype: Any) -> None:
    generator = np.random.default_rng(3)
    masks = {"none": None, "bools": generator.random(shape) < 0.7, "weights": generator.random(shape)}
    weights = np.ones(shape) if masks[mask] is None else np.asarray(masks[mask], np.float64)
    targets = generator.integers(0, 7, shape)
    logits, goal = draw(*shape, 7, dtype=dtype), draw(*shape, 7, seed=1, dtype=dtype)
    tolerance: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-6} if dtype == np.float32 else {"rtol": 1e-12, "atol": 1e-14}
    for (loss, gradient), (expected, expected_gradient) in (
        (
            rf.softmax_cross_entropy(logits, targets, masks[mask]),
            plain_cross_entropy(logits, np.asarray(targets), weights),
        ),
        (rf.mse(logits, goal, masks[mask]), plain_mse(logits, goal, weights)),
    ):
        assert isinstance(loss, float)
        assert gradient.dtype == dtype
        assert gradient.shape == logits.shape
        np.testing.assert_allclose(loss, expected, **tolerance)
        np.testing.assert_allclose(gradient, expected_gradient, **tolerance)


def test_losses_match_pytorchs() -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is the judge of losses")
    logits, targets, goal = draw(5, 3, 7), np.random.default_rng(1).integers(0, 7, (5, 3)), draw(5, 3, 7, seed=2)
    for ours, judge in (
        (
            rf.softmax_cross_entropy(logits, targets),
            lambda x: torch.nn.functional.cross_entropy(x.reshape(15, 7), torch.from_numpy(targets).ravel()),
        ),
        (rf.mse(logits, goal), lambda x: torch.nn.functional.mse_loss(x, torch.from_numpy(goal))),
    ):
        x = torch.from_numpy(logits.copy()).requires_grad_()
        expected: Any = judge(x)  # type: ignore[no-untyped-call]
        expected.backward()
        np.testing.assert_allclose(ours[0], expected.item(), rtol=1e-12)
        np.testing.assert_allclose(ours[1], x.grad.numpy(), rtol=1e-10, atol=1e-15)


@settings(max_examples=40, deadline=None)
@given(hnp.arrays(np.float64, hnp.array_shapes(min_dims=2, max_dims=2), elements=st.floats(-1e4, 1e4)), st.data())
def test_cross_entropy_is_a_proper_loss(logits: Array, data: st.DataObject) -> None:
    """It isn't negative, its gradient sums to zero over the classes, and a common shift changes nothing."""
    steps, classes = logits.shape
    targets = np.array(data.draw(st.lists(st.integers(0, classes - 1), min_size=steps, max_size=steps)))
    loss, dlogits = rf.softmax_cross_entropy(logits, targets)
    assert 0 <= loss < math.inf
    np.testing.assert_allclose(dlogits.sum(axis=1), 0, atol=1e-14)
    np.testing.assert_allclose(rf.softmax_cross_entropy(logits + 100, targets)[0], loss, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_cross_entropy_is_stable_for_huge_logits(dtype: Any) -> None:
    logits = np.array([[1e30, 0, -1e30], [-1e30, -1e30, -1e30]], dtype)
    loss, dlogits = rf.softmax_cross_entropy(logits, [0, 2])
    np.testing.assert_allclose(loss, math.log(3) / 2, rtol=1e-6)
    expected = np.array([[0, 0, 0], [1 / 6, 1 / 6, -1 / 3]])
    np.testing.assert_allclose(dlogits, expected, rtol=1e-6, atol=1e-7)


def test_gradients_match_central_differences() -> None:
    x, goal, mask = draw(4, 3, 5), draw(4, 3, 5, seed=1), np.random.default_rng(2).random((4, 3))
    targets = np.random.default_rng(3).integers(0, 5, (4, 3))
    losses: tuple[Callable[[Array], tuple[float, Array]], ...] = (
        lambda z: rf.softmax_cross_entropy(z, targets, mask),
        lambda z: rf.mse(z, goal, mask),
    )
    direction = draw(4, 3, 5, seed=4)
    for loss in losses:
        slope = (loss(x + 1e-6 * direction)[0] - loss(x - 1e-6 * direction)[0]) / 2e-6
        np.testing.assert_allclose((loss(x)[1] * direction).sum(), slope, rtol=1e-3, atol=1e-5)


# ---- masks -----------------------------------------------------------------------------------------------------------
def test_masked_steps_are_never_read() -> None:
    logits, targets, goal = draw(3, 2, 4), np.zeros((3, 2), int), draw(3, 2, 4, seed=1)
    mask = np.array([[1, 1], [0, 1], [0, 0]], bool)
    loss, dlogits = rf.softmax_cross_entropy(logits, targets, mask)
    error, dy = rf.mse(logits, goal, mask)
    dirty, dirty_targets, dirty_goal = logits.copy(), targets.copy(), goal.copy()
    dirty[~mask], dirty_targets[~mask], dirty_goal[~mask] = np.nan, -100, np.nan
    dirty_loss, dirty_dlogits = rf.softmax_cross_entropy(dirty, dirty_targets, mask)
    dirty_error, dirty_dy = rf.mse(dirty, dirty_goal, mask)
    assert (dirty_loss, dirty_error) == (loss, error)
    assert np.array_equal(dirty_dlogits, dlogits)
    assert np.array_equal(dirty_dy, dy)
    assert not dlogits[~mask].any() and not dy[~mask].any()


@pytest.mark.parametrize("mask", [np.zeros((3, 2), bool), np.zeros((3, 2))])
def test_nothing_to_count_is_a_loss_of_zero(mask: Array) -> None:
    x = np.full((3, 2, 4), np.nan)
    for loss, gradient in (rf.softmax_cross_entropy(x, np.full((3, 2), -1), mask), rf.mse(x, x, mask)):
        assert loss == 0
        assert not gradient.any()


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0,)])
def test_no_steps_are_a_loss_of_zero(shape: tuple[int, ...]) -> None:
    x = np.zeros((*shape, 4), np.float32)
    for loss, gradient in (rf.softmax_cross_entropy(x, np.zeros(shape, int)), rf.mse(x, x)):
        assert loss == 0
        assert gradient.shape == x.shape


def test_bools_and_ones_are_the_same_mask() -> None:
    logits, targets = draw(3, 2, 4, dtype=np.float32), np.ones((3, 2), np.uint8)
    mask = np.array([[1, 1], [0, 1], [0, 0]])
    loss, dlogits = rf.softmax_cross_entropy(logits, targets, mask.astype(bool))
    for same in (mask, mask.astype(np.float32), mask.astype(np.float64), mask.tolist()):
        again, gradient = rf.softmax_cross_entropy(logits, targets, same)
        assert again == loss
        assert np.array_equal(gradient, dlogits)


# ---- the boundary ----------------------------------------------------------------------------------------------------
def test_any_layout_gives_the_same_bits() -> None:
    logits, targets = draw(4, 3, 5, dtype=np.float32), np.random.default_rng(1).integers(0, 5, (4, 3))
    mask = np.random.default_rng(2).random((4, 3))
    loss, dlogits = rf.softmax_cross_entropy(logits, targets, mask)
    error, dy = rf.mse(logits, dlogits, mask)
    for change in (
        np.asfortranarray,
        lambda x: x[::-1].copy()[::-1],
        lambda x: x.astype(x.dtype.newbyteorder()),
        lambda x: np.repeat(x, 2, axis=-1)[..., ::2],
    ):
        for (again, gradient), (value, expected) in (
            (rf.softmax_cross_entropy(change(logits), change(targets), change(mask)), (loss, dlogits)),
            (rf.mse(change(logits), change(dlogits), change(mask)), (error, dy)),
        ):
            assert again == value
            assert np.array_equal(gradient, expected)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((np.zeros((3, 4), np.float16), [0, 1, 2]), TypeError, "logits: expected float32 or float64, got float16"),
        ((np.zeros((3, 4), int), [0, 1, 2]), TypeError, "logits: expected float32 or float64, got int64"),
        ((np.float32(1), 0), ValueError, r"logits: expected \(…, V\), got \(\)"),
        ((np.zeros((3, 4)), [0.0, 1.0, 2.0]), TypeError, "targets: expected integers, got float64"),
        ((np.zeros((3, 4)), [0, 1]), ValueError, r"targets: expected \(3,\), got \(2,\)"),
        ((np.zeros((3, 4)), [0, 1, 4]), ValueError, r"targets: expected values from 0 to 3, got 4 at \(2,\)"),
        ((np.zeros((3, 4)), [0, -1, 2]), ValueError, r"targets: expected values from 0 to 3, got -1 at \(1,\)"),
        ((np.zeros((3, 4)), [0, 1, 2], [1, 1]), ValueError, r"mask: expected \(3,\), got \(2,\)"),
        ((np.zeros((3, 4)), [0, 1, 2], [1, -0.5, 1]), ValueError, r"mask: expected finite .*, got -0.5 at \(1,\)"),
        ((np.zeros((3, 4)), [0, 1, 2], [1, 1, math.nan]), ValueError, r"mask: expected finite .*, got nan at \(2,\)"),
        ((np.zeros((3, 4)), [0, 1, 2], [math.inf, 1, 1]), ValueError, r"mask: expected finite .*, got inf at \(0,\)"),
        ((np.zeros((3, 4)), [0, 1, 2], ["a", "b", "c"]), TypeError, "mask: expected bools or weights, got <U1"),
    ],
)
def test_cross_entropy_rejects_and_says_what_came(
    arguments: tuple[Any, ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        rf.softmax_cross_entropy(*arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((np.zeros((3, 4)), np.zeros((3, 4), np.float32)), TypeError, "target: expected float64, got float32"),
        ((np.zeros((3, 4)), np.zeros((4, 3))), ValueError, r"target: expected \(3, 4\), got \(4, 3\)"),
        ((np.zeros((3, 4)), np.zeros((3, 4)), np.ones((3, 4))), ValueError, r"mask: expected \(3,\), got \(3, 4\)"),
        ((np.zeros((3, 4), int), np.zeros((3, 4))), TypeError, "y: expected float32 or float64, got int64"),
    ],
)
def test_mse_rejects_and_says_what_came(arguments: tuple[Any, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        rf.mse(*arguments)
