"""Modules without a state: embedding, linear layer, dropout, last step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from rnnfast import _kernels, checks, init, threads
from rnnfast.checks import Array
from rnnfast.module import NO_MASKS, Key, Masks, Module, State, Tape

__all__ = ["Dropout", "Embedding", "Last", "Linear"]


@dataclass(slots=True)
class Steps:
    """What a forward call of a module without a state keeps."""

    x: Array  # in the caller's layout
    lengths: Array | None
    masks: Key = NO_MASKS


class Stateless(Module):
    """A module whose state is None."""

    batch_first: bool

    def _check_state(self, name: str, state: State) -> None:
        if state is not None:
            raise ValueError(f"{name}: {type(self).__name__} has no state, expected None, got {type(state).__name__}")

    def _check_dstate(self, tape: Tape[Any], dstate: State) -> State:
        return self._check_state("dstate", dstate)

    def _check_times(self, x: Array, rank: int, lengths: Any, resets: Any) -> Array | None:
        """The lengths as the kernels take them. Resets are checked only: there is no state to reset."""
        if x.ndim != rank:
            for name, value in (("lengths", lengths), ("resets", resets)):
                if value is not None:
                    raise ValueError(f"{name}: expected None, because x of shape {checks.show(x.shape)} has no steps")
            return None
        steps, batch = checks.time_major(x, self.batch_first).shape[:2]
        checks.resets(resets, steps, batch, self.batch_first)
        return checks.lengths(lengths, steps, batch)

    def _sequence(self, x: Array) -> Array:
        """(…, F) as (T, B, F): a view if the last axis is contiguous, as it is after `checks.features`.

        Three axes are steps and batch in the caller's layout. Any other number has no steps: the rows are a batch.
        """
        if x.ndim == 3:
            return checks.time_major(x, self.batch_first)
        return x.reshape(1, math.prod(x.shape[:-1]), x.shape[-1])


# ---- one step at a time ----------------------------------------------------------------------------------------------
class Embedding(Stateless):
    """A table of vectors, looked up by token: y = weight[x].

    Args:
        num_embeddings: V, the number of tokens.
        embedding_dim: E, the features of a token's vector.
        batch_first: whether x is (B, T) instead of (T, B). It matters with `lengths` alone.
        dtype: float32 or float64.
        seed: of the initial values, N(0, 1) as in PyTorch; None draws one from the system.

    Shapes:
        x (…) of any integer dtype, y (…, E), `weight` (V, E). `lengths` need x of two axes.

    Raises:
        TypeError: x isn't of an integer dtype.
        ValueError: a token isn't in 0 … V − 1 (tokens past a row's length are never read).

    The gradient of x is None.

    Examples:
        >>> import rnnfast as rf
        >>> y, state = rf.Embedding(10, 4, seed=0)([[1, 2, 3], [4, 5, 9]])
        >>> y.shape, state
        ((2, 3, 4), None)
    """

    _arguments = ("num_embeddings", "embedding_dim", "batch_first", "dtype", "seed")

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *,
        batch_first: bool = False,
        dtype: Any = np.float32,
        seed: int | None = None,
    ) -> None:
        self.num_embeddings = checks.size("num_embeddings", num_embeddings)
        self.embedding_dim = checks.size("embedding_dim", embedding_dim)
        self.batch_first = batch_first
        self.seed = init.choose_seed(seed)
        super().__init__({"weight": (self.num_embeddings, self.embedding_dim)}, checks.float_dtype(dtype))
        init.normal(self.params, self.seed)

    def _tokens(self, x: Array) -> Array:
        """(…) as (T, B)."""
        return self._sequence(x[..., None])[..., 0]

    def _padding(self, x: Array, lengths: Array | None) -> Array | None:
        """Where x is past a row's length, in x's layout; None where there are no lengths."""
        if lengths is None:
            return None
        steps = checks.time_major(x, self.batch_first).shape[0]
        return checks.time_major(checks.past(lengths, steps), self.batch_first)

    def _forward(
        self, x: Any, state: State, lengths: Any, resets: Any, record: bool
    ) -> tuple[Array, State, Tape[Steps] | None]:
        self._check_state("state", state)
        x = checks.integers("x", x)
        lengths = self._check_times(x, 2, lengths, resets)
        checks.in_range("x", x, self.num_embeddings, self._padding(x, lengths))
        x = x.astype(np.int64) if record else checks.as_int64(x)  # a tape keeps tokens that nobody can change
        y = checks.empty("y", (*x.shape, self.embedding_dim), self.dtype)
        _kernels.embedding_forward(
            self._tokens(x), self.params["weight"], self._sequence(y), lengths, threads.resolve()
        )
        return y, None, Tape(self, Steps(x, lengths), y) if record else None

    def _backward(
        self, tape: Tape[Any], dy: Array | None, dstate: State, need_dx: bool, grads: Mapping[str, Array]
    ) -> tuple[None, None]:
        run: Steps = tape.record
        if dy is not None:
            _kernels.embedding_backward(
                self._tokens(run.x), self._sequence(dy), grads["weight"], run.lengths, threads.resolve()
            )
        return None, None


class Linear(Stateless):
    """A linear layer: y = x Wᵀ + b.

    Args:
        in_features: I.
        out_features: O.
        bias: whether there is a b.
        batch_first: whether x of three axes is (B, T, I) instead of (T, B, I). It matters with `lengths` alone.
        dtype: float32 or float64.
        seed: of the initial values, U(−1/√I, 1/√I) as in PyTorch; None draws one from the system.

    Shapes:
        x (…, I), y (…, O), `weight` (O, I), `bias` (O,). `lengths` need x of three axes.

    Raises:
        TypeError: x has another dtype than the layer.
        ValueError: a shape or value is wrong. Both name the argument, what was expected and what came.

    Examples:
        >>> import numpy as np
        >>> import rnnfast as rf
        >>> layer = rf.Linear(3, 2, seed=0)
        >>> y, state, tape = layer.forward(np.ones((5, 3), np.float32))
        >>> dx, _ = layer.backward(tape, np.ones_like(y))
        >>> y.shape, dx.shape, layer.grads["bias"]
        ((5, 2), (5, 3), array([5., 5.], dtype=float32))
    """

    _arguments = ("in_features", "out_features", "bias", "batch_first", "dtype", "seed")

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool = True,
        batch_first: bool = False,
        dtype: Any = np.float32,
        seed: int | None = None,
    ) -> None:
        self.in_features = checks.size("in_features", in_features)
        self.out_features = checks.size("out_features", out_features)
        self.bias = checks.flag("bias", bias)
        self.batch_first = batch_first
        self.seed = init.choose_seed(seed)
        shapes: dict[str, tuple[int, ...]] = {"weight": (self.out_features, self.in_features)}
        super().__init__(shapes | ({"bias": (self.out_features,)} if self.bias else {}), checks.float_dtype(dtype))
        init.uniform(self.params, self.in_features**-0.5, self.seed)

    def _forward(
        self, x: Any, state: State, lengths: Any, resets: Any, record: bool
    ) -> tuple[Array, State, Tape[Steps] | None]:
        self._check_state("state", state)
        x = checks.features("x", x, ("…", self.in_features), self.dtype)
        lengths = self._check_times(x, 3, lengths, resets)
        y = checks.empty("y", (*x.shape[:-1], self.out_features), self.dtype)
        _kernels.linear_forward(
            self._sequence(x),
            self.params["weight"],
            self.params.get("bias"),
            self._sequence(y),
            lengths,
            threads.resolve(),
        )
        return y, None, Tape(self, Steps(x, lengths), y) if record else None

    def _backward(
        self, tape: Tape[Any], dy: Array | None, dstate: State, need_dx: bool, grads: Mapping[str, Array]
    ) -> tuple[Array | None, None]:
        run: Steps = tape.record
        if dy is None:
            return None, None
        dx = checks.empty("dx", run.x.shape, self.dtype) if need_dx else None
        _kernels.linear_backward(
            self._sequence(run.x),
            self.params["weight"],
            self._sequence(dy),
            None if dx is None else self._sequence(dx),
            grads["weight"],
            grads.get("bias"),
            run.lengths,
            threads.resolve(),
        )
        return dx, None


class Dropout(Stateless):
    """Inverted dropout (Srivastava et al., 2014): in training y = x ∘ m / (1 − p), m = 0 with probability p, else 1.

    A call of the layer itself never drops, nor does `forward` in evaluation mode. The mask depends on the seed, the
    number of the training call, step, row and feature alone; `rng_state` saves and restores it.

    Args:
        p: the probability that a value is dropped, 0 ≤ p < 1.
        batch_first: whether x of three axes is (B, T, F) instead of (T, B, F).
        seed: of the masks; None draws one from the system.

    Shapes:
        x and y (…, F) in float32 or float64. `lengths` need x of three axes.

    Examples:
        >>> import numpy as np
        >>> import rnnfast as rf
        >>> layer = rf.Dropout(0.5, seed=0)
        >>> y, state, tape = layer.forward(np.ones((4, 2, 3), np.float32))
        >>> sorted(set(y.ravel().tolist()) | {0.0, 2.0})
        [0.0, 2.0]
    """

    _arguments = ("p", "batch_first", "seed")
    _settable = frozenset({"p", "batch_first"})

    def __init__(self, p: float = 0.5, *, batch_first: bool = False, seed: int | None = None) -> None:
        self.p = p
        self.batch_first = batch_first
        self.seed = init.choose_seed(seed)
        self._masks: Masks = Masks(self.seed)
        super().__init__({}, np.dtype(np.float32))

    def _check_argument(self, name: str, value: Any) -> Any:
        return checks.real(name, value, 0.0, 1.0) if name == "p" else super()._check_argument(name, value)

    def _apply(self, x: Array, lengths: Array | None, masks: Key) -> Array:
        """x with the masks of a call, or with none."""
        y = checks.empty("y", x.shape, x.dtype)
        _kernels.dropout(self._sequence(x), self._sequence(y), *masks, 0, lengths, threads.resolve())
        return y

    def _forward(
        self, x: Any, state: State, lengths: Any, resets: Any, record: bool
    ) -> tuple[Array, State, Tape[Steps] | None]:
        self._check_state("state", state)
        x = checks.features("x", x, ("…", "F"), None)
        lengths = self._check_times(x, 3, lengths, resets)
        drops = record and self.training and self.p > 0
        masks = self._masks.next_key(self.p) if drops else NO_MASKS
        y = self._apply(x, lengths, masks)
        return y, None, Tape(self, Steps(x, lengths, masks), y) if record else None

    def _backward(
        self, tape: Tape[Any], dy: Array | None, dstate: State, need_dx: bool, grads: Mapping[str, Array]
    ) -> tuple[Array | None, None]:
        run: Steps = tape.record
        return (self._apply(dy, run.lengths, run.masks) if dy is not None and need_dx else None), None


# ---- over the steps --------------------------------------------------------------------------------------------------
class Last(Stateless):
    """The last valid step of every row (many-to-one): y[b] = x[lengths[b] − 1, b], zero where a row has no step.

    Args:
        batch_first: whether x is (B, T, F) instead of (T, B, F).

    Shapes:
        x (T, B, F) in float32 or float64, y (B, F). In a Sequential, `lengths` and `resets` end here.

    Examples:
        >>> import numpy as np
        >>> import rnnfast as rf
        >>> x = np.arange(6, dtype=np.float32).reshape(3, 2, 1)
        >>> rf.Last()(x, lengths=[3, 2])[0].tolist()
        [[4.0], [3.0]]
    """

    _arguments = ("batch_first",)
    _keeps_time = False

    def __init__(self, *, batch_first: bool = False) -> None:
        self.batch_first = batch_first
        super().__init__({}, np.dtype(np.float32))

    def _last(self, x: Array, lengths: Array | None) -> tuple[Array, Array]:
        """The rows that have a step, and the index of its last."""
        steps, batch = x.shape[:2]
        last = (np.full(batch, steps) if lengths is None else lengths) - 1
        filled = np.flatnonzero(last >= 0)
        return filled, last[filled]

    def _forward(
        self, x: Any, state: State, lengths: Any, resets: Any, record: bool
    ) -> tuple[Array, State, Tape[Steps] | None]:
        self._check_state("state", state)
        x = checks.features("x", x, (*checks.leading(self.batch_first), "F"), None)
        lengths = self._check_times(x, 3, lengths, resets)
        seq = checks.time_major(x, self.batch_first)
        filled, last = self._last(seq, lengths)
        y = np.zeros(seq.shape[1:], x.dtype)
        y[filled] = seq[last, filled]
        return y, None, Tape(self, Steps(x, lengths), y) if record else None

    def _backward(
        self, tape: Tape[Any], dy: Array | None, dstate: State, need_dx: bool, grads: Mapping[str, Array]
    ) -> tuple[Array | None, None]:
        run: Steps = tape.record
        if dy is None or not need_dx:
            return None, None
        dx = np.zeros(run.x.shape, run.x.dtype)
        seq = checks.time_major(dx, self.batch_first)
        filled, last = self._last(seq, run.lengths)
        seq[last, filled] = dy[filled]
        return dx, None
