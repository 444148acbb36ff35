"""The real deployment with one model over two processes, and with one of them killed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest

from tests.e2e.deployment import (
    FIXTURE,
    MODEL,
    ROOT,
    START_SECONDS,
    Deployment,
    deployed,
    free_ports,
    picture,
    wait_until,
)
from tests.e2e.reference_wire import infer

ROUTE = "/v1/multimodal/generate"


@pytest.fixture(scope="module", params=[("-tps", "2")], ids=["2x1"])
def parallel(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with deployed(tmp_path_factory.mktemp("parallel"), *request.param) as deployment:
        yield deployment


def ranks(deployment: Deployment) -> list[psutil.Process]:
    """Those that live, in order, as the worker's log names them."""
    pids = map(int, re.findall(r"Rank \d+ of the engine is process (\d+)\.", deployment.log))
    return [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]


def ask(deployment: Deployment, tokens: int = 24) -> httpx.Response:
    params = f'{{"max_tokens": {tokens}, "temperature": 0, "ignore_eos": true}}'
    data = {"prompt": "What is it?", "params": params}
    return httpx.post(deployment.url + ROUTE, data=data, files={"image": picture()}, timeout=60)


def test_it_answers_as_one_process_does(parallel: Deployment, tiny: Deployment) -> None:
    assert len(ranks(parallel)) == 2
    assert ask(parallel).json()["choices"] == ask(tiny).json()["choices"]


def test_a_killed_rank_fails_what_runs_and_the_service_comes_back(parallel: Deployment) -> None:
    before = ranks(parallel)
    with ThreadPoolExecutor(2) as pool:
        running: list[Future[httpx.Response]] = [pool.submit(ask, parallel, 3500) for _ in range(2)]
        wait_until(lambda: parallel.requests_running == 2)
        before[1].kill()
        killed_at = time.monotonic()
        for answer in running:
            assert answer.result().status_code == 503, answer.result().text
    assert time.monotonic() - killed_at < 10
    assert not parallel.is_ready(), "readiness is told with the failures"
    wait_until(parallel.is_ready)
    assert time.monotonic() - killed_at < 60
    assert ask(parallel).status_code == 200
    assert not {p.pid for p in before} & {p.pid for p in ranks(parallel)}
    assert "Traceback" not in parallel.log


def test_an_engine_of_one_process_comes_back_too(seeds_way: Deployment) -> None:
    [engine] = ranks(seeds_way)
    engine.kill()
    wait_until(lambda: not seeds_way.is_ready())
    wait_until(seeds_way.is_ready)
    assert ask(seeds_way).status_code == 200


def test_ranks_that_torchrun_starts_serve_and_end_together(tiny: Deployment, tmp_path: Path) -> None:
    http, grpc, metrics, meeting = free_ports(4)
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nnodes", "1", "--nproc-per-node", "2"),
        *("--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{meeting}", "--local-addr", "127.0.0.1"),
        *("-m", "triton_worker", "--nemo_checkpoint", str(FIXTURE), "--triton_model_name", MODEL),
        *("--device", "cpu", "--params_dtype", "float32", "-tps", "2", "--triton_http_address", "127.0.0.1"),
        *("--triton_port", str(http), "--triton_grpc_port", str(grpc), "--triton_metrics_port", str(metrics)),
    ]
    with (tmp_path / "log").open("wb") as log:
        environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo"}
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)
    torchrun = Deployment(process, "", {"http": http}, tmp_path / "log")
    try:
        wait_until(lambda: "Ready: tiny" in torchrun.log, START_SECONDS)
        family = torchrun.descendants()
        answers = [infer(server, prompts=[[b"Talk."]], max_length=[[12]], top_k=[[1]]) for server in (torchrun, tiny)]
        assert answers[0] == answers[1]
        ranks(torchrun)[0].kill()
        assert process.wait(60) != 0
        assert psutil.wait_procs(family, timeout=30)[1] == []
    finally:
        torchrun.stop()
