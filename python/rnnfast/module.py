"""What every module is: named parameters in one flat buffer, forward and backward, tapes.

Parameters and gradients live in a `Store`: one flat array each. A module owns a slice of a store and shows it as named
views. A Sequential moves its modules' slices into one store, so that an optimiser, a norm or an all-reduce sees a
single array. The store also counts its changes, and a tape made before a change refuses to go backward.
"""

from __future__ import annotations

import copy
import inspect
import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Generic, Self, TypeAlias, TypeVar

import numpy as np

from rnnfast import checks
from rnnfast.checks import Array, Float

State: TypeAlias = Any  # None, an array, or a tuple of states: what a module calls its state
Record = TypeVar("Record")
Shapes: TypeAlias = Mapping[str, tuple[int, ...]]

Key: TypeAlias = tuple[float, int, int]  # of a call's random masks: probability, seed, number of the call
NO_MASKS: Key = (0.0, 0, 0)
_CONSUMED = "tape: consumed by backward; call backward(…, keep=True) to use a tape again"


class Store:
    """The flat parameters and gradients of one or more modules, and how often those have changed, these been zeroed."""

    __slots__ = ("grads", "params", "version", "zeroed")

    def __init__(self, count: int, dtype: Float) -> None:
        self.params = checks.empty("parameters", (count,), dtype)
        self.grads = np.zeros(count, dtype)
        self.version = self.zeroed = 0


class Arrays(Mapping[str, Array]):
    """Named views of a flat array. Assigning to a name writes into its view, so that views and buffer stay one."""

    __slots__ = ("_views", "groups")

    def __init__(self, flat: Array, shapes: Shapes) -> None:
        views: dict[str, Array] = {}
        start = 0
        for name, shape in shapes.items():
            stop = start + math.prod(shape)
            views[name] = flat[start:stop].reshape(shape)
            start = stop
        self._views = views
        self.groups: dict[int, Any] = {}  # of views, as a module hands them to the kernels again and again

    @classmethod
    def of(cls, views: dict[str, Array]) -> Self:
        """Views that somebody else has made."""
        arrays = cls.__new__(cls)
        arrays._views, arrays.groups = views, {}
        return arrays

    def __getitem__(self, name: str) -> Array:
        return self._views[name]

    def __setitem__(self, name: str, value: Any) -> None:
        view = self._views[name]
        if value is not view:  # `arrays[name] += 1` has already written in place
            checks.shaped(name, np.asarray(value), view.shape)
            view[...] = value

    def __contains__(self, name: object) -> bool:
        return name in self._views

    def __iter__(self) -> Iterator[str]:
        return iter(self._views)

    def __len__(self) -> int:
        return len(self._views)

    def __repr__(self) -> str:
        return f"{{{', '.join(f'{name!r}: {view.dtype} {checks.show(view.shape)}' for name, view in self.items())}}}"


class Masks:
    """The key of a module's random masks: a seed, and the number of training calls so far."""

    __slots__ = ("call", "seed")
    _lock: ClassVar[threading.Lock] = threading.Lock()  # one for all: it is held for an addition

    def __init__(self, seed: int) -> None:
        self.seed, self.call = seed, 0

    def next_key(self, probability: float) -> Key:
        """The key of a new call; concurrent calls get different ones."""
        with self._lock:
            self.call += 1
            return probability, self.seed, self.call - 1


class Tape(Generic[Record]):
    """What one call of `forward` keeps for `backward`. It belongs to that call; several may be alive.

    `backward` consumes it and frees what it holds, unless called with ``keep=True``.
    """

    __slots__ = ("_record", "_store", "_version", "dtype", "module", "shape")

    def __init__(self, module: Module, record: Record, y: Array) -> None:
        self.module, self._record = module, record
        self._store, self._version = module._store, module._store.version
        self.shape, self.dtype = y.shape, y.dtype

    @property
    def record(self) -> Record:
        """What forward recorded; RuntimeError once backward has consumed it."""
        if self._record is None:
            raise RuntimeError(_CONSUMED)
        return self._record

    def check(self, module: Module) -> None:
        """RuntimeError unless the tape was made by `module` with the parameters that it has now."""
        if self.module is not module:
            raise RuntimeError(f"tape: made by another module ({type(self.module).__name__})")
        if self._store is not module._store or self._version != module._store.version:
            raise RuntimeError("tape: the parameters have changed since the forward call that made it")
        if self._record is None:
            raise RuntimeError(_CONSUMED)

    def release(self) -> None:
        """Drop what forward recorded."""
        self._record = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"{type(self).__name__}(y: {self.dtype} {checks.show(self.shape)})"


