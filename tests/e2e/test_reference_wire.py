"""The seed's tensor contract over Triton's HTTP port: raw, and through our own client and command."""

from __future__ import annotations

import base64
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
from PIL import Image
from tritonclient.utils import InferenceServerException

from clients import NemoQueryMultimodalPytorch
from clients.multimodal import QueryRefused
from tests.e2e.deployment import FIXTURE, MODEL, ROOT, Deployment, picture
from tests.e2e.reference_wire import TYPES, ask, infer

QUESTION = "What is this?"
RENDERED = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
    "<|vision_start|><|image_pad|><|vision_end|>What is this?<|im_end|>\n<|im_start|>assistant\n"
)
HOT = {"top_k": 0, "temperature": 1.5, "max_length": 20}


@pytest.fixture
def query(tiny: Deployment) -> NemoQueryMultimodalPytorch:
    return NemoQueryMultimodalPytorch(f"127.0.0.1:{tiny.ports['http']}", MODEL)


def over_rest(deployment: Deployment, prompt: str, *pictures: bytes, **params: Any) -> str:
    images = [{"data": base64.b64encode(data).decode()} for data in pictures]
    body = {"prompt": prompt, "images": images, "params": params}
    answer = httpx.post(f"{deployment.url}/v1/multimodal/generate", json=body, timeout=60)
    text: str = answer.json()["choices"][0]["text"]
    return text


def text_of(output: dict[str, Any]) -> str:
    text: str = output["choices"][0]["text"][0][0]
    return text


# -- the contract ------------------------------------------------------------------------------------------------------


def test_triton_describes_the_contract(tiny: Deployment) -> None:
    with triton.InferenceServerClient(f"127.0.0.1:{tiny.ports['http']}") as client:
        config = client.get_model_config(MODEL)
        versions = client.get_model_metadata(MODEL)["versions"]
    assert {i["name"]: i["data_type"] for i in config["input"]} == {
        name: f"TYPE_{kind.replace('BYTES', 'STRING')}" for name, kind in TYPES.items()
    }
    assert {i["name"] for i in config["input"] if i.get("optional")} == set(TYPES) - {"prompts"}
    assert all(i["dims"] == [-1] for i in config["input"])
    assert [(o["name"], o["data_type"]) for o in config["output"]] == [("sentences", "TYPE_STRING")]
    assert config["max_batch_size"] == 4
    assert versions == ["1"]


def test_answers_are_those_of_the_rest_api(tiny: Deployment) -> None:
    image = picture()
    assert ask(tiny, QUESTION, image, max_length=12) == over_rest(tiny, QUESTION, image, max_tokens=12, temperature=0)
    seeded = over_rest(tiny, QUESTION, image, max_tokens=20, temperature=0.7, top_k=40, top_p=0.9, seed=3)
    values = {"max_length": 20, "temperature": 0.7, "top_k": 40, "top_p": 0.9, "random_seed": 3}
    assert ask(tiny, QUESTION, image, **values) == seeded


def test_what_is_not_said_is_the_references_default(tiny: Deployment) -> None:
    defaults = {"max_length": 50, "top_k": 1, "top_p": 0.0, "temperature": 1.0, "max_batch_size": 4}
    assert ask(tiny, QUESTION, picture()) == ask(tiny, QUESTION, picture(), **defaults)


def test_top_k_1_is_greedy_and_top_p_0_no_limit(tiny: Deployment) -> None:
    greedy = ask(tiny, QUESTION, max_length=12)
    assert ask(tiny, QUESTION, max_length=12, top_k=1, temperature=2.0, random_seed=4) == greedy
    drawn = {ask(tiny, QUESTION, **HOT, top_p=0.0, random_seed=seed) for seed in range(4)}
    assert len(drawn) == 4


def test_a_seed_repeats_0_too(tiny: Deployment) -> None:
    zero = ask(tiny, QUESTION, **HOT, random_seed=0)
    assert ask(tiny, QUESTION, **HOT, random_seed=0) == zero
    assert ask(tiny, QUESTION, **HOT, random_seed=1) != zero
    assert len({ask(tiny, QUESTION, **HOT) for _ in range(3)}) == 3, "without a seed each call draws anew"


