"""The front: all requests and sessions of one worker, between Triton's callables and the engine process.

Everything here runs in one event loop, so nothing needs a lock; what takes long to prepare (pictures to decode, much
text to tokenize, a grammar to check) is prepared in a pool of threads.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from functools import partial

from protocol.messages import (
    PROTOCOL_VERSION,
    Cancel,
    Control,
    ControlReply,
    Delta,
    EndDelta,
    ErrorCode,
    OpenSession,
    Outcome,
    RequestError,
    Submit,
    TextPart,
    WorkerStatus,
)
from triton_worker.engine.messages import (
    Abort,
    CaptureProgress,
    EngineFailed,
    EngineReady,
    EngineStatus,
    FromEngine,
    Generate,
    LoadProgress,
    NewToken,
    StepOutput,
    ToEngine,
)
from triton_worker.processing.processor import Processor
from triton_worker.processing.refusal import RequestRefused
from triton_worker.serving.generation import Generation
from triton_worker.serving.session import Session
from triton_worker.serving.tracing import Tracing

logger = logging.getLogger(__name__)

ENGINE_SILENCE_SECONDS = 10.0
"""An engine that said nothing for so long is not ready. It says that it lives during a long step too."""

SHORT_CHARACTERS, SHORT_MESSAGES = 2048, 16
"""Prompts of at most so much text are prepared in the event loop."""

MAX_PICTURE_BYTES = 2 * 2**30
"""Pictures of all requests in the worker together; one request alone is always let in."""

_LOST = RequestError(ErrorCode.UNAVAILABLE, "The model went away while this request ran. Please try again.")
_RESTARTING = RequestError(ErrorCode.UNAVAILABLE, "The model is being started again. Please try again shortly.")
_NOT_COMPUTED = RequestError(ErrorCode.INTERNAL, "The request could not be computed; the worker's log says why.")
_STARTING = RequestError(ErrorCode.UNAVAILABLE, "The model is still being loaded. Please try again later.")
_NO_SESSION = RequestError(ErrorCode.UNAVAILABLE, "There is no such session any more.")
_STOPPING = RequestError(ErrorCode.UNAVAILABLE, "The model is shutting down. Please try again.")


@dataclass
class _Client:
    """A session and its requests."""

    session: Session
    generations: dict[str, Generation] = field(default_factory=dict)


@dataclass(frozen=True)
class _Place:
    """What one request of the engine's is to the front: a choice of a generation."""

    generation: Generation
    choice: int


