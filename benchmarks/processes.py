"""What has to be measured in a process of its own: peak memory of a training step, time of an import, installed size.

As a program (`python -m rnnfast.benchmarks.processes LIBRARY CELL T B I H THREADS`) it is the process whose memory is
measured, and prints bytes.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from statistics import median

from .contenders import Problem, make_problem, ours, reason
from .peers import installed, module
from .results import Footprint, Memory
from .shapes import Shape

STEPS = 3  # the second one finds what the first one left


# ---- memory ----------------------------------------------------------------------------------------------------------
def measure_memory(cell: str, shape: Shape, threads: int) -> Memory:
    theirs = _memory("PyTorch", cell, shape, threads) if "PyTorch" in installed() else "not installed"
    return Memory(cell, shape, _memory("rnnfast", cell, shape, threads), theirs)


def _memory(library: str, cell: str, shape: Shape, threads: int) -> int | str:
    """Peak bytes, or why there is no number."""
    sizes = map(str, (shape.T, shape.B, shape.I, shape.H, threads))
    try:
        return int(output("-m", f"{__package__}.processes", library, cell, *sizes))
    except (RuntimeError, ValueError) as error:
        return reason(error)


def output(*arguments: str, **environment: str) -> str:
    """What a Python of its own prints. RuntimeError with its last words if it fails."""
    changed = os.environ | environment
    done = subprocess.run([sys.executable, *arguments], capture_output=True, encoding="utf-8", env=changed)
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["no message"])[-1])
    return done.stdout


def peak_of_training(library: str, cell: str, shape: Shape, threads: int) -> int:
    """The most bytes that this process holds during some training steps, above what it held before them.

    Before them are the imports, a small step that loads what is loaded late, the weights, x and dy.
    """
    train = ours if library == "rnnfast" else module("peer_torch").eager
    _train(train(make_problem(cell, Shape("small", 2, 2, 16, 16), threads), "training"))
    problem: Problem = make_problem(cell, shape, threads)
    contender = train(problem, "training")
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
    for _ in range(STEPS):
        _train(contender)
    return _status("VmHWM") - before


def _train(contender: object) -> None:
    contender.run()  # type: ignore[attr-defined]


def _status(field: str) -> int:
    """Bytes of a line of /proc/self/status."""
    found = re.search(rf"^{field}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    if found is None:
        raise RuntimeError(f"/proc/self/status has no {field}")
    return 1024 * int(found[1])


# ---- import and size -------------------------------------------------------------------------------------------------
def measure_footprint(rounds: int) -> list[Footprint]:
    """NumPy, rnnfast and PyTorch if it is there: each import in new processes, in turns; medians."""
    packages = ["numpy", "rnnfast", *(["torch"] if "PyTorch" in installed() else [])]
    times: dict[str, list[float]] = {package: [] for package in packages}
    for _ in range(rounds):
        for package in packages:
            times[package].append(_import_seconds(package))
    return [Footprint(name, version(name), median(seconds), _size(name)) for name, seconds in times.items()]


def _import_seconds(package: str) -> float:
    """Seconds of an import; of other packages than numpy: beyond numpy's."""
    before = "" if package == "numpy" else "import numpy; "
    code = f"{before}import time; start = time.perf_counter(); import {package}; print(time.perf_counter() - start)"
    return float(output("-c", code))


def _size(package: str) -> int:
    """Bytes of the files of a package, without compiled Python."""
    spec = find_spec(package)
    folders = {Path(folder).resolve() for folder in (spec.submodule_search_locations or ())} if spec else set()
    files = (file for folder in folders for file in folder.rglob("*") if file.is_file())
    return sum(file.stat().st_size for file in files if file.suffix != ".pyc")


if __name__ == "__main__":
    library, cell, *sizes = sys.argv[1:]
    T, B, I, H, threads = map(int, sizes)  # noqa: E741
    print(peak_of_training(library, cell, Shape("measured", T, B, I, H), threads))
