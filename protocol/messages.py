"""Messages between gateway and worker.

The life of a request::

    gateway ── Control[Submit] ──▶ worker        refused or accepted, the answer comes as deltas
    gateway ◀── DeltaBatch[TokenDelta …] ── worker
    gateway ── Control[Cancel] ──▶ worker        optional, at any time
    gateway ◀── DeltaBatch[EndDelta] ── worker   exactly one for each submitted request

A session is one gateway process. Its deltas stream is opened first; any control call renews the session's lease, and
a session whose lease lapses is closed with all its requests: Triton does not tell a model that a caller went away.
Triton keeps all responses of a stream until it ends, so now and then the worker ends it and the gateway opens the next.

The types are msgspec structs: checked when decoded, so that a worker may trust what it reads from any Triton client.
"""

from __future__ import annotations

from enum import Enum
from typing import Annotated

from msgspec import Meta, Struct, field

PROTOCOL_VERSION = 4

LEASE_SECONDS = 10.0
"""A session that sent no control message for so long is closed and its requests are cancelled."""

HEARTBEAT_SECONDS = 1.0
"""The worker sends a batch at least this often, an empty one when there is nothing to say."""

Identifier = Annotated[str, Meta(min_length=1, max_length=128)]
StopString = Annotated[str, Meta(min_length=1, max_length=256)]
Role = Annotated[str, Meta(pattern="^(system|user|assistant)$")]
TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Bias = Annotated[float, Meta(ge=-100.0, le=100.0)]


class JsonGrammar(Struct, frozen=True, tag="json"):
    """The answer is one JSON document."""

    schema: str | None = None
    """A JSON Schema, as JSON text; ``None``: any JSON object."""


class RegexGrammar(Struct, frozen=True, tag="regex"):
    """The whole answer matches a regular expression."""

    pattern: Annotated[str, Meta(min_length=1)]


Grammar = JsonGrammar | RegexGrammar


