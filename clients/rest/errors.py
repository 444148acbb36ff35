"""Everything that the client raises."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus

import httpx
import msgspec


class MultimodalError(Exception):
    """What all of them have in common: the message is a sentence for the person who meets it."""


class PictureError(MultimodalError, ValueError):
    """A picture cannot be read; nothing was sent."""


class ConnectionFailed(MultimodalError):
    """The server could not be reached, or the line broke."""


class TimedOut(MultimodalError):
    """The server said nothing for longer than the client's timeout."""


class UnexpectedAnswer(MultimodalError):
    """The answer is none of this API's."""


class ApiError(MultimodalError):
    """The server refused the request, or failed. The attributes are those of the API's error object."""

    def __init__(
        self,
        message: str,
        *,
        type: str,
        code: str,
        status: int,
        param: str | None = None,
        retry_after: float | None = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.type = type
        self.code = code
        """For programs: ``queue_full``, for example."""
        self.param = param
        """The field at fault, if one is."""
        self.status = status
        """The HTTP status: 200 for a failure in the middle of a stream."""
        self.retry_after = retry_after
        """The seconds that the server asks to wait before the next attempt."""
        self.request_id = request_id
        """What the server's log has it under."""


class InvalidRequestError(ApiError):
    """The request cannot be answered as it is."""


class RateLimitError(ApiError):
    """Too many requests are waiting."""


class ServerError(ApiError):
    """The server failed, is starting, or ran into its time limit."""


_BY_TYPE: dict[str, type[ApiError]] = {
    "invalid_request_error": InvalidRequestError,
    "rate_limit_error": RateLimitError,
    "server_error": ServerError,
}


class ErrorObject(msgspec.Struct):
    """The API's error object."""

    message: str
    type: str
    code: str
    param: str | None = None


class _Envelope(msgspec.Struct):
    error: ErrorObject


def api_error(response: httpx.Response) -> ApiError:
    """The error that a response, read, stands for; also that of a proxy, which knows nothing of our envelope."""
    try:
        error = msgspec.json.decode(response.content, type=_Envelope).error
    except msgspec.DecodeError:
        error = _foreign_error(response.status_code)
    return api_error_from(error, response)


def api_error_from(error: ErrorObject, response: httpx.Response) -> ApiError:
    """The exception for an error object that came with ``response``."""
    return _BY_TYPE.get(error.type, ApiError)(
        error.message,
        type=error.type,
        code=error.code,
        param=error.param,
        status=response.status_code,
        retry_after=_seconds(response.headers.get("Retry-After")),
        request_id=response.headers.get("X-Request-Id"),
    )


def _foreign_error(status: int) -> ErrorObject:
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = "unknown"
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        kind = "rate_limit_error"
    else:
        kind = "server_error" if status >= HTTPStatus.INTERNAL_SERVER_ERROR else "invalid_request_error"
    code = phrase.lower().replace(" ", "_").replace("-", "_")
    return ErrorObject(f"The server answered with HTTP status {status} ({phrase}).", kind, code)


def _seconds(retry_after: str | None) -> float | None:
    """The header's seconds; its other form, a date, is none that our server sends."""
    try:
        seconds = float(retry_after or "")
    except ValueError:
        return None
    return seconds if seconds >= 0 else None


@contextmanager
def own_errors() -> Iterator[None]:
    """Turns httpx's exceptions into ours."""
    try:
        yield
    except httpx.ConnectTimeout as error:
        raise ConnectionFailed(f"{_server(error)} cannot be reached: it does not answer.") from error
    except httpx.ConnectError as error:
        raise ConnectionFailed(f"{_server(error)} cannot be reached: {error}.") from error
    except httpx.TimeoutException as error:
        raise TimedOut(f"{_server(error)} did not answer within the client's timeout.") from error
    except (httpx.NetworkError, httpx.RemoteProtocolError) as error:
        raise ConnectionFailed(f"{_server(error)} hung up before the answer was complete.") from error
    except httpx.UnsupportedProtocol as error:
        raise MultimodalError("The server's URL must begin with http:// or https://.") from error
    except httpx.HTTPError as error:
        raise MultimodalError(f"The request could not be sent: {error}.") from error


def _server(error: httpx.RequestError) -> str:
    url = error.request.url
    return f"{url.scheme}://{url.netloc.decode()}"
