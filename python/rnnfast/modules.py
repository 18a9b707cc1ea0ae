"""Modules one after another; and by one name all that stand around the recurrent layers."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rnnfast.checkpointing import Checkpoint
from rnnfast.checks import Array
from rnnfast.containers import Container, PartsTape, prefixed
from rnnfast.module import Arrays, Module, State, Tape
from rnnfast.stateless import Dropout, Embedding, Last, Linear

__all__ = ["Dropout", "Embedding", "Last", "Linear", "Sequential"]


class Sequential(Container):
    """Modules one after another: the output of each is the input of the next.

    Their parameters are moved into one flat buffer and named by position: `0.weight`, `1.weight_ih_l0`; views of
    `params` that were taken before belong to the old place. A module has one owner. The state is a tuple with one entry
    a module (None for one without a state), so is its gradient. `lengths` and `resets` go to every module up to a
    `Last`.

    Args:
        *modules: at least one; they agree about dtype and, up to a `Last`, about batch_first.

    Raises:
        TypeError: something isn't a module, or the parameters' dtypes differ.
        ValueError: a module is already in a Sequential, or the layouts differ.

    Examples:
        >>> import numpy as np
        >>> import rnnfast as rf
        >>> model = rf.Sequential(rf.Embedding(30, 8, seed=0), rf.LSTM(8, 16, seed=1), rf.Linear(16, 30, seed=2))
        >>> y, state, tape = model.forward(np.zeros((7, 2), np.int64))
        >>> loss, dy = rf.softmax_cross_entropy(y, np.ones((7, 2), np.int64))
        >>> dx, dstate = model.backward(tape, dy)
        >>> y.shape, len(state), list(model.params)[:2]
        ((7, 2, 30), 3, ['0.weight', '1.weight_ih_l0'])
    """

    _takes_checkpoint = True
    _part = "module"

    def __init__(self, *modules: Module) -> None:
        check_chain(modules)
        self._gather(modules, prefixed({str(i): module for i, module in enumerate(modules)}))

    @property
    def modules(self) -> tuple[Module, ...]:
        """In their order."""
        return self._parts

    def _named(self, flat: Array) -> Arrays:
        views: dict[str, Array] = {}
        start = 0
        for position, module in enumerate(self.modules):
            stop = start + module._count()
            views |= {f"{position}.{name}": view for name, view in module._named(flat[start:stop]).items()}
            start = stop
        return Arrays.of(views)

    @property
    def batch_first(self) -> bool | None:  # type: ignore[override]
        """The layout of x; None if no module has one."""
        return next(iter(layouts_of(self.modules).values()), None)

    @property
    def _keeps_time(self) -> bool:  # type: ignore[override]
        return all(module._keeps_time for module in self.modules)

    @property
    def _ends(self) -> bool:  # type: ignore[override]
        return self.modules[-1]._ends

    # ---- calls -------------------------------------------------------------------------------------------------------
    def forward(
        self,
        x: Any,
        state: State = None,
        lengths: Any = None,
        resets: Any = None,
        *,
        checkpoint: Checkpoint = None,
    ) -> tuple[Array, State, PartsTape]:
        """Training: (y, state, tape); see `Module.forward`. tape[i] is the tape of module i.

        `checkpoint` goes to the recurrent layers, see `Recurrent.forward`. The tapes of the others keep what they
        always do.
        """
        y, state, tape = self._forward(x, state, lengths, resets, record=True, checkpoint=checkpoint)
        assert tape is not None
        return self._read_only(y), state, tape

    def _forward(
        self, x: Any, state: State, lengths: Any, resets: Any, record: bool, checkpoint: Checkpoint = None
    ) -> tuple[Array, State, PartsTape | None]:
        states: list[State] = []
        tapes: list[Tape[Any]] = []
        for position, (module, entry) in enumerate(zip(self.modules, self._entries("state", state), strict=True)):
            options = {"checkpoint": checkpoint} if module._takes_checkpoint else {}
            with _place(position, module):
                x, final, tape = module._forward(x, entry, lengths, resets, record, **options)
            states.append(final)
            tapes += [tape] if tape is not None else []
            if not module._keeps_time:
                lengths = resets = None
        return x, tuple(states), PartsTape(self, tuple(tapes), x) if record else None

    def _check_dstate(self, tape: Tape[Any], dstate: State) -> list[State]:
        checked = []
        for position, (module, entry) in enumerate(zip(self.modules, self._entries("dstate", dstate), strict=True)):
            with _place(position, module):
                checked.append(module._check_dstate(tape.record[position], entry))
        return checked

    def _backward(
        self, tape: Tape[Any], dy: Array | None, dstate: State, need_dx: bool, grads: Mapping[str, Array]
    ) -> tuple[Array | None, State]:
        initial: list[State] = []
        for position in reversed(range(len(self.modules))):
            module = self.modules[position]
            own = {name: grads[f"{position}.{name}"] for name in module._shapes}
            wanted = need_dx or position > 0
            dy, entry = module._backward(tape.record[position], dy, dstate[position], wanted, own)
            initial.append(entry)
        return dy, tuple(reversed(initial))

    # ---- description -------------------------------------------------------------------------------------------------
    @property
    def config(self) -> dict[str, Any]:
        """The class and the constructor's arguments of every module."""
        return {"modules": [{"class": type(module).__name__, "arguments": module.config} for module in self.modules]}

    def __repr__(self) -> str:
        lines = [f"({position}): {module!r}" for position, module in enumerate(self.modules)]
        return "Sequential(\n" + textwrap.indent("\n".join(lines), "  ") + "\n)"


def check_chain(modules: tuple[Module, ...]) -> None:
    """TypeError or ValueError unless each can read what the one before gives, and none has an owner."""
    if not modules:
        raise ValueError("modules: expected at least one, got none")
    for position, module in enumerate(modules):
        if not isinstance(module, Module):
            raise TypeError(f"modules: expected modules, got {type(module).__name__} at position {position}")
        if module._owned or any(module is other for other in modules[:position]):
            raise ValueError(
                f"modules: {type(module).__name__} at position {position} already belongs to a Sequential; "
                "use copy.deepcopy for a second one"
            )
    for position, module in enumerate(modules[:-1]):
        if module._ends:
            raise ValueError(f"modules: expected {type(module).__name__} at the end, got it at position {position}")
    layouts = layouts_of(modules)
    if len(set(layouts.values())) > 1:
        listed = ", ".join(f"{type(modules[i]).__name__} at {i}: {layout}" for i, layout in layouts.items())
        raise ValueError(f"modules: expected one batch_first for all, got {listed}")
    dtypes = {module.dtype for module in modules if module._count()}
    if len(dtypes) > 1:
        raise TypeError(f"modules: expected one dtype for all, got {', '.join(sorted(map(str, dtypes)))}")


def layouts_of(modules: tuple[Module, ...]) -> dict[int, bool]:
    """batch_first by position, of the modules that have one, up to the end of the steps."""
    layouts = {}
    for position, module in enumerate(modules):
        if module.batch_first is not None:
            layouts[position] = module.batch_first
        if not module._keeps_time:
            break
    return layouts


@contextmanager
def _place(position: int, module: Module) -> Iterator[None]:
    """Say in which module of a Sequential an argument was refused."""
    try:
        yield
    except (TypeError, ValueError) as error:
        error.add_note(f"in module {position} of a Sequential: {module!r}")
        raise
