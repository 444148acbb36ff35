"""Between two steps the host waits for nothing but the tokens of the one before."""

from collections.abc import Iterator

import pytest
import torch

from tests.gpu.crowd import CHECKPOINTS, Deployment, answers


@pytest.fixture
def waiting_is_an_error() -> Iterator[None]:
    """Where torch would wait for the GPU by itself; the engine's own waiting for an event is none of these."""
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("graphs", [True, False])
def test_no_step_waits_for_the_gpu(graphs: bool, request: pytest.FixtureRequest) -> None:
    deployment = Deployment(CHECKPOINTS["tiny"], "cuda")
    engine = deployment.engine(cuda_graphs=graphs, picture_cache_bytes=0, prefix_cache=False)
    crowd = deployment.crowd()
    answers(engine, crowd)  # kernels are compiled now
    request.getfixturevalue("waiting_is_an_error")
    assert all(answers(engine, crowd).values())
