"""The processes of a deployment, by what they do, and what they use of the machine."""

from __future__ import annotations

from collections.abc import Mapping

import psutil

GATEWAY, FRONT, ENGINE, TRITON = "gateway", "worker's front", "engine", "tritonserver"
LOAD_GENERATOR = "load generator"


class Parts:
    """Processes of a running ``deploy_inframework_triton``."""

    def __init__(self, launcher: int) -> None:
        """``launcher``: the id of the process that started them."""
        self._parts: dict[str, list[psutil.Process]] = {GATEWAY: [], FRONT: [], ENGINE: [], TRITON: []}
        self._sort(psutil.Process(launcher), None)

    def add(self, name: str, *processes: psutil.Process) -> None:
        """Count further processes as a part of this name."""
        self._parts[name] = list(processes)

    def cpu_seconds(self) -> Mapping[str, float]:
        """CPU time since their start, of each part and of this process, the load generator."""
        parts = {**self._parts, LOAD_GENERATOR: [psutil.Process()]}
        return {name: sum(map(_cpu_seconds, processes)) for name, processes in parts.items()}

    def memory_bytes(self) -> Mapping[str, int]:
        """Resident memory of each part, without what it shares with others."""
        return {name: sum(map(_memory_bytes, processes)) for name, processes in self._parts.items()}

    def _sort(self, parent: psutil.Process, part: str | None) -> None:
        for child in parent.children():
            own = TRITON if part == TRITON else _part(child.cmdline())  # Triton's Python backend has children like ours
            if own is not None:
                self._parts[own].append(child)
            self._sort(child, own)


def _part(command: list[str]) -> str | None:
    if command[0].endswith("/tritonserver"):
        return TRITON
    if command[1:3] == ["-m", "app"]:
        return GATEWAY
    if command[1:3] == ["-m", "triton_worker"]:
        return FRONT
    return ENGINE if any("multiprocessing.forkserver" in word for word in command) else None


def _cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _memory_bytes(process: psutil.Process) -> int:
    memory = process.memory_info()
    return int(memory.rss - memory.shared)
