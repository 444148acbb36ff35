"""Failures as callers see them: one envelope, and one table from the worker's codes to HTTP."""

from __future__ import annotations

import math
from collections.abc import Mapping
from http import HTTPStatus

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response

from protocol.messages import ErrorCode, RequestError

STATUS: dict[ErrorCode, HTTPStatus] = {
    ErrorCode.INVALID_REQUEST: HTTPStatus.BAD_REQUEST,
    ErrorCode.INVALID_PICTURE: HTTPStatus.UNPROCESSABLE_ENTITY,
    ErrorCode.MODEL_NOT_FOUND: HTTPStatus.NOT_FOUND,
    ErrorCode.QUEUE_FULL: HTTPStatus.TOO_MANY_REQUESTS,
    ErrorCode.DEADLINE_EXCEEDED: HTTPStatus.GATEWAY_TIMEOUT,
    ErrorCode.UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
    ErrorCode.INTERNAL: HTTPStatus.INTERNAL_SERVER_ERROR,
}

RETRY_AFTER_SECONDS = {HTTPStatus.TOO_MANY_REQUESTS: 1, HTTPStatus.SERVICE_UNAVAILABLE: 2}

INTERNAL_MESSAGE = "The server failed to answer this request. The fault is on our side and has been logged."


class ApiError(Exception):
    """Ends a request with an error status. The message is a sentence for the caller, never a library's words."""

    def __init__(
        self, status: int, code: str, message: str, param: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.headers = headers or {}

    @classmethod
    def from_worker(cls, error: RequestError) -> ApiError:
        message = INTERNAL_MESSAGE if error.code is ErrorCode.INTERNAL else error.message
        return cls(STATUS[error.code], error.code.value, message, error.param)

    def body(self) -> dict[str, str | None]:
        return {"message": self.message, "type": _kind(self.status), "param": self.param, "code": self.code}

    def envelope(self) -> dict[str, dict[str, str | None]]:
        return {"error": self.body()}

    def response(self) -> JSONResponse:
        seconds = RETRY_AFTER_SECONDS.get(HTTPStatus(self.status))
        usual = {} if seconds is None else {"Retry-After": str(seconds)}
        return JSONResponse(self.envelope(), self.status, {**usual, **self.headers})


def bad_request(message: str, param: str | None = None) -> ApiError:
    return ApiError(HTTPStatus.BAD_REQUEST, "invalid_request", message, param)


def unavailable(message: str) -> ApiError:
    return ApiError(HTTPStatus.SERVICE_UNAVAILABLE, "unavailable", message)


def too_many_requests(code: str, message: str, retry_seconds: float) -> ApiError:
    """``retry_seconds`` is when asking again may succeed."""
    headers = {"Retry-After": str(max(1, math.ceil(retry_seconds)))}
    return ApiError(HTTPStatus.TOO_MANY_REQUESTS, code, message, headers=headers)


def internal_error() -> ApiError:
    return ApiError(HTTPStatus.INTERNAL_SERVER_ERROR, "internal", INTERNAL_MESSAGE)


class ClientGone(Exception):
    """The caller went away before its answer."""


def add_exception_handlers(app: FastAPI) -> None:
    app.add_exception_handler(ApiError, _answer_api_error)
    app.add_exception_handler(HTTPException, _answer_http_exception)
    app.add_exception_handler(ClientGone, _answer_nobody)
    app.add_exception_handler(ClientDisconnect, _answer_nobody)  # in the middle of its body


async def _answer_api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error.response()


async def _answer_http_exception(request: Request, error: Exception) -> Response:
    """What the framework itself refuses: unknown paths and methods."""
    assert isinstance(error, HTTPException)
    status = HTTPStatus(error.status_code)
    messages = {
        HTTPStatus.NOT_FOUND: f"There is nothing at {request.url.path}.",
        HTTPStatus.METHOD_NOT_ALLOWED: f"{request.method} is not possible at {request.url.path}.",
    }
    response = ApiError(status, status.name.lower(), messages.get(status, f"{status.phrase}.")).response()
    if error.headers and "Allow" in error.headers:
        response.headers["Allow"] = error.headers["Allow"]
    return response


async def _answer_nobody(request: Request, error: Exception) -> Response:
    """Nobody reads this answer; 499 is what the access log shows for it."""
    return Response(status_code=499)


def _kind(status: int) -> str:
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return "rate_limit_error"
    return "server_error" if status >= HTTPStatus.INTERNAL_SERVER_ERROR else "invalid_request_error"
