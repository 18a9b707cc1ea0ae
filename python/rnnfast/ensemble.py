"""Many independent models of one kind in one call."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from rnnfast import checks, init, threads
from rnnfast.checkpointing import Checkpoint
from rnnfast.checks import Array
from rnnfast.containers import Container, PartsTape
from rnnfast.module import Arrays, Module, State, Tape
from rnnfast.modules import Embedding
from rnnfast.seq2seq import Seq2Seq

__all__ = ["Ensemble"]

Result = TypeVar("Result")


class EnsembleTape(PartsTape):
    """The tapes of an ensemble's models: ``tape[3].hidden``."""

    __slots__ = ("own_x",)

    def __init__(self, module: Ensemble, record: tuple[Tape[Any], ...], y: Array, own_x: bool) -> None:
        super().__init__(module, record, y)
        self.own_x = own_x  # whether every model had an x of its own


class Ensemble(Container):
    """M independent models with weights of their own, computed by one call: forecasters of a thousand series, policies
    of a population, the members of a vote.

    Every result is to the bit that of the models called one by one. Threads take a model each; a model is computed on
    one thread.

    Args:
        make: a layer's class, or a function that returns a module; called once for each model as
            ``make(*arguments, seed=…, **options)``. The models may differ in their seeds alone.
        num_models: M.
        *arguments: of `make`, as are all other keywords.
        seed: an integer from which the models' seeds are drawn, a sequence of M seeds, or None to draw from the
            system. `seeds` has them: model m is ``make(…, seed=ensemble.seeds[m])``.

    Shapes:
        ============  ======================================  =========================
        x             (T, B, I), the same for all models      (M, T, B, I), one for each
        lengths       (B,)                                    (M, B)
        resets        (T, B)                                  (M, T, B)
        y             (M, …): of a recurrent layer (M, T, B, D·H)
        states        (M, …): of a recurrent layer (M, L·D, B, H), in the form of a model's state
        parameters    (M, …): views of one flat buffer, in which every model has a row
        ============  ======================================  =========================

        With batch_first (B, T) takes the place of (T, B). Where the models begin with an `Embedding`, x has an axis
        less. The gradient of an x for all models is the sum of theirs, in their order.

    ``ensemble[m]`` is model m, whose parameters are those of the ensemble; ``copy.deepcopy(ensemble[m])`` stands alone.
    One optimiser trains all: ``rf.Adam(ensemble, lr=…)``. Its `clip_norm` would see one gradient of all models; to
    treat each by itself, ``ensemble.flat_grads.reshape(M, -1)`` has a row for each.

    Raises:
        TypeError: `make` doesn't return a module.
        ValueError: the models differ in more than their seeds, or a shape or value is wrong.

    Examples:
        >>> import numpy as np
        >>> import rnnfast as rf
        >>> ensemble = rf.Ensemble(rf.GRU, 100, 3, 8, seed=0)
        >>> y, state, tape = ensemble.forward(np.ones((20, 4, 3), np.float32), lengths=[20, 5, 0, 9])
        >>> y.shape, state.shape, ensemble.params["weight_hh_l0"].shape
        ((100, 20, 4, 8), (100, 1, 4, 8), (100, 24, 8))
        >>> dx, dstate = ensemble.backward(tape, np.ones_like(y))
        >>> dx.shape, ensemble.grads["weight_hh_l0"].shape
        ((20, 4, 3), (100, 24, 8))
        >>> def make(seed):
        ...     return rf.Sequential(rf.LSTM(3, 8, seed=seed), rf.Linear(8, 1, seed=seed))
        >>> rf.Ensemble(make, 50, seed=0)(np.ones((20, 4, 3), np.float32))[0].shape
        (50, 20, 4, 1)
    """

    _takes_checkpoint = True
    _part = "model"

    def __init__(
        self,
        make: Callable[..., Module],
        num_models: int,
        *arguments: Any,
        seed: int | Sequence[int] | None = None,
        **options: Any,
    ) -> None:
        if not callable(make) or isinstance(make, Module):
            raise TypeError(f"make: expected a layer's class or a function, got {type(make).__name__}")
        self.seeds = _seeds(seed, checks.size("num_models", num_models))
        models = tuple(make(*arguments, seed=number, **options) for number in self.seeds)
        _check_models(models)
        self._gather(models, {name: (len(models), *shape) for name, shape in models[0]._shapes.items()})

    @property
    def models(self) -> tuple[Module, ...]:
        """In the order of their seeds."""
        return self._parts

    def _named(self, flat: Array) -> Arrays:
        """Stacks with a stride: every model has a row of the buffer."""
        row = self.models[0]._count()
        first = self.models[0]._named(flat[:row])
        stride = row * flat.itemsize
        return Arrays.of({name: _repeated(view, len(self.models), stride) for name, view in first.items()})

    @property
    def batch_first(self) -> bool | None:  # type: ignore[override]
        """The layout of x and y after their first axis; None if no module has one."""
        return self.models[0].batch_first

    @property
    def _keeps_time(self) -> bool:  # type: ignore[override]
        return self.models[0]._keeps_time

    # ---- calls -------------------------------------------------------------------------------------------------------
    def forward(
        self,
        x: Any,
        state: State = None,
        lengths: Any = None,
        resets: Any = None,
        *,
        checkpoint: Checkpoint = None,
    ) -> tuple[Array, State, EnsembleTape]:
        """Training: (y, state, tape); see `Module.forward`. tape[m] is the tape of model m.

        `checkpoint` goes to the recurrent layers, see `Recurrent.forward`.
        """
        y, state, tape = self._forward(x, state, lengths, resets, record=True, checkpoint=checkpoint)
        assert tape is not None
        return self._read_only(y), state, tape

    def _forward(
        self, x: Any, state: State, lengths: Any, resets: Any, record: bool, checkpoint: Checkpoint = None
    ) -> tuple[Array, State, EnsembleTape | None]:
        axes = 2 if isinstance(next(init.leaves(self.models[0])), Embedding) else 3
        own_x, inputs = self._of_each("x", x, axes)
        ends, cuts = self._of_each("lengths", lengths, 1)[1], self._of_each("resets", resets, 2)[1]
        self._check_states("state", state)
        options = {"checkpoint": checkpoint} if self.models[0]._takes_checkpoint else {}
        finals: list[State] = [None] * len(self.models)
        tapes: list[Any] = [None] * len(self.models)

        def compute(m: int) -> Array:
            y, finals[m], tapes[m] = self.models[m]._forward(
                inputs(m), _part(state, m), ends(m), cuts(m), record, **options
            )
            return y

        def compute_into(m: int) -> None:
            stack[m] = compute(m)

        first: list[Array] = []  # tells the shape
        self._each([0], lambda m: first.append(compute(m)))
        stack = checks.empty("y", (len(self.models), *first[0].shape), first[0].dtype)
        stack[0] = first[0]
        self._each(range(1, len(self.models)), compute_into)
        return stack, _stack(finals), EnsembleTape(self, tuple(tapes), stack, own_x) if record else None

    def _check_dstate(self, tape: Tape[Any], dstate: State) -> list[State]:
        self._check_states("dstate", dstate)
        checked: list[State] = [None] * len(self.models)
        for m, model in enumerate(self.models):
            checked[m] = model._check_dstate(tape.record[m], _part(dstate, m))
        return checked

    def _backward(
        self, tape: Tape[Any], dy: Array | None, dstate: State, need_dx: bool, grads: Mapping[str, Array]
    ) -> tuple[Array | None, State]:
        assert isinstance(tape, EnsembleTape)
        initial: list[State] = [None] * len(self.models)
        inputs: list[Any] = [None] * len(self.models)

        def compute(m: int) -> None:
            model = self.models[m]
            own = model.grads if grads is self.grads else {name: array[m] for name, array in grads.items()}
            dy_of_model = None if dy is None else dy[m]
            inputs[m], initial[m] = model._backward(tape.record[m], dy_of_model, dstate[m], need_dx, own)

        self._each(range(len(self.models)), compute)
        if inputs[0] is None or tape.own_x:
            return _stack(inputs), _stack(initial)
        dx = inputs[0]
        for other in inputs[1:]:  # in the order of the models
            dx += other
        return dx, _stack(initial)

    def _of_each(self, name: str, value: Any, axes: int) -> tuple[bool, Callable[[int], Any]]:
        """Whether every model has an array of its own, and the one of model m. A shared one has so many axes."""
        if value is None:
            return False, lambda m: None
        array = checks.as_array(name, value)
        if array.ndim != axes + 1:
            return False, lambda m: array
        self._check_first_axis(name, array)
        return True, lambda m: array[m]

    def _check_first_axis(self, name: str, array: Array) -> None:
        if not array.ndim or len(array) != len(self.models):
            raise ValueError(
                f"{name}: expected {len(self.models)} models on the first axis, got {checks.show(array.shape)}"
            )

    def _check_states(self, name: str, state: State) -> None:
        """The first axis of every array; the models check the rest."""
        if isinstance(state, tuple | list):
            for entry in state:
                self._check_states(name, entry)
        elif state is not None:
            self._check_first_axis(name, checks.as_array(name, state))

    def _each(self, models: Sequence[int], task: Callable[[int], object]) -> None:
        """Call task(m) for some models, on all threads; of the errors raise that of the first model."""
        pending = deque(models)
        errors: dict[int, BaseException] = {}

        def work() -> None:
            with threads.alone():
                while not errors:
                    try:
                        m = pending.popleft()
                    except IndexError:
                        return
                    try:
                        task(m)
                    except BaseException as error:
                        if isinstance(error, TypeError | ValueError):
                            error.add_note(f"in model {m} of an Ensemble")
                        errors[m] = error

        helpers = [threading.Thread(target=work) for _ in range(min(threads.get_num_threads(), len(pending)) - 1)]
        for helper in helpers:
            helper.start()
        try:
            work()
        finally:
            pending.clear()  # an interrupt may have come between two models
            for helper in helpers:
                helper.join()
        if errors:
            raise errors[min(errors)]

    # ---- description -------------------------------------------------------------------------------------------------
    @property
    def config(self) -> dict[str, Any]:
        """The class and the constructor's arguments of the first model, from which the others differ in their seeds."""
        first = self.models[0]
        model = {"class": type(first).__name__, "arguments": first.config}
        return {"model": model, "num_models": len(self.models), "seeds": list(self.seeds)}

    def __repr__(self) -> str:
        return f"Ensemble({len(self.models)} × {self.models[0]!r})"


