"""How many threads a call uses by default, and what happens after a fork."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import rnnfast
from rnnfast import _kernels, threads

needs_openmp = pytest.mark.skipif(not _kernels.openmp(), reason="built without OpenMP")
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")


@pytest.fixture(autouse=True)
def restore_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_chosen", threads._chosen)


def run_python(code: str, **environment: str) -> str:
    """What `code` prints in a process of its own; one that hangs fails by its time limit."""
    env = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"} | environment
    result = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


# ---- the number ------------------------------------------------------------------------------------------------------
@needs_openmp
def test_set_num_threads_holds_until_it_is_set_again() -> None:
    rnnfast.set_num_threads(3)
    assert rnnfast.get_num_threads() == 3
    assert threads.resolve() == 3
    rnnfast.set_num_threads(np.int64(1))
    assert rnnfast.get_num_threads() == 1


@needs_openmp
def test_a_number_given_to_one_call_goes_before_the_default() -> None:
    rnnfast.set_num_threads(3)
    assert threads.resolve(2) == 2
    assert threads.resolve() == 3


@pytest.mark.parametrize("number", [0, -2])
def test_rejects_numbers_below_one(number: int) -> None:
    with pytest.raises(ValueError, match=f"num_threads: expected at least 1, got {number}"):
        rnnfast.set_num_threads(number)


@needs_openmp
def test_more_threads_than_openmp_bears_are_refused() -> None:
    """Its run time would end the process without a word."""
    rnnfast.set_num_threads(threads.MOST)
    for number in (threads.MOST + 1, 200_000, 2**40):
        with pytest.raises(ValueError, match=f"num_threads: expected at most 4096, got {number}"):
            rnnfast.set_num_threads(number)
    assert rnnfast.get_num_threads() == threads.MOST
    code = "import rnnfast; print(rnnfast.get_num_threads())"
    assert run_python(code, OMP_NUM_THREADS="200000") == "4096"


@pytest.mark.parametrize("number", [2.0, "2", None])
def test_rejects_what_is_no_integer(number: object) -> None:
    with pytest.raises(TypeError, match=f"num_threads: expected an integer, got {type(number).__name__}"):
        rnnfast.set_num_threads(number)  # type: ignore[arg-type]


@needs_openmp
@pytest.mark.parametrize(("value", "expected"), [("3", 3), ("5,2", 5), (" 2 ", 2)])
def test_default_is_the_first_value_of_omp_num_threads(value: str, expected: int) -> None:
    code = "import rnnfast; print(rnnfast.get_num_threads())"
    assert run_python(code, OMP_NUM_THREADS=value) == str(expected)


@needs_openmp
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity here")
def test_default_is_within_the_affinity_of_the_process() -> None:
    code = "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]); import rnnfast; " + (
        "print(rnnfast.get_num_threads())"
    )
    assert run_python(code) == "1"


def test_without_openmp_every_call_uses_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_OPENMP", False)
    rnnfast.set_num_threads(4)
    assert rnnfast.get_num_threads() == threads.resolve() == threads.resolve(2) == 1
    assert threads.config()["OpenMP"].startswith("no")


def test_the_process_keeps_its_own_openmp_settings() -> None:
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    rnnfast.set_num_threads(before + 1)
    _kernels.sum_of_squares(np.ones(100_000), np.inf, threads.resolve())
    assert torch.get_num_threads() == before


# ---- containers ------------------------------------------------------------------------------------------------------
def write_files(folder: Path, **contents: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in contents.items():
        (folder / name.replace("__", ".")).write_text(text + "\n")


@pytest.mark.parametrize(
    ("job", "above", "expected"),
    [("150000 100000", "max 100000", 1.5), ("max 100000", "300000 100000", 3.0), ("max 100000", "max 100000", None)],
)
def test_quota_of_version_2_counts_on_every_level(tmp_path: Path, job: str, above: str, expected: float | None) -> None:
    write_files(tmp_path, groups="0::/above/job")
    write_files(tmp_path / "fs/above/job", cpu__max=job)
    write_files(tmp_path / "fs/above", cpu__max=above)
    assert threads._cpu_quota(tmp_path / "groups", tmp_path / "fs") == expected


def test_quota_of_version_1(tmp_path: Path) -> None:
    write_files(tmp_path, groups="5:memory:/job\n4:cpu,cpuacct:/job\n0::/")
    write_files(tmp_path / "fs/cpu,cpuacct/job", cpu__cfs_quota_us="250000", cpu__cfs_period_us="100000")
    write_files(tmp_path / "fs/cpu,cpuacct", cpu__cfs_quota_us="-1", cpu__cfs_period_us="100000")
    assert threads._cpu_quota(tmp_path / "groups", tmp_path / "fs") == 2.5


def test_quota_inside_a_container_that_sees_only_its_own_group(tmp_path: Path) -> None:
    write_files(tmp_path, groups="0::/a/group/of/the/host")
    write_files(tmp_path / "fs", cpu__max="50000 100000")
    assert threads._cpu_quota(tmp_path / "groups", tmp_path / "fs") == 0.5


def test_no_control_groups_no_quota(tmp_path: Path) -> None:
    assert threads._cpu_quota(tmp_path / "groups", tmp_path / "fs") is None


@needs_openmp
@pytest.mark.parametrize(("quota", "expected"), [(0.5, 1), (1.5, 2), (2.0, 2), (64.0, 3), (None, 3)])
def test_default_rounds_the_quota_up(monkeypatch: pytest.MonkeyPatch, quota: float | None, expected: int) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2}, raising=False)
    monkeypatch.setattr(threads, "_cpu_quota", lambda: quota)
    assert threads._default.__wrapped__() == expected


# ---- fork ------------------------------------------------------------------------------------------------------------
FORK = """
import os, sys, warnings
import numpy as np
import rnnfast
from rnnfast import _kernels, threads

