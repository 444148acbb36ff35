"""The real deployment with one model over two processes, and with one of them killed."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest

from tests.e2e.deployment import Deployment, deployed, picture

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
        wait_until(lambda: "num_requests_running 2" in httpx.get(f"{parallel.url}/metrics").text)
        before[1].kill()
        killed_at = time.monotonic()
        for answer in running:
            assert answer.result().status_code == 503, answer.result().text
    assert time.monotonic() - killed_at < 10
    assert httpx.get(f"{parallel.url}/health/ready").status_code == 503, "readiness is told with the failures"
    wait_until(lambda: httpx.get(f"{parallel.url}/health/ready").status_code == 200)
    assert time.monotonic() - killed_at < 60
    assert ask(parallel).status_code == 200
    assert not {p.pid for p in before} & {p.pid for p in ranks(parallel)}
    assert "Traceback" not in parallel.log


def test_an_engine_of_one_process_comes_back_too(tmp_path: Path) -> None:
    with deployed(tmp_path) as deployment:
        [engine] = ranks(deployment)
        engine.kill()
        wait_until(lambda: httpx.get(f"{deployment.url}/health/ready").status_code == 503)
        wait_until(lambda: httpx.get(f"{deployment.url}/health/ready").status_code == 200)
        assert ask(deployment).status_code == 200


def wait_until(holds: object, seconds: float = 60.0) -> None:
    assert callable(holds)
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)
