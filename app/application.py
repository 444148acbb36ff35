"""The gateway as an ASGI application."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from app import __version__
from app.body_budget import BodyBudget
from app.errors import add_exception_handlers
from app.keys import KeyFile
from app.limits import Limits
from app.metrics import Metrics
from app.middleware.access import Access
from app.middleware.admission import Admission
from app.middleware.authentication import Authentication
from app.middleware.body_limit import BodyLimit
from app.middleware.connection_rules import ConnectionRules
from app.middleware.cors import Cors
from app.middleware.last_resort import LastResort
from app.middleware.request_id import RequestId
from app.openai import chat, completions, tokenize
from app.openai.operations import OPENAI_MODELS
from app.openapi import install_openapi
from app.routes import docs, generate, health, playground
from app.routes import metrics as metrics_routes
from app.schemas import CompletionChunk, GenerateBody
from app.settings import Settings
from app.worker.connection import WorkerConnection


def create_app(settings: Settings) -> FastAPI:
    """Nothing runs before the application is started. ``state.worker`` is its :class:`WorkerConnection`.

    Raises :class:`UnusableSetting`.
    """
    metrics = Metrics(lambda: worker.status)
    worker = WorkerConnection(
        settings.triton_grpc_url,
        metrics,
        connect_seconds=settings.worker_connect_seconds,
        call_seconds=settings.worker_call_seconds,
    )

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        worker.start()
        yield
        await worker.close()

    app = FastAPI(title="Multimodal gateway", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.worker = worker
    app.state.metrics = metrics
    app.include_router(generate.router(settings, worker))
    app.include_router(chat.router(settings, worker))
    app.include_router(completions.router(settings, worker))
    app.include_router(tokenize.router(settings, worker))
    app.include_router(health.router(worker))
    app.include_router(playground.router())
    app.include_router(docs.router())
    app.include_router(metrics_routes.router(metrics))
    add_exception_handlers(app)
    models = (GenerateBody, CompletionChunk, *OPENAI_MODELS)
    install_openapi(app, models, needs_key=settings.api_key_file is not None)
    _add_middleware(app, settings, metrics)
    return app


def _add_middleware(app: FastAPI, settings: Settings, metrics: Metrics) -> None:
    """The last one added is the first to see a request."""
    budget = BodyBudget(settings.max_bytes_in_flight)
    limits = Limits(
        concurrent=settings.max_concurrent_requests,
        concurrent_per_caller=settings.max_concurrent_per_key,
        per_minute=settings.requests_per_minute_per_key,
    )
    keys = None if settings.api_key_file is None else KeyFile(settings.api_key_file)
    metrics.body_bytes.set_function(lambda: budget.used)
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes, seconds=settings.body_seconds, budget=budget)
    app.add_middleware(Admission, limits=limits)
    app.add_middleware(Authentication, keys=keys, needs_certificate=settings.tls_client_ca is not None)
    app.add_middleware(ConnectionRules)
    app.add_middleware(LastResort)
    if settings.cors_origins:
        app.add_middleware(Cors, origins=settings.cors_origins)
    app.add_middleware(Access, requests=metrics.http_requests, by_key=metrics.key_requests)
    app.add_middleware(RequestId)
