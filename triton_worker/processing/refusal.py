"""Saying that a request cannot be run."""

from __future__ import annotations

from protocol.messages import ErrorCode, RequestError


class RequestRefused(Exception):
    """A request that cannot be run, with what its caller is told."""

    def __init__(self, code: ErrorCode, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.error = RequestError(code=code, message=message, param=param)
