"""Which build of the kernels is loaded, and what importing the package costs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import pytest

from rnnfast import _kernels, _probe

LEVELS = ["v2", "v3", "v4", "v4bf16", "generic"]

# The names by which Linux tells what the levels of the x86-64 psABI consist of.
CPUINFO_FLAGS = {
    "v2": "cx16 lahf_lm pni popcnt sse4_1 sse4_2 ssse3",
    "v3": "abm avx avx2 bmi1 bmi2 f16c fma movbe xsave",
    "v4": "avx512bw avx512cd avx512dq avx512f avx512vl",
    "v4bf16": "avx512_bf16",
}


def run_python(code: str, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs `code` in a process of its own, without the RNNFAST_ISA of this one."""
    env = {name: value for name, value in os.environ.items() if name != "RNNFAST_ISA"} | environment
    return subprocess.run([sys.executable, *options, "-c", code], env=env, capture_output=True, text=True, timeout=300)


def assert_import_fails(isa: str, *phrases: str) -> None:
    result = run_python("import rnnfast", RNNFAST_ISA=isa)
    error = result.stderr.strip().splitlines()[-1]
    assert result.returncode == 1
    assert error.startswith("ImportError: RNNFAST_ISA: expected one of")
    for phrase in [f"got {isa}", *_kernels.isas_available, *phrases]:
        assert phrase in error


# ---- the choice ------------------------------------------------------------------------------------------------------
def test_the_best_available_level_is_the_default() -> None:
    result = run_python("import rnnfast; print(rnnfast.isa)")
    assert result.stdout.strip() == _kernels.isas_available[0]
    assert list(_kernels.isas_available) == sorted(_kernels.isas_available, key=LEVELS.index, reverse=True)


def test_an_empty_variable_forces_nothing() -> None:
    assert run_python("import rnnfast; print(rnnfast.isa)", RNNFAST_ISA="").stdout.strip() == _kernels.isas_available[0]


@pytest.mark.parametrize("isa", _kernels.isas_available)
def test_every_available_level_loads_and_tells_its_name(isa: str) -> None:
    code = "import rnnfast; print(rnnfast.isa, rnnfast._kernels.build_info()['isa'])"
    result = run_python(code, RNNFAST_ISA=isa)
    assert result.stdout.split() == [isa, isa], result.stderr


def test_an_unknown_level_is_an_error_that_lists_the_known_ones() -> None:
    assert_import_fails("avx9", "no such level", *LEVELS)


@pytest.mark.parametrize("isa", [isa for isa in LEVELS if isa not in _kernels.isas_available])
def test_an_unsupported_level_is_an_error_that_says_why(isa: str) -> None:
    executable = isa in _probe.supported()
    built = any(Path(_probe.__file__).parent.glob(f"_core_{isa}.*"))
    assert_import_fails(isa, "does not execute it" if built and not executable else "built without it")


def test_the_probe_agrees_with_the_operating_system() -> None:
    cpuinfo = Path("/proc/cpuinfo")
    flags = {word for line in cpuinfo.read_text().splitlines() if line.startswith("flags") for word in line.split()}
    if "lm" not in flags:
        pytest.skip("no x86-64 processor")
    expected = []
    for level, needed in CPUINFO_FLAGS.items():
        if not flags.issuperset(needed.split()):
            break
        expected.append(level)
    assert _probe.supported() == expected


# ---- the cost of an import -------------------------------------------------------------------------------------------
def own_import_seconds() -> float:
    """What `import rnnfast` takes in a new process that has imported numpy."""
    trace = run_python("import numpy; import rnnfast", "-X", "importtime").stderr
    lines = [line.split("|") for line in trace.splitlines() if line.endswith("| rnnfast")]
    return float(lines[-1][1]) / 1e6  # microseconds, with everything imported within


def test_import_takes_at_most_a_tenth_of_a_second_beyond_numpy() -> None:
    origin = distribution("rnnfast").read_text("direct_url.json")
    if origin and json.loads(origin).get("dir_info", {}).get("editable"):
        pytest.skip("an editable installation looks for changed sources at import")
    # A busy machine makes an import slower, never faster: one quick one is proof.
    assert any(own_import_seconds() <= 0.1 for _ in range(10))


@pytest.mark.parametrize("module", ["torch", "matplotlib", "tqdm", "hypothesis"])
def test_import_loads_nothing_optional(module: str) -> None:
    assert run_python(f"import sys, rnnfast; print({module!r} in sys.modules)").stdout.strip() == "False"


def test_import_starts_no_thread() -> None:
    if not Path("/proc/self/task").exists():
        pytest.skip("no list of a process's threads here")
    code = "import numpy, os; n = len(os.listdir('/proc/self/task')); import rnnfast; " + (
        "print(len(os.listdir('/proc/self/task')) - n)"
    )
    assert run_python(code).stdout.strip() == "0"
