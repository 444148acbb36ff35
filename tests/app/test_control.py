"""Which control messages travel together, and in which order."""

import asyncio

import pytest

from app.worker.control import LARGE_BYTES, LARGE_CALLS, ControlSender
from app.worker.inbox import MERGE_AT, Inbox, merged
from app.worker.triton import LinkError
from protocol.messages import (
    Cancel,
    ChatMessage,
    Control,
    ControlReply,
    Delta,
    EndDelta,
    FinishReason,
    Outcome,
    Submit,
    TextPart,
    TokenDelta,
)

TAKEN = ControlReply("s", session_known=True)


class Calls:
    """Stands for the link: each call waits until it is let go."""

    def __init__(self) -> None:
        self.open: list[tuple[Control, asyncio.Future[ControlReply]]] = []
        self.failed: list[str] = []
        self.unknown = False
        self.sender = ControlSender("s", self.call, self.failed.extend, self.session_unknown)

    def session_unknown(self) -> None:
        self.unknown = True

    async def call(self, control: Control) -> ControlReply:
        answered: asyncio.Future[ControlReply] = asyncio.get_running_loop().create_future()
        self.open.append((control, answered))
        return await answered

    async def seen(self) -> list[list[str]]:
        await asyncio.sleep(0.01)
        return [[f"{type(m).__name__} {m.request_id}" for m in control.messages] for control, _ in self.open]

    def answer(self, i: int, reply: ControlReply | Exception = TAKEN) -> None:
        _, answered = self.open.pop(i)
        if isinstance(reply, Exception):
            answered.set_exception(reply)
        else:
            answered.set_result(reply)


def submit(request_id: str, size: int = 0) -> Submit:
    message = ChatMessage("user", (TextPart("x"),))
    return Submit(request_id=request_id, model="m", messages=(message,), pictures=(bytes(size),))


@pytest.fixture
async def calls() -> Calls:
    return Calls()


async def test_what_is_said_while_a_call_is_under_way_goes_together(calls: Calls) -> None:
    calls.sender.submit(submit("a"))
    assert await calls.seen() == [["Submit a"]]
    for name in "bcd":
        calls.sender.submit(submit(name))
    assert await calls.seen() == [["Submit a"]]
    calls.answer(0)
    assert await calls.seen() == [["Submit b", "Submit c", "Submit d"]]


async def test_cancel_of_what_was_not_sent_yet_says_nothing(calls: Calls) -> None:
    calls.sender.submit(submit("a"))
    calls.sender.cancel("a")
    assert await calls.seen() == []


async def test_cancel_follows_its_own_submit(calls: Calls) -> None:
    calls.sender.submit(submit("big", LARGE_BYTES))
    assert await calls.seen() == [["Submit big"]]
    calls.sender.cancel("big")
    calls.sender.cancel("other")
    assert await calls.seen() == [["Submit big"], ["Cancel other"]]
    calls.answer(1)
    calls.answer(0)
    assert await calls.seen() == [["Cancel big"]]


async def test_small_messages_do_not_wait_for_pictures(calls: Calls) -> None:
    for i in range(LARGE_CALLS + 2):
        calls.sender.submit(submit(f"big{i}", 2**20))
        await calls.seen()
    calls.sender.submit(submit("small"))
    calls.sender.cancel("early")
    assert len(await calls.seen()) == LARGE_CALLS + 1
    assert (await calls.seen())[-1] == ["Submit small", "Cancel early"]


async def test_failed_call(calls: Calls) -> None:
    calls.sender.submit(submit("a"))
    calls.sender.cancel("b")
    await calls.seen()
    calls.answer(0, LinkError("gone"))
    await asyncio.sleep(0.3)
    assert calls.failed == ["a"]
    control, _ = calls.open[0]
    assert {m.request_id for m in control.messages if isinstance(m, Cancel)} == {"a", "b"}


async def test_unknown_session(calls: Calls) -> None:
    calls.sender.submit(submit("a"))
    await calls.seen()
    calls.answer(0, ControlReply("s", session_known=False))
    await calls.seen()
    assert calls.unknown


async def test_close(calls: Calls) -> None:
    calls.sender.submit(submit("a"))
    await calls.seen()
    calls.sender.submit(submit("b"))
    await calls.sender.close()
    calls.sender.cancel("a")
    assert len(await calls.seen()) == 1


def tokens(text: str, *ids: int, index: int = 0, finish: FinishReason | None = None) -> TokenDelta:
    return TokenDelta(request_id="r", index=index, text=text, token_ids=ids, finish_reason=finish)


def test_merging_keeps_text_order_and_end() -> None:
    end = EndDelta(request_id="r", outcome=Outcome.FINISHED)
    deltas: list[Delta] = [
        TokenDelta(request_id="r", text="a", token_ids=(1,), prompt_token_ids=(9,)),
        tokens("x", 5, index=1),
        tokens("b", 2, 3, finish=FinishReason.LENGTH),
        tokens("y", 6, index=1),
        end,
    ]
    assert merged(deltas) == [
        TokenDelta(
            request_id="r",
            text="ab",
            token_ids=(1, 2, 3),
            finish_reason=FinishReason.LENGTH,
            prompt_token_ids=(9,),
        ),
        tokens("xy", 5, 6, index=1),
        end,
    ]


async def test_inbox_stays_small() -> None:
    inbox = Inbox()
    for i in range(10 * MERGE_AT):
        inbox.put(tokens(f"{i} ", i))
        assert len(inbox._deltas) <= MERGE_AT
    (delta,) = await inbox.take()
    assert isinstance(delta, TokenDelta)
    assert delta.token_ids == tuple(range(10 * MERGE_AT))
