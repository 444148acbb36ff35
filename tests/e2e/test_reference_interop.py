"""NeMo Export-Deploy 0.3.1's own client and REST service, unmodified, against our Triton.

Its release is installed into a directory of its own, without its dependencies; torch, PyTriton, FastAPI and Pillow come
from this environment, and nothing of its code is replaced. Its query script is not in the release: what it does, which
is to render the chat template with the processor's class and to call the client, is done here with its client.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.reference_release import ReleaseMissing, installed_release
from tests.e2e.deployment import MODEL, ROOT, Deployment, picture
from tests.e2e.reference_wire import ask

TOKENIZER = ROOT / "tests" / "fixtures" / "hf-qwen25vl-tiny"
QUESTION = "What is this?"

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def release() -> Path:
    try:
        return installed_release()
    except ReleaseMissing as missing:
        pytest.skip(str(missing))


def reference(release: Path, code: str, *arguments: str, **environment: str) -> Any:
    """What `code`, run with the release, prints last, as JSON."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": str(release), "HF_HUB_OFFLINE": "1", **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


CLIENT = """
import json, sys
from concurrent.futures import ThreadPoolExecutor
from nemo_deploy.multimodal.query_multimodal import NemoQueryMultimodalPytorch

url, model, calls = sys.argv[1:3] + [json.loads(sys.argv[3])]

def call(arguments):
    try:
        output = NemoQueryMultimodalPytorch(url, model).query_multimodal(**arguments)
        return {**output, "choices": [{"text": output["choices"][0]["text"].tolist()}]}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}

with ThreadPoolExecutor(len(calls)) as pool:
    print(json.dumps(list(pool.map(call, calls))))
"""


def query(release: Path, deployment: Deployment, *calls: dict[str, Any]) -> list[dict[str, Any]]:
    """The reference's client, all calls at the same time."""
    url = f"http://127.0.0.1:{deployment.ports['http']}"
    outputs: list[dict[str, Any]] = reference(release, CLIENT, url, MODEL, json.dumps(calls))
    return outputs


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def test_the_client_class(release: Path, tiny: Deployment) -> None:
    red, blue = picture("red"), picture("blue")
    calls: list[dict[str, Any]] = [
        {"prompts": [QUESTION], "images": [encoded(red)]},
        {"prompts": [QUESTION], "images": [encoded(blue)], "max_length": 12, "top_k": 1, "top_p": 0.0},
        {"prompts": [QUESTION], "images": [encoded(red)], "top_k": 40, "temperature": 0.7, "random_seed": 0},
        {"prompts": [QUESTION], "images": [encoded(red)], "top_k": 0, "temperature": 1.3, "random_seed": 5},
        {"prompts": [QUESTION, QUESTION], "images": [encoded(red), encoded(blue)], "max_length": 12},
        {"prompts": ["Hello!"], "images": [""], "max_length": 9, "max_batch_size": 4},
        {"prompts": [QUESTION], "images": ["%"]},
    ]
    *outputs, failed = query(release, tiny, *calls)
    texts = [output["choices"][0]["text"] for output in outputs]
    assert texts == [
        [[ask(tiny, QUESTION, red)]],
        [[ask(tiny, QUESTION, blue, max_length=12)]],
        [[ask(tiny, QUESTION, red, top_k=40, temperature=0.7, random_seed=0)]],
        [[ask(tiny, QUESTION, red, top_k=0, temperature=1.3, random_seed=5)]],
        [[ask(tiny, QUESTION, red, max_length=12)], [ask(tiny, QUESTION, blue, max_length=12)]],
        [[ask(tiny, "Hello!", max_length=9)]],
    ]
    assert all(output["object"] == "text_completion" and output["model"] == MODEL for output in outputs)
    assert failed["error"].endswith("Message: A picture of prompt 1 is not base64.")


def test_what_the_query_script_sends(release: Path, tiny: Deployment) -> None:
    from transformers import AutoTokenizer

    content = [{"type": "image", "image": "picture.png"}, {"type": "text", "text": QUESTION}]
    prompt = AutoTokenizer.from_pretrained(TOKENIZER).apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    assert "<|vision_start|><|image_pad|><|vision_end|>" in prompt
    arguments = {"max_length": 50, "max_batch_size": 4, "top_k": 1, "top_p": 0.0, "temperature": 1.0}
    (output,) = query(
        release,
        tiny,
        {"prompts": [prompt], "images": [encoded(picture())], **arguments, "random_seed": None, "init_timeout": 60.0},
    )
    assert output["choices"][0]["text"] == [[ask(tiny, QUESTION, picture())]]


SERVICE = """
import json, sys
from fastapi.testclient import TestClient
from nemo_deploy.service.fastapi_interface_to_pytriton_multimodal import app

client = TestClient(app)
print(json.dumps([client.post(path, json=body).json() for path, body in json.loads(sys.argv[1])]))
"""


def test_the_rest_service(release: Path, tiny: Deployment) -> None:
    image, common = encoded(picture()), {"model": MODEL, "max_tokens": 12}
    parts = [{"type": "image", "image": image}, {"type": "text", "text": QUESTION}]
    rendered = f"<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>{QUESTION}<|im_end|>\n"
    calls = [
        ("/v1/chat/completions/", {**common, "messages": [{"role": "user", "content": parts}]}),
        ("/v1/completions/", {**common, "prompt": rendered, "image": image}),
    ]
    environment = {"TRITON_HTTP_ADDRESS": "127.0.0.1", "TRITON_PORT": str(tiny.ports["http"])}
    chat, completion = reference(release, SERVICE, json.dumps(calls), **environment)
    assert chat["choices"][0]["message"]["content"] == ask(tiny, QUESTION, picture(), max_length=12)
    assert completion["choices"][0]["text"] == ask(tiny, rendered, picture(), max_length=12, apply_chat_template=False)
