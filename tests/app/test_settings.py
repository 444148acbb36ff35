"""Where settings come from, and the process around the gateway."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from app import cli
from app.settings import Settings

ROOT = Path(__file__).parents[2]


def test_environment_and_env_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text("MULTIMODAL_PORT=1234\nMULTIMODAL_MAX_PICTURES=2\nOTHER=1\n")
    monkeypatch.setenv("MULTIMODAL_MAX_PICTURES", "3")
    monkeypatch.setenv("PORT", "9")
    settings = Settings()
    assert (settings.host, settings.port, settings.max_pictures) == ("0.0.0.0", 1234, 3)
    assert cli._settings(["--port", "77", "--log-level=debug"]).model_dump(include={"port", "log_level"}) == {
        "port": 77,
        "log_level": "debug",
    }


@pytest.mark.parametrize(
    "arguments",
    [
        ["--allowed_media_domains", "a.example,*.B.example:8443"],
        ["--allowed-media-domains=a.example, *.b.example:8443"],
        ["--allowed_media_domains", "a.example", "--allowed_media_domains", "*.b.example:8443"],
        [],
    ],
)
def test_media_domains(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings(_env_file=None).allowed_media_domains == ()
    if not arguments:
        monkeypatch.setenv("MULTIMODAL_ALLOWED_MEDIA_DOMAINS", "a.example *.b.example:8443")
    assert cli._settings(arguments).allowed_media_domains == ("a.example", "*.b.example:8443")


@pytest.mark.parametrize("url", ["http://localhost:8001", "localhost", ":1", "a b:1", "a:1,", "a:1,b", "a:1, a:1", ""])
def test_triton_url_is_host_and_port(url: str) -> None:
    with pytest.raises(ValidationError):
        Settings(triton_grpc_url=url)


def test_several_triton_urls() -> None:
    assert Settings(triton_grpc_url="a:1, [::1]:2").triton_grpc_urls == ["a:1", "[::1]:2"]


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["--port", "x"], "--port"),
        (["--port", "70000"], "MULTIMODAL_PORT"),
        (["--triton_grpc_url", "http://x:1"], "host:port"),
        (["--log_level", "loud"], "log_level"),
        (["--workers", "0"], "MULTIMODAL_WORKERS"),
        (["--nonsense", "1"], "--nonsense"),
        (["--allowed_media_domains", "https://example.com"], "allowed_media_domains"),
        (["--max_picture_pixels", "50000001"], "max_picture_pixels"),
    ],
)
def test_bad_settings_are_one_line(arguments: list[str], names: str) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    message = str(stop.value.code)
    assert message.startswith("multimodal-gateway: ")
    assert names in message
    assert "\n" not in message


def test_port_in_use_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        with pytest.raises(SystemExit, match=f"cannot listen on 127.0.0.1:{port}: Address already in use"):
            cli.main(["--host", "127.0.0.1", "--port", port])


def test_imports_without_torch_and_worker() -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'triton_worker', 'transformers', 'pytriton'): sys.modules[name] = None\n"
        "from app.application import create_app\n"
        "from app.settings import Settings\n"
        "create_app(Settings())\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=30)
