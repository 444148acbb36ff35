"""Who asks? Every route but health needs a key, where there are keys; nothing of a request is read before."""

from __future__ import annotations

import base64
from http import HTTPStatus

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from app.errors import ApiError
from app.keys import KeyFile

OPEN_PATHS = frozenset({"/v1/health", "/health/live", "/health/ready"})
"""For probes, which have no key. Compared as the router does: another spelling is another path, and needs a key."""

BEARER = 'Bearer realm="multimodal-gateway"'
BASIC = 'Basic realm="multimodal-gateway: any user name, an API key as the password"'


class Authentication:
    """Puts the key's name into ``scope["state"]["key_name"]``, or answers 401.

    The key comes as ``Authorization: Bearer KEY``; from browsers, which can send no such header when they load a page,
    as the password of HTTP Basic with any user name.
    """

    def __init__(self, app: ASGIApp, *, keys: KeyFile | None, needs_certificate: bool) -> None:
        self._app = app
        self._keys = keys
        self._needs_certificate = needs_certificate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS:
            try:
                self._admit(scope)
            except ApiError as refusal:
                await refusal.response()(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _admit(self, scope: Scope) -> None:
        if self._needs_certificate and not scope["state"].get("client_certificate"):
            raise ApiError(HTTPStatus.FORBIDDEN, "missing_certificate", "A client certificate is needed.")
        if self._keys is None:
            return
        headers = Headers(scope=scope)
        presented = headers.getlist("authorization")
        if not presented:
            raise _unauthorized(scope, headers, "missing_api_key", "An API key is needed")
        key = _key(presented[0], scope, headers) if len(presented) == 1 else None
        name = None if key is None else self._keys.name_of(key)
        if name is None:
            raise _unauthorized(scope, headers, "invalid_api_key", "The API key is not valid")
        scope["state"]["key_name"] = name


def _key(authorization: str, scope: Scope, headers: Headers) -> bytes | None:
    scheme, _, credentials = authorization.strip().partition(" ")
    match scheme.lower():
        case "bearer":
            return credentials.strip().encode("latin-1")
        case "basic" if not _sent_by_another_site(headers):
            try:
                return base64.b64decode(credentials.strip(), validate=True).partition(b":")[2]
            except ValueError:
                return None
        case _:
            return None


def _sent_by_another_site(headers: Headers) -> bool:
    """Browsers add a Basic password that they know to what any site makes them send, and say whose page it was."""
    origin = headers.get("origin")
    return origin is not None and origin.partition("://")[2] != headers.get("host")


def _unauthorized(scope: Scope, headers: Headers, code: str, complaint: str) -> ApiError:
    """Basic is offered to pages alone: a script that gets a 401 shall not make its browser ask for a password."""
    is_page = scope["method"] in ("GET", "HEAD") and "text/html" in headers.get("accept", "")
    return ApiError(
        HTTPStatus.UNAUTHORIZED,
        code,
        f'{complaint}: send the header "Authorization: Bearer KEY".',
        headers={"WWW-Authenticate": f"{BEARER}, {BASIC}" if is_page else BEARER},
    )