class Module(ABC):
    """A part of a network: parameters, `forward` and `backward`.

    ==================================================  ==============================================================
    ``y, state = module(x, state, lengths, resets)``    inference: saves nothing, never drops
    ``y, state, tape = module.forward(x, state, …)``    training: keeps what backward needs; y is read-only
    ``dx, dstate = module.backward(tape, dy, dstate)``  adds into `grads`
    ``params``, ``grads``                               name → array: views of `flat_params`, `flat_grads`
    ==================================================  ==============================================================

    Every module takes the same arguments. `lengths` are (B,) integers from 0 to T: past a row's length y is zero, x
    and dy are never read and no gradient flows. `resets` are bools in x's leading layout: where one is set, the state
    is zeroed before that step. A module without a state has the state None and ignores the resets.

    Writing into `params` or `flat_params` directly is allowed, but unlike `load_state_dict` and an optimiser's step it
    isn't noticed by tapes that are alive: call `mark_changed` so that their backward raises.

    A subclass sets the attributes named in `_arguments` (its constructor's arguments), calls ``Module.__init__`` with
    the shapes of its parameters, fills them, and defines `_forward` and `_backward`.
    """

    _arguments: ClassVar[tuple[str, ...]] = ()
    _settable: ClassVar[frozenset[str]] = frozenset({"batch_first"})  # those that each call looks at
    _keeps_time: ClassVar[bool] = True  # False: y has no steps, so that lengths and resets end here
    _takes_checkpoint: ClassVar[bool] = False  # whether `forward` has the keyword
    _ends: ClassVar[bool] = False  # True: nothing can follow, since forward and a plain call give different things

    params: Arrays
    grads: Arrays
    batch_first: bool | None = None  # the layout of x; None: x has no steps, or the module doesn't care
    _store: Store
    _slice: slice
    _masks: Masks | None = None

    def __init__(self, shapes: Shapes, dtype: Float) -> None:
        self.training = True
        self._owned = False
        self._shapes = dict(shapes)
        self._adopt(Store(self._count(), dtype), 0)

    def __setattr__(self, name: str, value: Any) -> None:
        """An argument is fixed once the module is made, unless each call looks at it; then it is checked again."""
        if name in self._arguments:
            if "_shapes" in self.__dict__:
                self._check_settable(name, value)
            value = self._check_argument(name, value)
        super().__setattr__(name, value)

    def _check_settable(self, name: str, value: Any) -> None:
        kind = type(self).__name__
        if name not in self._settable:
            raise AttributeError(f"{name}: fixed when the {kind} was made, got {value!r}")
        if name == "batch_first" and self._owned:
            raise AttributeError(f"{name}: fixed while the {kind} is a part of another module, got {value!r}")

    def _check_argument(self, name: str, value: Any) -> Any:
        """An argument that may be set later, as the module keeps it."""
        return checks.flag(name, value) if name == "batch_first" else value

    # ---- calls -------------------------------------------------------------------------------------------------------
    def __call__(self, x: Any, state: State = None, lengths: Any = None, resets: Any = None) -> tuple[Array, State]:
        """Inference: (y, state). Saves nothing and never drops, in training mode too."""
        y, state, _ = self._forward(x, state, lengths, resets, record=False)
        return y, state

    def forward(
        self, x: Any, state: State = None, lengths: Any = None, resets: Any = None
    ) -> tuple[Array, State, Tape[Any]]:
        """Training: (y, state, tape). x is referenced by the tape, not copied; y is read-only."""
        y, state, tape = self._forward(x, state, lengths, resets, record=True)
        assert tape is not None
        return self._read_only(y), state, tape

    @staticmethod
    def _read_only(y: Array) -> Array:
        """A view that can't be written to: a tape may hold y itself, and the kernels take writable arrays."""
        y = y.view()
        y.flags.writeable = False
        return y

    def backward(
        self,
        tape: Tape[Any],
        dy: Any,
        dstate: State = None,
        *,
        need_dx: bool = True,
        keep: bool = False,
        grads: Mapping[str, Array] | Array | None = None,
    ) -> tuple[Array | None, State]:
        """Backpropagate through the call that made `tape`: (dx, gradient of the initial state).

        dy is the gradient of y, dstate that of the final state; None stands for zeros. The gradients of the parameters
        are added into `grads`: the module's own by default, else a flat array like `flat_grads` or a mapping like
        `grads`. Concurrent backward passes need their own. dx is None with ``need_dx=False``, where x isn't
        differentiable (tokens), and where dy is None and nothing else gives x a gradient.

        An exception in its midst (Ctrl-C, no memory) halves no gradient, but of several layers or directions some may
        have added theirs and others not: zero them before the next call.

        Consumes the tape unless ``keep=True``. RuntimeError if it was consumed, made by another module, or if the
        parameters have changed since.
        """
        if not isinstance(tape, Tape):
            raise TypeError(f"tape: expected the tape of a forward call, got {type(tape).__name__}")
        tape.check(self)
        if dy is not None:
            dy = checks.features("dy", dy, tape.shape, tape.dtype)
        dstate = self._check_dstate(tape, dstate)
        dx, dstate = self._backward(tape, dy, dstate, need_dx, self._gradients(grads))
        if not keep:
            tape.release()
        return dx, dstate

    @abstractmethod
    def _forward(
        self, x: Any, state: State, lengths: Any, resets: Any, record: bool
    ) -> tuple[Array, State, Tape[Any] | None]:
        """Check the arguments and compute (y, state, tape); the tape is None unless `record`."""

    @abstractmethod
    def _check_dstate(self, tape: Tape[Any], dstate: State) -> State:
        """The gradient of the final state in the form that `_backward` takes."""

    @abstractmethod
    def _backward(
        self, tape: Tape[Any], dy: Array | None, dstate: State, need_dx: bool, grads: Mapping[str, Array]
    ) -> tuple[Array | None, State]:
        """Compute (dx, dstate) from checked arguments and add the parameters' gradients into `grads`."""

    # ---- parameters --------------------------------------------------------------------------------------------------
    @property
    def flat_params(self) -> Array:
        """All parameters as one flat array."""
        return self._store.params[self._slice]

    @property
    def flat_grads(self) -> Array:
        """All gradients as one flat array, in the order of `flat_params`."""
        return self._store.grads[self._slice]

    @property
    def dtype(self) -> Float:
        """The dtype of the parameters."""
        return self._store.params.dtype

    def zero_grad(self) -> None:
        """Set all gradients to zero."""
        self.flat_grads[...] = 0
        self._store.zeroed += 1

    def mark_changed(self) -> None:
        """Say that the parameters have changed: backward of a tape made before raises."""
        self._store.version += 1

    def state_dict(self) -> dict[str, Array]:
        """Name → copy of the parameter or buffer. The names are PyTorch's."""
        return {name: array.copy() for arrays in (self.params, self.buffers) for name, array in arrays.items()}

    @property
    def buffers(self) -> Mapping[str, Array]:
        """Name → array of what belongs to the module but is never trained, read-only; most modules have nothing."""
        return {}

    @property
    def _buffer_names(self) -> tuple[str, ...]:
        return ()

    def _read_buffers(self, arrays: Mapping[str, Array]) -> Callable[[], None]:
        """What puts new buffers in place, all that the module has; ValueError says what is wrong with them."""
        return lambda: None

    def load_state_dict(self, values: Mapping[str, Any]) -> None:
        """Set all parameters and buffers from a mapping name → array-like, for instance a PyTorch state dict.

        Values are converted to the module's dtype. ValueError names what is missing, unexpected or of the wrong
        shape, TypeError what isn't an array of numbers; nothing is loaded then.
        """
        if not isinstance(values, Mapping):
            raise TypeError(f"state_dict: expected a mapping name -> array, got {type(values).__name__}")
        names = (*self.params, *self._buffer_names)
        faults = [f"missing {name}" for name in names if name not in values]
        faults += [f"unexpected {name}" for name in values if name not in names]
        arrays = {name: _numbers(name, values[name]) for name in names if name in values}
        for name, view in self.params.items():
            if name in arrays and arrays[name].shape != view.shape:
                faults.append(f"{name}: expected {checks.show(view.shape)}, got {checks.show(arrays[name].shape)}")
        if faults:
            raise ValueError("state_dict: " + "; ".join(faults))
        try:
            take_buffers = self._read_buffers({name: arrays[name] for name in self._buffer_names})
        except ValueError as error:
            raise ValueError(f"state_dict: {error}") from error
        self.mark_changed()
        take_buffers()
        for name, view in self.params.items():
            view[...] = arrays[name]

    def _count(self) -> int:
        return sum(math.prod(shape) for shape in self._shapes.values())

    def _adopt(self, store: Store, start: int) -> None:
        """Live in store[start : start + count]."""
        self._store, self._slice = store, slice(start, start + self._count())
        self.params = self._named(self.flat_params)
        self.grads = self._named(self.flat_grads)

    def _named(self, flat: Array) -> Arrays:
        """The views of an array like `flat_params`."""
        return Arrays(flat, self._shapes)

    def _gradients(self, grads: Mapping[str, Array] | Array | None) -> Mapping[str, Array]:
        """Where backward adds: arrays that the kernels can write to, by name."""
        if grads is None:
            return self.grads
        if isinstance(grads, np.ndarray):
            _writable("grads", grads, (self._count(),), self.dtype)
            return self._named(grads)
        if not isinstance(grads, Mapping):
            raise TypeError(f"grads: expected an array or a mapping name -> array, got {type(grads).__name__}")
        if set(grads) != set(self._shapes):
            raise ValueError(f"grads: expected the names {sorted(self._shapes)}, got {sorted(grads)}")
        for name, shape in self._shapes.items():
            _writable(f"grads[{name!r}]", grads[name], shape, self.dtype)
        return grads

    # ---- modes and randomness ----------------------------------------------------------------------------------------
    def train(self, mode: bool = True) -> Self:
        """Training mode: `forward` drops. New modules are in it."""
        self.training = checks.flag("mode", mode)
        return self

    def eval(self) -> Self:
        """Evaluation mode: `forward` doesn't drop either."""
        return self.train(False)

    @property
    def rng_state(self) -> Any:
        """The key of the next random masks, as {"seed": int, "call": int}; None for a module that never drops.

        Saved and set back, it repeats the same masks. A Sequential's is a list with one entry a module.
        """
        return None if self._masks is None else {"seed": self._masks.seed, "call": self._masks.call}

    @rng_state.setter
    def rng_state(self, value: Any) -> None:
        self._check_rng_state(value)
        if self._masks is not None:
            self._masks.seed, self._masks.call = value["seed"], value["call"]

    def _check_rng_state(self, value: Any) -> None:
        if self._masks is None:
            if value is not None:
                raise ValueError(f"rng_state: {type(self).__name__} has no random numbers, expected None")
            return
        if not isinstance(value, Mapping) or set(value) != {"seed", "call"}:
            raise ValueError(f"rng_state: expected {{'seed': int, 'call': int}}, got {value!r}")
        for key, number in value.items():
            if checks.size(f"rng_state[{key!r}]", number, minimum=0) >= 2**64:
                raise ValueError(f"rng_state[{key!r}]: expected an integer below 2**64, got {number}")

    # ---- description, copies -----------------------------------------------------------------------------------------
    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments, as they can be written to JSON."""
        return {name: str(self.dtype) if name == "dtype" else getattr(self, name) for name in self._arguments}

    def __repr__(self) -> str:
        parts = []
        for name, parameter in inspect.signature(type(self)).parameters.items():
            value = self.config.get(name)
            default = parameter.default
            if default is inspect.Parameter.empty:
                parts.append(repr(value))
            elif name != "seed" and value != (str(np.dtype(default)) if name == "dtype" else default):
                parts.append(f"{name}={value!r}")
        return f"{type(self).__name__}({', '.join(parts)})"

    def __getstate__(self) -> dict[str, Any]:
        """A copy is its own root: it has its own buffers and no owner."""
        state = self.__dict__.copy()
        for name in ("_store", "_slice", "params", "grads"):
            del state[name]
        return state | {"_owned": False, "_values": (self.flat_params, self.flat_grads)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        params, grads = state.pop("_values")
        self.__dict__.update(state)
        store = Store(len(params), params.dtype)
        store.params[...], store.grads[...] = params, grads
        self._adopt(store, 0)

    def __copy__(self) -> Self:
        return copy.deepcopy(self)  # two modules never share parameters


def _numbers(name: str, value: Any) -> Array:
    """An array of real numbers from an array-like or a tensor that may require a gradient or live elsewhere."""
    try:
        array = np.asarray(value.detach().cpu().numpy() if hasattr(value, "detach") else value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name}: expected an array, got {type(value).__name__} ({error})") from None
    if array.dtype.kind not in "fiu":
        raise TypeError(f"{name}: expected an array of real numbers, got {array.dtype}")
    return array


def _writable(name: str, array: Any, shape: tuple[int, ...], dtype: Float) -> None:
    """Refuse an array that the kernels can't add into; a copy would lose the result."""
    if not isinstance(array, np.ndarray):
        raise TypeError(f"{name}: expected an array, got {type(array).__name__}")
    if array.dtype != dtype:
        raise TypeError(f"{name}: expected {dtype}, got {array.dtype}")
    checks.shaped(name, array, shape)
    if not (array.flags.c_contiguous and array.flags.aligned and array.flags.writeable):
        raise ValueError(f"{name}: expected a writable, aligned, C-contiguous array")
