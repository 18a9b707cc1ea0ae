"""The compiled kernels, in the build for the best instruction-set level that this machine executes.

Every level is a shared object of its own with the same functions, made from the same sources. `_probe`, which runs on
any processor, tells which levels can be executed; the environment variable RNNFAST_ISA forces one of them.
"""

from __future__ import annotations

import os
from importlib import import_module
from importlib.util import find_spec

from . import _probe

_LEVELS = ("v4bf16", "v4", "v3", "v2", "generic")  # best first
_BUILT = tuple(level for level in _LEVELS if find_spec(f"{__package__}._core_{level}"))
_EXECUTABLE = frozenset(_probe.supported())


def _choose(forced: str | None) -> str:
    """The level to load: the one that RNNFAST_ISA names, else the best."""
    if not isas_available:
        raise ImportError(
            f"rnnfast: this processor or its operating system executes none of the levels that were built "
            f"({', '.join(_BUILT) or 'none'})"
        )
    if not forced:
        return isas_available[0]
    if forced in isas_available:
        return forced
    if forced not in _LEVELS:
        reason = f"there is no such level, only {', '.join(_LEVELS)}"
    elif forced not in _BUILT:
        reason = "this installation was built without it"
    else:
        reason = "this processor or its operating system does not execute it"
    raise ImportError(f"RNNFAST_ISA: expected one of {', '.join(isas_available)}, got {forced}: {reason}")


isas_available: tuple[str, ...] = tuple(level for level in _BUILT if level in _EXECUTABLE)
isa: str = _choose(os.environ.get("RNNFAST_ISA"))

_core = import_module(f"{__package__}._core_{isa}")

adam_step = _core.adam_step
crowd_of = _core.crowd_of
backward = _core.backward
build_info = _core.build_info
cells = _core.cells
dropout = _core.dropout
embedding_backward = _core.embedding_backward
embedding_forward = _core.embedding_forward
empty_bytes = _core.empty_bytes
fma_peak = _core.fma_peak
line_round_trip = _core.line_round_trip
forward = _core.forward
linear_backward = _core.linear_backward
linear_forward = _core.linear_forward
make_calls = _core.make_calls
make_kept = _core.make_kept
make_reservoir = _core.make_reservoir
make_stream = _core.make_stream
math = _core.math
mse = _core.mse
openmp = _core.openmp
plan = _core.plan
saved_size = _core.saved_size
set_main_thread = _core.set_main_thread
side_by_side = _core.side_by_side
sgd_step = _core.sgd_step
softmax_cross_entropy = _core.softmax_cross_entropy
softmax_head = _core.softmax_head
sum_of_squares = _core.sum_of_squares
watch_crowd = _core.watch_crowd
