"""Numbers as the tables show them."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterable, Sequence
from datetime import date
from importlib.metadata import version

import numpy as np


def percentile(values: Sequence[float], percent: float) -> float:
    """Interpolated, as numpy does it."""
    return float(np.percentile(values, percent))


def ms(seconds: float) -> str:
    """Seconds as milliseconds."""
    return f"{seconds * 1000:,.2f} ms"


def mib(size: float) -> str:
    """Bytes as mebibytes."""
    return f"{size / 2**20:,.0f} MiB"


def provenance(module: str, *packages: str) -> str:
    """The command line, the day, and the versions of what was measured."""
    command = " ".join(["python -m", module, *sys.argv[1:]])
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    return f"`{command}`, {date.today()}, Python {platform.python_version()}, {versions}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
