"""What is refused, and what the refusal says."""

import base64
import json
from typing import Any

import pytest

from app.errors import ApiError
from app.validation import json_document
from tests.app.conftest import GENERATE, Gateway, picture

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def refused(gateway: Gateway, status: int, path: str = GENERATE, **request: Any) -> dict[str, Any]:
    submitted = len(gateway.worker.submits)
    answer = await gateway.client.post(path, **request)
    assert answer.status_code == status, answer.text
    assert len(gateway.worker.submits) == submitted, "the worker heard of it"
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert "pydantic" not in error["message"]
    assert "Traceback" not in error["message"]
    return dict(error)


WRONG_PARAMETERS = [
    ("temperature", -1),
    ("temperature", 2.1),
    ("temperature", "hot"),
    ("temperature", True),
    ("top_k", -1),
    ("top_k", 1.5),
    ("top_p", 1.01),
    ("max_tokens", 0),
    ("max_tokens", 10**30),
    ("seed", 2**63),
    ("stop", ["a"] * 17),
    ("stop", [""]),
    ("stop", "x" * 257),
    ("stop", 7),
    ("ignore_eos", "perhaps"),
    ("stream", 1),
    ("temprature", 0.5),
]


@pytest.mark.parametrize(("name", "value"), WRONG_PARAMETERS)
async def test_the_parameter_at_fault_is_named(gateway: Gateway, name: str, value: Any) -> None:
    asks: list[dict[str, Any]] = [
        {"json": {"prompt": "x", "params": {name: value}}},
        {"files": {"prompt": (None, "x"), "params": (None, json.dumps({name: value}))}},
    ]
    if name != "stop":  # in a form it is text, or several
        asks.append({"files": {"prompt": (None, "x"), name: (None, str(value))}})
    for ask in asks:
        error = await refused(gateway, 400, **ask)
        assert error["param"] == name
        assert name in error["message"]
        assert error["code"] == "invalid_request"


async def test_not_a_number(gateway: Gateway) -> None:
    content = '{"prompt": "x", "params": {"temperature": NaN}}'
    await refused(gateway, 400, content=content, headers={"Content-Type": "application/json"})
    await refused(gateway, 400, files={"prompt": (None, "x"), "temperature": (None, "NaN")})


async def test_sampling_parameters_beside_params_in_json(gateway: Gateway) -> None:
    error = await refused(gateway, 400, json={"prompt": "x", "max_tokens": 3})
    assert error["param"] == "max_tokens"
    assert '"params"' in error["message"]


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b'"x"', b"{}", b'{"prompt": 5}', b'{"prompt": ""}', b"\xff\xfe"])
async def test_broken_json(gateway: Gateway, body: bytes) -> None:
    await refused(gateway, 400, content=body, headers={"Content-Type": "application/json"})


@pytest.mark.parametrize("params", ["{", "[]", "5", "[" * 50_000])
async def test_broken_params(gateway: Gateway, params: str) -> None:
    error = await refused(gateway, 400, files={"prompt": (None, "x"), "params": (None, params)})
    assert error["param"] == "params"


async def test_prompt_is_required(gateway: Gateway) -> None:
    assert (await refused(gateway, 400, files={"image": ("x.png", picture())}))["param"] == "prompt"
    assert (await refused(gateway, 400, json={"images": []}))["param"] == "prompt"


async def test_prompt_too_long(gateway: Gateway) -> None:
    prompt = "x" * 10_001
    assert (await refused(gateway, 400, json={"prompt": prompt}))["param"] == "prompt"
    assert (await refused(gateway, 400, files={"prompt": (None, prompt)}))["param"] == "prompt"


async def test_given_twice_and_different(gateway: Gateway) -> None:
    files = {"prompt": (None, "x"), "params": (None, '{"max_tokens": 3}'), "max_tokens": (None, "4")}
    error = await refused(gateway, 400, files=files)
    assert error["param"] == "max_tokens"
    error = await refused(gateway, 400, json={"prompt": "x", "stream": False, "params": {"stream": True}})
    assert error["param"] == "stream"


