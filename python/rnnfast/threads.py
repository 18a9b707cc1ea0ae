"""How many threads the kernels use, and what this installation consists of.

A kernel takes its number of threads with every call; nothing here changes the OpenMP settings of the process, which
other libraries share. Unless `set_num_threads` was called, the number is the first value of ``OMP_NUM_THREADS``, else
the number of CPUs that this process may use: its affinity, limited by the CPU quota of its control groups (containers).
"""

from __future__ import annotations

import functools
import math
import operator
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import SupportsIndex

from . import _kernels

_OPENMP = _kernels.openmp()

MOST = 4096  # OpenMP's run time keeps a record of each thread of a team on the caller's stack, and dies where that ends

_chosen: int | None = None  # by set_num_threads


class _Here(threading.local):
    """What is so in this thread of Python."""

    alone = False  # whether kernels that it calls get one thread


_here = _Here()

# The OpenMP run time keeps its threads between calls. A forked child inherits its belief in them but not the threads,
# and would wait for them forever. torch's run time is the same one where both are loaded.
_team_made = False
_team_lost = False
_warning_due = False


def get_num_threads() -> int:
    """The number of threads that a call uses when it is not told otherwise: 1 without OpenMP."""
    if not _OPENMP or _team_lost:
        return 1
    return _default() if _chosen is None else _chosen


def set_num_threads(num_threads: SupportsIndex) -> None:
    """Sets the number of threads of every later call in this process. It changes the time, never a bit of a result.

    Where other processes crowd the cores, so that a call has waited for one longer than it has computed, the calls of
    the next while (2 to 500 ms) have one thread.

    Raises TypeError if `num_threads` is no integer, ValueError if it isn't in 1 … 4096.

    >>> import rnnfast as rf
    >>> before = rf.get_num_threads()
    >>> rf.set_num_threads(1)
    >>> rf.get_num_threads()
    1
    >>> rf.set_num_threads(before)
    """
    global _chosen
    _chosen = _positive(num_threads)


def resolve(num_threads: SupportsIndex | None = None) -> int:
    """The number to hand to the kernel that is called next: `num_threads`, or by default `get_num_threads()`.

    It is 1 where more can't be had: without OpenMP, and in a forked child whose parent had run kernels on several
    threads or had loaded torch (which one RuntimeWarning tells); and inside of `alone`.
    """
    global _team_made, _warning_due
    if num_threads is None and _here.alone:
        return 1
    wanted = (_chosen or _default()) if num_threads is None else _positive(num_threads)
    if wanted == 1 or not _OPENMP:
        return 1
    if _team_lost:
        if _warning_due:
            _warning_due = False
            warnings.warn(
                "rnnfast: after fork this process runs kernels on one thread, because threads that its parent had "
                "started are gone; start workers by 'spawn' or 'forkserver' to give them more",
                RuntimeWarning,
                stacklevel=3,
            )
        return 1
    _team_made = True
    return wanted


@contextmanager
def alone() -> Iterator[None]:
    """Kernels that this thread of Python calls get one thread each, since others call theirs at the same time."""
    before = _here.alone
    _here.alone = True
    try:
        yield
    finally:
        _here.alone = before


def config() -> dict[str, str]:
    """What this installation consists of, as names and values."""
    from importlib.metadata import version
    from platform import python_version

    return {
        "rnnfast": version("rnnfast"),
        "instruction set": f"{_kernels.isa} (available: {', '.join(_kernels.isas_available)})",
        "OpenMP": "yes" if _OPENMP else "no: kernels run on one thread",
        "threads": str(get_num_threads()),
        "Python": python_version(),
        "numpy": version("numpy"),
        "safetensors": version("safetensors"),
        **{name: value for name, value in _kernels.build_info().items() if name != "isa"},
    }


def show_config() -> None:
    """Prints what this installation consists of: versions, instruction set, threads."""
    entries = config()
    width = max(map(len, entries))
    for name, value in entries.items():
        print(f"{name:<{width}}  {value}")


def _positive(num_threads: SupportsIndex) -> int:
    try:
        number = operator.index(num_threads)
    except TypeError:
        raise TypeError(f"num_threads: expected an integer, got {type(num_threads).__name__}") from None
    if number < 1:
        raise ValueError(f"num_threads: expected at least 1, got {number}")
    if number > MOST:
        raise ValueError(f"num_threads: expected at most {MOST}, got {number}")
    return number


@functools.cache
def _default() -> int:
    # As in OpenMP: one value for each level of nesting; what is no positive number is ignored (the run time complains).
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if first.isdecimal() and int(first) > 0:
        return min(int(first), MOST)
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cpu_quota()
    return max(1, min(usable, MOST if quota is None else math.ceil(quota), MOST))


def _cpu_quota(membership: Path = Path("/proc/self/cgroup"), mount: Path = Path("/sys/fs/cgroup")) -> float | None:
    """The CPUs' worth of time that the control groups of this process allow it; None if they set no limit.

    A group is limited by every group above it. Which part of the tree can be seen depends on the container, so that
    each folder on the way up counts if it is there.
    """
    if not membership.exists():
        return None
    limits = []
    for line in membership.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = mount / controllers  # version 2 has no controllers here and one tree for all
        group = root / path.lstrip("/")
        limits += [_limit(folder) for folder in (group, *group.parents) if folder.is_relative_to(root)]
    return min((limit for limit in limits if limit is not None), default=None)


def _limit(group: Path) -> float | None:
    """quota / period of one group, microseconds each; version 2 keeps both in one file, version 1 in two."""
    try:
        if (group / "cpu.max").exists():
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota = (group / "cpu.cfs_quota_us").read_text().strip()
            period = (group / "cpu.cfs_period_us").read_text().strip()
    except OSError:
        return None
    return None if quota in ("max", "-1") else int(quota) / int(period)


def _in_child() -> None:
    global _team_lost, _warning_due
    _tell_main_thread()
    _team_lost = _warning_due = _team_made or "torch" in sys.modules


def _tell_main_thread() -> None:
    """Kernels ask for signals there alone: Python's handlers run in no other thread."""
    _kernels.set_main_thread(threading.main_thread().ident or 0)


_tell_main_thread()
os.register_at_fork(after_in_child=_in_child)