values = np.ones(200_000)

def call():
    return _kernels.sum_of_squares(values, np.inf, threads.resolve())

{parent}
if os.fork() == 0:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        results = [call(), call()]
    messages = [str(w.message) for w in caught if w.category is RuntimeWarning]
    told = all("after fork" in m and "one thread" in m for m in messages)
    print(results == [200_000.0] * 2, len(messages), told, rnnfast.get_num_threads(), flush=True)
    os._exit(0)
_, status = os.wait()
assert status == 0
assert call() == 200_000.0 and rnnfast.get_num_threads() == {threads}
"""


@needs_fork
@needs_openmp
@pytest.mark.parametrize(
    ("parent", "number", "expected"),
    [
        ("rnnfast.set_num_threads(2); call()", 2, "True 1 True 1"),
        ("rnnfast.set_num_threads(1); call()", 1, "True 0 True 1"),
        ("rnnfast.set_num_threads(2)", 2, "True 0 True 2"),
    ],
    ids=["parent_used_two_threads", "parent_used_one_thread", "parent_called_nothing"],
)
def test_a_forked_child_never_hangs(parent: str, number: int, expected: str) -> None:
    assert run_python(FORK.format(parent=parent, threads=number)) == expected


@needs_fork
@needs_openmp
def test_a_forked_child_never_hangs_on_the_threads_of_torch() -> None:
    pytest.importorskip("torch")
    parent = "import torch; torch.set_num_threads(2); torch.randn(1000, 1000).exp().sum(); rnnfast.set_num_threads(2)"
    assert run_python(FORK.format(parent=parent, threads=2)) == "True 1 True 1"


FORK_OF_LAYERS = """
import os, warnings
import numpy as np
import rnnfast

warnings.simplefilter("ignore")
rnnfast.set_num_threads(2)
layer = rnnfast.LSTM(64, 256, 2, seed=0)
stream = layer.stream(8)
x = np.random.default_rng(0).standard_normal((20, 8, 64), np.float32)

def call():
    layer.zero_grad()
    stream.reset()
    y, _, tape = layer.forward(x)
    dx, _ = layer.backward(tape, np.ones_like(y))
    steps = np.stack([stream.step(x_t) for x_t in x])
    return b"".join(array.tobytes() for array in (y, dx, layer.flat_grads, steps))