async def test_form_field_repeated_or_unknown(gateway: Gateway) -> None:
    for name in ("prompt", "seed"):
        parts = [("prompt", (None, "x")), (name, (None, "1")), (name, (None, "1"))]
        assert (await refused(gateway, 400, files=parts))["param"] == name
    assert (await refused(gateway, 400, files={"prompt": (None, "x"), "img": (None, "1")}))["param"] == "img"


async def test_form_field_not_utf8(gateway: Gateway) -> None:
    assert (await refused(gateway, 400, files={"prompt": (None, b"\xff\xff")}))["param"] == "prompt"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"no parts at all",
        b'--b\r\nContent-Disposition: form-data; name="prompt"\r\n\r\nx',
        b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n--b--\r\n",
    ],
)
async def test_broken_multipart(gateway: Gateway, body: bytes) -> None:
    await refused(gateway, 400, content=body, headers={"Content-Type": "multipart/form-data; boundary=b"})


async def test_multipart_without_boundary(gateway: Gateway) -> None:
    await refused(gateway, 400, content=b"x", headers={"Content-Type": "multipart/form-data"})


async def test_too_many_parts(gateway: Gateway) -> None:
    parts = [("prompt", (None, "x"))] + [("stop", (None, "y"))] * 100
    assert "parts" in (await refused(gateway, 400, files=parts))["message"]


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", ""])
async def test_other_content_types(gateway: Gateway, content_type: str) -> None:
    error = await refused(gateway, 415, content=b"prompt=x", headers={"Content-Type": content_type})
    assert error["code"] == "unsupported_media_type"


async def test_unknown_model(gateway: Gateway) -> None:
    error = await refused(gateway, 404, json={"prompt": "x", "model": "another"})
    assert (error["param"], error["code"]) == ("model", "model_not_found")


async def test_not_base64(gateway: Gateway) -> None:
    error = await refused(gateway, 400, json={"prompt": "x", "images": [{"data": "§§"}]})
    assert error["param"] == "images[0].data"
    error = await refused(gateway, 400, json={"prompt": "x", "images": [{"data": "QUJD"}, {"url": "http://x"}]})
    assert error["param"].startswith("images[1]")


async def test_too_many_pictures(gateway: Gateway) -> None:
    parts = [("prompt", (None, "x"))] + [("image", ("x.png", picture()))] * 5
    assert (await refused(gateway, 400, files=parts))["param"] == "image[4]"


async def test_picture_of_too_many_bytes(gateway: Gateway) -> None:
    data = picture("BMP", (200, 100))
    error = await refused(gateway, 413, files={"prompt": (None, "x"), "image": ("x", data)})
    assert (error["code"], error["param"]) == ("picture_too_large", "image")
    error = await refused(gateway, 413, json={"prompt": "x", "images": [{"data": base64.b64encode(data).decode()}]})
    assert (error["code"], error["param"]) == ("picture_too_large", "images[0]")


MANY = [""] * 33_001


@pytest.mark.parametrize(
    ("path", "request_"),
    [
        (GENERATE, {"json": {"prompts": MANY}}),
        (GENERATE, {"json": {"prompt": "a", "images": [[]] * len(MANY)}}),
        (GENERATE, {"files": {"prompt": (None, "a"), "params": (None, json.dumps({"stop": MANY}))}}),
        ("/v1/chat/completions", {"json": {"messages": MANY}}),
        ("/v1/completions", {"json": {"prompt": MANY}}),
        ("/tokenize", {"json": {"messages": [{"role": "user", "content": MANY}]}}),
    ],
)
async def test_too_many_values_to_name_the_fault_of_each(gateway: Gateway, path: str, request_: dict[str, Any]) -> None:
    assert "too many values" in (await refused(gateway, 400, path, **request_))["message"]


async def test_too_many_values_to_parse() -> None:
    assert json_document(b'"' + b"," * 1_000_000 + b'"') == "," * 1_000_000
    with pytest.raises(ApiError, match="too many values"):
        json_document(b"[" + b"0," * 2_000_000 + b"0]")