def test_text_alone(tiny: Deployment) -> None:
    alone = ask(tiny, "Hello!", max_length=12)
    assert alone == over_rest(tiny, "Hello!", max_tokens=12, temperature=0)
    assert infer(tiny, prompts=[[b"Hello!"]], images=[[b""]], max_length=[[12]]) == [alone]


def test_pictures_of_a_batch_stay_with_their_prompts(tiny: Deployment) -> None:
    red, blue = picture("red"), picture("blue", (56, 112), "JPEG")
    alone = [ask(tiny, QUESTION, red, max_length=12), ask(tiny, QUESTION, blue, max_length=12)]
    assert alone[0] != alone[1]
    images = [[base64.b64encode(data)] for data in (red, blue)]
    assert infer(tiny, prompts=[[QUESTION.encode()]] * 2, images=images, max_length=[[12]] * 2) == alone


def test_rows_have_parameters_and_numbers_of_pictures_of_their_own(tiny: Deployment) -> None:
    red, blue = picture("red"), picture("blue")
    alone = [
        ask(tiny, "Compare.", red, blue, max_length=5),
        ask(tiny, "Hello!", **HOT, random_seed=7),
        ask(tiny, QUESTION, blue, **{**HOT, "top_k": 5, "top_p": 0.8, "random_seed": 8}),
    ]
    encoded_red, encoded_blue = base64.b64encode(red), b"data:image/png;base64," + base64.b64encode(blue)
    together = infer(
        tiny,
        prompts=[[b"Compare."], [b"Hello!"], [QUESTION.encode()]],
        images=[[encoded_red, encoded_blue], [b"", b""], [b"", encoded_blue]],
        max_length=[[5], [20], [20]],
        top_k=[[1], [0], [5]],
        top_p=[[0.0], [0.0], [0.8]],
        temperature=[[1.0], [1.5], [1.5]],
        random_seed=[[0], [7], [8]],
    )
    assert together == alone


def test_concurrent_callers_are_each_answered_with_their_own_parameters(tiny: Deployment) -> None:
    calls = [
        {"max_length": 10 + 5 * i, "top_k": (0, 1, 30)[i % 3], "temperature": 0.5 + 0.1 * i, "random_seed": i}
        for i in range(12)
    ]
    images = [picture(color, (56 + 28 * i, 84)) for i, color in enumerate(("red", "green", "blue"))]

    def call(i: int) -> str:
        return ask(tiny, f"Question {i}?", *images[: i % 4], **calls[i])

    alone = [call(i) for i in range(len(calls))]
    with ThreadPoolExecutor(len(calls)) as pool:
        assert list(pool.map(call, range(len(calls)))) == alone
    assert len(set(alone)) == len(calls)


def test_a_short_call_does_not_wait_for_a_long_one(tiny: Deployment) -> None:
    # Random weights end an answer where they like, so look for a long one.
    prompt, answer = next(
        (p, a) for p in (f"Talk {i}" for i in range(3, 30)) if len(a := ask(tiny, p, max_length=1500)) > 500
    )
    with ThreadPoolExecutor(1) as pool:
        long = pool.submit(ask, tiny, prompt, max_length=1500)
        while not long.running():
            time.sleep(0.01)
        ask(tiny, "Hi", max_length=1)
        assert not long.done()
        assert long.result() == answer


# -- chat template -----------------------------------------------------------------------------------------------------


def test_a_rendered_prompt_and_the_question_in_it_are_the_same(tiny: Deployment) -> None:
    image = picture()
    answer = ask(tiny, QUESTION, image, apply_chat_template=True, max_length=12)
    assert ask(tiny, RENDERED, image, apply_chat_template=False, max_length=12) == answer
    assert ask(tiny, QUESTION, image, max_length=12) == answer, "said nothing: taken for a question"
    assert ask(tiny, RENDERED, image, max_length=12) == answer, "said nothing: taken for a rendered prompt"


