"""How the KV cache is sized. Only a GPU can tell a step's peak; the step that is measured there runs anywhere."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from tests.triton_worker.engine.test_engine import IMAGE_PAD
from tests.triton_worker.models.reference import NEMO_FIXTURE
from triton_worker.checkpoint import open_checkpoint
from triton_worker.engine.limits import EngineLimits
from triton_worker.engine.memory import kv_cache_bytes, left_for_kv_cache, picture_cache_bytes, run_largest_step
from triton_worker.models.interface import MultimodalModel
from triton_worker.models.registry import load_model


@pytest.fixture(scope="module")
def model() -> MultimodalModel:
    return load_model(open_checkpoint(NEMO_FIXTURE), torch.float32, torch.device("cpu"))


def test_step_and_picture_cache_come_out_of_the_engine_s_part() -> None:
    assert left_for_kv_cache(100 * 2**30, 0.9, step_bytes=5 * 2**30, picture_cache_bytes=2**30) == 84 * 2**30
    assert left_for_kv_cache(2**30, 0.5, step_bytes=2**30, picture_cache_bytes=0) < 0


@pytest.mark.parametrize(("device", "expected"), [("cpu", 2**28), ("cuda", 2**30)])
def test_the_picture_cache_s_size_is_the_device_s_or_the_one_asked_for(device: str, expected: int) -> None:
    assert picture_cache_bytes(torch.device(device), EngineLimits()) == expected
    assert picture_cache_bytes(torch.device(device), EngineLimits(picture_cache_bytes=0)) == 0


def test_on_the_cpu_the_limit_decides(model: MultimodalModel) -> None:
    assert kv_cache_bytes(model, IMAGE_PAD, 64, EngineLimits(kv_cache_bytes=12345)) == 12345


@pytest.mark.parametrize(
    ("budget", "picture_tokens", "pictures", "prompt_tokens"),
    [(100, 30, 4, 100), (50, 120, 1, 50), (2000, 400, 5, 512)],
)
def test_the_largest_step_has_all_that_may_come_together(
    model: MultimodalModel,
    monkeypatch: pytest.MonkeyPatch,
    budget: int,
    picture_tokens: int,
    pictures: int,
    prompt_tokens: int,
) -> None:
    seen: dict[str, int] = {}
    encode, forward, logits = model.encode_pictures, model.forward, model.logits

    def encoding(batch: Sequence[Tensor]) -> list[Tensor]:
        result = encode(batch)
        seen["pictures"], seen["embeddings"] = len(batch), sum(map(len, result))
        return result

    def computing(embeddings: Tensor, *rest: Tensor) -> Tensor:
        seen["tokens"] = len(embeddings)
        return forward(embeddings, *rest)  # type: ignore[arg-type]

    def choosing(hidden: Tensor) -> Tensor:
        seen["logits"] = len(hidden)
        return logits(hidden)

    monkeypatch.setattr(model, "encode_pictures", encoding)
    monkeypatch.setattr(model, "forward", computing)
    monkeypatch.setattr(model, "logits", choosing)
    limits = EngineLimits(max_sequences=3, max_prefill_tokens=budget, max_picture_tokens=picture_tokens)
    run_largest_step(model, IMAGE_PAD, 512, limits)
    assert seen["pictures"] == pictures
    assert seen["embeddings"] >= max(picture_tokens, budget)
    assert (seen["tokens"], seen["logits"]) == (prompt_tokens + 2, 3)
