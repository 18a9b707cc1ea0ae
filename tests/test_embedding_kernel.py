"""The embedding as compiled: rows looked up, and gradients added up in a fixed order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kernel_cases import DTYPES, WIDTHS, Array, integers, normal, padding, same_bits
from rnnfast import _kernels


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", WIDTHS)
def test_embedding_looks_rows_up(width: int, dtype: Any) -> None:
    tokens, weight, lengths = integers(11, 6, 4), normal(11, width, dtype=dtype), np.array([6, 0, 3, 1])
    past = padding(lengths, 6)
    expected = weight[tokens]
    expected[past] = 0
    tokens[past] = -5  # never read
    y = np.full((4, 6, width), np.nan, dtype).swapaxes(0, 1)
    _kernels.embedding_forward(tokens, weight, y, lengths, 2)
    assert same_bits(y, expected)
    _kernels.embedding_forward(np.asfortranarray(tokens), weight, y, lengths, 2)
    assert same_bits(y, expected)


def ordered_gradient(tokens: Array, dy: Array, dweight: Array, lengths: Array) -> Array:
    result = dweight.copy()
    for t in reversed(range(len(tokens))):
        for b in range(tokens.shape[1]):
            if t < lengths[b]:
                result[tokens[t, b]] += dy[t, b]
    return result


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", WIDTHS)
def test_the_gradient_of_a_token_adds_up_in_a_fixed_order(width: int, dtype: Any) -> None:
    tokens, lengths = integers(3, 9, 4), np.array([9, 0, 5, 1])
    dy, before = normal(9, 4, width, dtype=dtype), normal(3, width, dtype=dtype, seed=1)
    expected = ordered_gradient(tokens, dy, before, lengths)
    dy[padding(lengths, 9)] = np.nan
    dweight = before.copy()
    _kernels.embedding_backward(tokens, dy, dweight, lengths, 2)
    assert same_bits(dweight, expected)


def test_the_gradient_of_segments_is_that_of_the_whole() -> None:
    tokens, dy, before = integers(3, 9, 4), normal(9, 4, 50, dtype=np.float32), normal(3, 50, dtype=np.float32)
    whole, cut = before.copy(), before.copy()
    _kernels.embedding_backward(tokens, dy, whole, None, 1)
    for steps in [slice(6, 9), slice(2, 6), slice(0, 2)]:
        _kernels.embedding_backward(tokens[steps], dy[steps], cut, None, 1)
    assert same_bits(cut, whole)


def test_a_nan_stays_with_its_token() -> None:
    tokens, dy, dweight = np.array([[0, 1, 2]]), np.ones((1, 3, 20)), np.zeros((3, 20))
    dy[0, 1] = np.nan
    _kernels.embedding_backward(tokens, dy, dweight, None, 1)
    assert np.isnan(dweight).any(1).tolist() == [False, True, False]


@pytest.mark.parametrize("token", [-1, 11, 2**62, -(2**63)])
def test_a_token_out_of_range_is_refused_and_changes_nothing(token: int) -> None:
    tokens, weight, y = integers(11, 3, 2), np.zeros((11, 5)), np.zeros((3, 2, 5))
    tokens[2, 1] = token
    message = rf"tokens: expected 0 to 10, got {token} at \(2, 1\)"
    with pytest.raises(ValueError, match=message):
        _kernels.embedding_forward(tokens, weight, y, None, 1)
    with pytest.raises(ValueError, match=message):
        _kernels.embedding_backward(tokens, np.ones_like(y), weight, None, 1)
    assert not weight.any()
