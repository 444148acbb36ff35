"""The engine on the fixture checkpoint: what it answers in a crowd is what transformers answers alone."""

import numpy as np
import pytest
import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from protocol.messages import FinishReason, SamplingParameters
from tests.triton_worker.device import DEVICE
from tests.triton_worker.models.reference import HF_FIXTURE, NEMO_FIXTURE, Prompt, make_prompt, their_greedy
from triton_worker.checkpoint import open_checkpoint
from triton_worker.engine.engine import Engine, EngineError
from triton_worker.engine.kv_cache import BLOCK_TOKENS, KVCache
from triton_worker.engine.limits import EngineLimits
from triton_worker.engine.messages import Generate, NewToken, Picture
from triton_worker.engine.scheduler import Chunk
from triton_worker.models.interface import MultimodalModel
from triton_worker.models.registry import load_model

IMAGE_PAD = 412
GREEDY = SamplingParameters(temperature=0.0)
PROMPTS = [
    make_prompt([(4, 6)], IMAGE_PAD, seed=1),
    make_prompt([], IMAGE_PAD, seed=2, text_tokens=40),
    make_prompt([(3, 5), (5, 3)], IMAGE_PAD, seed=3),
    make_prompt([(1, 9)], IMAGE_PAD, seed=4),
    make_prompt([(2, 2), (7, 3), (1, 1)], IMAGE_PAD, seed=5),
    make_prompt([], IMAGE_PAD, seed=6),
]


@pytest.fixture(scope="module")
def model() -> MultimodalModel:
    return load_model(open_checkpoint(NEMO_FIXTURE), torch.float32, DEVICE)


@pytest.fixture(scope="module")
def expected() -> list[list[int]]:
    """Greedy tokens of each prompt by transformers, alone."""
    theirs = Qwen2_5_VLForConditionalGeneration.from_pretrained(HF_FIXTURE, dtype=torch.float32).eval()
    return [their_greedy(theirs, prompt, 24)[1] for prompt in PROMPTS]


def generate(
    request_id: str,
    prompt: Prompt,
    sampling: SamplingParameters = GREEDY,
    max_tokens: int = 24,
    seed: int = 0,
    stop_token_ids: frozenset[int] = frozenset(),
    cache_salt: str | None = None,
) -> Generate:
    pictures = tuple(Picture.of(np.asarray(picture)) for picture in prompt.pictures)
    return Generate(
        request_id, tuple(prompt.token_ids), pictures, sampling, max_tokens, seed, stop_token_ids, cache_salt
    )


def limits(blocks: int, model: MultimodalModel, **sizes: int) -> EngineLimits:
    """Limits under which the KV cache has just so many blocks."""
    block_bytes = KVCache.block_bytes(model.num_layers, model.num_kv_heads, model.head_dim, model.dtype)
    return EngineLimits(
        kv_cache_bytes=blocks * block_bytes,
        **{"context_length": blocks * BLOCK_TOKENS, "max_sequences": 8, **sizes},
    )


def run(engine: Engine, *requests: Generate) -> dict[str, list[int]]:
    for request in requests:
        engine.add(request)
    return drain(engine)


def pictures_seen(engine: Engine) -> tuple[int, int]:
    """Queries and hits."""
    return engine.status.counters.picture_queries, engine.status.counters.picture_hits


def drain(engine: Engine) -> dict[str, list[int]]:
    tokens: dict[str, list[int]] = {}
    while engine.has_work:
        for token in engine.step().tokens:
            tokens.setdefault(token.request_id, []).append(token.token_id)
    return tokens


@pytest.mark.parametrize("overlap", [False, True])
def test_a_crowd_is_answered_as_transformers_answers_each_alone(
    model: MultimodalModel, expected: list[list[int]], overlap: bool
) -> None:
    engine = Engine(model, IMAGE_PAD, 4096, EngineLimits(max_sequences=8, overlap_steps=overlap))
    tokens = run(engine, *(generate(str(i), prompt) for i, prompt in enumerate(PROMPTS)))
    assert [tokens[str(i)] for i in range(len(PROMPTS))] == expected


@pytest.mark.parametrize("prefix_cache", [True, False])
@pytest.mark.parametrize("max_prefill_tokens", [1, 7, 50])
def test_chunks_and_cache_hits_change_no_token(
    model: MultimodalModel, expected: list[list[int]], max_prefill_tokens: int, prefix_cache: bool
) -> None:
    engine = Engine(
        model, IMAGE_PAD, 4096, limits(64, model, max_prefill_tokens=max_prefill_tokens, prefix_cache=prefix_cache)
    )
    cache = engine._runner._cache  # whatever its memory held before
    cache.keys[:], cache.values[:] = float("nan"), float("inf")
    requests = [generate(str(i), prompt) for i, prompt in enumerate(PROMPTS)]
    for _ in ("missed", "hit"):
        tokens = run(engine, *requests)
        assert [tokens[str(i)] for i in range(len(PROMPTS))] == expected
    assert (engine.status.counters.prefix_hits > 0) == prefix_cache


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("prefix_cache", [True, False])
@pytest.mark.parametrize("max_prefill_tokens", [7, 4096])
def test_preemption_changes_no_token(
    model: MultimodalModel, expected: list[list[int]], max_prefill_tokens: int, prefix_cache: bool, overlap: bool
) -> None:
    sizes = limits(7, model, max_prefill_tokens=max_prefill_tokens, prefix_cache=prefix_cache, overlap_steps=overlap)
    engine = Engine(model, IMAGE_PAD, 4096, sizes)
    tokens = run(engine, *(generate(str(i), prompt) for i, prompt in enumerate(PROMPTS)))
    assert engine.status.counters.preemptions > 0
    assert [tokens[str(i)] for i in range(len(PROMPTS))] == expected
    assert engine.status.free_blocks == engine.status.total_blocks == 7