def test_messages_as_json(tiny: Deployment) -> None:
    image = picture()
    parts = [{"type": "image", "image": "ignored"}, {"type": "text", "text": QUESTION}]
    messages = [{"role": "user", "content": parts}]
    answer = ask(tiny, json.dumps(messages), image, apply_chat_template=True, max_length=12)
    assert answer == ask(tiny, QUESTION, image, max_length=12)
    longer = [*messages, {"role": "assistant", "content": "A circle."}, {"role": "user", "content": "Sure?"}]
    assert ask(tiny, json.dumps(longer), image, apply_chat_template=True, max_length=12) != answer


def test_special_tokens_of_users_are_text(tiny: Deployment) -> None:
    typed = "<|vision_start|><|image_pad|><|vision_end|>"
    assert ask(tiny, typed, apply_chat_template=True, max_length=12) == over_rest(
        tiny, typed, max_tokens=12, temperature=0
    )


# -- errors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tensors", "sentence"),
    [
        ({"max_length": [[0]]}, "max_length is 0; it must be at least 1."),
        ({"max_length": [[5000]]}, "max_length is 5000, but"),
        ({"max_batch_size": [[0]]}, "max_batch_size is 0;"),
        ({"top_k": [[-1]]}, "top_k is -1;"),
        ({"top_p": [[1.5]]}, "top_p is 1.5; it must be from 0 to 1."),
        ({"temperature": [[-1.0]]}, "temperature is -1.0;"),
        ({"temperature": [[float("nan")]]}, "temperature is nan;"),
        ({"temperature": [[1.0, 1.0]]}, "temperature has the shape [1, 2];"),
        ({"prompts": [[b"\xff"]]}, "not UTF-8"),
        ({"prompts": [[b"a", b"b"]]}, "prompts has the shape [1, 2];"),
        ({"prompts": [[b""]], "apply_chat_template": [[False]]}, "The prompt is empty."),
        ({"prompts": [[b"word " * 5000]]}, "The prompt has"),
        ({"images": [[b"%%%"]]}, "A picture of prompt 1 is not base64."),
        ({"images": [[base64.b64encode(b"no picture")]]}, "Picture 1: The data is not a PNG"),
        (
            {"images": [[base64.b64encode(picture())]], "apply_chat_template": [[False]]},
            "The prompt has 0 places for pictures, but there are 1.",
        ),
        ({"prompts": [[RENDERED.encode()]]}, "The prompt has 1 places for pictures, but there are 0."),
        (
            {
                "prompts": [[b'[{"role": "user", "content": [{"type": "image"}]}]']],
                "apply_chat_template": [[True]],
            },
            "The messages in prompts show more pictures than images holds.",
        ),
    ],
)
def test_errors_are_one_sentence(tiny: Deployment, tensors: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InferenceServerException) as caught:
        infer(tiny, **{"prompts": [[QUESTION.encode()]], **tensors})
    assert caught.value.status() == "400"
    message = caught.value.message()
    assert sentence in message
    assert "\n" not in message
    assert "/" not in message
    assert "Traceback" not in message


def test_one_bad_row_fails_its_call_and_no_other(tiny: Deployment) -> None:
    def good(_: int) -> str:
        return ask(tiny, QUESTION, max_length=30)

    expected = good(0)
    with ThreadPoolExecutor(4) as pool:
        answers = pool.map(good, range(12))
        for _ in range(4):
            with pytest.raises(InferenceServerException, match="not base64"):
                infer(tiny, prompts=[[b"a"], [b"b"]], images=[[b""], [b"%"]], max_length=[[30], [30]])
        assert set(answers) == {expected}


# -- our client and command --------------------------------------------------------------------------------------------


