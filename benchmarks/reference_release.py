"""NeMo Export-Deploy 0.3.1 in a directory of its own, and its REST service as a process.

The release is installed without its dependencies; torch, PyTriton, FastAPI and Pillow come from this environment, and
nothing of its code is replaced.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil

RELEASE = Path(__file__).parents[1] / ".interop" / "nemo-export-deploy-0.3.1"
PACKAGES = ["nemo-export-deploy==0.3.1", "requests", "certifi", "charset-normalizer", "idna", "urllib3"]
SERVICE = "nemo_deploy.service.fastapi_interface_to_pytriton_multimodal:app"
_START_SECONDS = 60.0


class ReleaseMissing(Exception):
    """The release cannot be installed or started; the message says why."""


def installed_release() -> Path:
    """The directory of the release, downloaded if it is not there yet.

    Raises:
        ReleaseMissing: it cannot be downloaded.
    """
    complete = RELEASE / ".complete"
    if not complete.exists():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--upgrade", "--target"]
        done = subprocess.run([*command, str(RELEASE), *PACKAGES], capture_output=True, text=True)
        if done.returncode != 0:
            reason = (done.stderr.splitlines() or ["pip said nothing"])[-1]
            raise ReleaseMissing(f"nemo-export-deploy 0.3.1 cannot be downloaded: {reason}")
        complete.touch()
    return RELEASE


def release_environment(release: Path, triton_http_port: int) -> dict[str, str]:
    """Environment variables with which the release is found and finds Triton."""
    return {
        **os.environ,
        "PYTHONPATH": str(release),
        "HF_HUB_OFFLINE": "1",
        "TRITON_HTTP_ADDRESS": "127.0.0.1",
        "TRITON_PORT": str(triton_http_port),
    }


@contextlib.contextmanager
def reference_service(triton_http_port: int, port: int) -> Iterator[tuple[str, psutil.Process]]:
    """Its FastAPI service under uvicorn, without access log, as long as the context lasts; its URL and process.

    Raises:
        ReleaseMissing: it cannot be downloaded or does not start.
    """
    environment = release_environment(installed_release(), triton_http_port)
    command = [sys.executable, "-m", "uvicorn", SERVICE, "--host", "127.0.0.1", "--port", str(port)]
    service = subprocess.Popen([*command, "--no-access-log", "--log-level", "warning"], env=environment, cwd=RELEASE)
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + _START_SECONDS
        while not _answers(f"{url}/v1/health"):
            if service.poll() is not None or time.monotonic() > deadline:
                raise ReleaseMissing("the service of nemo-export-deploy 0.3.1 does not start")
            time.sleep(0.2)
        yield url, psutil.Process(service.pid)
    finally:
        service.terminate()
        service.wait()


def _answers(url: str) -> bool:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
