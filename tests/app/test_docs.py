"""The OpenAPI document and its page."""

import re
from typing import Any

import pytest
from openapi_spec_validator import validate

from app.openapi import ERRORS
from app.schemas import GenerationParameters
from protocol.messages import SamplingParameters
from tests.app.conftest import GENERATE, Gateway

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def document(gateway: Gateway) -> dict[str, Any]:
    answer = await gateway.client.get("/openapi.json")
    assert answer.status_code == 200
    return dict(answer.json())


async def test_document_is_valid(gateway: Gateway) -> None:
    schema = await document(gateway)
    assert schema["openapi"].startswith("3.1")
    validate(schema)


async def test_generate_is_documented(gateway: Gateway) -> None:
    operation = (await document(gateway))["paths"][GENERATE]["post"]
    bodies = operation["requestBody"]["content"]
    form = bodies["multipart/form-data"]["schema"]["properties"]
    assert form["image"]["items"]["format"] == "binary"
    assert set(form) == {"image", "image_url", "prompt", "params", "model", *GenerationParameters.model_fields}
    json_bodies = [f"#/components/schemas/{name}" for name in ("GenerateBody", "BatchBody")]
    assert bodies["application/json"]["schema"] == {"anyOf": [{"$ref": body} for body in json_bodies]}
    assert set(operation["responses"]) == {"200", *map(str, ERRORS)}
    assert set(operation["responses"]["200"]["content"]) == {"application/json", "text/event-stream"}


async def test_every_parameter_has_description_and_default(gateway: Gateway) -> None:
    schemas = (await document(gateway))["components"]["schemas"]
    for name, field in schemas["GenerationParameters"]["properties"].items():
        assert field["description"], name
        assert "default" in field or name in ("max_tokens", "seed"), name


async def test_sampling_parameters_are_those_of_the_protocol() -> None:
    ours = GenerationParameters.model_fields
    assert set(SamplingParameters.__struct_fields__) == set(ours) - {"stream", "return_token_ids"}
    assert GenerationParameters().sampling() == SamplingParameters()


async def test_page_needs_no_other_host(gateway: Gateway) -> None:
    page = await gateway.client.get("/docs")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "//" not in page.text.replace("<!doctype", "")
    sources = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(sources) == 4
    for source in sources:
        if source != "data:,":
            asset = await gateway.client.get(f"/{source}")
            assert asset.status_code == 200
    script = (await gateway.client.get("/docs/docs.js")).text
    assert "validatorUrl: null" in script
    assert "http" not in script
    style = (await gateway.client.get("/docs/swagger-ui.css")).text
    assert not re.search(r"@import|url\(\s*[\"']?https?:", style)


async def test_swagger_ui_reads_openapi_3_1(gateway: Gateway) -> None:
    bundle = (await gateway.client.get("/docs/swagger-ui-bundle.js")).text
    version = re.search(r'PACKAGE_VERSION:"(\d+)\.', bundle)
    assert version
    assert int(version[1]) >= 5
