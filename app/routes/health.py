"""Is the gateway alive, and would a generation succeed? And of which model?"""

from __future__ import annotations

from fastapi import APIRouter

from app.errors import ApiError
from app.generation import now, served_model
from app.openapi import error_responses
from app.schemas import Health, Model, ModelList
from app.worker.connection import NOT_CONNECTED, STARTING, WorkerConnection


def router(worker: WorkerConnection) -> APIRouter:
    routes = APIRouter()
    started = now()

    def served() -> Model:
        if worker.status is None:
            raise ApiError.from_worker(NOT_CONNECTED)
        return Model(id=worker.status.model, created=started, context_length=worker.status.context_length)

    @routes.get("/v1/health", tags=["health"], summary="The gateway answers")
    @routes.get("/health/live", tags=["health"], summary="The gateway answers")
    async def live() -> Health:
        return Health(status="ok")

    @routes.get("/health/ready", tags=["health"], summary="A generation would succeed", responses=error_responses(503))
    async def ready() -> Health:
        if not worker.ready:
            raise ApiError.from_worker(NOT_CONNECTED if worker.status is None else STARTING)
        return Health(status="ready")

    @routes.get("/v1/models", tags=["models"], summary="The served model", responses=error_responses(401, 503))
    async def models() -> ModelList:
        return ModelList(data=[served()])

    @routes.get("/v1/models/{model}", tags=["models"], summary="One model", responses=error_responses(401, 404, 503))
    async def one_model(model: str) -> Model:
        served_model(worker, model)
        return served()

    return routes
