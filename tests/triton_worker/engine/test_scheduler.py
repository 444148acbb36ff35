"""What the scheduler decides, case by case. test_scheduler_properties.py holds for whatever comes."""

import pytest

from protocol.messages import FinishReason
from tests.triton_worker.engine.sequences import END, picture_of, sequence
from triton_worker.engine.block_pool import BlockPool
from triton_worker.engine.kv_cache import BLOCK_TOKENS, blocks_for
from triton_worker.engine.messages import NewToken
from triton_worker.engine.scheduler import Chunk, Scheduler
from triton_worker.engine.sequence import Sequence


def scheduler_of(
    total_blocks: int = 100, max_sequences: int = 9, max_prefill_tokens: int = 1000, prefix_cache: bool = True
) -> Scheduler:
    return Scheduler(BlockPool(total_blocks), max_sequences, max_prefill_tokens, prefix_cache, clock=lambda: 0.0)


def spans(chunks: list[Chunk]) -> list[tuple[str, int, int]]:
    return [(c.sequence.request_id, c.start, c.stop) for c in chunks]


def step(scheduler: Scheduler, token_id: int = 1) -> list[tuple[str, int, int]]:
    chunks = scheduler.schedule()
    finish(scheduler, chunks, token_id)
    return spans(chunks)


def finish(scheduler: Scheduler, chunks: list[Chunk], token_id: int = 1) -> list[NewToken]:
    scheduler.launch(chunks)
    return scheduler.complete(chunks, [token_id for chunk in chunks if chunk.reaches_end])


def test_first_come_first_served() -> None:
    scheduler = scheduler_of(max_sequences=2)
    for name in "abc":
        scheduler.add(sequence(name, 4, 1))
    chunks = scheduler.schedule()
    assert spans(chunks) == [("a", 0, 4), ("b", 0, 4)]
    finished = finish(scheduler, chunks)
    assert [t.finish_reason for t in finished] == [FinishReason.LENGTH] * 2
    assert step(scheduler) == [("c", 0, 4)]


def test_an_end_token_ends() -> None:
    scheduler = scheduler_of()
    scheduler.add(sequence("a", 4))
    assert finish(scheduler, scheduler.schedule(), END)[0].finish_reason is FinishReason.STOP
    assert scheduler.schedule() == []


# -- chunked prefill ---------------------------------------------------------------------------------------------------


def test_a_long_prompt_is_spread_over_steps_while_running_sequences_go_on() -> None:
    scheduler = scheduler_of(max_prefill_tokens=50)
    scheduler.add(sequence("runs", 4, 100))
    step(scheduler)
    scheduler.add(sequence("long", 120, 100))
    scheduler.add(sequence("short", 10, 100))
    assert step(scheduler) == [("runs", 4, 5), ("long", 0, 50)]
    assert step(scheduler) == [("runs", 5, 6), ("long", 50, 100)]
    assert step(scheduler) == [("runs", 6, 7), ("long", 100, 120), ("short", 0, 10)]
    assert step(scheduler) == [("runs", 7, 8), ("long", 120, 121), ("short", 10, 11)]


def test_only_a_chunk_that_reaches_the_end_samples() -> None:
    scheduler = scheduler_of(max_prefill_tokens=10)
    scheduler.add(sequence("a", 15))
    chunks = scheduler.schedule()
    assert [c.reaches_end for c in chunks] == [False]
    assert finish(scheduler, chunks) == []
    assert [c.reaches_end for c in scheduler.schedule()] == [True]


def test_decodes_take_nothing_from_the_budget_of_prompts() -> None:
    scheduler = scheduler_of(max_prefill_tokens=5)
    for name in "abc":
        scheduler.add(sequence(name, 5, 100))
    for _ in range(3):
        step(scheduler)
    scheduler.add(sequence("d", 5))
    assert [name for name, _, _ in step(scheduler)] == ["a", "b", "c", "d"]


# -- preemption --------------------------------------------------------------------------------------------------------


def test_the_youngest_is_preempted_and_computed_again() -> None:
    scheduler = scheduler_of(total_blocks=4, prefix_cache=False)
    old, young = sequence("old", BLOCK_TOKENS, 40), sequence("young", 2 * BLOCK_TOKENS, 40)
    scheduler.add(old)
    scheduler.add(young)
    step(scheduler)  # both need one more block now, and one is free
    chunks = scheduler.schedule()
    assert [c.sequence for c in chunks] == [old]
    assert scheduler.preemptions == 1
    assert not young.blocks
    finish(scheduler, chunks, END)
    assert step(scheduler) == [("young", 0, 2 * BLOCK_TOKENS + 1)]


def test_a_preempted_sequence_finds_what_nobody_needed_the_room_of() -> None:
    scheduler = scheduler_of(total_blocks=4)
    scheduler.add(sequence("old", BLOCK_TOKENS, 40))
    scheduler.add(sequence("young", 2 * BLOCK_TOKENS, 40))
    step(scheduler)
    step(scheduler, END)
    assert scheduler.preemptions == 1
    assert step(scheduler) == [("young", 2 * BLOCK_TOKENS, 2 * BLOCK_TOKENS + 1)]


def test_a_sequence_is_not_started_where_the_next_token_of_another_would_end_it() -> None:
    scheduler = scheduler_of(total_blocks=4)
    scheduler.add(sequence("old", BLOCK_TOKENS, 40))
    scheduler.add(sequence("young", 3 * BLOCK_TOKENS, 2))
    assert [name for name, _, _ in step(scheduler)] == ["old"]
    assert [name for name, _, _ in step(scheduler, END)] == ["old"]
    assert [name for name, _, _ in step(scheduler)] == ["young"]


