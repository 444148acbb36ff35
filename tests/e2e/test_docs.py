"""Code marked `bash` or `python` in docs/ runs against the demo deployment, and shown errors are the real ones.

What needs a GPU, Docker or a cluster is marked `sh` there, and its page says that it was not run.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.deployment import MODEL, ROOT, Deployment

PAGES = sorted((ROOT / "docs").glob("*.md"))
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", flags=re.DOTALL | re.MULTILINE)
INTERPRETERS = {"bash": ["bash", "-euo", "pipefail", "-c"], "python": [sys.executable, "-c"]}


def blocks(page: Path) -> list[tuple[str, str]]:
    return [(kind, text) for kind, text in BLOCK.findall(page.read_text()) if kind in INTERPRETERS]


@pytest.mark.parametrize(
    ("page", "kind", "code"),
    [pytest.param(page, *block, id=f"{page.stem}-{i}") for page in PAGES for i, block in enumerate(blocks(page))],
)
def test_documented_code_works(demo: Deployment, page: Path, kind: str, code: str) -> None:
    code = code.replace("http://localhost:8080", demo.url).replace("localhost:8000", f"localhost:{demo.ports['http']}")
    code = code.replace('model="demo"', f'model="{MODEL}"').replace("-mn demo", f"-mn {MODEL}")
    commands = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        [*INTERPRETERS[kind], code],
        cwd=ROOT,
        env={**os.environ, "PATH": commands, "PYTHONPATH": str(ROOT), "MULTIMODAL_URL": demo.url},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() or "print" not in code
    if '"error"' in done.stdout:
        [shown] = [json.loads(text) for name, text in BLOCK.findall(page.read_text()) if name == "json"]
        assert json.loads(done.stdout) == shown


def test_links_between_pages_lead_somewhere() -> None:
    for page in [ROOT / "README.md", *PAGES, ROOT / "examples" / "demo_model" / "README.md"]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
