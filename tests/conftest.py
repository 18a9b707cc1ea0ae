from __future__ import annotations

import os
from collections.abc import Iterator

import hypothesis
import pytest

import rnnfast
from rnnfast import _kernels

# No deadline: a busy machine is no failure. On CI the examples are the same in every run.
hypothesis.settings.register_profile("rnnfast", deadline=None, derandomize="CI" in os.environ)
hypothesis.settings.load_profile("rnnfast")


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = rnnfast.get_num_threads()
    rnnfast.set_num_threads(1)
    yield
    rnnfast.set_num_threads(before)


def pytest_report_header(config: pytest.Config) -> str:
    available = ", ".join(_kernels.isas_available)
    return f"rnnfast: isa {_kernels.isa} (available: {available}), {rnnfast.get_num_threads()} threads"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Long tests are run when `-m` names them: neither by default nor as a part of `-m kernel`."""
    if "long" not in config.option.markexpr:
        chosen = [item for item in items if item.get_closest_marker("long") is None]
        config.hook.pytest_deselected(items=[item for item in items if item not in set(chosen)])
        items[:] = chosen