# ---- seeds -----------------------------------------------------------------------------------------------------------
def _seeds(seed: int | Sequence[int] | None, count: int) -> tuple[int, ...]:
    """The models' seeds."""
    if isinstance(seed, Sequence | np.ndarray) and not isinstance(seed, str):
        if len(seed) != count:
            raise ValueError(f"seed: expected one integer or {count}, got {len(seed)}")
        return tuple(init.choose_seed(number) for number in seed)
    sequence = np.random.SeedSequence(init.choose_seed(seed))
    return tuple(map(int, sequence.generate_state(count, np.uint64)))


def _without_seeds(config: Any) -> Any:
    """A module's description without what its random numbers depend on."""
    if isinstance(config, Mapping):
        return {name: _without_seeds(value) for name, value in config.items() if name != "seed"}
    return [_without_seeds(value) for value in config] if isinstance(config, list | tuple) else config


def _check_models(models: Sequence[Any]) -> None:
    """Refuse what isn't M new modules of one kind."""
    first = models[0]
    for model in models:
        if not isinstance(model, Module):
            raise TypeError(f"make: expected it to return a module, got {type(model).__name__}")
        if isinstance(model, Ensemble | Seq2Seq):
            raise TypeError(f"make: expected a module whose x is one array, got {type(model).__name__}")
        if model._owned:
            raise ValueError(f"make: expected a new module, got one that belongs to another: {model!r}")
    if len({id(model) for model in models}) < len(models):
        raise ValueError("make: expected a new module at every call, got the same again")
    config = _without_seeds(first.config)
    for model in models:
        if type(model) is not type(first) or _without_seeds(model.config) != config or model._shapes != first._shapes:
            raise ValueError(f"make: expected modules that differ in their seeds alone, got {first!r} and {model!r}")


# ---- one model's part ------------------------------------------------------------------------------------------------
def _part(state: State, m: int) -> State:
    """Model m's entry of a state of stacked arrays, which has the form of a model's."""
    if state is None:
        return None
    if isinstance(state, tuple | list):
        return tuple(_part(entry, m) for entry in state)
    return state[m] if isinstance(state, np.ndarray) else np.asarray(state)[m]


def _stack(states: Sequence[State]) -> State:
    """The models' states as one of stacked arrays."""
    if states[0] is None:
        return None
    if isinstance(states[0], tuple):
        return tuple(_stack(entries) for entries in zip(*states, strict=True))
    return np.stack(states)


def _repeated(view: Array, count: int, stride: int) -> Array:
    """Views of the same shape, `stride` bytes apart, as one."""
    return np.lib.stride_tricks.as_strided(view, (count, *view.shape), (stride, *view.strides))