class Front:
    """Admits requests, hands them to the engine and their tokens to the sessions."""

    def __init__(
        self,
        model: str,
        processor: Processor,
        to_engine: Callable[[ToEngine], None],
        preparing: Executor,
        max_requests: int,
        tracing: Tracing | None = None,
    ) -> None:
        """``max_requests``: how many may be in the worker at once, running and waiting; more are refused.

        Each choice of a request counts.
        """
        self._tracing = tracing
        self._model = model
        self._processor = processor
        self._to_engine = to_engine
        self._preparing = preparing
        self._max_requests = max_requests
        self._clients: dict[str, _Client] = {}
        # The engine's ids are our own: a gateway may use a request id again while tokens of its first use still come.
        self._engine_ids = itertools.count()
        self._places: dict[str, _Place] = {}
        self._picture_bytes: dict[Generation, int] = {}  # as sent, then as resized
        self._tasks: set[asyncio.Task[None]] = set()
        self._context_length: int | None = None
        self._picture_room: int | None = None
        self._engine_status = EngineStatus()
        self._engine_heard_at = time.monotonic()
        self._refusal: RequestError | None = _STARTING
        self._started = asyncio.Event()

    # -- sessions ------------------------------------------------------------------------------------------------------

    def open_session(self, message: OpenSession) -> Session | RequestError:
        """A new session, or the one to resume. Where there is one of a new one's id, its requests are cancelled."""
        if message.protocol_version != PROTOCOL_VERSION:
            return RequestError(
                ErrorCode.UNAVAILABLE,
                f"The gateway speaks protocol version {message.protocol_version}, the worker {PROTOCOL_VERSION}.",
            )
        if message.resume:
            client = self._clients.get(message.session_id)
            return _NO_SESSION if client is None else client.session
        self.close_session(message.session_id)
        session = Session(self._status)
        self._clients[message.session_id] = _Client(session)
        return session

    def close_session(self, session_id: str) -> None:
        """Cancel what a session asked for and end its stream."""
        client = self._clients.pop(session_id, None)
        if client is not None:
            for generation in list(client.generations.values()):
                generation.cancel()
            client.session.close()

    def control(self, message: Control) -> ControlReply:
        """Take a session's messages, and renew its lease."""
        client = self._clients.get(message.session_id)
        if client is None:
            return ControlReply(message.session_id, session_known=False)
        client.session.renew()
        for item in message.messages:
            match item:
                case Submit():
                    self._submit(client, item)
                case Cancel(request_id) if request_id in client.generations:
                    client.generations[request_id].cancel()
        return ControlReply(message.session_id, session_known=True)

    async def close_lapsed_sessions(self, period_seconds: float = 1.0) -> None:
        """Runs for ever: closes the sessions of gateways that went away."""
        while True:
            await asyncio.sleep(period_seconds)
            for session_id, client in list(self._clients.items()):
                if client.session.lapsed:
                    logger.warning("A gateway let its lease lapse; its %d requests end.", len(client.generations))
                    self.close_session(session_id)

    async def started(self) -> None:
        """Returns when requests are taken, or never will be."""
        await self._started.wait()

    # -- requests ------------------------------------------------------------------------------------------------------

    def generate(self, submit: Submit, emit: Callable[[Delta], None]) -> Generation:
        """Start one generation. ``emit`` takes its deltas, the terminal one last; at once if the request is refused."""
        if self._tracing is not None:
            emit = self._tracing.traced(submit, emit)
        generation = Generation(submit, emit)
        refusal = self._refused(submit)
        if refusal is not None:
            generation.fail(refusal)
            return generation
        engine_ids = [str(next(self._engine_ids)) for _ in range(_places_needed(submit))]
        for choice, engine_id in enumerate(engine_ids):
            self._places[engine_id] = _Place(generation, choice)
        self._picture_bytes[generation] = sum(map(len, submit.pictures))
        generation.on_end(lambda: self._release(generation, engine_ids))
        task = asyncio.ensure_future(self._run(engine_ids, submit, generation))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return generation

    def _submit(self, client: _Client, submit: Submit) -> None:
        if submit.request_id in client.generations:
            error = RequestError(ErrorCode.INVALID_REQUEST, "A request of the same id is still running.", "request_id")
            client.session.push(EndDelta(request_id=submit.request_id, outcome=Outcome.FAILED, error=error))
            return
        generation = self.generate(submit, client.session.push)
        if not generation.ended:
            client.generations[generation.request_id] = generation
            generation.on_end(lambda: client.generations.pop(generation.request_id))

    def _refused(self, submit: Submit) -> RequestError | None:
        """Why the request cannot be admitted, if it cannot."""
        if self._refusal is not None:
            return self._refusal
        if submit.model != self._model:
            return RequestError(
                ErrorCode.MODEL_NOT_FOUND, f"There is no model {submit.model!r}; this is {self._model!r}.", "model"
            )
        needed, free = _places_needed(submit), self._max_requests - len(self._places)
        if needed > self._max_requests:
            return RequestError(
                ErrorCode.INVALID_REQUEST, f"n is {needed}, but there are {self._max_requests} places in all.", "n"
            )
        if needed > free:
            full = f"n is {needed}, but only {free}" if free else "None"
            message = f"{full} of {self._max_requests} places are free. Please try again shortly."
            return RequestError(ErrorCode.QUEUE_FULL, message)
        held = sum(self._picture_bytes.values())
        if held and held + sum(map(len, submit.pictures)) > MAX_PICTURE_BYTES:
            return RequestError(ErrorCode.QUEUE_FULL, "Too many pictures are waiting. Please try again shortly.")
        return None

    async def _run(self, engine_ids: list[str], submit: Submit, generation: Generation) -> None:
        """Prepare the prompt and hand its choices to the engine; ends at the request's deadline at the latest."""
        deadline = submit.deadline_seconds
        loop = asyncio.get_running_loop()
        if deadline is not None:
            timer = loop.call_later(deadline, generation.fail, _deadline_error(deadline))
            generation.on_end(timer.cancel)
        try:
            prompt = await self._prepared(submit, engine_ids[0], generation)
        except asyncio.CancelledError:
            return
        except RequestRefused as refused:
            generation.fail(refused.error)
        except Exception:
            logger.exception("Request %s could not be prepared.", generation.name)
            generation.fail(
                RequestError(ErrorCode.INTERNAL, "The request could not be prepared; the worker's log says why.")
            )
        else:
            if not generation.ended:
                generation.prepared(prompt, self._processor.tokenizer)
                if submit.prompt_only:
                    generation.finish_without_answer()
                else:
                    self._hand_over(prompt, engine_ids, generation)

    async def _prepared(self, submit: Submit, engine_id: str, generation: Generation) -> Generate:
        """The prompt; a short one at once: to hand it to a thread and back would take longer than to prepare it."""
        assert self._context_length is not None
        prepare = partial(self._processor.prepare, submit, engine_id, self._context_length, self._picture_room)
        if _is_short(submit):
            return prepare()
        preparing = self._preparing.submit(prepare)
        generation.on_end(preparing.cancel)  # one that still waits for a thread need not be prepared
        return await asyncio.wrap_future(preparing)

    def _hand_over(self, prompt: Generate, engine_ids: list[str], generation: Generation) -> None:
        """Give the engine one request for each choice: the same but for its seed."""
        self._picture_bytes[generation] = sum(picture.pixels.nbytes for picture in prompt.pictures) * len(engine_ids)
        for choice, engine_id in enumerate(engine_ids):
            self._to_engine(replace(prompt, request_id=engine_id, seed=_wrapped(prompt.seed + choice)))

    def _release(self, generation: Generation, engine_ids: list[str]) -> None:
        del self._picture_bytes[generation]
        for engine_id in engine_ids:
            self._release_place(engine_id)

    def _release_place(self, engine_id: str) -> None:
        if self._places.pop(engine_id, None) is not None:
            # Harmless when the engine ended it itself; needed when a stop string, a deadline or the caller did.
            self._to_engine(Abort(engine_id))

    # -- engine --------------------------------------------------------------------------------------------------------

    def on_engine_message(self, message: FromEngine) -> None:
        """Take what the engine process said."""
        self._engine_heard_at = time.monotonic()
        match message:
            case StepOutput(tokens, failed, status):
                self._engine_status = status
                for token in tokens:
                    self._push(token)
                for engine_id in failed:
                    if (place := self._places.get(engine_id)) is not None:
                        logger.error("Request %s (%s in the engine) failed.", place.generation.name, engine_id)
                        place.generation.fail(_NOT_COMPUTED)
            case EngineReady(context_length, picture_room):
                self._context_length, self._picture_room = context_length, picture_room
                if self._refusal is not _STOPPING:
                    self._refusal = None
                self._started.set()
                self._tell_status()
            case EngineFailed() | LoadProgress() | CaptureProgress():
                pass  # the worker process deals with these

    def _push(self, token: NewToken) -> None:
        place = self._places.get(token.request_id)
        if place is None:
            return
        try:
            if place.generation.push(place.choice, token):
                self._release_place(token.request_id)
        except Exception:
            logger.exception("Request %s: a token could not be taken.", place.generation.name)
            place.generation.fail(_NOT_COMPUTED)

    def on_engine_exit(self) -> None:
        """The engine is gone: end every request, and take no more until another is ready."""
        self._engine_status = EngineStatus()
        refusal = self._refusal if self._refusal is _STOPPING else _RESTARTING
        self._end_all(_LOST)
        self._refusal = refusal
        self._tell_status()

    def on_triton_exit(self) -> None:
        """Triton is gone, and with it everyone who waits for an answer: end every request and every stream."""
        self._fail_all(_LOST)
        for session_id in list(self._clients):
            self.close_session(session_id)

    def drain(self) -> None:
        """Take no more requests; those in flight go on."""
        self._refusal = _STOPPING

    @property
    def engine_step_seconds(self) -> float:
        """Since the engine's last step ended, as the engine tells it."""
        return self._engine_status.step_seconds

    @property
    def idle(self) -> bool:
        """Whether no request is in flight."""
        return not self._places

    def stop(self) -> None:
        """End every request and every stream."""
        self._end_all(_STOPPING)
        for client in self._clients.values():
            client.session.close()

    def _end_all(self, error: RequestError) -> None:
        self._refusal = error
        self._started.set()
        self._fail_all(error)

    def _fail_all(self, error: RequestError) -> None:
        for place in list(self._places.values()):
            place.generation.fail(error)

    def _tell_status(self) -> None:
        for client in self._clients.values():
            client.session.tell_status()

    def _status(self) -> WorkerStatus:
        engine_lives = time.monotonic() - self._engine_heard_at < ENGINE_SILENCE_SECONDS
        return WorkerStatus(
            ready=self._refusal is None and engine_lives,
            model=self._model,
            context_length=self._context_length or 0,
            running=self._engine_status.running,
            waiting=self._engine_status.waiting,
            kv_cache_usage=self._engine_status.kv_cache_usage,
            counters=self._engine_status.counters,
        )


def _places_needed(submit: Submit) -> int:
    return 1 if submit.prompt_only else submit.sampling.n


def _is_short(submit: Submit) -> bool:
    """Whether it is text alone, and so little that it is prepared in a fraction of a millisecond."""
    parts = [part for message in submit.messages for part in message.content]
    texts = [part.text for part in parts if isinstance(part, TextPart)] + [submit.rendered_prompt or ""]
    small = len(submit.messages) <= SHORT_MESSAGES and sum(map(len, texts)) <= SHORT_CHARACTERS
    return small and not submit.pictures and submit.sampling.grammar is None


def _wrapped(seed: int) -> int:
    """``seed`` within the 64 bits of a signed integer."""
    return (seed + 2**63) % 2**64 - 2**63


def _deadline_error(seconds: float) -> RequestError:
    return RequestError(ErrorCode.DEADLINE_EXCEEDED, f"The request was not finished within its {seconds:g} seconds.")
