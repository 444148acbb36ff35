"""The OpenAPI document and its page."""

import re
from typing import Any

import msgspec
import pytest
from openapi_spec_validator import validate

from app.openapi import ERRORS
from app.parameters import GenerationParameters
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
        absent = {"max_tokens", "seed", "response_format", "guided_regex", "cache_salt", "top_logprobs"}
        assert "default" in field or name in absent, name


async def test_sampling_parameters_are_those_of_the_protocol() -> None:
    """By name, range and default; ``grammar`` has two names here, and the rest is not about sampling."""
    here = {"stream", "return_token_ids", "cache_salt", "top_logprobs", "response_format", "guided_regex"}
    ours = GenerationParameters.model_json_schema()["properties"]
    (_,), components = msgspec.json.schema_components([SamplingParameters])
    theirs = components["SamplingParameters"]["properties"]
    assert set(theirs) == (set(ours) - here) | {"grammar"}
    assert GenerationParameters().sampling() == SamplingParameters()
    for name in set(theirs) - {"grammar", "logprobs", "stop", "logit_bias", "max_tokens"}:
        assert bounds(ours[name]) == bounds(theirs[name]), name
    assert bounds(ours["top_logprobs"]) == bounds(theirs["logprobs"])
    (of_a_token,) = ours["logit_bias"]["patternProperties"].values()
    assert bounds(of_a_token) == bounds(theirs["logit_bias"]["additionalProperties"])
    assert ours["logit_bias"]["maxProperties"] == theirs["logit_bias"]["maxProperties"]


def bounds(field: dict[str, Any]) -> list[float | None]:
    field |= next((branch for branch in field.get("anyOf", ()) if branch != {"type": "null"}), {})
    return [field.get(limit) for limit in ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum")]


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
