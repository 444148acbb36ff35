"""What a worker leaves on the machine while it runs, and how a successor clears away what a killed one left.

Each run has a directory (PyTriton's workspace, Triton's log) and holds a lock in it as long as it lives. A killed
worker leaves that directory, child processes that may live on (tritonserver among them), shared-memory segments and
Triton's own folders in /tmp. Children are known by an environment variable that they inherit; the rest, whose names
tell nothing, by a list in the directory.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import logging
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

logger = logging.getLogger(__name__)

RUN_VARIABLE = "MULTIMODAL_WORKER_RUN"
"""Environment variable that marks the children of a run; its value is the run's directory."""

_SHARED_MEMORY = Path("/dev/shm")
_TEMPORARY = Path("/tmp")
"""Not TMPDIR: Triton has it fixed, and socket paths below a longer one pass the kernel's limit of 107 characters."""
_TRACES = "traces"
_LOCK = "lock"


def runs_directory() -> Path:
    """Where the run directories of this user lie."""
    return _TEMPORARY / f"multimodal-worker-{os.getuid()}"


class RunDirectory:
    """The directory of one run of a worker."""

    def __init__(self, parent: Path | None = None) -> None:
        """Make the directory and mark this process, and so its children to come, as belonging to it.

        Raises:
            OSError: it cannot be made, or others could write where it should be.
        """
        parent = parent or runs_directory()
        parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not _is_ours(parent):
            raise PermissionError(f"{parent} can be written by another user")
        # Locked before it has a name that a sweep looks at.
        unnamed = Path(tempfile.mkdtemp(prefix=".", dir=parent))
        self._lock = (unnamed / _LOCK).open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self.path = unnamed.rename(parent / f"{os.getpid()}-{time.time_ns():x}")
        os.environ[RUN_VARIABLE] = str(self.path)
        self._environments_before = _python_environments()
        self._traces: set[Path] = set()
        self._workspaces = itertools.count()
        self._visible: set[str] = set()

    def new_workspace(self) -> Path:
        """A path for the workspace of another Triton; PyTriton makes it."""
        return self.path / f"workspace-{next(self._workspaces)}"

    def note_traces(self) -> None:
        """Write down what this process and its children hold outside the directory now, for a successor.

        Cheap when there is nothing new that could be ours, however much comes and goes in /tmp: it can be called often.
        """
        visible = {*os.listdir(_SHARED_MEMORY), *filter(_may_be_ours, os.listdir(_TEMPORARY))}
        if visible == self._visible:
            return
        self._visible = visible
        children = psutil.Process().children(recursive=True)
        traces = self._traces | (_python_environments() - self._environments_before)
        traces = traces.union(*map(_segments, [psutil.Process(), *children]), *map(_model_folders, children))
        if traces != self._traces:
            self._traces = traces
            (self.path / _TRACES).write_text("\n".join(sorted(map(str, traces))), encoding="utf-8")

    def remove(self) -> None:
        """Clear everything that this run left: children, segments and the directory."""
        _clear(self.path, excepted=os.getpid())


def sweep_dead_runs(parent: Path | None = None) -> int:
    """Clear what runs whose worker is gone have left; how many there were."""
    parent = parent or runs_directory()
    if not _is_ours(parent):
        return 0
    directories = [path for path in parent.glob("*-*") if path.is_dir() and not _is_running(path)]
    for directory in directories:
        logger.warning("Clearing what worker %s left when it was killed.", directory.name.split("-")[0])
        _clear(directory)
    return len(directories)


def _is_ours(directory: Path) -> bool:
    """Whether nobody else could have put anything into the directory: what a sweep deletes is written in it."""
    try:
        status = directory.lstat()
    except FileNotFoundError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o022


def _is_running(directory: Path) -> bool:
    with contextlib.suppress(FileNotFoundError), (directory / _LOCK).open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _clear(directory: Path, excepted: int | None = None) -> None:
    children = [process for process in _marked_processes(directory) if process.pid != excepted]
    for process in children:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(children, timeout=5)
    with contextlib.suppress(FileNotFoundError):
        for trace in map(Path, (directory / _TRACES).read_text(encoding="utf-8").splitlines()):
            _delete(trace)
    shutil.rmtree(directory, ignore_errors=True)


def _delete(trace: Path) -> None:
    with contextlib.suppress(OSError):  # gone already, as a rule
        if trace.lstat().st_uid != os.getuid():
            return
        if trace.parent == _SHARED_MEMORY:
            trace.unlink()
        elif trace.parent == _TEMPORARY and trace.name.startswith("folder"):
            shutil.rmtree(trace)
        elif trace.parent == _TEMPORARY and trace.name.startswith("python_env_"):
            trace.rmdir()


def _marked_processes(directory: Path) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(RUN_VARIABLE) == str(directory):
                yield process


def _segments(process: psutil.Process) -> set[Path]:
    """Shared-memory segments that the process has mapped (psutil would read smaps, slow for a large process)."""
    with contextlib.suppress(OSError):
        lines = Path(f"/proc/{process.pid}/maps").read_text(encoding="utf-8", errors="replace").splitlines()
        mapped = {Path(fields[5]) for line in lines if len(fields := line.split(maxsplit=5)) == 6}
        return {path for path in mapped if path.parent == _SHARED_MEMORY and not path.name.endswith("(deleted)")}
    return set()


def _model_folders(process: psutil.Process) -> set[Path]:
    """Folders into which Triton unpacked a model: its Python stub has the model's file in its command line."""
    with contextlib.suppress(psutil.Error):
        arguments = [Path(argument) for argument in process.cmdline()]
        folders = {path.parents[1] for path in arguments if path.name == "model.py" and len(path.parents) > 2}
        return {path for path in folders if path.parent == _TEMPORARY and path.name.startswith("folder")}
    return set()


def _may_be_ours(name: str) -> bool:
    """Whether something of this name in /tmp may be Triton's."""
    return name.startswith(("folder", "python_env_"))


def _python_environments() -> set[Path]:
    """The empty directories that Triton's Python backend makes and leaves when killed."""
    return set(_TEMPORARY.glob("python_env_*"))
