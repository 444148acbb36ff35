"""What Triton says of itself, asked beside the session."""

import pytest

from tests.app.scripted_worker import ScriptedWorker
from tests.app.test_pool import fleet

pytestmark = pytest.mark.asyncio(loop_scope="session")

READY = {"server_ready": True, "models_ready": True}
ABSENT = {"server_ready": False, "models_ready": False}


async def test_each_triton_is_asked() -> None:
    async with fleet() as gateway:
        answer = await gateway.client.get("/v1/triton_health")
        assert answer.status_code == 200
        assert answer.json() == {"status": "Triton server is reachable and ready", "workers": [READY, READY]}
        await gateway.workers[0].stop()
        assert (await gateway.client.get("/v1/triton_health")).json()["workers"] == [ABSENT, READY]
        gateway.workers[1].models_ready = False
        answer = await gateway.client.get("/v1/triton_health")
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "unavailable"
        assert answer.headers["retry-after"]
        gateway.workers[1].models_ready = True
        gateway.workers[1].triton_ready = False
        assert (await gateway.client.get("/v1/triton_health")).status_code == 503


async def test_a_triton_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.worker.connection.HEALTH_SECONDS", 0.3)
    worker = ScriptedWorker()
    worker.triton_seconds = 5.0
    async with fleet(worker) as gateway:
        assert (await gateway.client.get("/v1/triton_health")).status_code == 503
        assert (await gateway.client.get("/health/ready")).status_code == 200  # another question
