"""How ``pytest -n 2`` shares the tests out, as ``make test`` has it do, and what runs the kernels."""

from __future__ import annotations

import ctypes
import os

import pytest
from xdist.scheduler import LoadFileScheduling

SERVERS = "tests/e2e/"
"""The tests in it share the real servers and compare what is left in /tmp, so one process runs them all."""


class Scheduling(LoadFileScheduling):  # type: ignore[misc]
    def _split_scope(self, nodeid: str) -> str:
        return SERVERS if nodeid.startswith(SERVERS) else super()._split_scope(nodeid)  # type: ignore[no-any-return]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> Scheduling:
    """Those with the servers stay together, the others with those of their file."""
    return Scheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those with the servers first, for together they take longest."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: not item.nodeid.startswith(SERVERS))


def _interpret_kernels_without_a_gpu() -> None:
    """Triton-lang asks for this when it is imported, which PyTorch may do at any time."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        os.environ.setdefault("TRITON_INTERPRET", "1")


_interpret_kernels_without_a_gpu()
