"""One step at a time: a recurrent layer as a stream that remembers its state."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from rnnfast import _kernels, checks, threads
from rnnfast.checks import Array
from rnnfast.module import State
from rnnfast.stack import Stack

__all__ = ["Stream"]


class Stream:
    """A layer that takes one time step a call; made by ``layer.stream(batch_size)``.

    The weights are a snapshot, packed once: later changes of the layer don't reach the stream. Never drops. The outputs
    are those of ``layer(x)`` over the whole sequence, to the bit. A stream is for one thread at a time.

    Attributes:
        step: ``y_t = stream.step(x_t)`` advances by one step. x_t (batch_size, I) has the layer's dtype, y_t
            (batch_size, H) is a new array. TypeError or ValueError for another dtype or shape; the state stays.

    Examples:
        >>> import numpy as np
        >>> import rnnfast as rf
        >>> layer = rf.GRU(3, 5, seed=0)
        >>> x = np.ones((7, 1, 3), np.float32)
        >>> stream = layer.stream()
        >>> y = np.stack([stream.step(x_t) for x_t in x])
        >>> bool((y == layer(x)[0]).all())
        True
    """

    __slots__ = ("_dtype", "_fresh", "_initial", "_names", "_native", "_shapes", "step")

    step: Callable[[Any], Array]

    def __init__(
        self,
        stack: Stack,
        params: Mapping[str, Array],
        names: Sequence[str],
        batch_size: int,
        initial: Sequence[Array] | None,
        zoneouts: Sequence[float],
    ) -> None:
        """Of a stack in one direction; `names` of its states, `initial` those of a stream that is given none."""
        self._native = _kernels.make_stream(
            [scan.cell for scan in stack.scans],
            [stack.weights(params, scan) for scan in stack.scans],
            batch_size,
            threads.resolve(),
            stack.heads,
            (zoneouts, False, 0, 0, 0) if zoneouts else None,
            stack.bfloat16,
            np.empty(0, stack.dtype),
        )
        self._names, self._dtype, self._initial = names, stack.dtype, initial
        self._shapes = stack.state_shapes(batch_size)
        self._fresh = _kernels.cells()[stack.scans[0].cell]["initial"]
        self.step = self._native.step
        if initial is not None:
            self.state = None

    @property
    def state(self) -> State:
        """The state after the last step, h or (h, c), each a copy (L, batch_size, H).

        May be set; None stands for what it does in a call of the layer: the cell's initial state, zeros mostly, or the
        layer's trained one.
        """
        arrays = tuple(self._native.get_state(k) for k in range(len(self._names)))
        return arrays[0] if len(arrays) == 1 else arrays

    @state.setter
    def state(self, value: State) -> None:
        blocks = checks.states("state", value, self._names, self._shapes, self._dtype)
        for k in range(len(self._names)):
            self._native.set_state(k, self._start(k) if blocks is None else blocks[k])

    def _start(self, k: int) -> Array:
        """State k of a layer that is given none."""
        if self._initial is not None:
            return self._initial[k]
        return np.full(self._shapes[k], self._fresh[k], self._dtype)

    def reset(self, rows: Any = None) -> None:
        """Start anew, with the state that None stands for: all rows of the batch, or only `rows`.

        `rows` is what selects from an axis of batch_size: an index, a list of them, a bool mask or a slice. IndexError
        if it doesn't.
        """
        for k in range(len(self._names)):
            array = self._native.get_state(k)
            chosen = slice(None) if rows is None else rows
            array[:, chosen] = self._start(k)[:, chosen]
            self._native.set_state(k, array)

    def __repr__(self) -> str:
        layers, batch, hidden = self._shapes[0]
        return f"Stream({layers} layers of {hidden}, batch_size={batch}, {self._dtype})"
