"""Optimisers. A step touches the flat parameters and gradients of a model once, after one pass for the norm."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from rnnfast import _kernels, checks, threads
from rnnfast.checks import Array
from rnnfast.module import Module

__all__ = ["SGD", "Adam"]


class Optimizer(ABC):
    """What SGD and Adam have in common: clipping, settings (`lr` and others, settable between steps), their state."""

    _settings: ClassVar[tuple[str, ...]] = ("lr",)  # numbers in state_dict
    _buffers: ClassVar[tuple[str, ...]] = ()  # arrays in state_dict, flat like the parameters

    def __init__(self, model: Module, lr: float) -> None:
        if not isinstance(model, Module):
            raise TypeError(f"model: expected a module, got {type(model).__name__}")
        if not model.flat_params.size:
            raise ValueError(f"model: expected parameters to train, {type(model).__name__} has none")
        self.model = model
        self.lr = lr
        self.steps = 0

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, self._check_setting(name, value) if name in self._settings else value)

    def step(self, clip_norm: float | None = None, clip_value: float | None = None) -> float:
        """Update the parameters from the gradients, which stay as they are; return the gradient's 2-norm.

        Clipping, in this order: every element to ±`clip_value`; then the whole gradient g to the norm `clip_norm`, as
        g · min(1, clip_norm / (‖g‖ + 1e-6)), as PyTorch does. The norm returned lies between the two: after
        `clip_value`, before `clip_norm`.

        Raises:
            FloatingPointError: the norm is NaN or infinite. Nothing has changed then; without this check one
                bad gradient would turn every parameter into NaN.
            ValueError: a bound isn't positive.
        """
        bound = math.inf if clip_value is None else _bound("clip_value", clip_value)
        limit = math.inf if clip_norm is None else _bound("clip_norm", clip_norm)
        grads = self.model.flat_grads
        norm = math.sqrt(_kernels.sum_of_squares(grads, bound, threads.resolve()))
        if not math.isfinite(norm):
            raise FloatingPointError(f"the gradient's norm is {norm}; the parameters were left unchanged")
        self.model.mark_changed()
        self.steps += 1
        self._update(self.model.flat_params, grads, min(1.0, limit / (norm + 1e-6)), bound)
        return norm

    @abstractmethod
    def _update(self, params: Array, grads: Array, scale: float, clip_value: float) -> None:
        """Apply the gradient clamp(grads, ±clip_value) · scale."""

    def state_dict(self) -> dict[str, Any]:
        """Everything that a later step depends on beside the model: numbers, and copies of the flat buffers."""
        state: dict[str, Any] = {"class": type(self).__name__, "steps": self.steps}
        state |= {name: getattr(self, name) for name in self._settings}
        return state | {name: getattr(self, name).copy() for name in self._buffers}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave, for a model of the same size. Nothing is loaded if it doesn't fit."""
        expected = ("class", "steps", *self._settings, *self._buffers)
        if not isinstance(state, Mapping) or set(state) != set(expected):
            got = sorted(state) if isinstance(state, Mapping) else type(state).__name__
            raise ValueError(f"state_dict: expected the entries {sorted(expected)}, got {got}")
        if state["class"] != type(self).__name__:
            raise ValueError(f"state_dict: expected the state of {type(self).__name__}, got {state['class']}")
        params = self.model.flat_params
        buffers = {name: checks.block(name, state[name], params.shape, params.dtype).copy() for name in self._buffers}
        settings = {name: self._check_setting(name, state[name]) for name in self._settings}
        self.steps = checks.size("steps", state["steps"], minimum=0)
        for name, value in (settings | buffers).items():
            setattr(self, name, value)

    def _check_setting(self, name: str, value: Any) -> Any:
        return checks.real(name, value)

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={getattr(self, name)!r}" for name in self._settings)
        return f"{type(self).__name__}({settings})"


class SGD(Optimizer):
    """Stochastic gradient descent with heavy-ball momentum (Polyak, 1964), step by step torch.optim.SGD.

    ::

        v ← momentum · v + g        v = 0 at first
        θ ← θ − lr · v

    Args:
        model: the module whose parameters are trained.
        lr: the learning rate, ≥ 0.
        momentum: 0 ≤ momentum < 1.

    Examples:
        >>> import numpy as np
        >>> import rnnfast as rf
        >>> layer = rf.Linear(2, 1, bias=False, seed=0)
        >>> layer.params["weight"] = np.zeros((1, 2))
        >>> layer.grads["weight"] = np.array([[3.0, 4.0]])
        >>> rf.SGD(layer, lr=0.5).step(), layer.params["weight"].tolist()
        (5.0, [[-1.5, -2.0]])
    """

    _settings = ("lr", "momentum")
    _buffers = ("velocity",)

    def __init__(self, model: Module, lr: float, momentum: float = 0.0) -> None:
        super().__init__(model, lr)
        self.momentum = momentum
        self.velocity = np.zeros(model.flat_params.size, model.dtype)  # takes no memory until it is written to

    def _check_setting(self, name: str, value: Any) -> Any:
        return checks.real(name, value, 0.0, 1.0 if name == "momentum" else math.inf)

    def _update(self, params: Array, grads: Array, scale: float, clip_value: float) -> None:
        velocity = self.velocity if self.momentum else None
        _kernels.sgd_step(params, grads, velocity, self.lr, self.momentum, scale, clip_value, threads.resolve())


class Adam(Optimizer):
    """Adam with decoupled weight decay (Kingma & Ba, 2015; Loshchilov & Hutter, 2019), step by step torch.optim.AdamW.

    ::

        θ ← θ − lr · weight_decay · θ
        m ← β₁ m + (1 − β₁) g
        v ← β₂ v + (1 − β₂) g²
        θ ← θ − lr · (m / (1 − β₁ᵗ)) / (√(v / (1 − β₂ᵗ)) + eps)        t = 1, 2, …

    Args:
        model: the module whose parameters are trained.
        lr: the learning rate, ≥ 0.
        betas: (β₁, β₂), each in 0 ≤ β < 1.
        eps: ≥ 0.
        weight_decay: ≥ 0, on all parameters.

    Examples:
        >>> import rnnfast as rf
        >>> layer = rf.Linear(2, 1, seed=0)
        >>> layer.grads["bias"] = [2.0]
        >>> opt = rf.Adam(layer, lr=1e-2)
        >>> opt.step(clip_norm=1.0)
        2.0
        >>> opt.lr = 1e-3
    """

    _settings = ("lr", "betas", "eps", "weight_decay")
    _buffers = ("m", "v")

    def __init__(
        self,
        model: Module,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(model, lr)
        self.betas = betas
        self.eps = eps
        self.weight_decay = weight_decay
        self.m, self.v = np.zeros_like(model.flat_params), np.zeros_like(model.flat_params)

    def _check_setting(self, name: str, value: Any) -> Any:
        if name != "betas":
            return checks.real(name, value)
        if not isinstance(value, tuple | list) or len(value) != 2:
            raise ValueError(f"betas: expected two numbers, got {value!r}")
        return tuple(checks.real(f"betas[{i}]", beta, 0.0, 1.0) for i, beta in enumerate(value))

    def _update(self, params: Array, grads: Array, scale: float, clip_value: float) -> None:
        _kernels.adam_step(
            params,
            grads,
            self.m,
            self.v,
            self.lr,
            *self.betas,
            self.eps,
            self.weight_decay,
            self.steps,
            scale,
            clip_value,
            threads.resolve(),
        )


def _bound(name: str, value: float) -> float:
    """A positive number; infinity sets no bound."""
    return math.inf if value == math.inf else checks.real(name, value, open_low=True)
