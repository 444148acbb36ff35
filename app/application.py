"""The gateway as an ASGI application."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from app import __version__
from app.body_budget import BodyBudget
from app.errors import add_exception_handlers
from app.keys import KeyFile
from app.limits import Limits
from app.media.fetcher import MediaFetcher, Network
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
from app.picture_intake import PictureIntake
from app.routes import docs, generate, health, playground
from app.routes import metrics as metrics_routes
from app.schemas import BatchBody, BatchChunk, BatchErrorEvent, CompletionChunk, GenerateBody
from app.settings import Settings
from app.tracing import Traced, Tracing
from app.worker.pool import WorkerPool


def create_app(settings: Settings, network: Network | None = None) -> FastAPI:
    """Nothing runs before the application is started. ``state.worker`` is its :class:`WorkerPool`.

    Pictures are fetched from the public internet, or from ``network``. Raises :class:`UnusableSetting`.
    """
    tracing = Tracing(settings.otlp_endpoint) if settings.otlp_endpoint else None
    metrics = Metrics(lambda: worker.statuses)
    worker = WorkerPool(
        settings.triton_grpc_urls,
        metrics,
        tracing,
        connect_seconds=settings.worker_connect_seconds,
        call_seconds=settings.worker_call_seconds,
    )
    fetcher = None
    if settings.allowed_media_domains:
        fetcher = MediaFetcher(settings, metrics, network or Network.public(settings.media_fetches))
    intake = PictureIntake(settings, fetcher)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        worker.start()
        yield
        await worker.close()
        if tracing is not None:
            await asyncio.to_thread(tracing.close)

    app = FastAPI(title="Multimodal gateway", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.worker = worker
    app.state.metrics = metrics
    app.include_router(generate.router(settings, worker, intake))
    app.include_router(chat.router(settings, worker, intake))
    app.include_router(completions.router(settings, worker))
    app.include_router(tokenize.router(settings, worker, intake))
    app.include_router(health.router(worker))
    app.include_router(playground.router())
    app.include_router(docs.router())
    app.include_router(metrics_routes.router(metrics))
    add_exception_handlers(app)
    models = (GenerateBody, BatchBody, CompletionChunk, BatchChunk, BatchErrorEvent, *OPENAI_MODELS)
    install_openapi(app, models, needs_key=settings.api_key_file is not None)
    _add_middleware(app, settings, metrics, tracing)
    return app


def _add_middleware(app: FastAPI, settings: Settings, metrics: Metrics, tracing: Tracing | None) -> None:
    """The last one added is the first to see a request."""
    budget = BodyBudget(settings.max_bytes_in_flight, metrics.body_bytes.set)
    limits = Limits(
        concurrent=settings.max_concurrent_requests,
        concurrent_per_caller=settings.max_concurrent_per_key,
        per_minute=settings.requests_per_minute_per_key,
    )
    keys = None if settings.api_key_file is None else KeyFile(settings.api_key_file)
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes, seconds=settings.body_seconds, budget=budget)
    app.add_middleware(Admission, limits=limits)
    app.add_middleware(Authentication, keys=keys, needs_certificate=settings.tls_client_ca is not None)
    app.add_middleware(ConnectionRules)
    app.add_middleware(LastResort)
    if settings.cors_origins:
        app.add_middleware(Cors, origins=settings.cors_origins)
    app.add_middleware(Access, requests=metrics.http_requests, by_key=metrics.key_requests)
    if tracing is not None:
        app.add_middleware(Traced, tracing=tracing)
    app.add_middleware(RequestId)