# -- prefix cache ------------------------------------------------------------------------------------------------------

COMMON: list[int] = list(range(1000, 1000 + 3 * BLOCK_TOKENS))


def run_to_end(scheduler: Scheduler, of: Sequence) -> list[tuple[str, int, int]]:
    scheduler.add(of)
    return step(scheduler, END)


@pytest.mark.parametrize(
    ("prompt", "salt", "computed_from"),
    [
        ([*COMMON, 1, 2], None, 3 * BLOCK_TOKENS),
        ([*COMMON[:20], 1, 2], None, BLOCK_TOKENS),
        (COMMON, None, 2 * BLOCK_TOKENS),  # its last token's logits are needed
        ([0, *COMMON], None, 0),
        (COMMON, "other", 0),
    ],
)
def test_an_equal_beginning_is_not_computed_again(prompt: list[int], salt: str | None, computed_from: int) -> None:
    scheduler = scheduler_of()
    run_to_end(scheduler, sequence("a", list(COMMON)))
    assert run_to_end(scheduler, sequence("b", list(prompt), cache_salt=salt)) == [("b", computed_from, len(prompt))]
    assert scheduler.prefix_queries == len(COMMON) + len(prompt)
    assert scheduler.prefix_hits == computed_from


def test_nothing_is_shared_when_the_prefix_cache_is_off() -> None:
    scheduler = scheduler_of(prefix_cache=False)
    run_to_end(scheduler, sequence("a", list(COMMON)))
    scheduler.add(sequence("b", list(COMMON)))
    scheduler.add(sequence("c", list(COMMON)))
    assert step(scheduler) == [("b", 0, len(COMMON)), ("c", 0, len(COMMON))]
    assert (scheduler.prefix_queries, scheduler.prefix_hits) == (0, 0)


def test_an_answer_is_found_again_as_the_beginning_of_the_next_prompt() -> None:
    scheduler = scheduler_of()
    scheduler.add(sequence("a", COMMON[:20], max_tokens=20))
    for _ in range(20):
        step(scheduler, 5)
    assert run_to_end(scheduler, sequence("b", COMMON[:20] + [5] * 20)) == [("b", 2 * BLOCK_TOKENS, 40)]


def test_simultaneous_equal_prompts_are_computed_once() -> None:
    scheduler = scheduler_of(max_prefill_tokens=40)
    for name in "abc":
        scheduler.add(sequence(name, [picture_of(5 * BLOCK_TOKENS), *COMMON[:4]]))
    scheduler.add(sequence("other", 10))
    assert step(scheduler) == [("a", 0, 40)]
    assert step(scheduler) == [("a", 40, 80)]
    end = 5 * BLOCK_TOKENS
    assert step(scheduler) == [("a", 80, 84), ("b", end, 84), ("c", end, 84), ("other", 0, 10)]
    assert step(scheduler) == [("a", 84, 85), ("b", 84, 85), ("c", 84, 85), ("other", 10, 11)]
    assert scheduler.prefill_tokens == 84 + 4 + 4 + 10


def test_one_that_waits_for_another_s_beginning_lets_others_pass() -> None:
    scheduler = scheduler_of()
    for name in "ab":
        scheduler.add(sequence(name, list(COMMON)))
    scheduler.add(sequence("other", 10))
    assert step(scheduler) == [("a", 0, 48), ("other", 0, 10)]
    assert step(scheduler)[-1] == ("b", 32, 48)


def test_one_that_waits_for_another_s_beginning_computes_it_when_the_other_goes_away() -> None:
    scheduler = scheduler_of(max_prefill_tokens=20)
    for name in "ab":
        scheduler.add(sequence(name, list(COMMON)))
    assert step(scheduler) == [("a", 0, 20)]
    assert scheduler.abort("a")
    assert step(scheduler) == [("b", 16, 36)]


def test_blocks_that_a_running_sequence_shares_are_not_forgotten() -> None:
    scheduler = scheduler_of(total_blocks=blocks_for(len(COMMON) + 20) + 3)
    scheduler.add(sequence("a", list(COMMON), 20))
    step(scheduler)
    scheduler.add(sequence("b", [*COMMON, 1], 20))
    while scheduler.running_count + scheduler.waiting_count:
        step(scheduler)
    for name in "xyz":
        run_to_end(scheduler, sequence(name, 6 * BLOCK_TOKENS))
    assert run_to_end(scheduler, sequence("c", list(COMMON)))[0][1] == 0


# -- what is told ------------------------------------------------------------------------------------------------------


def test_the_first_token_tells_how_long_the_prompt_took_and_what_of_it_was_cached() -> None:
    now = 0.0
    scheduler = Scheduler(BlockPool(100), 9, 30, clock=lambda: now)
    run_to_end(scheduler, sequence("before", COMMON[:17]))
    now = 10.0
    scheduler.add(sequence("a", list(COMMON)))
    chunks = scheduler.schedule()
    now = 12.0
    assert finish(scheduler, chunks) == []
    chunks = scheduler.schedule()
    now = 15.0
    [token] = finish(scheduler, chunks)
    assert token.first is not None
    assert (token.first.prefill_seconds, token.first.cached_tokens) == (5.0, BLOCK_TOKENS)
    [token] = finish(scheduler, scheduler.schedule())
    assert token.first is None


def test_tokens_are_counted() -> None:
    scheduler = scheduler_of(max_prefill_tokens=10)
    scheduler.add(sequence("a", 15, 3))
    while scheduler.running_count + scheduler.waiting_count:
        step(scheduler)
    assert (scheduler.prefill_tokens, scheduler.decode_tokens) == (15, 3)
