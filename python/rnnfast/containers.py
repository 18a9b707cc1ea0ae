"""What modules that are made of others have in common: one flat buffer for the parameters of all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np

from rnnfast.checks import Array
from rnnfast.module import Module, Shapes, State, Store, Tape

__all__ = ["Container", "PartsTape", "prefixed"]


class PartsTape(Tape[tuple[Tape[Any], ...]]):
    """The tapes of a container's parts: ``tape[1].hidden``."""

    __slots__ = ()

    def __getitem__(self, index: int) -> Tape[Any]:
        return self.record[index]

    def __len__(self) -> int:
        return len(self.record)

    def check(self, module: Module) -> None:
        super().check(module)
        for tape in self.record:
            tape.check(tape.module)

    def release(self) -> None:
        for tape in self.record:
            tape.release()
        super().release()


def prefixed(parts: Mapping[str, Module]) -> Shapes:
    """The parameters of parts by the part's name and their own: ``encoder.weight``."""
    return {f"{name}.{key}": shape for name, part in parts.items() for key, shape in part._shapes.items()}


class Container(Module):
    """Parts whose parameters lie one after the other in the container's buffer. A part has one owner.

    A subclass calls `_gather` in place of ``Module.__init__``.
    """

    _part: ClassVar[str]  # what messages call one
    _parts: tuple[Module, ...]

    def _gather(self, parts: tuple[Module, ...], shapes: Shapes) -> None:
        """Move the parts' parameters and gradients into one store, where they have these names and shapes."""
        params = [part.flat_params for part in parts]
        grads = [part.flat_grads for part in parts]
        dtype = next((part.dtype for part in parts if part._count()), np.dtype(np.float32))
        self._parts = parts
        super().__init__(shapes, dtype)
        np.concatenate(params, out=self._store.params, casting="same_kind")
        np.concatenate(grads, out=self._store.grads, casting="same_kind")
        for part in parts:
            part._owned = True

    def _adopt(self, store: Store, start: int) -> None:
        super()._adopt(store, start)
        for part in self._parts:
            part._adopt(store, start)
            start += part._count()

    @property
    def buffers(self) -> dict[str, Array]:
        """Those of all parts, named by position: `0.weight_ih`."""
        return {f"{i}.{name}": array for i, part in enumerate(self._parts) for name, array in part.buffers.items()}

    @property
    def _buffer_names(self) -> tuple[str, ...]:
        return tuple(f"{i}.{name}" for i, part in enumerate(self._parts) for name in part._buffer_names)

    def _read_buffers(self, arrays: Mapping[str, Array]) -> Callable[[], None]:
        readers = []
        for i, part in enumerate(self._parts):
            try:
                readers.append(part._read_buffers({name: arrays[f"{i}.{name}"] for name in part._buffer_names}))
            except ValueError as error:
                raise ValueError(f"{i}.{error}") from error

        def take() -> None:
            for reader in readers:
                reader()

        return take

    def _entries(self, name: str, value: State) -> Sequence[State]:
        """One entry a part, or Nones for None."""
        count = len(self._parts)
        if value is None:
            return (None,) * count
        if not isinstance(value, tuple | list):
            raise TypeError(f"{name}: expected a tuple of {count} entries, got {type(value).__name__}")
        if len(value) != count:
            raise ValueError(f"{name}: expected {count} entries, one a {self._part}, got {len(value)}")
        return value

    def train(self, mode: bool = True) -> Self:
        """Training mode, of all parts."""
        for part in self._parts:
            part.train(mode)
        return super().train(mode)

    @property
    def rng_state(self) -> list[Any]:
        """One entry a part."""
        return [part.rng_state for part in self._parts]

    @rng_state.setter
    def rng_state(self, value: Any) -> None:
        self._check_rng_state(value)
        for part, entry in zip(self._parts, value, strict=True):
            part.rng_state = entry

    def _check_rng_state(self, value: Any) -> None:
        for part, entry in zip(self._parts, self._entries("rng_state", value), strict=True):
            part._check_rng_state(entry)

    def __len__(self) -> int:
        return len(self._parts)

    def __getitem__(self, index: int) -> Module:
        return self._parts[index]

    def __iter__(self) -> Iterator[Module]:
        return iter(self._parts)

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        del state["_values"]  # the parts have them
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._gather(state["_parts"], state["_shapes"])
        self.__dict__.update(state)
