"""Shapes with names: what a size is meant to hit, as data. Vectors hold 2 to 16 values, tiles up to some dozen rows."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["EXACT", "LARGE", "SMALL", "Shape"]


class Shape(NamedTuple):
    steps: int
    batch: int
    input: int
    hidden: int


# Small enough for every combination of options.
SMALL = {
    "one_step": Shape(1, 4, 6, 16),
    "batch_of_one": Shape(9, 1, 17, 32),
    "one_unit": Shape(5, 3, 1, 1),
    "one_input": Shape(6, 4, 1, 24),
    "input_neq_hidden": Shape(4, 6, 35, 12),
    "hidden_tail": Shape(5, 5, 16, 37),
    "batch_tail": Shape(4, 29, 8, 9),
    "long": Shape(120, 2, 3, 10),
    "empty_batch": Shape(4, 0, 6, 8),
    "empty_sequence": Shape(0, 3, 6, 8),
}

# Where a call is cut into blocks: of rows, of units, of steps, of terms of a sum.
LARGE = {
    "many_steps_and_rows": Shape(30, 20, 64, 130),
    "many_units": Shape(3, 9, 256, 512),
}

# Different plans for one thread and for more, and every kind of tail: too large for the reference, cheap for us.
EXACT = {
    "batch_of_one": Shape(20, 1, 16, 48),
    "tiny": Shape(7, 3, 1, 5),
    "hidden_48": Shape(12, 20, 40, 48),
    "hidden_100": Shape(8, 33, 20, 100),
    "hidden_130": Shape(6, 67, 10, 130),
    "many_units": Shape(5, 10, 64, 400),
}
