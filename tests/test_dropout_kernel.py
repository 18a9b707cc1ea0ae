"""Dropout as compiled: its masks are those of Philox, whatever the batch."""

from __future__ import annotations

import math
import signal
from typing import Any

import numpy as np
import pytest

from kernel_cases import DTYPES, WIDTHS, Array, drop, drop_into, normal, padding, same_bits
from rnnfast import _kernels


def philox(counter: Array, key: tuple[int, int]) -> Array:
    """Philox4x32-10 of counters (…, 4) by the definition of Salmon et al., 2011."""
    c = np.moveaxis(np.asarray(counter, np.uint64), -1, 0)
    k = [np.uint64(word) for word in key]
    low = np.uint64(0xFFFFFFFF)
    for _ in range(10):
        a, b = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        c = np.stack([b >> np.uint64(32) ^ c[1] ^ k[0], b & low, a >> np.uint64(32) ^ c[3] ^ k[1], a & low])
        k = [k[0] + np.uint64(0x9E3779B9) & low, k[1] + np.uint64(0xBB67AE85) & low]
    return np.moveaxis(c, 0, -1)


def expected_mask(shape: tuple[int, int, int], p: float, seed: int, call: int, layer: int) -> Array:
    """Which elements stay: feature 32 g + 8 w + i compares word w of the counter (8 g + i, row, t) with p."""
    steps, batch, width = shape
    low = 0xFFFFFFFF
    key = philox(np.array([call & low, call >> 32, layer, 0]), (seed & low, seed >> 32))
    feature = np.arange(width)
    block = feature // 32 * 8 + feature % 8
    counter = np.zeros((*shape, 4), np.uint64)
    counter[..., 0] = block
    counter[..., 1] = np.arange(batch)[:, None]
    counter[..., 2] = np.arange(steps)[:, None, None]
    words = np.take_along_axis(philox(counter, (int(key[0]), int(key[1]))), (feature // 8 % 4)[None, None, :, None], -1)
    return np.asarray(words[..., 0] >= math.floor(p * 2**32))


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ([0, 0, 0, 0], (0, 0), [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, (0xFFFFFFFF, 0xFFFFFFFF), [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            (0xA4093822, 0x299F31D0),
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_philox_gives_the_known_answers(counter: list[int], key: tuple[int, int], words: list[int]) -> None:
    assert philox(np.array(counter), key).tolist() == words


@pytest.mark.kernel
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("p", [0.1, 0.5, 0.999])
@pytest.mark.parametrize("width", WIDTHS)
def test_the_mask_is_philoxs(width: int, p: float, dtype: Any) -> None:
    x = normal(4, 5, width, dtype=dtype)
    for seed, call, layer in [(0, 0, 0), (1, 2, 3), (2**64 - 1, 2**40 + 7, 12)]:
        kept = expected_mask(x.shape, p, seed, call, layer)
        assert (drop(x, p, seed, call, layer) == np.where(kept, x * dtype(1 / (1 - p)), 0)).all()


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_drops_its_share_and_keeps_the_mean(p: float) -> None:
    y = drop(np.ones((50, 40, 100), np.float64), p)
    deviation = math.sqrt(p * (1 - p) / y.size)
    assert abs((y == 0).mean() - p) < 5 * deviation
    assert y.mean() == pytest.approx(1, abs=5 * deviation / (1 - p))
    for axes in [(0, 1), (0, 2), (1, 2)]:  # no step, row or feature is preferred
        kept = (y != 0).mean(axes)
        assert abs(kept - (1 - p)).max() < 6 * math.sqrt(p * (1 - p) * kept.size / y.size)


def test_masks_of_other_keys_steps_and_rows_are_independent() -> None:
    ones = np.ones((40, 50, 64), np.float32)
    kept = drop(ones, 0.5) != 0
    others = [drop(ones, 0.5, *key) != 0 for key in [(77, 2, 3), (1, 77, 3), (1, 2, 77)]]
    others += [np.roll(kept, 1, axis) for axis in range(3)]
    for other in others:
        assert abs((kept == other).mean() - 0.5) < 5 * 0.5 / math.sqrt(kept.size)


@pytest.mark.parametrize("dtype", DTYPES)
def test_without_dropout_every_bit_is_copied(dtype: Any) -> None:
    x = normal(3, 4, 37, dtype=dtype)
    x[0, 0, :4] = np.nan, np.inf, -0.0, np.finfo(dtype).smallest_subnormal
    assert same_bits(drop(x, 0.0), x)


def test_a_mask_does_not_depend_on_strides_or_the_rest_of_the_batch() -> None:
    x = normal(7, 6, 40, dtype=np.float32)
    y = drop(x, 0.4)
    inside = np.zeros((6, 7, 80), np.float32)
    outer = inside[::-1, :, 40:].swapaxes(0, 1)  # negative and swapped strides, half of a wider row
    _kernels.dropout(np.broadcast_to(x[:1, :1], x.shape), outer, 0.4, 1, 2, 3, None, 1)
    assert ((outer != 0) == (y != 0)).all()
    assert not inside[..., :40].any()
    assert same_bits(drop(x[:3, :2, :33].copy(), 0.4), y[:3, :2, :33])


def test_dropout_never_reads_past_a_length_and_gives_zeros_there() -> None:
    x, lengths = normal(6, 4, 20), np.array([6, 0, 3, 1])
    whole, past = drop(x, 0.3), padding(lengths, 6)
    x[past] = np.nan
    y = drop(x, 0.3, lengths=lengths)
    assert same_bits(y[~past], whole[~past])
    assert not y[past].any()


def test_a_signal_ends_a_long_call() -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    # Seconds of work in little memory: the rows of a step are the same one.
    once = np.full((3000, 1, 1000), np.nan, np.float32)
    x = np.broadcast_to(np.ones(1000, np.float32), (3000, 1000, 1000))
    y = np.lib.stride_tricks.as_strided(once, x.shape, (4000, 0, 4))
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(KeyboardInterrupt):
            drop_into(x, y)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert np.isnan(once).any()
