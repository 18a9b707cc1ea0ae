"""The tests marked `kernel` on every other instruction-set level that this machine executes, one process each."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rnnfast import _kernels

TESTS = Path(__file__).parent


@pytest.mark.parametrize("level", [level for level in _kernels.isas_available if level != _kernels.isa])
def test_kernels_hold_their_promises_on_level(level: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", "kernel", "."]
    environment = os.environ | {"RNNFAST_ISA": level}
    result = subprocess.run(command, cwd=TESTS, env=environment, capture_output=True, text=True, timeout=3600)
    assert result.returncode == 0, result.stdout[-5000:] + result.stderr[-1000:]
