from __future__ import annotations

import os

import hypothesis
import pytest

import rnnfast
from rnnfast import _kernels

# No deadline: a busy machine is no failure. On CI the examples are the same in every run.
hypothesis.settings.register_profile("rnnfast", deadline=None, derandomize="CI" in os.environ)
hypothesis.settings.load_profile("rnnfast")


def pytest_report_header(config: pytest.Config) -> str:
    available = ", ".join(_kernels.isas_available)
    return f"rnnfast: isa {_kernels.isa} (available: {available}), {rnnfast.get_num_threads()} threads"
