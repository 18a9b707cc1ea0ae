"""What the machine's memory can deliver: the slanted roofs of the roofline. (The flat one is `_kernels.fma_peak`.)

Each thread takes the maximum of an array of its own (`np.max` of int32, which reads with full vectors and releases the
interpreter lock), often enough in one call that the call itself doesn't count. The best of some tries is what the
memory can do: everything that disturbs only takes away.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .timing import timed

LEVEL2, LEVEL3, MEMORY = "256 KB (level-2 cache)", "4 MB (level-3 cache)", "256 MB (memory)"
SIZES = {LEVEL2: 256 << 10, LEVEL3: 4 << 20, MEMORY: 256 << 20}
TRIES = 5
BYTES_A_TRY = 512 << 20  # of one thread


@dataclass(frozen=True)
class Bandwidth:
    """Reads of arrays of one size: bytes a second of all threads together."""

    array: str
    threads: int
    rate: float


def measure_bandwidth(threads: int) -> list[Bandwidth]:
    return [Bandwidth(name, threads, _rate(size, threads)) for name, size in SIZES.items()]


def _rate(size: int, threads: int) -> float:
    repeats = max(1, BYTES_A_TRY // size)
    arrays = [np.ones(size // 4, np.int32) for _ in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        seconds = min(timed(lambda: list(pool.map(_read, arrays, [repeats] * threads))) for _ in range(TRIES))
    return threads * repeats * size / seconds


def _read(array: NDArray[np.int32], repeats: int) -> np.int32:
    """Reads the array again and again: a view with a row that is repeated without a copy."""
    largest: np.int32 = np.broadcast_to(array, (repeats, array.size)).max()
    return largest
