import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from triton_worker.serving import leftovers
from triton_worker.serving.leftovers import RUN_VARIABLE, RunDirectory, sweep_dead_runs

WORKER = """
import os, subprocess, sys
from pathlib import Path
from triton_worker.serving.leftovers import RunDirectory

run = RunDirectory(Path(sys.argv[1]))
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], stdout=subprocess.DEVNULL)
(run.path / "child").write_text(str(child.pid))
print(run.path, flush=True)
os._exit(0)
"""


@pytest.fixture(autouse=True)
def own_temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stands in for /tmp, so that a test deletes nothing else."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(leftovers, "_TEMPORARY", temporary)
    monkeypatch.delenv(RUN_VARIABLE, raising=False)
    return temporary


def dead_run(parent: Path, *traces: Path) -> Path:
    """The directory of a worker that was killed, and whose child lives on (its process id is in `child`)."""
    done = subprocess.run([sys.executable, "-c", WORKER, str(parent)], stdout=subprocess.PIPE, text=True, check=True)
    path = Path(done.stdout.strip())
    (path / "traces").write_text("\n".join(map(str, traces)))
    return path


def test_a_dead_run_is_cleared_with_its_children_and_traces(tmp_path: Path, own_temporary: Path) -> None:
    folder, environment = own_temporary / "folderAbC", own_temporary / "python_env_x"
    folder.mkdir()
    (folder / "model.py").touch()
    environment.mkdir()
    run = dead_run(tmp_path / "runs", folder, environment)
    child = psutil.Process(int((run / "child").read_text()))
    assert sweep_dead_runs(tmp_path / "runs") == 1
    assert not run.exists()
    assert not folder.exists()
    assert not environment.exists()
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_a_living_run_is_left_alone(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "runs")
    assert sweep_dead_runs(tmp_path / "runs") == 0
    assert run.path.exists()
    run.remove()
    assert not run.path.exists()


@pytest.mark.parametrize("name", ["home/folder-thesis", "folder/../home/folder-thesis", "temporary/other"])
def test_only_what_triton_makes_is_deleted(tmp_path: Path, name: str) -> None:
    victim = tmp_path / name
    (tmp_path / "home" / "folder-thesis").mkdir(parents=True)
    (tmp_path / "temporary" / "other").mkdir()
    (tmp_path / "folder").mkdir()
    dead_run(tmp_path / "runs", victim)
    assert sweep_dead_runs(tmp_path / "runs") == 1
    assert victim.exists()


def test_a_directory_that_others_can_write_is_not_believed(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    run = dead_run(runs)
    runs.chmod(0o777)
    assert sweep_dead_runs(runs) == 0
    assert run.exists()
    with pytest.raises(PermissionError):
        RunDirectory(runs)
    runs.chmod(0o700)
    assert sweep_dead_runs(runs) == 1


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    run = dead_run(tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert sweep_dead_runs(tmp_path / "link") == 0
    assert run.exists()
    assert sweep_dead_runs(tmp_path / "real") == 1


def test_children_carry_the_run_s_mark(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "runs")
    assert os.environ[RUN_VARIABLE] == str(run.path)
    run.remove()
