"""Whatever arrives, is shared, ends early or does not fit: scheduler, block pool and prefix cache keep their promises.

A model of the KV cache notes what each place of each block was written with: the whole history of one token. What a
sequence reads must be its own history, wherever its blocks come from.
"""

from collections import Counter
from itertools import chain

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.triton_worker.engine.sequences import END, picture_of, sequence
from triton_worker.engine.block_pool import BlockPool
from triton_worker.engine.kv_cache import BLOCK_TOKENS, blocks_for
from triton_worker.engine.messages import Picture
from triton_worker.engine.scheduler import Chunk, Scheduler
from triton_worker.engine.sequence import Sequence

PARTS: list[list[int | Picture]] = [
    [1],
    list(range(100, 116)),
    list(range(100, 140)),
    list(range(200, 233)),
    [picture_of(20, 1)],
    [picture_of(20, 2)],
    [picture_of(33, 1)],
]
"""Few, so that prompts often begin alike, or nearly."""

REQUESTS = st.tuples(
    st.lists(st.sampled_from(PARTS), min_size=1, max_size=3), st.integers(1, 40), st.sampled_from([None, None, "x"])
)

Request = tuple[list[list[int | Picture]], int, str | None]
History = tuple[object, ...]


class Engine(RuleBasedStateMachine):
    @initialize(
        total_blocks=st.integers(11, 30),
        max_sequences=st.integers(1, 6),
        budget=st.integers(1, 60),
        prefix_cache=st.sampled_from([True, True, True, False]),
        overlaps=st.booleans(),
        crowd=st.lists(REQUESTS, min_size=3, max_size=8),
    )
    def build(
        self,
        total_blocks: int,
        max_sequences: int,
        budget: int,
        prefix_cache: bool,
        overlaps: bool,
        crowd: list[Request],
    ) -> None:
        self.pool = BlockPool(total_blocks)
        self.scheduler = Scheduler(self.pool, max_sequences, budget, prefix_cache)
        self.max_sequences, self.budget, self.overlaps = max_sequences, budget, overlaps
        self.under_way: tuple[list[Chunk], list[int]] | None = None
        self.cache: dict[tuple[int, int], History] = {}
        self.added: dict[str, Sequence] = {}
        self.ended: Counter[str] = Counter()
        self.histories: dict[str, list[History]] = {}
        self.arrive(crowd)

    @rule(requests=st.lists(REQUESTS, min_size=1, max_size=4))
    def arrive(self, requests: list[Request]) -> None:
        for parts, max_tokens, salt in requests:
            self.add(sequence(f"r{len(self.added)}", list(chain(*parts)), max_tokens, salt))

    def add(self, new: Sequence) -> None:
        if blocks_for(new.token_count + new.request.max_tokens) <= self.pool.total:  # others never reach the engine
            self.added[new.request_id] = new
            self.scheduler.add(new)

    @precondition(lambda self: self.added)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.added)))
        was_there = self.scheduler.abort(name)
        assert was_there == (self.ended[name] == 0)
        self.ended[name] += was_there

    @precondition(lambda self: self.added)
    @rule(data=st.data())
    def go_on_from_an_answer(self, data: st.DataObject) -> None:
        other = self.added[data.draw(st.sampled_from(sorted(self.added)))]
        if not other.pictures:
            self.add(sequence(f"r{len(self.added)}", [*other.token_ids(0, other.token_count), 1]))

    @rule(ends=st.lists(st.sets(st.integers(0, 20), max_size=2), min_size=1, max_size=8))
    def steps(self, ends: list[set[int]]) -> None:
        for ended in ends:
            self.step(ended)

    def step(self, ends: set[int]) -> None:
        """As the engine does it: a step may be scheduled before the tokens of the one before are known."""
        busy = self.scheduler.running_count + self.scheduler.waiting_count
        chunks = self.scheduler.schedule()
        assert chunks or self.under_way or not busy, "nobody can go on"
        assert len({c.sequence for c in chunks}) == len(chunks) <= self.scheduler.running_count <= self.max_sequences
        assert sum(c.stop - c.start for c in chunks if not c.sequence.is_decoding) <= self.budget
        blocks = [list(chunk.sequence.blocks) for chunk in chunks]
        self.complete()
        for chunk, of_chunk in zip(chunks, blocks, strict=True):
            self.read_and_write(chunk, of_chunk)
        self.scheduler.launch(chunks)
        count = sum(chunk.reaches_end for chunk in chunks)
        self.under_way = (chunks, [END if i in ends else 60 for i in range(count)]) if chunks else None
        if not self.overlaps:
            self.complete()

    def complete(self) -> None:
        if self.under_way is None:
            return
        chunks, token_ids = self.under_way
        self.under_way = None
        sampling = [c.sequence for c in chunks if c.reaches_end and not c.sequence.ended]
        tokens = self.scheduler.complete(chunks, token_ids)
        assert [t.request_id for t in tokens] == [s.request_id for s in sampling]
        self.ended.update(t.request_id for t in tokens if t.finish_reason)

    def read_and_write(self, chunk: Chunk, blocks: list[int]) -> None:
        of = chunk.sequence
        if of.ended:  # since it was scheduled: what is still written hits nobody
            for place in range(chunk.start, chunk.stop):
                assert self.holders(blocks[place // BLOCK_TOKENS]) == 0
                self.cache[blocks[place // BLOCK_TOKENS], place % BLOCK_TOKENS] = ("void",)
            return
        assert chunk.start == of.computed_tokens < chunk.stop <= of.token_count
        assert blocks == list(of.blocks)
        assert len(of.blocks) == blocks_for(of.token_count)
        truth = self.history(of)
        for place in range(chunk.stop):
            where = (of.blocks[place // BLOCK_TOKENS], place % BLOCK_TOKENS)
            if place >= chunk.start:
                assert self.holders(where[0]) == 1, "written while another sequence may read it"
                self.cache[where] = truth[place]
            assert self.cache[where] == truth[place], f"{of.request_id} reads another's token at {place}"

    def history(self, of: Sequence) -> list[History]:
        """For each token, a name of all that its keys and values follow from."""
        known = self.histories.setdefault(of.request_id, [])
        token_ids = of.token_ids(len(known), of.token_count)
        for place, token_id in enumerate(token_ids, start=len(known)):
            content: History = (token_id,)
            for span in of.pictures:
                if span.overlaps(place, place + 1):
                    content = (span.picture.digest, place - span.start)
            before = hash(known[-1]) if known else hash(of.request.cache_salt)
            known.append((before, *content))
        return known

    def holders(self, block: int) -> int:
        return sum(block in s.blocks for s in self.added.values())

    @invariant()
    def no_block_leaks(self) -> None:
        if not hasattr(self, "pool"):
            return
        held = {block for s in self.added.values() for block in s.blocks}
        assert len(held) == self.pool.total - self.pool.free_count
        for s in self.added.values():
            assert len(set(s.blocks)) == len(s.blocks)
            assert not (s.blocks and self.ended[s.request_id])

    def teardown(self) -> None:
        if not hasattr(self, "pool"):
            return
        steps = 0
        while self.scheduler.running_count + self.scheduler.waiting_count:
            self.step(set())
            steps += 1
            assert steps < 5000, "a request starves"
        assert self.ended == Counter(dict.fromkeys(self.added, 1))
        assert self.pool.leak is None


TestEngine = Engine.TestCase
TestEngine.settings = settings(
    max_examples=80, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
