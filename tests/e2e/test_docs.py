"""Every shell command marked `bash` in docs/ runs against the demo deployment, and shown answers are the real ones."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from tests.e2e.deployment import ROOT, Deployment

PAGES = sorted((ROOT / "docs").glob("*.md"))
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", flags=re.DOTALL | re.MULTILINE)


def commands(page: Path) -> list[str]:
    return [text for kind, text in BLOCK.findall(page.read_text()) if kind == "bash"]


@pytest.mark.parametrize(
    ("page", "command"),
    [pytest.param(page, command, id=f"{page.stem}-{i}") for page in PAGES for i, command in enumerate(commands(page))],
)
def test_a_documented_command_works(demo: Deployment, page: Path, command: str) -> None:
    command = command.replace("http://localhost:8080", demo.url)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    if '"error"' in done.stdout:
        [shown] = [json.loads(text) for kind, text in BLOCK.findall(page.read_text()) if kind == "json"]
        assert json.loads(done.stdout) == shown


def test_links_between_pages_lead_somewhere() -> None:
    for page in [ROOT / "README.md", *PAGES, ROOT / "examples" / "demo_model" / "README.md"]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
