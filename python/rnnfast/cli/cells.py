"""The registry as text: the cells of every recurrent layer, how large their equations are, and the parameters.

All of it is asked from the layers themselves, so that a new cell or option shows as soon as it exists.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import rnnfast
from rnnfast import checks, layers, reference
from rnnfast.echo_state import EchoState
from rnnfast.recurrent import Dense, Recurrent

LEGEND = """I input, H hidden, P projected, K heads, L layers, D directions. Shapes are those of a layer and direction.
EchoState has no cell: its reservoir of n connections is drawn and fixed, its readout of O outputs is solved for. Its
equations in NumPy are reference/reservoir.py, {lines} lines."""

# Sizes that can be told apart in a shape, with their multiples.
I, H, P, K = 5, 12, 7, 2  # noqa: E741
LETTERS = {1: "L·D", I: "I", P: "P", H // K: "H/K", H: "H", 2 * H: "2H", 3 * H: "3H", 4 * H: "4H"}
# What to try of the options that are no flags, and how it is written.
VALUES = {"proj_size": (P, "=P"), "num_heads": (K, "=K"), "zoneout": (0.5, ""), "recurrent_dropout": (0.5, "")}

Shapes = Mapping[str, tuple[int, ...]]


def describe_cells() -> str:
    """The tables of `rnnfast info --cells`."""
    kinds = [value for name, value in vars(layers).items() if name in layers.__all__]  # in the order of the file
    cells = _table(
        ("layer", "cell in the kernels", "where", "gates", "states", "cpp/cells", "lines", "reference", "lines"),
        [row for kind in kinds for row in _cell_rows(kind)],
    )
    parameters = _table(
        ("layer", "option", "parameters; what the option changes in them"),
        [*(row for kind in kinds for row in _parameter_rows(kind)), *_common_rows(), *_reservoir_rows()],
    )
    _, lines = _count(_twins(), "reservoir.py")
    return f"{cells}\n\n{parameters}\n\n{LEGEND.format(lines=lines)}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns side by side; numbers to the right."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    rule = ["─" * width for width in widths]
    lines = []
    for row in (head, rule, *rows):
        cells = [f"{c:>{w}}" if c.isdecimal() else f"{c:<{w}}" for c, w in zip(row, widths, strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


# ---- cells -----------------------------------------------------------------------------------------------------------
def _cell_rows(kind: type[Recurrent]) -> Iterator[list[str]]:
    """A line for each cell that the layer can have; its files stand beside the first cell that is in them."""
    layer, twin_before = kind.__name__, ""
    for name, where in _cells_of(kind).items():
        cell = reference.CELLS[name]
        twin = getattr(cell.step, "func", cell.step).__module__.rpartition(".")[2]
        files = [""] * 4 if twin == twin_before else [*_count(_headers(), f"{twin}.h"), *_count(_twins(), f"{twin}.py")]
        yield [layer, name, where, " ".join(cell.gates), " ".join(kind._state_names), *files]
        layer, twin_before = "", twin


def _cells_of(kind: type[Recurrent]) -> dict[str, str]:
    """The kernels' name of each cell -> the options that choose it."""
    own = _own(kind)
    found: dict[str, str] = {}
    for inputs, values in product((I, H), product(*(_choices(name, default) for name, default in own.items()))):
        options = dict(zip(own, values, strict=True))
        try:
            cell = kind(inputs, H, seed=0, **options)._cell_of(0)
        except ValueError:  # these don't go together
            continue
        where = [_show(name, value) for name, value in options.items() if value != own[name]]
        found.setdefault(cell, ", ".join([*where, *(["I = H"] if inputs == H else [])]))
    return found


def _choices(name: str, default: Any) -> Sequence[Any]:
    """The values of an option that may choose a cell, the default first."""
    if name == "nonlinearity":
        return sorted(reference.ACTIVATIONS, key=lambda value: value != default)
    return (default, not default) if isinstance(default, bool) else (default,)


def _own(kind: type[Recurrent]) -> dict[str, Any]:
    """The options of a class that its base hasn't, and their defaults."""
    mine, shared = inspect.signature(kind).parameters, inspect.signature(kind.__mro__[1]).parameters
    base = {} if kind is Recurrent else shared
    return {name: p.default for name, p in mine.items() if p.kind is p.KEYWORD_ONLY and name not in base}


def _show(name: str, value: Any) -> str:
    return name if value is True else f"{name}={value!r}"


