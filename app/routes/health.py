"""Is the gateway alive, and would a generation succeed? And of which model?"""

from __future__ import annotations

from dataclasses import asdict

from fastapi import APIRouter

from app.errors import ApiError, unavailable
from app.generation import now, served_model
from app.openapi import error_responses
from app.schemas import Health, Model, ModelList, TritonHealth, TritonState
from app.worker.connection import NOT_CONNECTED
from app.worker.pool import WorkerPool


def router(worker: WorkerPool) -> APIRouter:
    routes = APIRouter()
    started = now()

    def described(name: str) -> Model:
        return Model(id=name, created=started, context_length=worker.models[name])

    @routes.get("/v1/health", tags=["health"], summary="The gateway answers")
    @routes.get("/health/live", tags=["health"], summary="The gateway answers")
    async def live() -> Health:
        return Health(status="ok")

    @routes.get("/health/ready", tags=["health"], summary="A generation would succeed", responses=error_responses(503))
    async def ready() -> Health:
        if worker.unready is not None:
            raise ApiError.from_worker(worker.unready)
        return Health(status="ready")

    @routes.get(
        "/v1/triton_health",
        tags=["health"],
        summary="Triton says that it is ready",
        responses=error_responses(401, 503),
    )
    async def triton_health() -> TritonHealth:
        """Asks Triton and no more: it may call itself ready when what is behind it is not. See `/health/ready`."""
        workers = [TritonState(**asdict(state)) for state in await worker.triton_health()]
        if not any(state.server_ready and state.models_ready for state in workers):
            raise unavailable("Triton cannot be reached, or is not ready.")
        return TritonHealth(workers=workers)

    @routes.get("/v1/models", tags=["models"], summary="The served models", responses=error_responses(401, 503))
    async def models() -> ModelList:
        if not worker.models:
            raise ApiError.from_worker(NOT_CONNECTED)
        return ModelList(data=[described(name) for name in worker.models])

    @routes.get("/v1/models/{model}", tags=["models"], summary="One model", responses=error_responses(401, 404, 503))
    async def one_model(model: str) -> Model:
        return described(served_model(worker, model))

    return routes
