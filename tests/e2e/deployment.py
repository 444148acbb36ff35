"""The real servers, started as a user starts them, on free ports of the loopback interface."""

from __future__ import annotations

import contextlib
import io
import os
import random
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
from PIL import Image, ImageDraw

ROOT = Path(__file__).parents[2]
FIXTURE = ROOT / "tests" / "fixtures" / "nemo2-qwen25vl-tiny"
DEMO = ROOT / "examples" / "demo_model" / "checkpoint"
START_SECONDS = 120.0
MODEL = "tiny"
ON_CPU = f"--device cpu --params_dtype float32 --kv_cache_bytes {128 * 2**20}"
WORKER_FLAGS = shlex.split(os.environ.get("TEST_WORKER_FLAGS", ON_CPU))
"""To serve elsewhere: ``TEST_WORKER_FLAGS="--device cuda --params_dtype bfloat16"``."""


def wait_until(holds: Callable[[], object], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@dataclass
class Deployment:
    """A running ``deploy_inframework_triton``."""

    process: subprocess.Popen[bytes]
    url: str
    ports: dict[str, int]
    log_path: Path

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def descendants(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def named(self, part: str) -> list[psutil.Process]:
        """The descendants whose command lines contain `part`, outermost first."""
        found = []
        for process in self.descendants():
            with contextlib.suppress(psutil.NoSuchProcess):  # one that ended since
                found += [process] if part in " ".join(process.cmdline()) else []
        return found

    def wait_ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not self.is_ready():
            assert self.process.poll() is None, self.log
            assert time.monotonic() < deadline, f"not ready after {START_SECONDS} s:\n{self.log}"
            time.sleep(0.1)

    def is_ready(self) -> bool:
        # Reading the certificates of authorities for each call would cost as much as the servers' start.
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{self.url}/health/ready", verify=False).status_code == 200
        return False

    @property
    def requests_running(self) -> int:
        """How many the engine computes, as it said within the last second."""
        found = re.search(r"^multimodal:num_requests_running\S* (\d+)", httpx.get(f"{self.url}/metrics").text, re.M)
        return 0 if found is None else int(found[1])

    def stop(self, seconds: float = 60.0) -> int:
        """SIGTERM, and the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)


def free_ports(count: int) -> list[int]:
    """Ports below those that the system gives to connections, of which one might come before the server does."""
    ports: list[int] = []
    while len(ports) < count:
        port = random.randrange(10_000, 32_768)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            ports += [port] if port not in ports else []
    return ports


def command(checkpoint: Path, ports: dict[str, int], *flags: str) -> list[str]:
    return [
        sys.executable, "-m", "triton_worker.deploy",
        "--nemo_checkpoint", str(checkpoint), "--triton_model_name", MODEL,
        *WORKER_FLAGS,
        "--server_address", "127.0.0.1", "--server_port", str(ports["rest"]),
        "--triton_http_address", "127.0.0.1", "--triton_port", str(ports["http"]),
        "--triton_grpc_port", str(ports["grpc"]), "--triton_metrics_port", str(ports["metrics"]),
        *flags,
    ]  # fmt: skip


@contextlib.contextmanager
def deployed(
    directory: Path, *flags: str, checkpoint: Path = FIXTURE, wait: bool = True, **environment: str
) -> Iterator[Deployment]:
    """Start, and stop at the end whatever happened. The log goes into `directory`."""
    ports = dict(zip(("rest", "http", "grpc", "metrics"), free_ports(4), strict=True))
    directory.mkdir(parents=True, exist_ok=True)
    log_path = directory / "log"
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            command(checkpoint, ports, *flags),
            cwd=ROOT,
            env={**os.environ, **environment},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    deployment = Deployment(process, f"http://127.0.0.1:{ports['rest']}", ports, log_path)
    try:
        if wait:
            deployment.wait_ready()
        yield deployment
    finally:
        if process.poll() is None:
            family = deployment.descendants()
            try:
                deployment.stop()
            except subprocess.TimeoutExpired:
                for member in [*family, process]:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        member.kill()


def picture(color: str = "red", size: tuple[int, int] = (112, 84), form: str = "PNG") -> bytes:
    """A circle of `color` on white, encoded."""
    image = Image.new("RGB", size, "white")
    width, height = size
    ImageDraw.Draw(image).ellipse((width // 4, height // 4, width * 3 // 4, height * 3 // 4), fill=color)
    file = io.BytesIO()
    image.save(file, form)
    return file.getvalue()
