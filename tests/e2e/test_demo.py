"""The demo checkpoint answers what a user would ask first, with the commands of the README."""

import json
import re
import shlex
import subprocess

import httpx
import pytest

from tests.e2e.deployment import ROOT, Deployment

PICTURES = ROOT / "examples" / "pictures"


def readme_commands() -> list[str]:
    """The README's curl commands, as they stand there."""
    blocks = re.findall(r"```\n(curl .*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    assert len(blocks) == 2
    return blocks


def run_against(demo: Deployment, command: str) -> str:
    command = command.replace("http://localhost:8080", shlex.quote(demo.url))
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_readme_s_form_is_answered(demo: Deployment) -> None:
    answer = json.loads(run_against(demo, readme_commands()[0]))
    assert answer["choices"] == [{"index": 0, "text": "A red circle.", "finish_reason": "stop"}]
    shown = re.search(r"```json\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    assert shown is not None
    cached = {"cached_tokens": answer["usage"]["cached_tokens"]}  # what other tests asked before
    assert json.loads(shown.group(1))["usage"] | cached == answer["usage"]


def test_the_readme_s_json_is_streamed(demo: Deployment) -> None:
    lines = run_against(demo, readme_commands()[1]).split("\n\n")
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
    assert "".join(choice["text"] for chunk in chunks for choice in chunk["choices"]) == "A red circle."
    assert "data: [DONE]" in lines


def test_the_command_printed_at_the_start_works(demo: Deployment) -> None:
    printed = re.search(r"^curl .*?0}'$", demo.log, flags=re.DOTALL | re.MULTILINE)
    assert printed is not None
    command = printed.group().replace(demo.url.replace("127.0.0.1", "localhost"), "http://localhost:8080")
    assert "A red circle." in run_against(demo, command)


@pytest.mark.parametrize(
    ("pictures", "prompt", "expected"),
    [
        (["blue-square-green-star.jpg"], "What is in this image?", "A blue square and a green star."),
        (["blue-square-green-star.jpg"], "What color is the square?", "The square is blue."),
        (["three-triangles.png"], "How many triangles are there?", "There are three triangles."),
        (["yellow-heart-on-black.png"], "Is there a green star?", "No, there is no green star."),
        (
            ["red-circle.png", "yellow-heart-on-black.png"],
            "What is in these images?",
            "The first image shows a red circle. The second image shows a yellow heart.",
        ),
    ],
)
def test_questions_about_pictures(demo: Deployment, pictures: list[str], prompt: str, expected: str) -> None:
    files = [("image", (name, (PICTURES / name).read_bytes())) for name in pictures]
    answer = httpx.post(
        f"{demo.url}/v1/multimodal/generate", files=files, data={"prompt": prompt, "temperature": "0"}, timeout=60
    )
    assert answer.json()["choices"][0]["text"] == expected