class SamplingParameters(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How tokens are chosen, and when to stop. The same names, ranges and defaults as in the REST API."""

    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    """Tokens to generate at most; ``None``: as many as the context has room for."""
    temperature: Annotated[float, Meta(ge=0.0, le=2.0)] = 1.0
    """0 is greedy decoding."""
    top_k: Annotated[int, Meta(ge=0, le=2**31 - 1)] = 0
    """Sample among the k likeliest tokens; 0 is all of them."""
    top_p: Annotated[float, Meta(ge=0.0, le=1.0)] = 1.0
    """Sample among the likeliest tokens whose probabilities add up to p; 0 leaves only the likeliest."""
    min_p: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.0
    """Drop tokens less likely than this part of the likeliest one's probability; 0 drops none."""
    repetition_penalty: Annotated[float, Meta(gt=0.0, le=10.0)] = 1.0
    """Divides positive logits and multiplies negative ones of tokens in prompt or answer so far; 1 does nothing."""
    presence_penalty: Annotated[float, Meta(ge=-2.0, le=2.0)] = 0.0
    """Subtracted from the logit of each token in the answer so far."""
    frequency_penalty: Annotated[float, Meta(ge=-2.0, le=2.0)] = 0.0
    """Subtracted from the logit of each token once for every time that the answer so far has it."""
    logit_bias: Annotated[dict[TokenId, Bias], Meta(max_length=1024)] = {}
    """Added to the logits of these tokens."""
    grammar: Grammar | None = None
    """What the answer must be; tokens that would break it are never chosen."""
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    """Makes sampling repeatable; ``None``: drawn anew for each request."""
    stop: Annotated[tuple[StopString, ...], Meta(max_length=16)] = ()
    """Generation ends before the first of these strings; it is not part of the text."""
    ignore_eos: bool = False
    """Go on after the end-of-sequence token (for measurements)."""
    n: Annotated[int, Meta(ge=1, le=16)] = 1
    """Choices, each drawn on its own; each takes one place in the worker's queue."""
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    """Tell the log probability of each chosen token and of so many likeliest ones; ``None``: of none."""


class TextPart(Struct, frozen=True, tag="text"):
    """User text. It is always text: special tokens typed into it stay plain characters."""

    text: str


class PicturePart(Struct, frozen=True, tag="picture"):
    """The place of one picture, given by its index in :attr:`Submit.pictures`."""

    index: Annotated[int, Meta(ge=0)]


class ChatMessage(Struct, frozen=True):
    """One turn of a conversation, rendered by the checkpoint's own chat template."""

    role: Role
    content: tuple[TextPart | PicturePart, ...]


class Submit(Struct, frozen=True, kw_only=True, tag="submit", weakref=True):
    """Asks for one generation."""

    request_id: Identifier
    model: str
    messages: tuple[ChatMessage, ...] = ()
    rendered_prompt: str | None = None
    """In place of messages, from callers that apply the chat template themselves: special tokens in it are special."""
    pictures: tuple[bytes, ...] = ()
    """Encoded pictures (PNG, JPEG, …), as the caller sent them."""
    sampling: SamplingParameters = SamplingParameters()
    deadline_seconds: Annotated[float, Meta(gt=0.0)] | None = None
    """Seconds from arrival at the worker after which the request fails with ``DEADLINE_EXCEEDED``."""
    return_prompt_token_ids: bool = False
    prompt_only: bool = False
    """Prepare the prompt and tell its tokens, but generate nothing."""
    cache_salt: Identifier | None = None
    """Requests reuse cached results of their own salt alone, so that tenants cannot probe each other's prompts."""
    http_request_id: Identifier | None = None
    """The ``X-Request-Id`` by which the caller knows the request, for the worker's log."""
    trace_parent: Annotated[str, Meta(max_length=128)] | None = None
    """The caller's span, as in W3C Trace Context's ``traceparent``, where requests are traced."""

    def __post_init__(self) -> None:
        if bool(self.messages) == (self.rendered_prompt is not None):
            raise ValueError("either messages or rendered_prompt is needed")


class Cancel(Struct, frozen=True, tag="cancel"):
    """Ends a request early. Unknown and already ended requests are no error: the two may cross on the way."""

    request_id: Identifier


class OpenSession(Struct, frozen=True):
    """The one message that opens a deltas stream."""

    session_id: Identifier
    protocol_version: int = PROTOCOL_VERSION
    resume: bool = False
    """The session is there already, and this stream goes on where one that ended with ``DeltaBatch.resume`` stopped."""


class Control(Struct, frozen=True):
    """Messages of one session, in order. An empty list only renews the lease."""

    session_id: Identifier
    messages: tuple[Submit | Cancel, ...] = ()


class ControlReply(Struct, frozen=True):
    """Whether the worker took the messages. It knows no session that it did not see opened, or whose lease lapsed."""

    session_id: str
    """Of the call that this answers: a Triton that lost count of its Python models' answers gives those of others."""
    session_known: bool


class ErrorCode(str, Enum):
    """Why a request failed; the gateway turns each into one HTTP status."""

    INVALID_REQUEST = "invalid_request"
    INVALID_PICTURE = "invalid_picture"
    MODEL_NOT_FOUND = "model_not_found"
    QUEUE_FULL = "queue_full"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    UNAVAILABLE = "unavailable"
    INTERNAL = "internal"


class RequestError(Struct, frozen=True):
    """A failure told to the caller: a sentence of our own, never a library's words, a path or a traceback."""

    code: ErrorCode
    message: str
    param: str | None = None
    """The request field at fault, if one is."""


class FinishReason(str, Enum):
    """Why a choice ended."""

    STOP = "stop"
    LENGTH = "length"


class Usage(Struct, frozen=True):
    """Token counts of one request; ``image_tokens`` are part of ``prompt_tokens``."""

    prompt_tokens: int
    image_tokens: int
    completion_tokens: int
    """Those of all choices."""
    cached_tokens: int = 0
    """Those of the prompt tokens that were not computed again; with several choices, those of the first."""


class LikelyToken(Struct, frozen=True):
    """A token and how likely it was, before temperature and the other sampling parameters."""

    token_id: int
    token: bytes
    """UTF-8, but a token may be part of a character."""
    logprob: float


class ChosenToken(LikelyToken, frozen=True):
    """The token that was drawn."""

    likeliest: tuple[LikelyToken, ...] = ()
    """As many as were asked for, likeliest first."""


class Timings(Struct, frozen=True):
    """Where a request's time went, in seconds; of the first choice where there are several."""

    prepare: float = 0.0
    """Pictures decoded and resized, template rendered, text tokenized; waiting for a thread included."""
    queue: float = 0.0
    """Until the engine began with it."""
    prefill: float = 0.0
    """Until the first token."""
    decode: float = 0.0
    """Until the last token."""


class TokenDelta(Struct, frozen=True, kw_only=True, tag="tokens"):
    """New tokens of one choice."""

    request_id: str
    index: int = 0
    """The choice."""
    text: str = ""
    """Text that became certain: whole characters, and nothing that may turn out to be a stop string."""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[ChosenToken, ...] = ()
    """One for each of ``token_ids`` where they were asked for."""
    finish_reason: FinishReason | None = None
    """Set on the last delta of a choice."""
    prompt_token_ids: tuple[int, ...] | None = None
    """On the first delta of a request that asked for them."""


class Outcome(str, Enum):
    """How a request ended."""

    FINISHED = "finished"
    CANCELLED = "cancelled"
    FAILED = "failed"


class EndDelta(Struct, frozen=True, kw_only=True, tag="end"):
    """The terminal delta: exactly one for each request, the last that is said of it."""

    request_id: str
    outcome: Outcome
    usage: Usage | None = None
    timings: Timings | None = None
    """Of requests whose prompt was prepared."""
    error: RequestError | None = None
    """Set when the outcome is ``FAILED``."""


Delta = TokenDelta | EndDelta


class EngineCounters(Struct, frozen=True):
    """Counts since the worker started; they only grow."""

    preemptions: int = 0
    """Times that a request had to give its KV blocks back."""
    steps: int = 0
    step_seconds: float = 0.0
    """Time spent in steps."""
    prefill_tokens: int = 0
    """Prompt tokens computed, those computed again after a preemption included."""
    decode_tokens: int = 0
    """Tokens sampled."""
    prefix_queries: int = 0
    """Prompt tokens looked up in the prefix cache."""
    prefix_hits: int = 0
    """Those that were found."""
    picture_queries: int = 0
    """Pictures looked up among those encoded before."""
    picture_hits: int = 0
    """Those that were found."""


class WorkerStatus(Struct, frozen=True):
    """What the worker says of itself with each heartbeat."""

    ready: bool
    """A generation submitted now would succeed."""
    model: str
    context_length: int
    """Prompt and generated tokens together, at most."""
    running: int = 0
    waiting: int = 0
    kv_cache_usage: float = 0.0
    """Part of the KV blocks that requests in flight hold, 0 to 1."""
    counters: EngineCounters = EngineCounters()


class DeltaBatch(Struct, frozen=True):
    """One response on the deltas stream: all that happened since the last one."""

    deltas: tuple[Delta, ...] = field(default=())
    status: WorkerStatus | None = None
    """Sent with the first batch of a session and with every heartbeat."""
    refusal: RequestError | None = None
    """The session itself was refused (another protocol version, say); the stream ends."""
    resume: bool = False
    """The stream ends and the session goes on: the gateway is to open another one with ``OpenSession.resume``."""