def _headers() -> Path:
    """The equations in C++: in a wheel beside the package, else in the checkout."""
    package = Path(rnnfast.__file__).parent
    folders = package / "cells", package.parents[1] / "cpp" / "cells"
    return next((folder for folder in folders if folder.is_dir()), folders[0])


def _twins() -> Path:
    return Path(reference.__file__).parent


def _count(folder: Path, name: str) -> tuple[str, str]:
    """The name of a file and the number of its lines; dashes if it isn't there."""
    file = folder / name
    return (name, str(len(file.read_text(encoding="utf-8").splitlines()))) if file.is_file() else ("–", "–")


# ---- parameters ------------------------------------------------------------------------------------------------------
def _parameter_rows(kind: type[Recurrent]) -> Iterator[list[str]]:
    plain = kind(I, H, seed=0)._shapes
    yield [kind.__name__, "", _written(plain)]
    if "I = H" in _cells_of(kind).values():
        yield ["", "I = H", _changes(plain, kind(H, H, seed=0)._shapes)]
    yield from _option_rows(kind, _own(kind) | (_own(Dense) if issubclass(kind, Dense) else {}))


def _common_rows() -> Iterator[list[str]]:
    """The options of every layer, by the example of the LSTM."""
    first, *others = _option_rows(layers.LSTM, _own(Recurrent))
    yield ["every, as", *first[1:]]
    yield ["the LSTM", *others[0][1:]]
    *changing, (_, without, nothing) = others[1:]
    yield from changing
    yield ["", ", ".join(name + _refused_by(name) for name in without.split(", ")), nothing]


def _refused_by(option: str) -> str:
    """The layers that refuse an option of every layer, in brackets."""
    value, _ = VALUES.get(option, (None, ""))
    refusing = []
    for name in layers.__all__ if value is not None else ():
        try:
            getattr(layers, name)(I, H, seed=0, **{option: value})
        except ValueError:
            refusing.append(name)
    return f" (not {', '.join(refusing)})" if refusing else ""


def _reservoir_rows() -> Iterator[list[str]]:
    """What an echo state network learns and has, and its options."""

    def shapes(**options: Any) -> Shapes:
        network = EchoState(I, H, P, seed=0, **options)
        arrays: dict[str, Any] = {**network.params, **network.buffers}
        return {name: array.shape for name, array in arrays.items()}

    letters = LETTERS | {P: "O", H + I: "H + I", H + 1: "H + 1"}
    letters[shapes()["weight_hh_data"][0]] = "n"
    yield ["EchoState", "", _written(shapes(), letters)]
    changing = {"skip": False, "feedback_scaling": 0.5}
    for name, value in changing.items():
        shown = f"{name}={value}" if value is False else name
        yield ["", shown, _changes(shapes(), shapes(**{name: value}), letters)]
    options = inspect.signature(EchoState).parameters.values()
    without = [p.name for p in options if p.kind is p.KEYWORD_ONLY and p.name not in changing]
    yield ["", ", ".join(without), "–"]


def _option_rows(kind: type[Recurrent], options: Mapping[str, Any]) -> Iterator[list[str]]:
    """A line for each option that changes the parameters, and one for all others."""
    plain = kind(I, H, seed=0)._shapes
    without = []
    for name, default in options.items():
        value, shown = (not default, "") if isinstance(default, bool) else VALUES.get(name, (default, ""))
        try:
            changed = kind(I, H, **{"seed": 0, name: value})._shapes
        except ValueError:  # its base's option, which the class refuses
            continue
        if changed == plain:
            without.append(name)
        else:
            yield ["", f"{name}{shown or '=False' * (value is False)}", _changes(plain, changed)]
    if without:
        yield ["", ", ".join(without), "–"]


def _changes(before: Shapes, after: Shapes, letters: Mapping[int, str] = LETTERS) -> str:
    gone = [name for name in before if name not in after]
    new = {name: shape for name, shape in after.items() if before.get(name) != shape}
    return ", ".join([f"no {_bare(name)}" for name in gone] + ([_written(new, letters)] if new else []))


def _written(shapes: Shapes, letters: Mapping[int, str] = LETTERS) -> str:
    sizes = {name: checks.show([letters[size] for size in shape]) for name, shape in shapes.items()}
    return ", ".join(f"{_bare(name)} {shown}" for name, shown in sizes.items())


def _bare(name: str) -> str:
    return name.replace("_l0", "", 1)
