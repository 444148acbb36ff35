"""How ``pytest -n 2`` shares the tests out, as ``make test`` has it do."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

SERVERS = Path(__file__).parent / "e2e"
"""The tests in it share the real servers and compare what is left in /tmp, so one process runs them all."""


@pytest.hookimpl(tryfirst=True)  # before xdist looks for the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those with the servers first, for together they take longest; the others stay with those of their file."""
    for item in items:
        group = "servers" if item.path.is_relative_to(SERVERS) else str(item.path)
        item.add_marker(pytest.mark.xdist_group(group))
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: not item.path.is_relative_to(SERVERS))
