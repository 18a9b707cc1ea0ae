"""The fused head of a language model or tagger: linear layer, softmax and loss in one pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np

from rnnfast import _kernels, checks, init, losses, threads
from rnnfast.checks import Array
from rnnfast.module import Module, State, Tape
from rnnfast.modules import Sequential
from rnnfast.stateless import Stateless

__all__ = ["SoftmaxHead"]

Loss: TypeAlias = Callable[..., tuple[float, Array]]  # loss(y, targets) or loss(y, targets, mask) -> (loss, dy)


class SoftmaxHead(Stateless):
    """The end of a language model: a linear layer to V classes with its softmax cross-entropy, logits never kept.

    ::

        z = h Wᵀ + b
        loss = Σ m·l / Σ m,   l = log Σ_v exp(z_v) − z_target
        dz = m / Σ m · (softmax(z) − onehot(target)),   dh = dz W,   dW = dzᵀ h,   db = Σ dz

    The numbers are, bit for bit, those of `Linear` and `softmax_cross_entropy`; but these hold T·B·V logits and their
    gradient, here z and dz exist for a chunk of rows at a time. It has a `Linear`'s parameters, whose state dicts load.

    It is the last module of a model, and there its two passes differ: ``model(x)`` gives logits, as for writing or
    classifying; ``model.forward(x)`` gives h itself, for which `loss_and_grad` is the loss function. That adds the
    head's gradients at once, so zero them before it, not between it and ``backward`` (which raises then):

    ::

        model.zero_grad()
        h, state, tape = model.forward(tokens, state)
        loss, dh = head.loss_and_grad(h, targets)
        model.backward(tape, dh)

    `truncated_bptt` and `Seq2Seq` do this by themselves. `loss` has no gradients: for held-out data.

    Args:
        input_size: H, the features of h.
        num_classes: V.
        bias: whether there is a b.
        batch_first: whether h of three axes is (B, T, H) instead of (T, B, H). It matters for `lengths`, and for the
            order in which gradients are summed.
        dtype: float32 or float64.
        seed: of the initial values, U(−1/√H, 1/√H) as in PyTorch; None draws one from the system.

    Shapes:
        h (…, H), targets and mask (…), logits (…, V), `weight` (V, H), `bias` (V,). `lengths` need h of three axes.

    Raises:
        TypeError: h has another dtype than the layer, targets aren't integers, the mask no bools or weights.
        ValueError: a shape is wrong, a target that counts isn't in 0 … V − 1, or a weight is negative or not finite.
            All name the argument, what was expected and what came.
        RuntimeError: backward after the gradients of `loss_and_grad` have been zeroed.

    Examples:
        >>> import numpy as np
        >>> import rnnfast as rf
        >>> head = rf.SoftmaxHead(16, 30, seed=2)
        >>> model = rf.Sequential(rf.Embedding(30, 8, seed=0), rf.LSTM(8, 16, seed=1), head)
        >>> optimizer = rf.Adam(model, lr=1e-2)
        >>> text = np.arange(65)[:, None] % 30
        >>> for _ in range(60):
        ...     model.zero_grad()
        ...     h, state, tape = model.forward(text[:-1])
        ...     loss, dh = head.loss_and_grad(h, text[1:])
        ...     dx, dstate = model.backward(tape, dh)
        ...     norm = optimizer.step(clip_norm=1.0)
        >>> h.shape, loss < 0.5
        ((64, 1, 16), True)
        >>> logits, state = model(text[:10])
        >>> logits.shape, int(logits[-1, 0].argmax())
        ((10, 1, 30), 10)
    """

    _arguments = ("input_size", "num_classes", "bias", "batch_first", "dtype", "seed")
    _ends = True
    _added: int | None = None  # how often gradients had been zeroed when loss_and_grad added its own

    def __init__(
        self,
        input_size: int,
        num_classes: int,
        *,
        bias: bool = True,
        batch_first: bool = False,
        dtype: Any = np.float32,
        seed: int | None = None,
    ) -> None:
        self.input_size = checks.size("input_size", input_size)
        self.num_classes = checks.size("num_classes", num_classes)
        self.bias = checks.flag("bias", bias)
        self.batch_first = batch_first
        self.seed = init.choose_seed(seed)
        shapes: dict[str, tuple[int, ...]] = {"weight": (self.num_classes, self.input_size)}
        super().__init__(shapes | ({"bias": (self.num_classes,)} if self.bias else {}), checks.float_dtype(dtype))
        init.uniform(self.params, self.input_size**-0.5, self.seed)

    # ---- as a module -------------------------------------------------------------------------------------------------
    def _forward(
        self, x: Any, state: State, lengths: Any, resets: Any, record: bool
    ) -> tuple[Array, State, Tape[tuple[()]] | None]:
        """Logits; where a tape is recorded, x itself."""
        self._check_state("state", state)
        x = checks.features("x", x, ("…", self.input_size), self.dtype)
        lengths = self._check_times(x, 3, lengths, resets)
        if record:
            return x, None, Tape(self, (), x)
        y = checks.empty("y", (*x.shape[:-1], self.num_classes), self.dtype)
        weight, bias = self.params["weight"], self.params.get("bias")
        _kernels.linear_forward(self._sequence(x), weight, bias, self._sequence(y), lengths, threads.resolve())
        return y, None, None

    def _backward(
        self, tape: Tape[Any], dy: Array | None, dstate: State, need_dx: bool, grads: Mapping[str, Array]
    ) -> tuple[Array | None, None]:
        """What `loss_and_grad` gave, handed on."""
        if self._added not in (None, self._store.zeroed):
            raise RuntimeError("grads: zeroed after loss_and_grad, which had added the head's; zero them before it")
        self._added = None
        return dy if need_dx else None, None

    # ---- the loss ----------------------------------------------------------------------------------------------------
    def loss(self, h: Any, targets: Any, mask: Any = None, lengths: Any = None) -> float:
        """The loss in nats, a mean over the steps that count; see `loss_and_grad`."""
        h, weights, goal = self._check(h, targets, mask, lengths)
        return self._run(h, goal, weights, None, None)

    def loss_and_grad(
        self,
        h: Any,
        targets: Any,
        mask: Any = None,
        lengths: Any = None,
        *,
        grads: Mapping[str, Array] | Array | None = None,
    ) -> tuple[float, Array]:
        """(loss, dh); the gradients of `weight` and `bias` are added into `grads`, at once and not by ``backward``.

        Args:
            h: what the head reads, in a model the y of ``model.forward``.
            targets: the classes, any integer dtype.
            mask: bools or weights m ≥ 0; None counts every step once.
            lengths: (B,) integers: steps past a row's length count as masked. h and targets of a step that doesn't
                count are never read, and its dh is zero; if none counts, the loss is 0.
            grads: the head's own by default, else as in `Module.backward`.
        """
        h, weights, goal = self._check(h, targets, mask, lengths)
        into = self._gradients(grads)
        dh = checks.empty("dh", h.shape, self.dtype)
        loss = self._run(h, goal, weights, dh, into)
        if grads is None:
            self._added = self._store.zeroed
        return loss, dh

    def _check(self, h: Any, targets: Any, mask: Any, lengths: Any) -> tuple[Array, Array | None, Array]:
        """h, and weights and targets as (N,), in its leading layout."""
        h = checks.features("h", h, ("…", self.input_size), self.dtype)
        lengths = self._check_times(h, 3, lengths, None)
        goal = checks.integers("targets", targets)
        checks.shaped("targets", goal, h.shape[:-1])
        weights = losses.step_weights(self._within(h, mask, lengths), h.shape[:-1], self.dtype)
        ignored = None if weights is None else (weights == 0).reshape(goal.shape)
        checks.in_range("targets", goal, self.num_classes, ignored)
        return h, weights, checks.contiguous(checks.as_int64(goal)).ravel()

    def _within(self, h: Array, mask: Any, lengths: Array | None) -> Any:
        """The mask, zero past the lengths."""
        if lengths is None:
            return mask
        valid = checks.time_major(~checks.past(lengths, self._sequence(h).shape[0]), self.batch_first)
        if mask is None:
            return valid
        array = checks.as_array("mask", mask)
        checks.shaped("mask", array, valid.shape)
        return np.where(valid, array, np.zeros((), array.dtype))

    def _run(
        self, h: Array, targets: Array, weights: Array | None, dh: Array | None, grads: Mapping[str, Array] | None
    ) -> float:
        return _kernels.softmax_head(
            self._sequence(h),
            self.params["weight"],
            self.params.get("bias"),
            targets,
            weights,
            self.batch_first and h.ndim == 3,
            None if dh is None else self._sequence(dh),
            None if grads is None else grads["weight"],
            None if grads is None else grads.get("bias"),
            threads.resolve(),
        )


def loss_of(model: Module) -> Loss:
    """What a model is trained by: the loss of the head at its end, else softmax cross-entropy of logits."""
    while isinstance(model, Sequential):
        model = model[len(model) - 1]
    return model.loss_and_grad if isinstance(model, SoftmaxHead) else losses.softmax_cross_entropy
