"""The gateway takes the open files that it may have, and says when they are too few for its connections."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]
SOFT, HARD = 512, 2048
# By the shell: Python code between fork and exec is not safe beside the threads of other tests.
WITH_LOWER_LIMITS = ["sh", "-c", f'ulimit -Sn {SOFT} && ulimit -Hn {HARD} && exec "$@"', "sh"]


@pytest.mark.parametrize(("connections", "warned"), [(800, False), (2048, True)])
def test_the_soft_limit_is_raised_to_the_hard_one(connections: int, warned: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    flags = ["--host=127.0.0.1", f"--port={port}", "--triton-grpc-url=127.0.0.1:1", f"--max-connections={connections}"]
    gateway = subprocess.Popen(
        [*WITH_LOWER_LIMITS, sys.executable, "-m", "app", *flags],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert gateway.stderr is not None
        first = json.loads(gateway.stderr.readline())  # of the files, or of the worker that is not there
        assert psutil.Process(gateway.pid).rlimit(psutil.RLIMIT_NOFILE) == (HARD, HARD)
    finally:
        gateway.kill()
        gateway.communicate()
    assert first["level"] == "warning"
    assert ("files may be open" in first["message"]) == warned
