"""A worker without a model: a gRPC server that answers the two Triton calls, each prompt with what it asks for.

``echo`` is the default: the prompt's words come back as tokens. The first word of a prompt may choose another script.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import msgspec
import numpy as np
from msgspec.structs import replace
from tritonclient.grpc import service_pb2, service_pb2_grpc

from protocol.messages import (
    HEARTBEAT_SECONDS,
    Cancel,
    ChosenToken,
    Control,
    ControlReply,
    Delta,
    DeltaBatch,
    EndDelta,
    ErrorCode,
    FinishReason,
    LikelyToken,
    OpenSession,
    Outcome,
    RequestError,
    Submit,
    TextPart,
    Timings,
    TokenDelta,
    Usage,
    WorkerStatus,
)
from protocol.wire import CONTROL_MODEL, DELTAS_MODEL, MESSAGE_TENSOR, encode, from_tensor

MODEL = "scripted"
Send = Callable[[Delta], None]
Script = Callable[[Submit, list[str], Send], Awaitable[None]]


def prompt_of(submit: Submit) -> str:
    return "".join(part.text for part in submit.messages[-1].content if isinstance(part, TextPart))


def token(submit: Submit, text: str, token_id: int, **more: Any) -> TokenDelta:
    return TokenDelta(request_id=submit.request_id, text=text, token_ids=(token_id,), **more)


def finished(submit: Submit, completion_tokens: int) -> EndDelta:
    prompt_tokens = 10 + 4 * len(submit.pictures)
    usage = Usage(
        prompt_tokens, image_tokens=4 * len(submit.pictures), completion_tokens=completion_tokens, cached_tokens=2
    )
    timings = Timings(prepare=0.5, queue=0.25, prefill=2, decode=4)
    return EndDelta(request_id=submit.request_id, outcome=Outcome.FINISHED, usage=usage, timings=timings)


def failed(submit: Submit, code: str) -> EndDelta:
    error = RequestError(ErrorCode(code), f"Scripted: {code}.", "prompt" if code == "invalid_request" else None)
    return EndDelta(request_id=submit.request_id, outcome=Outcome.FAILED, error=error)


def logprobs(submit: Submit, text: bytes, token_id: int) -> tuple[ChosenToken, ...]:
    """Of one token: the k-th likeliest has the log probability -k, and its text a mark for each step down."""
    if submit.sampling.logprobs is None:
        return ()
    likeliest = tuple(LikelyToken(token_id + k, text + k * b"~", -float(k)) for k in range(submit.sampling.logprobs))
    return (ChosenToken(token_id, text, 0.0, likeliest),)


async def echo(submit: Submit, words: list[str], send: Send, pause: float = 0.0) -> None:
    """Each choice after the first says its number too, after the words."""
    prompt_ids = (1, 2, 3) if submit.return_prompt_token_ids else None
    choices = [words] + [[*words, f"#{index}"] for index in range(1, submit.sampling.n)]
    for i in range(max(map(len, choices))):
        for index, said in enumerate(choices):
            if i < len(said):
                text = said[i] if i == 0 else f" {said[i]}"
                send(
                    token(
                        submit,
                        text,
                        100 + i,
                        index=index,
                        logprobs=logprobs(submit, text.encode(), 100 + i),
                        prompt_token_ids=prompt_ids if i == index == 0 else None,
                        finish_reason=FinishReason.STOP if i == len(said) - 1 else None,
                    )
                )
        await asyncio.sleep(pause)
    send(finished(submit, sum(map(len, choices))))


async def emoji(submit: Submit, words: list[str], send: Send) -> None:
    """A character of two tokens, of which the first has no text yet; the second is all but impossible."""
    face = "😀".encode()
    halves = [replace(logprobs(submit, half, 7)[0], logprob=p) for half, p in ((face[:2], -0.5), (face[2:], -math.inf))]
    send(token(submit, "Hi", 6, logprobs=logprobs(submit, b"Hi", 6)))
    send(token(submit, "", 7, logprobs=(halves[0],)))
    send(token(submit, "😀", 8, logprobs=(halves[1],)))
    send(token(submit, "!", 9, logprobs=logprobs(submit, b"!", 9), finish_reason=FinishReason.STOP))
    send(finished(submit, 4))


async def json_answer(submit: Submit, words: list[str], send: Send) -> None:
    send(token(submit, '{"color": "red", "sides": 3}', 1, finish_reason=FinishReason.STOP))
    send(finished(submit, 1))


async def tell_prompt(submit: Submit, words: list[str], send: Send) -> None:
    """What is sent for ``prompt_only``: ten tokens, and four for each picture."""
    count = 10 + 4 * len(submit.pictures)
    send(TokenDelta(request_id=submit.request_id, prompt_token_ids=tuple(range(count))))
    send(finished(submit, 0))


async def slowly(submit: Submit, words: list[str], send: Send) -> None:
    await echo(submit, words[1:], send, pause=0.03)


async def fail(submit: Submit, words: list[str], send: Send) -> None:
    send(failed(submit, words[1]))


async def fail_late(submit: Submit, words: list[str], send: Send) -> None:
    send(token(submit, "so far", 1))
    await asyncio.sleep(0.05)
    send(failed(submit, words[1]))


async def hang(submit: Submit, words: list[str], send: Send) -> None:
    await asyncio.Event().wait()


async def start_and_hang(submit: Submit, words: list[str], send: Send) -> None:
    send(token(submit, "so far", 1))
    await asyncio.Event().wait()


async def flood(submit: Submit, words: list[str], send: Send) -> None:
    count = int(words[1])
    for i in range(count):
        send(token(submit, f"{i} " + "x" * 200 + "\n", i))
        if i % 500 == 0:
            await asyncio.sleep(0)
    send(finished(submit, count))


async def give_up(submit: Submit, words: list[str], send: Send) -> None:
    send(EndDelta(request_id=submit.request_id, outcome=Outcome.CANCELLED))


SCRIPTS: dict[str, Script] = {
    "emoji": emoji,
    "json": json_answer,
    "slowly": slowly,
    "fail": fail,
    "fail_late": fail_late,
    "hang": hang,
    "start_and_hang": start_and_hang,
    "flood": flood,
    "give_up": give_up,
}


class ScriptedWorker(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    def __init__(self) -> None:
        self.status = WorkerStatus(ready=True, model=MODEL, context_length=4096)
        self.triton_ready = True
        self.models_ready = True
        self.triton_seconds = 0.0
        self.silent = False
        self.delivered = 0
        self.knows_sessions = True
        self.mixes_up_replies = False
        self.refusal: RequestError | None = None
        self.refuses: RequestError | None = None
        """How each request ends, at once, if set."""
        self.call_seconds = 0.0
        self.submits: list[Submit] = []
        self.controls: list[Control] = []
        self.cancelled: list[str] = []
        self.session_ids: list[str] = []
        self.port = 0
        self._outgoing: dict[str, asyncio.Queue[Delta | None]] = {}
        self._moving: set[str] = set()
        self._running: dict[str, asyncio.Task[None]] = {}
        self._server: Any = None

    @property
    def url(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def start(self) -> None:
        options = [("grpc.max_receive_message_length", -1), ("grpc.so_reuseport", 0)]
        self._server = grpc.aio.server(options=options)
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self._server.start()

    async def stop(self) -> None:
        """Dies as a process does: every line is cut."""
        await self._server.stop(None)
        for task in self._running.values():
            task.cancel()
        self._outgoing.clear()
        self._running.clear()

    def end_streams(self) -> None:
        for outgoing in self._outgoing.values():
            outgoing.put_nowait(None)

    def move_streams(self) -> None:
        """Each stream ends with what is said until then, and its session shall go on in another."""
        self._moving = set(self._outgoing)

    @property
    def running(self) -> int:
        return len(self._running)

    async def ServerReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        await asyncio.sleep(self.triton_seconds)
        return service_pb2.ServerReadyResponse(ready=self.triton_ready)

    async def ModelReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        known = request.name in (CONTROL_MODEL, DELTAS_MODEL, self.status.model)
        return service_pb2.ModelReadyResponse(ready=known and self.models_ready)

    async def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        assert request.model_name == CONTROL_MODEL
        control = _message(request, Control)
        self.controls.append(control)
        await asyncio.sleep(self.call_seconds)
        known = self.knows_sessions and control.session_id in self._outgoing
        if known:
            for message in control.messages:
                self._take(control.session_id, message)
        return _response(ControlReply("another" if self.mixes_up_replies else control.session_id, known))

    async def ModelStreamInfer(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:  # noqa: N802
        request = await anext(requests)
        assert request.model_name == DELTAS_MODEL
        opening = _message(request, OpenSession)
        session_id = opening.session_id
        self.session_ids.append(session_id)
        if not opening.resume:
            self._outgoing[session_id] = asyncio.Queue()
        if not opening.resume or self.refusal is not None:
            yield _stream_response(DeltaBatch(status=self.status, refusal=self.refusal))
        outgoing = self._outgoing[session_id]
        try:
            while True:
                try:
                    deltas = [await asyncio.wait_for(outgoing.get(), HEARTBEAT_SECONDS / 5)]
                except asyncio.TimeoutError:
                    deltas = []
                while not outgoing.empty():
                    deltas.append(outgoing.get_nowait())
                if None in deltas:
                    return
                if not self.silent:
                    resume = session_id in self._moving
                    yield _stream_response(DeltaBatch(tuple(deltas), self.status, resume=resume))  # type: ignore[arg-type]
                    self.delivered += len(deltas)
                    if resume:
                        return
        finally:
            if session_id in self._moving:
                self._moving.discard(session_id)
            else:
                self._outgoing.pop(session_id, None)

    def _take(self, session_id: str, message: Submit | Cancel) -> None:
        if isinstance(message, Cancel):
            self.cancelled.append(message.request_id)
            if task := self._running.get(message.request_id):
                task.cancel()
            return
        self.submits.append(message)
        if self.refuses is not None:
            end = EndDelta(request_id=message.request_id, outcome=Outcome.FAILED, error=self.refuses)
            self._outgoing[session_id].put_nowait(end)
            return
        task = asyncio.create_task(self._run(message, self._outgoing[session_id].put_nowait))
        self._running[message.request_id] = task

    async def _run(self, submit: Submit, send: Send) -> None:
        words = prompt_of(submit).split() or [""]
        script = SCRIPTS.get(words[0], tell_prompt if submit.prompt_only else echo)
        try:
            await script(submit, words, send)
        except asyncio.CancelledError:
            send(EndDelta(request_id=submit.request_id, outcome=Outcome.CANCELLED))
        finally:
            self._running.pop(submit.request_id, None)


def _message(request: Any, kind: Any) -> Any:
    assert request.inputs[0].name == MESSAGE_TENSOR
    assert request.inputs[0].datatype == "UINT8"
    return from_tensor(np.frombuffer(request.raw_input_contents[0], np.uint8), kind)


def _response(message: msgspec.Struct) -> Any:
    data = encode(message)
    response = service_pb2.ModelInferResponse(raw_output_contents=[data])
    response.outputs.add(name=MESSAGE_TENSOR, datatype="UINT8", shape=[len(data)])
    return response


def _stream_response(message: msgspec.Struct) -> Any:
    return service_pb2.ModelStreamInferResponse(infer_response=_response(message))
