"""Prefix cache and picture cache in the running engine: what is computed again, what is shared, what is let go."""

import gc
import logging
from dataclasses import replace

import numpy as np
import psutil
import pytest
import torch

from tests.triton_worker.device import DEVICE
from tests.triton_worker.engine.test_engine import GREEDY, IMAGE_PAD, PROMPTS, generate, limits, pictures_seen, run
from tests.triton_worker.models.reference import NEMO_FIXTURE, Prompt, make_prompt
from triton_worker.checkpoint import open_checkpoint
from triton_worker.engine.engine import Engine
from triton_worker.engine.limits import EngineLimits
from triton_worker.models.interface import MultimodalModel
from triton_worker.models.registry import load_model

WITH_PICTURE = make_prompt([(4, 6)], IMAGE_PAD, seed=1, text_tokens=20)
THREE = make_prompt([(4, 6), (5, 5), (3, 7)], IMAGE_PAD, seed=5)


@pytest.fixture(scope="module")
def model() -> MultimodalModel:
    return load_model(open_checkpoint(NEMO_FIXTURE), torch.float32, DEVICE)


def with_text(prompt: Prompt, *before: int) -> Prompt:
    return replace(prompt, token_ids=[*before, *prompt.token_ids])


def engine_of(model: MultimodalModel, **sizes: int) -> Engine:
    return Engine(model, IMAGE_PAD, 4096, EngineLimits(max_sequences=8, **sizes))


@pytest.mark.parametrize("cache_bytes", [2**20, 0])
@pytest.mark.parametrize("budget", [1, 10, 4096])
def test_a_picture_is_encoded_once_however_many_chunks_read_it(
    model: MultimodalModel, encoded: list[int], budget: int, cache_bytes: int
) -> None:
    whole = run(engine_of(model, prefix_cache=False), generate("r", THREE))
    encoded.clear()
    engine = engine_of(model, max_prefill_tokens=budget, picture_cache_bytes=cache_bytes)
    assert run(engine, generate("r", THREE)) == whole
    assert sum(encoded) == 3
    assert pictures_seen(engine) == (3, 0)


def test_the_same_prompt_again_runs_no_vision_tower_and_computes_one_block(
    model: MultimodalModel, encoded: list[int]
) -> None:
    engine = engine_of(model, picture_cache_bytes=0)
    first = run(engine, generate("r", WITH_PICTURE))
    encoded.clear()
    before = engine.status.counters.prefill_tokens
    assert run(engine, generate("r", WITH_PICTURE)) == first
    assert encoded == []
    assert 1 <= engine.status.counters.prefill_tokens - before <= 16
    assert pictures_seen(engine) == (1, 0)


def test_a_picture_behind_another_text_is_not_encoded_again(model: MultimodalModel, encoded: list[int]) -> None:
    other = with_text(WITH_PICTURE, 7)
    expected = run(engine_of(model), generate("r", other))
    encoded.clear()
    engine = engine_of(model)
    run(engine, generate("first", WITH_PICTURE))
    assert run(engine, generate("r", other)) == expected
    assert encoded == [1]
    assert pictures_seen(engine) == (2, 1)


def test_pictures_of_one_step_are_one_batch_and_equal_ones_are_encoded_once(
    model: MultimodalModel, encoded: list[int]
) -> None:
    requests = [generate(str(i), prompt) for i, prompt in enumerate(PROMPTS)]
    run(engine_of(model), *requests, generate("again", with_text(PROMPTS[0], 7)))
    assert encoded == [sum(len(prompt.pictures) for prompt in PROMPTS)]


def test_a_batch_of_pictures_is_bounded(model: MultimodalModel, encoded: list[int]) -> None:
    engine = engine_of(model, max_prefill_tokens=50)
    run(engine, generate("r", make_prompt([(4, 5), (5, 4), (2, 5), (1, 1), (9, 9)], IMAGE_PAD, seed=1, text_tokens=1)))
    assert encoded == [3, 1, 1]  # 20 + 20 + 10 embeddings in the first step, 1 and 81 in the second


@pytest.mark.parametrize(
    ("salts", "shared"), [((None, None), True), (("a", "a"), True), ((None, "a"), False), (("a", "b"), False)]
)
def test_only_requests_of_one_salt_share(
    model: MultimodalModel, encoded: list[int], salts: tuple[str | None, str | None], shared: bool
) -> None:
    engine = engine_of(model)
    one, other = (generate("r", WITH_PICTURE, cache_salt=salt) for salt in salts)
    assert run(engine, one) == run(engine, other)
    assert (engine.status.counters.prefix_hits > 0) == shared
    assert sum(encoded) == (1 if shared else 2)
    run(engine, generate("r", with_text(WITH_PICTURE, 7), cache_salt=salts[0]))
    run(engine, generate("r", with_text(WITH_PICTURE, 8), cache_salt=salts[1]))
    assert sum(encoded) == (1 if shared else 2)


