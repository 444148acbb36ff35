"""A front whose engine only records what it is told."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from protocol.messages import (
    ChatMessage,
    Control,
    DeltaBatch,
    EndDelta,
    FinishReason,
    OpenSession,
    Submit,
    TextPart,
    TokenDelta,
)
from triton_worker.checkpoint import open_checkpoint
from triton_worker.engine.messages import (
    EngineReady,
    Generate,
    NewToken,
    StepOutput,
    ToEngine,
)
from triton_worker.models.qwen_vl.prompts import prompt_format
from triton_worker.processing.pictures import PictureLimits
from triton_worker.processing.processor import Processor
from triton_worker.serving.front import Front
from triton_worker.serving.session import Session

FIXTURE = Path(__file__).parents[2] / "fixtures" / "nemo2-qwen25vl-tiny"


class Harness:
    """A front, one session, and what the engine was told."""

    def __init__(self, processor: Processor, max_requests: int = 4) -> None:
        self.to_engine: list[ToEngine] = []
        self._executor = ThreadPoolExecutor(1)
        self.processor = processor
        self.front = Front("tiny", processor, self.to_engine.append, self._executor, max_requests)
        self.front.on_engine_message(EngineReady(context_length=128))
        self.session = self.open("s")
        self.said: list[TokenDelta | EndDelta] = []

    def open(self, session_id: str) -> Session:
        session = self.front.open_session(OpenSession(session_id))
        assert isinstance(session, Session)
        return session

    def submit(self, request_id: str, text: str = "hi", **fields: object) -> None:
        message = ChatMessage("user", (TextPart(text),))
        submit = Submit(**{"request_id": request_id, "model": "tiny", "messages": (message,), **fields})  # type: ignore[arg-type]
        assert self.front.control(Control("s", (submit,))).session_known

    async def generate(self, request_id: str, text: str = "hi", **fields: object) -> Generate:
        """Submit, and wait until the engine has it."""
        before = len(self.to_engine)
        self.submit(request_id, text, **fields)
        while len(self.to_engine) == before:
            await asyncio.sleep(0.001)
        generate = self.to_engine[before]
        assert isinstance(generate, Generate)
        return generate

    def tokens(self, engine_id: str, text: str, finish: FinishReason | None = None) -> None:
        """Let the engine say `text`, one token a character."""
        ids = self.processor.tokenizer.encode_template(text, "\ue000")
        for place, token_id in enumerate(ids):
            last = place == len(ids) - 1
            token = NewToken(engine_id, token_id, finish if last else None)
            self.front.on_engine_message(StepOutput((token,)))

    async def end_of(self, request_id: str) -> EndDelta:
        while True:
            for delta in self.said:
                if isinstance(delta, EndDelta) and delta.request_id == request_id:
                    return delta
            batch = await asyncio.wait_for(self.session.next_batch(), 5)
            assert isinstance(batch, DeltaBatch)
            self.said += batch.deltas

    def text_of(self, request_id: str) -> str:
        return "".join(d.text for d in self.said if isinstance(d, TokenDelta) and d.request_id == request_id)


@pytest.fixture(scope="module")
def processor() -> Processor:
    checkpoint = open_checkpoint(FIXTURE)
    return Processor(checkpoint, prompt_format(checkpoint), PictureLimits())


@pytest.fixture
def harness(processor: Processor) -> Harness:
    return Harness(processor)
