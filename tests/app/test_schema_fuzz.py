"""Requests made from the OpenAPI document, right ones and wrong ones: each answer is one that the document promises."""

from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import HealthCheck, settings

from tests.clients.rest_gateway import gateway_in_thread


@pytest.fixture(scope="module")
def document() -> Iterator[schemathesis.BaseSchema]:
    with gateway_in_thread(max_body_bytes=200_000) as gateway:
        yield schemathesis.openapi.from_url(f"http://127.0.0.1:{gateway.port}/openapi.json")


schema = schemathesis.pytest.from_fixture("document")


@schema.parametrize()
@settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_answers_are_as_documented(case: schemathesis.Case) -> None:
    case.call_and_validate()
