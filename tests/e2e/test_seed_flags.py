"""What flags of the seed document do once they have come to Triton and the engine."""

from __future__ import annotations

from pathlib import Path

import pytest
import tritonclient.http as triton

from tests.e2e.deployment import Deployment, deployed
from tests.e2e.reference_wire import infer


def test_a_size_that_does_not_divide_the_model_is_refused(tmp_path: Path) -> None:
    with deployed(tmp_path, "-tps", "3", wait=False) as deployment:
        assert deployment.process.wait(120) == 1
        assert "error: --tensor_parallel_size 3 does not divide the model's 4 attention heads." in deployment.log
        assert "Traceback" not in deployment.log


def test_version_and_batch_size_reach_triton(seeds_way: Deployment) -> None:
    with triton.InferenceServerClient(f"127.0.0.1:{seeds_way.ports['http']}") as client:
        assert client.get_model_metadata("tiny")["versions"] == ["3"]
    prompt = [b"A prompt of more than fifty tokens, " * 5]  # let through alone, whatever the threshold says
    assert len(infer(seeds_way, prompts=[prompt, prompt])) == 2
    with pytest.raises(triton.InferenceServerException, match="batch-size must be <= 2"):
        infer(seeds_way, prompts=[prompt, prompt, prompt])
