"""How the servers end: asked to, killed in part, and started with what cannot be served."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest

from tests.e2e.deployment import FIXTURE, ROOT, START_SECONDS, Deployment, command, deployed, free_ports, wait_until
from tests.e2e.reference_wire import ask
from triton_worker.serving.leftovers import RUN_VARIABLE

ROUTE = "/v1/multimodal/generate"


def long_request(tokens: int) -> dict[str, object]:
    return {"prompt": "Talk.", "params": {"max_tokens": tokens, "temperature": 0, "ignore_eos": True}}


def traces(deployment: Deployment) -> set[Path]:
    """What its processes hold in shared memory and /tmp."""
    found: set[Path] = set()
    for process in deployment.descendants():
        with contextlib.suppress(psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
            words = Path(f"/proc/{process.pid}/maps").read_text().split() + process.cmdline()
            found |= {Path(word) for word in words if word.startswith("/dev/shm/")}
            found |= {Path(*Path(word).parts[:3]) for word in words if word.startswith("/tmp/folder")}
            found |= {Path(process.environ()[name]) for name in {RUN_VARIABLE} & set(process.environ())}
    return {path for path in found if path.exists()}


def left(traces: set[Path]) -> set[Path]:
    return {path for path in traces if path.exists()}


def wait_gone(processes: list[psutil.Process], seconds: float) -> list[psutil.Process]:
    return list(psutil.wait_procs(processes, timeout=seconds)[1])


def assert_ports_free(deployment: Deployment) -> None:
    for port in deployment.ports.values():
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))


def test_asked_to_end_it_finishes_what_runs_and_leaves_nothing(tmp_path: Path) -> None:
    long = 300  # seconds: that it waits is tested here, not how fast the machine is
    with deployed(tmp_path, MULTIMODAL_SHUTDOWN_SECONDS=str(long)) as deployment, ThreadPoolExecutor(4) as pool:
        family = deployment.descendants()
        assert len(family) > 5
        answers = [
            pool.submit(httpx.post, deployment.url + ROUTE, json=long_request(1000), timeout=long) for _ in range(4)
        ]
        wait_until(lambda: deployment.requests_running == 4)
        held = traces(deployment)
        assert {path.parent.name for path in held} >= {"shm", "tmp"}, held
        deployment.process.send_signal(signal.SIGINT)  # Ctrl-C; test_tracing.py ends its own by SIGTERM
        assert deployment.process.wait(long) == 0, deployment.log
        for answer in answers:
            result = answer.result()
            assert result.status_code == 200, result.text
            assert result.json()["usage"]["completion_tokens"] == 1000
        assert wait_gone(family, 5) == []
        assert_ports_free(deployment)
    assert left(held) == set()
    assert "Traceback" not in deployment.log
    assert "leaked" not in deployment.log


def test_asked_to_end_while_it_starts_it_does_not_start_first(tmp_path: Path) -> None:
    with deployed(tmp_path, wait=False) as deployment:
        wait_until(lambda: deployment.named("bin/tritonserver"), START_SECONDS)
        family, held = deployment.descendants(), traces(deployment)
        assert deployment.stop() == 0, deployment.log
        assert wait_gone(family, 5) == []
        assert_ports_free(deployment)
    assert left(held) == set()
    assert "Ready" not in deployment.log
    assert "Traceback" not in deployment.log


def test_a_worker_that_dies_ends_every_request_and_the_rest(tmp_path: Path) -> None:
    with deployed(tmp_path) as deployment, ThreadPoolExecutor(2) as pool:
        family, held = deployment.descendants(), traces(deployment)
        lost_when_killed(deployment, "-m triton_worker ", pool)
        assert deployment.process.wait(60) == 1
        assert wait_gone(family, 5) == []
    assert left(held) == set()


def test_triton_is_started_again_while_the_engine_goes_on(tmp_path: Path) -> None:
    with deployed(tmp_path) as deployment, ThreadPoolExecutor(2) as pool:
        engine, first = deployment.named("engine.rank"), traces(deployment)
        text = answered(deployment)
        lost_when_killed(deployment, "bin/tritonserver", pool)
        wait_until(lambda: not deployment.is_ready(), 10)
        wait_until(lambda: answered(deployment) == text, START_SECONDS)
        assert ask(deployment, "What is this?", max_length=5)  # Triton's own clients too
        assert deployment.requests_running == 0
        second = traces(deployment)
        assert left(first - second) <= {path for path in first if path.parent == Path("/tmp")}, "its segments are freed"

        # Triton counts a stub that stands still as dead after a second, and mistakes each answer for another's
        # until it crashes.
        (stub,) = [p for p in deployment.named("gateway_control") if p.name().startswith("triton_python")]
        stub.suspend()
        asked = pool.submit(answered, deployment)
        time.sleep(3.0)
        stub.resume()
        assert asked.result() is None
        wait_until(lambda: answered(deployment) == text, START_SECONDS)

        assert deployment.named("engine.rank") == engine
        third = traces(deployment)
        assert deployment.stop() == 0, deployment.log
    assert left(first | second | third) == set()


def answered(deployment: Deployment) -> str | None:
    """The text of a short answer, or nothing if there is none."""
    answer = httpx.post(deployment.url + ROUTE, json=long_request(5), timeout=60)
    if answer.status_code != 200:
        assert answer.status_code == 503, answer.text
        return None
    text: str = answer.json()["choices"][0]["text"]
    return text


def lost_when_killed(deployment: Deployment, victim: str, pool: ThreadPoolExecutor) -> None:
    """Kill a part in the middle of requests, none of which may be left hanging."""
    answers = [pool.submit(httpx.post, deployment.url + ROUTE, json=long_request(3500), timeout=60) for _ in range(2)]
    wait_until(lambda: deployment.requests_running == 2)
    deployment.named(victim)[0].kill()
    killed_at = time.monotonic()
    for answer in answers:
        # A gateway that is already going down may close the connection.
        with contextlib.suppress(httpx.TransportError):
            result = answer.result()
            assert result.status_code == 503, result.text
    assert time.monotonic() - killed_at < 15


def test_a_worker_sweeps_what_a_killed_one_left(tmp_path: Path) -> None:
    with deployed(tmp_path / "first") as first:
        httpx.post(first.url + ROUTE, json=long_request(5), timeout=60)
        family, held = first.descendants(), traces(first)
        time.sleep(6)  # the worker writes its traces down every five seconds
        (worker,) = first.named("-m triton_worker ")
        os.kill(first.process.pid, signal.SIGSTOP)  # a launcher that cannot sweep
        worker.kill()
        time.sleep(0.5)
        first.process.kill()
        first.process.wait()
    assert wait_gone(family, 2), "nothing outlived the worker; the test shows nothing"
    with deployed(tmp_path / "second", wait=False) as second:
        assert wait_gone(family, 60) == []
        assert second.process.poll() is None
    assert left(held) == set()


def cut(name: str, directory: Path) -> Path:
    shutil.copytree(FIXTURE, directory)
    with (directory / name).open("r+b") as file:
        file.truncate(file.seek(0, os.SEEK_END) // 2)
    return directory


# One that the front refuses, and one that the engine does. What else may be wrong: tests/triton_worker/checkpoint.
@pytest.mark.parametrize(
    ("fault", "expected"),
    [(lambda d: d / "nowhere", "nowhere"), (lambda d: cut("weights/__0_0.distcp", d / "c"), "__0_0.distcp")],
    ids=["path", "truncated shard"],
)
def test_a_checkpoint_that_cannot_be_served(tmp_path: Path, fault: object, expected: str) -> None:
    checkpoint = fault(tmp_path)  # type: ignore[operator]
    ports = dict(zip(("rest", "http", "grpc", "metrics"), free_ports(4), strict=True))
    done = subprocess.run(command(checkpoint, ports), cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert expected in errors[0]
    assert "Traceback" not in done.stderr
    assert "Ready" not in done.stdout


# One that the launcher looks at, and one that the worker does.
@pytest.mark.parametrize(("port", "flag"), [("rest", "--server_port"), ("grpc", "--triton_grpc_port")])
def test_a_port_that_is_taken_is_named(port: str, flag: str) -> None:
    ports = dict(zip(("rest", "http", "grpc", "metrics"), free_ports(4), strict=True))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", ports[port]))
        taken.listen()
        done = subprocess.run(command(FIXTURE, ports), cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert str(ports[port]) in done.stderr
    assert flag in done.stderr
