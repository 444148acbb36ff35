"""The OpenAPI page: Swagger UI, all of it from this server."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from fastapi import APIRouter
from starlette.responses import FileResponse, Response

STATIC = Path(__file__).parent.parent / "static"

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


def router() -> APIRouter:
    routes = APIRouter(include_in_schema=False)
    swagger_ui = Path(str(resources.files("fastapi_swagger") / "resources"))  # swagger-ui-dist's own files
    assets = {
        "swagger-ui-bundle.js": swagger_ui / "swagger-ui-bundle.js",
        "swagger-ui.css": swagger_ui / "swagger-ui.css",
        "docs.js": STATIC / "docs.js",
    }

    @routes.get("/docs")
    async def page() -> Response:
        return FileResponse(STATIC / "docs.html", headers=HEADERS)

    def serve(name: str, path: Path) -> None:
        async def asset() -> Response:
            return FileResponse(path, headers={"X-Content-Type-Options": "nosniff"})

        routes.add_api_route(f"/docs/{name}", asset)

    for name, path in assets.items():
        serve(name, path)
    return routes
