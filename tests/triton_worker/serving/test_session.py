import asyncio

from protocol.messages import EndDelta, FinishReason, Outcome, TokenDelta, WorkerStatus
from triton_worker.serving.session import Session

STATUS = WorkerStatus(ready=True, model="demo", context_length=64)


def tokens(request_id: str, text: str, finish_reason: FinishReason | None = None) -> TokenDelta:
    return TokenDelta(request_id=request_id, text=text, token_ids=(len(text),), finish_reason=finish_reason)


async def test_the_first_batch_tells_the_status_at_once() -> None:
    batch = await asyncio.wait_for(Session(lambda: STATUS).next_batch(), 0.5)
    assert batch is not None
    assert batch.status == STATUS
    assert batch.deltas == ()


async def test_a_silent_session_sends_heartbeats() -> None:
    session = Session(lambda: STATUS)
    await session.next_batch()
    batch = await asyncio.wait_for(session.next_batch(), 2.0)
    assert batch is not None
    assert batch.status == STATUS


async def test_a_changed_status_is_told_at_once() -> None:
    session = Session(lambda: STATUS)
    await session.next_batch()
    waiting = asyncio.ensure_future(session.next_batch())
    await asyncio.sleep(0.01)
    session.tell_status()
    batch = await asyncio.wait_for(waiting, 0.5)
    assert batch is not None
    assert batch.status == STATUS


async def test_what_a_request_says_within_a_tick_is_one_delta() -> None:
    session = Session(lambda: STATUS)
    session.push(tokens("a", "x"))
    session.push(tokens("b", "1"))
    session.push(tokens("a", "yz", FinishReason.STOP))
    session.push(EndDelta(request_id="a", outcome=Outcome.FINISHED))
    batch = await session.next_batch()
    assert batch is not None
    assert batch.deltas == (
        TokenDelta(request_id="a", text="xyz", token_ids=(1, 2), finish_reason=FinishReason.STOP),
        tokens("b", "1"),
        EndDelta(request_id="a", outcome=Outcome.FINISHED),
    )


async def test_first_and_last_deltas_are_urgent_and_the_rest_waits_for_the_tick() -> None:
    session = Session(lambda: STATUS)
    await session.next_batch()

    async def delay(*deltas: TokenDelta | EndDelta) -> float:
        await asyncio.sleep(0.05)  # a tick of silence, then two batches: the second one's delay counts
        session.push(tokens("other", "o"))
        await session.next_batch()
        for delta in deltas:
            session.push(delta)
        before = asyncio.get_running_loop().time()
        await session.next_batch()
        return asyncio.get_running_loop().time() - before

    session.push(tokens("a", "x"))
    await session.next_batch()
    middle = sorted([await delay(tokens("a", "y")) for _ in range(5)])[2]
    first = sorted([await delay(tokens(f"new-{i}", "y")) for i in range(5)])[2]
    last = sorted([await delay(EndDelta(request_id="a", outcome=Outcome.FINISHED)) for _ in range(5)])[2]
    assert middle > 0.010
    assert first < middle
    assert last < middle


async def test_a_closed_session_says_what_is_pending_and_ends() -> None:
    session = Session(lambda: STATUS)
    session.push(tokens("a", "x"))
    session.close()
    batch = await session.next_batch()
    assert batch is not None
    assert batch.deltas == (tokens("a", "x"),)
    assert await session.next_batch() is None


async def test_closing_ends_a_stream_that_waits() -> None:
    session = Session(lambda: STATUS)
    await session.next_batch()
    waiting = asyncio.ensure_future(session.next_batch())
    await asyncio.sleep(0.01)
    session.close()
    assert await asyncio.wait_for(waiting, 0.5) is None


def test_a_lease_lapses_unless_renewed() -> None:
    now = 0.0
    session = Session(lambda: STATUS, clock=lambda: now)
    now = 9.0
    assert not session.lapsed
    session.renew()
    now = 18.0
    assert not session.lapsed
    now = 20.0
    assert session.lapsed
