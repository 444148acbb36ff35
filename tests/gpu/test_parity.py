"""The engine on a GPU answers what it answers on the CPU, in every way in which it can compute."""

import pytest

from tests.gpu.crowd import CHECKPOINTS, Deployment, answers, assert_same
from triton_worker.engine.messages import NewToken

WAYS = {
    "as it is served": {},
    "without graphs": {"cuda_graphs": False},
    "one step after another": {"overlap_steps": False},
    "in chunks": {"max_prefill_tokens": 7},
    "in chunks, without graphs": {"max_prefill_tokens": 7, "cuda_graphs": False},
    "without the prefix cache": {"prefix_cache": False},
    "with few blocks": {"blocks": 8},
    "with few blocks and two at a time": {"blocks": 8, "max_sequences": 2, "max_prefill_tokens": 20},
}


@pytest.fixture(scope="module", params=CHECKPOINTS)
def checkpoint(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def deployment(checkpoint: str) -> Deployment:
    return Deployment(CHECKPOINTS[checkpoint], "cuda")


@pytest.fixture(scope="module")
def expected(checkpoint: str) -> dict[str, list[NewToken]]:
    """On the CPU, where these are transformers' tokens: see tests/triton_worker."""
    on_cpu = Deployment(CHECKPOINTS[checkpoint], "cpu")
    return answers(on_cpu.engine(), on_cpu.crowd())


@pytest.mark.parametrize("way", WAYS)
def test_a_crowd_is_answered_as_on_the_cpu(
    deployment: Deployment, expected: dict[str, list[NewToken]], way: str
) -> None:
    engine = deployment.engine(**WAYS[way])
    for _ in ("the prefix cache missed", "and hit"):
        assert_same(answers(engine, deployment.crowd()), expected)
    assert (engine.status.counters.preemptions > 0) == ("blocks" in WAYS[way])
    assert engine.status.free_blocks == engine.status.total_blocks


def test_each_alone_is_answered_as_in_the_crowd(deployment: Deployment, expected: dict[str, list[NewToken]]) -> None:
    engine = deployment.engine()
    for request in deployment.crowd():
        assert_same(answers(engine, [request]), expected)
