"""Pictures beside a sequence: who sees them, what is computed again, what is shared, what is let go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.models.mllama.processing_mllama import get_cross_attention_token_mask

from protocol.messages import SamplingParameters
from tests.triton_worker.device import DEVICE
from tests.triton_worker.engine.sequences import picture_of
from tests.triton_worker.engine.test_engine import drain, generate, pictures_seen, run
from tests.triton_worker.models.conftest import one_thread as one_thread
from tests.triton_worker.models.mllama import (
    IMAGE,
    TILE_TOKENS,
    make_prompt,
    reference_model,
    save_random,
    their_greedy,
)
from triton_worker.checkpoint import open_checkpoint
from triton_worker.engine.engine import Engine, EngineError
from triton_worker.engine.kv_cache import KVCache
from triton_worker.engine.limits import EngineLimits
from triton_worker.engine.memory import run_largest_step
from triton_worker.engine.picture_context import picture_contexts, runs_of
from triton_worker.models.interface import MultimodalModel
from triton_worker.models.registry import load_model

PROMPTS = [
    make_prompt((1, 1), 5, seed=1),
    make_prompt(40, seed=2),
    make_prompt(20, (2, 2), 20, seed=3),
    make_prompt(5, (1, 2), (2, 1), 7, seed=4),
    make_prompt(3, (1, 3), 20, (1, 1), 17, seed=5),
    make_prompt(33, (1, 1), seed=6),
]
WITH_PICTURE = PROMPTS[2]


@pytest.fixture(scope="module")
def hf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random(tmp_path_factory.mktemp("mllama"))


@pytest.fixture(scope="module")
def model(hf: Path) -> MultimodalModel:
    return load_model(open_checkpoint(hf), torch.float32, DEVICE)


@pytest.fixture(scope="module")
def expected(hf: Path) -> list[list[int]]:
    """Greedy tokens of each prompt by transformers, alone."""
    theirs = reference_model(hf)
    return [their_greedy(theirs, prompt, 24)[1] for prompt in PROMPTS]


def engine_of(model: MultimodalModel, blocks: int = 64, **sizes: int) -> Engine:
    block_bytes = KVCache.block_bytes(model.num_layers, model.num_kv_heads, model.head_dim, model.dtype)
    limits = {"context_length": 80, "max_sequences": 8, **sizes}
    engine = Engine(model, IMAGE, 4096, EngineLimits(kv_cache_bytes=blocks * block_bytes, **limits))  # type: ignore[arg-type]
    assert engine.status.total_blocks <= blocks
    return engine


@given(st.lists(st.booleans(), min_size=1, max_size=12))
@hypothesis_settings(max_examples=200, deadline=None, derandomize=True)
def test_tokens_see_what_transformers_lets_them_see(shown: list[bool]) -> None:
    token_ids = [IMAGE if picture else 1 for picture in shown]
    places = [place for place, picture in enumerate(shown) if picture]
    lengths = [1 << count for count in range(len(places))]  # so that a sum says which they are
    contexts = picture_contexts([(place, picture_of(1, place)) for place in places], lengths, cross_span=1)
    ours = [[run.length for run in runs_of(contexts, at, at + 1)] for at in range(len(shown))]
    theirs = [0] * len(shown)
    for length, (start, stop) in zip(lengths, get_cross_attention_token_mask(token_ids, IMAGE), strict=True):
        for place in range(start, len(shown) if stop == -1 else stop):
            theirs[place] += length
    assert ours == [[length] for length in theirs]
    whole = [(run.start, run.stop, run.length) for run in runs_of(contexts, 0, len(shown))]
    assert [length for start, stop, length in whole for _ in range(start, min(stop, len(shown)))] == theirs


@pytest.mark.parametrize(
    ("max_prefill_tokens", "prefix_cache", "overlap"),
    [(1, True, False), (7, False, True), (7, True, True), (4096, True, False)],
)
def test_chunks_and_cache_hits_change_no_token(
    model: MultimodalModel, expected: list[list[int]], max_prefill_tokens: int, prefix_cache: bool, overlap: bool
) -> None:
    engine = engine_of(model, max_prefill_tokens=max_prefill_tokens, prefix_cache=prefix_cache, overlap_steps=overlap)
    cache = engine._runner._cache  # whatever its memory held before
    cache.keys[:], cache.values[:] = float("nan"), float("inf")
    for _ in ("missed", "hit"):
        tokens = run(engine, *(generate(str(i), prompt, max_tokens=12) for i, prompt in enumerate(PROMPTS)))
        assert [tokens[str(i)] for i in range(len(PROMPTS))] == [answer[:12] for answer in expected]
    assert (engine.status.counters.picture_hits > 0) == prefix_cache
    assert engine.status.free_blocks == engine.status.total_blocks


@pytest.mark.parametrize(
    ("max_prefill_tokens", "prefix_cache", "overlap"), [(7, True, True), (7, False, False), (4096, True, False)]
)
def test_preempted_requests_are_answered_alike(
    model: MultimodalModel, expected: list[list[int]], max_prefill_tokens: int, prefix_cache: bool, overlap: bool
) -> None:
    sizes = {"max_prefill_tokens": max_prefill_tokens, "prefix_cache": prefix_cache, "overlap_steps": overlap}
    engine = engine_of(model, 8, **sizes)
    long = generate("long", PROMPTS[0], max_tokens=70)
    tokens = run(engine, long, *(generate(str(i), prompt) for i, prompt in enumerate(PROMPTS)))
    assert engine.status.counters.preemptions > 0
    assert [tokens[str(i)] for i in range(len(PROMPTS))] == expected
    assert tokens["long"][:24] == expected[0]
    assert engine.status.free_blocks == engine.status.total_blocks


def test_requests_that_are_dropped_leave_no_block_behind(model: MultimodalModel, expected: list[list[int]]) -> None:
    engine = engine_of(model, max_prefill_tokens=7, max_sequences=3)
    for steps, prompt in enumerate(PROMPTS):
        engine.add(generate("dropped", prompt, SamplingParameters(temperature=2.0), max_tokens=20))
        for _ in range(steps):
            engine.step()
        engine.abort("dropped")
    tokens = run(engine, generate("r", PROMPTS[4]))
    assert tokens["r"] == expected[4]
    assert engine.status.free_blocks == engine.status.total_blocks


def test_the_same_prompt_again_runs_no_vision_tower_and_computes_one_block(
    model: MultimodalModel, encoded: list[int]
) -> None:
    engine = engine_of(model)
    first = run(engine, generate("r", WITH_PICTURE))
    encoded.clear()
    before = engine.status.counters.prefill_tokens
    assert run(engine, generate("r", WITH_PICTURE)) == first
    assert encoded == []
    assert 1 <= engine.status.counters.prefill_tokens - before <= 16
    assert pictures_seen(engine) == (2, 1)


def test_a_picture_behind_another_text_is_not_encoded_again(model: MultimodalModel, encoded: list[int]) -> None:
    other = replace(WITH_PICTURE, token_ids=[7, *WITH_PICTURE.token_ids])
    expected = run(engine_of(model), generate("r", other))
    encoded.clear()
    engine = engine_of(model, max_prefill_tokens=24)
    tokens = run(engine, generate("first", WITH_PICTURE), generate("r", other))
    assert tokens["r"] == expected["r"]
    assert encoded == [1], "they came together, and the second waited for the first one's picture"
    assert pictures_seen(engine) == (2, 1)


def test_the_text_behind_another_picture_is_another_text(model: MultimodalModel) -> None:
    other = replace(WITH_PICTURE, pictures=[255 - WITH_PICTURE.pictures[0]])
    expected = run(engine_of(model), generate("r", other))
    engine = engine_of(model)
    run(engine, generate("r", WITH_PICTURE))
    assert run(engine, generate("r", other)) == expected
    assert engine.status.counters.prefix_hits == 16  # the text before the picture
    assert pictures_seen(engine) == (2, 0)


@pytest.mark.parametrize(
    ("salts", "shared"), [((None, None), True), (("a", "a"), True), ((None, "a"), False), (("a", "b"), False)]
)
def test_only_requests_of_one_salt_share(
    model: MultimodalModel, encoded: list[int], salts: tuple[str | None, str | None], shared: bool
) -> None:
    engine = engine_of(model)
    one, other = (generate("r", WITH_PICTURE, cache_salt=salt) for salt in salts)
    assert run(engine, one) == run(engine, other)
    assert sum(encoded) == (1 if shared else 2)


def test_pictures_that_nothing_sees_any_more_are_not_held(model: MultimodalModel, encoded: list[int]) -> None:
    """Of a conversation whose beginning is known, only the last picture is."""
    prompt = make_prompt(3, (2, 2), 40, (1, 1), 5, seed=8)
    engine = engine_of(model)
    expected = run(engine, generate("r", prompt))
    engine.add(generate("r", prompt))
    first = [token.token_id for token in engine.step().tokens]
    [running] = engine._scheduler._running
    assert [len(context.blocks) for context in running.contexts] == [0, 1]
    assert first + drain(engine)["r"] == expected["r"]


def test_pictures_without_room_are_refused_and_one_has_room(model: MultimodalModel) -> None:
    engine = engine_of(model, 7)  # 5 for the text and 2 for a picture
    assert engine.picture_room == 2 * 4 * 16
    with pytest.raises(EngineError, match="no room for the 2 pictures"):
        engine.add(generate("r", make_prompt((2, 2), 5, (2, 2))))
    assert len(run(engine, generate("r", make_prompt((2, 2), 30), max_tokens=40))["r"]) == 40
    with pytest.raises(EngineError, match=r"room for 64 tokens beside a picture, .* give --max_model_len 64 or less"):
        engine_of(model, 6)


def test_a_bias_for_a_token_that_is_only_read_is_let_be(model: MultimodalModel, expected: list[list[int]]) -> None:
    biased = SamplingParameters(temperature=0.0, logit_bias={IMAGE: 5.0}, repetition_penalty=1.0)
    assert run(engine_of(model), generate("r", PROMPTS[0], biased))["r"] == expected[0]


def test_warming_up_leaves_nothing_behind(model: MultimodalModel) -> None:
    engine = engine_of(model)
    engine.warm_up()
    assert not engine.has_work
    assert engine.status.free_blocks == engine.status.total_blocks


def test_the_largest_step_has_the_largest_picture(model: MultimodalModel, monkeypatch: pytest.MonkeyPatch) -> None:
    encode, forward = model.encode_pictures, model.forward
    seen: dict[str, int] = {}

    def encoding(pictures: Sequence[Tensor]) -> list[Tensor]:
        seen["pictures"], seen["embeddings"] = len(pictures), sum(map(len, result := encode(pictures)))
        return result

    def computing(embeddings: Tensor, *rest: Tensor) -> Tensor:
        seen["tokens"] = len(embeddings)
        return forward(embeddings, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(model, "encode_pictures", encoding)
    monkeypatch.setattr(model, "forward", computing)
    run_largest_step(model, IMAGE, 80, EngineLimits(max_sequences=3, max_prefill_tokens=50))
    assert seen == {"pictures": 1, "embeddings": 4 * TILE_TOKENS, "tokens": 52}