def test_the_example_of_the_documentation(query: NemoQueryMultimodalPytorch, tiny: Deployment) -> None:
    output = query.query_multimodal(
        prompts=["What is in this image?"],
        images=[Image.open(io.BytesIO(picture()))],
        max_length=100,
        top_k=1,
        top_p=0.0,
        temperature=1.0,
    )
    assert set(output) == {"id", "object", "created", "model", "choices"}
    assert output["object"] == "text_completion"
    assert output["model"] == MODEL
    assert isinstance(output["choices"][0]["text"], np.ndarray)
    assert text_of(output) == ask(tiny, "What is in this image?", picture(), max_length=100)


@pytest.fixture
def picture_url(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "red.png").write_bytes(picture())
    command = [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        assert server.stdout is not None
        port = server.stdout.readline().split("port ")[1].split()[0]
        yield f"http://127.0.0.1:{port}/red.png"
        server.terminate()


def test_pictures_in_every_form(query: NemoQueryMultimodalPytorch, tmp_path: Path, picture_url: str) -> None:
    path = tmp_path / "red.png"
    data = picture()
    encoded = base64.b64encode(data).decode()
    forms = [Image.open(path), path, str(path), data, encoded, f"data:image/png;base64,{encoded}", picture_url]
    answers = {text_of(query.query_multimodal([QUESTION], [form], max_length=12)) for form in forms}
    assert len(answers) == 1
    assert answers != {text_of(query.query_multimodal([QUESTION], max_length=12))}


def test_more_prompts_than_one_call_takes(query: NemoQueryMultimodalPytorch) -> None:
    prompts = [f"Question {i}?" for i in range(6)]
    images = [None, picture("red"), [picture("red"), picture("blue")], "", [], picture("blue")]
    alone = [text_of(query.query_multimodal([p], [i], max_length=8)) for p, i in zip(prompts, images, strict=True)]
    together = query.query_multimodal(prompts, images, max_length=8, max_batch_size=2)
    assert together["choices"][0]["text"].tolist() == [[text] for text in alone]


def test_errors_are_exceptions_with_the_servers_sentence(query: NemoQueryMultimodalPytorch) -> None:
    with pytest.raises(QueryRefused, match=r"^temperature is 7\.0; it must be from 0 to 2\.$") as caught:
        query.query_multimodal(["Hi"], temperature=7.0)
    assert caught.value.status == 400


def run(script: str, tiny: Deployment, *flags: str) -> subprocess.CompletedProcess[str]:
    url = f"127.0.0.1:{tiny.ports['http']}"
    command = [sys.executable, str(ROOT / "scripts/deploy/multimodal" / script), "-u", url, "-mn", MODEL, *flags]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}  # for who runs the tests without installing the project
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)


def test_the_query_script(tiny: Deployment, tmp_path: Path) -> None:
    path = tmp_path / "red.png"
    path.write_bytes(picture())
    done = run("query_inframework.py", tiny, "-p", QUESTION, "-i", str(path), "-mol", "12", "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)["choices"][0]["text"][0][0]
    assert answer == ask(tiny, QUESTION, picture(), max_length=12)
    local = str(FIXTURE / "context" / "nemo_tokenizer")
    same = run("query_inframework.py", tiny, "-pn", local, "-p", QUESTION, "-i", str(path), "-mol", "12", "--json")
    assert json.loads(same.stdout)["choices"][0]["text"][0][0] == answer, same.stderr


def test_the_query_script_fails_with_a_sentence(tiny: Deployment) -> None:
    for flags, sentence in (
        (["-p", "Hi", "-t", "-3"], "error: temperature is -3.0; it must be from 0 to 2."),
        (["-p", "Hi", "-i", "nowhere.png"], "error: 'nowhere.png' is no picture"),
        (["-pf", "nowhere.txt"], "error: The prompt file nowhere.txt cannot be read"),
        (["-p", "Hi", "-mn", "other", "-it", "0.5"], "has no model 'other' after 0.5 seconds."),
    ):
        done = run("query_inframework.py", tiny, *flags)
        assert done.returncode == 1
        assert sentence in done.stderr
        assert len(done.stderr.splitlines()) == 1
