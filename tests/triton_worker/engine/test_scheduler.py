"""Properties of the scheduler and the block pool, whatever arrives, ends early or does not fit."""

from collections import Counter

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from protocol.messages import FinishReason, SamplingParameters
from triton_worker.engine.kv_cache import BLOCK_TOKENS, BlockPool, blocks_for
from triton_worker.engine.messages import Generate
from triton_worker.engine.scheduler import Chunk, Scheduler
from triton_worker.engine.sequence import Sequence

END = 7


def sequence(name: str, prompt_tokens: int, max_tokens: int) -> Sequence:
    request = Generate(
        request_id=name,
        prompt_token_ids=(1,) * prompt_tokens,
        pictures=(),
        sampling=SamplingParameters(),
        max_tokens=max_tokens,
        seed=0,
        stop_token_ids=frozenset({END}),
    )
    return Sequence(request, torch.arange(prompt_tokens).expand(3, -1), prompt_tokens)


def held_blocks(sequences: list[Sequence]) -> list[int]:
    return [block for s in sequences for block in s.blocks]


def check_chunks(chunks: list[Chunk]) -> None:
    for chunk in chunks:
        assert chunk.reaches_end
        assert chunk.start == chunk.sequence.cached_tokens < chunk.stop
        assert len(chunk.sequence.blocks) == blocks_for(chunk.stop)
    blocks = held_blocks([c.sequence for c in chunks])
    assert len(set(blocks)) == len(blocks), "two sequences share a block"


def test_a_pool_hands_out_each_block_once() -> None:
    pool = BlockPool(3)
    blocks = pool.take(3)
    assert sorted(blocks) == [0, 1, 2]
    with pytest.raises(RuntimeError, match="0 free"):
        pool.take(1)
    pool.give_back(blocks[:1])
    assert pool.take(1) == blocks[:1]


def test_first_come_first_served() -> None:
    scheduler = Scheduler(BlockPool(100), max_sequences=2, max_prefill_tokens=1000)
    for name in "abc":
        scheduler.add(sequence(name, 4, 1))
    chunks = scheduler.schedule()
    assert [c.sequence.request_id for c in chunks] == ["a", "b"]
    finished = scheduler.complete(chunks, [1, 1])
    assert [t.finish_reason for t in finished] == [FinishReason.LENGTH] * 2
    assert [c.sequence.request_id for c in scheduler.schedule()] == ["c"]


def test_a_step_prefills_no_more_than_its_budget_but_always_one() -> None:
    scheduler = Scheduler(BlockPool(100), max_sequences=9, max_prefill_tokens=50)
    for name in "abc":
        scheduler.add(sequence(name, 80 if name == "a" else 25, 9))
    assert [len(scheduler.schedule()) for _ in range(1)] == [1]
    chunks = scheduler.schedule()
    assert [c.sequence.request_id for c in chunks] == ["a", "b", "c"]


def test_an_end_token_ends() -> None:
    scheduler = Scheduler(BlockPool(10), 4, 100)
    scheduler.add(sequence("a", 4, 10))
    chunks = scheduler.schedule()
    assert scheduler.complete(chunks, [END])[0].finish_reason is FinishReason.STOP
    assert scheduler.schedule() == []


def test_the_youngest_is_preempted_and_computed_again() -> None:
    pool = BlockPool(4)
    scheduler = Scheduler(pool, 4, 1000)
    old, young = sequence("old", BLOCK_TOKENS, 40), sequence("young", 2 * BLOCK_TOKENS, 40)
    scheduler.add(old)
    scheduler.add(young)
    scheduler.complete(scheduler.schedule(), [1, 1])  # both need one more block now, and one is free
    chunks = scheduler.schedule()
    assert [c.sequence for c in chunks] == [old]
    assert scheduler.preemptions == 1
    assert young.blocks == []
    scheduler.complete(chunks, [END])
    again = scheduler.schedule()
    assert [(c.sequence, c.start, c.stop) for c in again] == [(young, 0, 2 * BLOCK_TOKENS + 1)]


@settings(max_examples=150, deadline=None)
@given(data=st.data(), total_blocks=st.integers(4, 20), max_sequences=st.integers(1, 6), budget=st.integers(1, 100))
def test_every_request_ends_once_and_no_block_leaks(
    data: st.DataObject, total_blocks: int, max_sequences: int, budget: int
) -> None:
    pool = BlockPool(total_blocks)
    scheduler = Scheduler(pool, max_sequences, budget)
    longest = total_blocks * BLOCK_TOKENS
    ended: Counter[str] = Counter()
    added: dict[str, Sequence] = {}

    def add() -> None:
        prompt_tokens = data.draw(st.integers(1, longest - 1))
        new = sequence(f"r{len(added)}", prompt_tokens, data.draw(st.integers(1, min(40, longest - prompt_tokens))))
        added[new.request_id] = new
        scheduler.add(new)

    for _ in range(data.draw(st.integers(1, 8))):
        add()
    steps = 0
    while scheduler.running_count + scheduler.waiting_count:
        steps += 1
        assert steps < 2000, "a request starves"
        event = data.draw(st.sampled_from(["step"] * 6 + ["abort", "add"])) if steps < 60 else "step"
        if event == "abort":
            name = data.draw(st.sampled_from(sorted(added)))
            if scheduler.abort(name):
                ended[name] += 1
        elif event == "add":
            add()
        chunks = scheduler.schedule()
        check_chunks(chunks)
        assert len(chunks) <= max_sequences
        assert chunks or not scheduler.running_count + scheduler.waiting_count
        tokens = scheduler.complete(chunks, [END if data.draw(st.integers(0, 9)) == 0 else 1 for _ in chunks])
        ended.update(t.request_id for t in tokens if t.finish_reason)
        held = held_blocks(list(added.values()))
        assert len(held) == len(set(held)) == total_blocks - pool.free_count
    assert ended == Counter(dict.fromkeys(added, 1))
    assert pool.free_count == total_blocks