@pytest.mark.parametrize("overlap", [False, True])
def test_arrivals_and_aborts_in_the_middle_change_no_token(
    model: MultimodalModel, expected: list[list[int]], overlap: bool
) -> None:
    engine = Engine(model, IMAGE_PAD, 4096, EngineLimits(max_sequences=3, overlap_steps=overlap))
    tokens: dict[str, list[int]] = {}
    for i, prompt in enumerate(PROMPTS):
        engine.add(generate(str(i), prompt))
        engine.add(generate(f"aborted {i}", prompt, SamplingParameters(temperature=2.0), max_tokens=50))
        for token in (t for _ in range(5) for t in engine.step().tokens):
            tokens.setdefault(token.request_id, []).append(token.token_id)
        engine.abort(f"aborted {i}")
    for name, more in drain(engine).items():
        tokens.setdefault(name, []).extend(more)
    assert [tokens[str(i)] for i in range(len(PROMPTS))] == expected
    assert engine.status.free_blocks == engine.status.total_blocks


@pytest.mark.parametrize("max_prefill_tokens", [7, 4096])
def test_a_seeded_request_is_answered_the_same_alone_and_in_a_crowd(
    model: MultimodalModel, max_prefill_tokens: int
) -> None:
    hot = SamplingParameters(temperature=1.5, top_k=50, top_p=0.95)
    requests = [generate(str(i), prompt, hot, seed=i) for i, prompt in enumerate(PROMPTS)]
    engine = Engine(model, IMAGE_PAD, 4096, limits(7, model, max_prefill_tokens=max_prefill_tokens))
    together = run(engine, *requests, generate("greedy", PROMPTS[0]))
    alone = {r.request_id: run(engine, r)[r.request_id] for r in requests}
    together.pop("greedy")
    assert together == alone
    other_seed = run(engine, generate("0", PROMPTS[0], hot, seed=99))
    assert other_seed["0"] != alone["0"]


def test_a_stop_token_ends_and_is_told(model: MultimodalModel, expected: list[list[int]]) -> None:
    engine = Engine(model, IMAGE_PAD, 4096, EngineLimits())
    stop = expected[0][3]
    place = expected[0].index(stop)
    engine.add(generate("r", PROMPTS[0], stop_token_ids=frozenset({stop})))
    tokens: list[NewToken] = []
    while engine.has_work:
        tokens += engine.step().tokens
    assert [t.token_id for t in tokens] == expected[0][: place + 1]
    assert [t.finish_reason for t in tokens] == [None] * place + [FinishReason.STOP]


def test_an_image_token_that_is_generated_stands_for_no_picture(model: MultimodalModel) -> None:
    prompt = make_prompt([(2, 2)], IMAGE_PAD, seed=7)
    engine = Engine(model, IMAGE_PAD, 4096, limits(4, model, overlap_steps=False))
    sequence = generate("r", prompt, max_tokens=40)
    engine.add(sequence)
    engine.step()
    [running] = engine._scheduler._running
    running.output_token_ids[0] = IMAGE_PAD
    engine._scheduler._preempt(running)  # the prompt and the generated image token are prefilled together
    assert len(drain(engine)["r"]) == 39


def test_a_request_whose_numbers_break_spoils_no_other(model: MultimodalModel, expected: list[list[int]]) -> None:
    engine = Engine(model, IMAGE_PAD, 4096, EngineLimits(max_sequences=2, overlap_steps=False))
    engine.add(generate("broken", PROMPTS[5], max_tokens=40))
    engine.step()
    [broken] = engine._scheduler._running
    cache = engine._runner._cache
    rows = broken.cache_rows(0, broken.computed_tokens)
    cache.keys[:, rows], cache.values[:, rows] = float("nan"), float("inf")
    engine.add(generate("sound", PROMPTS[5]))
    assert drain(engine)["sound"] == expected[5]


def test_a_prompt_that_memory_has_no_room_for_fails_alone(
    model: MultimodalModel, expected: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(model, IMAGE_PAD, 4096, EngineLimits(overlap_steps=False))
    engine.add(generate("running", PROMPTS[0]))
    tokens = [engine.step().tokens[0].token_id]
    engine.add(generate("too large", PROMPTS[1]))
    run_model = engine._runner.forward

    def run_out_of_memory(chunks: list[Chunk]) -> torch.Tensor:
        if len(chunks) > 1:
            raise torch.OutOfMemoryError
        return run_model(chunks)

    monkeypatch.setattr(engine._runner, "forward", run_out_of_memory)
    assert engine.step().failed == ("too large",)
    assert tokens + drain(engine)["running"] == expected[0]
    assert engine.status.free_blocks == engine.status.total_blocks


def test_a_cache_too_small_for_one_context_is_refused(model: MultimodalModel) -> None:
    with pytest.raises(EngineError, match="--max_model_len 48 or less"):
        Engine(model, IMAGE_PAD, 4096, limits(3, model, context_length=4096))


def test_warming_up_leaves_nothing_behind(model: MultimodalModel) -> None:
    engine = Engine(model, IMAGE_PAD, 4096, EngineLimits())
    engine.warm_up()
    assert not engine.has_work
    assert engine.status.free_blocks == engine.status.total_blocks
