"""Several gateway processes behind one port."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from pathlib import Path

import httpx
import psutil

from tests.app.conftest import GENERATE, ROOT, process, until
from tests.app.scripted_worker import ScriptedWorker
from tests.app.test_metrics import samples


def children(gateway: asyncio.subprocess.Process) -> list[int]:
    """The processes that serve."""
    found = psutil.Process(gateway.pid).children()
    return [child.pid for child in found if "spawn_main" in " ".join(child.cmdline())]


def directory_of(pid: int) -> Path:
    return Path(psutil.Process(pid).environ()["PROMETHEUS_MULTIPROC_DIR"])


async def test_processes_share_the_port_and_a_dead_one_is_replaced(worker: ScriptedWorker) -> None:
    async with process(worker, "--workers=2") as (gateway, client):
        await until(lambda: len(worker.session_ids) == 2)  # each is a session of its own
        first = children(gateway)
        directory = directory_of(first[0])
        assert oct(directory.stat().st_mode)[-3:] == "700"

        limits = httpx.Limits(max_keepalive_connections=0)
        async with httpx.AsyncClient(base_url=client.base_url, limits=limits, timeout=20, trust_env=False) as other:

            async def ask(prompt: str) -> httpx.Response:
                return await other.post(GENERATE, json={"prompt": prompt, "params": {"stream": True}})

            def serving() -> set[str]:
                return {c.session_id for c in worker.controls if c.messages}

            waiting: list[asyncio.Task[httpx.Response]] = []
            while len(serving()) < 2:  # whichever process wakes first takes all connections that it finds
                assert len(waiting) < 200, "both take requests"
                waiting.append(asyncio.create_task(ask("start_and_hang")))
                await until(lambda: worker.running == len(waiting))
            hanging = len(waiting)

            while (await samples(other))["time_to_first_token_seconds_count"] < hanging:
                await asyncio.sleep(0.05)
            os.kill(first[0], signal.SIGKILL)
            await asyncio.sleep(0.5)
            lost = [task for task in waiting if task.done()]
            assert 0 < len(lost) < hanging
            assert all(isinstance(task.exception(), httpx.TransportError) for task in lost)
            for i in range(10):
                assert (await ask(f"answer {i}")).status_code == 200
            await until(lambda: len(children(gateway)) == 2 and len(worker.session_ids) == 3, 15)
            assert set(children(gateway)) != set(first)

            # What any process shows is what all have counted, the dead one too.
            route = f'http_requests_total{{method="POST",route="{GENERATE}",status="200"}}'
            for _ in range(8):
                found = await samples(other)
                assert found["generation_tokens_total"] == 20
                assert found['request_success_total{finished_reason="stop"}'] == 10
                assert found["time_to_first_token_seconds_count"] == hanging + 10
                assert found[route] == 10
                assert found[f'worker_ready{{worker="{worker.url}"}}'] == 1
            for task in waiting:
                task.cancel()

        gateway.send_signal(signal.SIGTERM)
        await asyncio.wait_for(gateway.communicate(), 15)
        assert gateway.returncode == 0
        assert not directory.exists()


async def test_processes_end_with_their_supervisor(worker: ScriptedWorker) -> None:
    async with process(worker, "--workers=2") as (gateway, _):
        await until(lambda: len(worker.session_ids) == 2)
        orphans = [psutil.Process(pid) for pid in children(gateway)]
        directory = directory_of(orphans[0].pid)
        gateway.kill()
        await until(lambda: not any(orphan.is_running() for orphan in orphans), 10)
        for left in directory.iterdir():
            left.unlink()
        directory.rmdir()


async def test_processes_that_cannot_start_are_given_up(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nif 'spawn_main' in ' '.join(sys.orig_argv):\n    sys.modules['app.application'] = None\n"
    )
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    gateway = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "app", "--host=127.0.0.1", f"--port={port}", "--workers=2"),
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"},
        stderr=asyncio.subprocess.PIPE,
    )
    _, log = await asyncio.wait_for(gateway.communicate(), 30)
    assert gateway.returncode == 1
    assert b"cannot start" in log