def test_a_prompt_with_another_picture_is_another_prompt(model: MultimodalModel, encoded: list[int]) -> None:
    other = replace(WITH_PICTURE, pictures=[255 - WITH_PICTURE.pictures[0]])
    expected = run(engine_of(model), generate("r", other))
    engine = engine_of(model)
    run(engine, generate("r", WITH_PICTURE))
    assert run(engine, generate("r", other)) == expected
    assert engine.status.counters.prefix_hits == 16  # the text before the picture
    assert pictures_seen(engine) == (2, 0)


def test_equal_requests_that_come_together_share_one_prefill(model: MultimodalModel, encoded: list[int]) -> None:
    alone = run(engine_of(model), generate("r", WITH_PICTURE))["r"]
    encoded.clear()
    engine = engine_of(model, max_prefill_tokens=24)
    tokens = run(engine, *(generate(str(i), WITH_PICTURE) for i in range(6)))
    assert all(answer == alone for answer in tokens.values())
    assert encoded == [1]
    assert engine.status.counters.prefill_tokens <= len(WITH_PICTURE.token_ids) + 5 * 16


def test_a_preempted_prompt_whose_caches_are_gone_is_computed_from_its_pixels(
    model: MultimodalModel, encoded: list[int]
) -> None:
    expected = run(engine_of(model), generate("r", WITH_PICTURE, max_tokens=40))["r"]
    engine = Engine(model, IMAGE_PAD, 4096, limits(8, model, picture_cache_bytes=0, prefix_cache=False))
    encoded.clear()
    tokens = run(engine, generate("old", PROMPTS[5], max_tokens=60), generate("young", WITH_PICTURE, max_tokens=40))
    assert engine.status.counters.preemptions > 0
    assert tokens["young"] == expected
    assert sum(encoded) == 1 + engine.status.counters.preemptions


def test_many_requests_with_different_pictures_leave_memory_as_it_was(model: MultimodalModel) -> None:
    engine = Engine(model, IMAGE_PAD, 4096, limits(64, model, picture_cache_bytes=50_000))
    process = psutil.Process()

    def answer(count: int, seed: int) -> tuple[int, int]:
        for start in range(0, count, 8):
            prompts = [make_prompt([(2, 2)], IMAGE_PAD, seed=seed + start + i, text_tokens=12) for i in range(8)]
            run(engine, *(generate(str(i), prompt, GREEDY, max_tokens=2) for i, prompt in enumerate(prompts)))
            assert engine._pictures.used_bytes <= 50_000
        gc.collect()
        return process.memory_info().rss, torch.cuda.memory_reserved() if DEVICE.type == "cuda" else 0

    few, few_on_gpu = answer(80, seed=0)
    many, many_on_gpu = answer(400, seed=1000)
    assert many - few < 2**23
    assert many_on_gpu == few_on_gpu
    assert engine._pictures.used_bytes > 40_000, "the cache was never full"
    pool = engine._pool
    assert pool.free_count == pool.total == len(pool._empty) + len(pool._idle)
    assert len(pool._key_of) == len(pool._block_of) == len(pool._idle) <= 64
    assert pool._holders == {}
    assert engine.status.counters.picture_hits == 0


def test_a_leak_is_told_once_when_the_engine_is_idle(model: MultimodalModel, caplog: pytest.LogCaptureFixture) -> None:
    engine = engine_of(model)
    run(engine, generate("r", PROMPTS[0]))
    engine.step()
    assert caplog.records == []
    engine._pool.take(2)
    for _ in range(3):
        engine.step()
    [record] = caplog.records
    assert record.levelno == logging.ERROR
    assert "2 KV blocks" in record.message


def test_steps_and_their_time_are_counted(model: MultimodalModel) -> None:
    engine = engine_of(model, overlap_steps=False)
    engine.step()  # nothing to do
    run(engine, generate("r", PROMPTS[0], max_tokens=3))
    counters = engine.status.counters
    assert (counters.steps, counters.decode_tokens) == (3, 3)
    assert counters.prefill_tokens == len(PROMPTS[0].token_ids)
    assert counters.step_seconds > 0
    assert np.isfinite(counters.step_seconds)