expected = call()
if os.fork() == 0:
    print(call() == expected, flush=True)
    os._exit(0)
_, status = os.wait()
assert status == 0 and call() == expected
"""


@needs_fork
@needs_openmp
def test_layers_and_streams_of_the_parent_go_on_in_a_forked_child() -> None:
    """A stream keeps the number of threads that it was made for: in the child it is one, and the bits are the same."""
    assert run_python(FORK_OF_LAYERS) == "True"


# ---- what is installed -----------------------------------------------------------------------------------------------
def test_show_config_prints_versions_instruction_set_and_threads(capsys: pytest.CaptureFixture[str]) -> None:
    rnnfast.show_config()
    shown = capsys.readouterr().out
    for expected in [rnnfast.__version__, np.__version__, rnnfast.isa, "OpenMP", "safetensors", "compiler"]:
        assert expected in shown


# ---- a crowded machine -----------------------------------------------------------------------------------------------
# Regions as (opened, closed, computed by all workers together) in milliseconds, and whether there was room for theirs.


def rooms(*regions: tuple[float, float, float]) -> list[bool]:
    return _kernels.crowd_of([tuple(round(1e6 * time) for time in region) for region in regions])


def test_a_region_that_ends_sooner_than_one_thread_would_has_room() -> None:
    assert all(rooms(*((k, k + 0.9, 1.0) for k in range(100))))
    assert all(rooms(*((k, k + 0.55, 0.1) for k in range(100))))  # that is how long it takes to wake a worker


def test_after_one_that_waited_longer_than_it_computed_calls_have_one_thread_for_2_ms() -> None:
    crowded = (0.0, 4.0, 0.1)
    assert rooms(crowded, (4.1, 4.2, 0.2), (5.9, 6.0, 0.2), (6.1, 6.2, 0.2)) == [True, False, False, True]


def test_the_pause_doubles_up_to_half_a_second_and_shrinks_by_what_goes_well() -> None:
    now, pauses = 0.0, []
    regions = []
    for _ in range(10):
        regions.append((now, now + 4, 0.1))
        pauses.append(min(2 * 2 ** len(pauses), 500))
        regions.append((now + 4 + pauses[-1] - 0.1, now + 4 + pauses[-1], 0.2))
        now += 4 + pauses[-1]
    assert rooms(*regions) == [True, False] * 10
    well = [(now + 100 * k, now + 100 * (k + 1), 190.0) for k in range(5)]  # half a second
    end = now + 500
    again = [(end, end + 4, 0.1), (end + 5.9, end + 5.95, 0.1), (end + 6, end + 6.1, 0.2)]
    assert rooms(*regions, *well, *again)[-3:] == [True, False, True]


def test_the_watch_can_be_switched_off_and_says_what_it_was() -> None:
    before = _kernels.watch_crowd(True)
    assert not before  # by conftest.py
    assert _kernels.watch_crowd(before)


ON_ONE_CORE = """
import os, resource
import numpy as np
import rnnfast
from rnnfast import _kernels

os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
rnnfast.set_num_threads(2)
layer, x = rnnfast.LSTM(32, 64, seed=0), np.ones((20, 16, 32), np.float32)
results = set()
for watched in (False, True):
    _kernels.watch_crowd(watched)
    before = resource.getrusage(resource.RUSAGE_SELF)
    results |= {layer(x)[0].tobytes() for _ in range(200)}
    after = resource.getrusage(resource.RUSAGE_SELF)
    print(after.ru_nvcsw + after.ru_nivcsw - before.ru_nvcsw - before.ru_nivcsw)
print(len(results))
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system can't hold a process on one core")
@pytest.mark.skipif(not _kernels.openmp(), reason="built without OpenMP")
def test_two_threads_on_one_core_hardly_take_turns_and_change_no_bit() -> None:
    """Unwatched, every call switches between them several times."""
    command = [sys.executable, "-c", ON_ONE_CORE]
    shown = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=100, check=True).stdout
    unwatched, watched, results = map(int, shown.split())
    assert unwatched >= 200
    assert watched < unwatched / 2
    assert results == 1
