"""A client for the REST API, blocking and for asyncio."""

from clients.rest.answers import (
    Choice,
    ChoiceDelta,
    ChoiceLogprobs,
    ChosenTokenLogprob,
    Completion,
    CompletionChunk,
    TokenLogprob,
    UsageCounts,
)
from clients.rest.client import AsyncMultimodalClient, MultimodalClient
from clients.rest.errors import (
    ApiError,
    ConnectionFailed,
    InvalidRequestError,
    MultimodalError,
    PictureError,
    RateLimitError,
    ServerError,
    TimedOut,
    UnexpectedAnswer,
)
from clients.rest.pictures import Picture
from clients.rest.requests import Sampling
from clients.rest.retry import RetryPolicy

__all__ = [
    "ApiError",
    "AsyncMultimodalClient",
    "Choice",
    "ChoiceDelta",
    "ChoiceLogprobs",
    "ChosenTokenLogprob",
    "Completion",
    "CompletionChunk",
    "ConnectionFailed",
    "InvalidRequestError",
    "MultimodalClient",
    "MultimodalError",
    "Picture",
    "PictureError",
    "RateLimitError",
    "RetryPolicy",
    "Sampling",
    "ServerError",
    "TimedOut",
    "TokenLogprob",
    "UnexpectedAnswer",
    "UsageCounts",
]
