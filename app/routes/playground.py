"""The playground at ``/``: a page of plain files, all of them from this server."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response
from starlette.staticfiles import StaticFiles

from app.routes.docs import STATIC

HEADERS = {
    "Cache-Control": "no-cache",  # kept, but asked for each time: an upgrade shows at once, the same file is a 304
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
PAGE_HEADERS = {
    **HEADERS,
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
}


def router() -> APIRouter:
    routes = APIRouter(include_in_schema=False)
    files = StaticFiles(directory=STATIC / "playground")

    async def file(path: str, request: Request, headers: dict[str, str]) -> Response:
        response = await files.get_response(path, request.scope)
        response.headers.update(headers)
        return response

    @routes.get("/")
    async def page(request: Request) -> Response:
        return await file("index.html", request, PAGE_HEADERS)

    @routes.get("/playground/{name}")
    async def asset(name: str, request: Request) -> Response:
        return await file(name, request, HEADERS)

    return routes
