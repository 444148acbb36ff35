"""Pages of other origins, where they are allowed."""

from __future__ import annotations

from collections.abc import Collection

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp


class Cors(CORSMiddleware):
    """Starlette's, as this API needs it. Preflights are answered here, before anybody asks for a key."""

    def __init__(self, app: ASGIApp, *, origins: Collection[str]) -> None:
        super().__init__(
            app,
            allow_origins=origins,
            allow_methods=("GET", "POST"),
            allow_headers=("*",),  # OpenAI's SDK sends many of its own
            allow_credentials=False,  # a page shows its key itself; the browser's passwords are not for it
            expose_headers=("X-Request-Id", "Retry-After"),
        )
