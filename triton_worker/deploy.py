"""The command ``deploy_inframework_triton``: worker and gateway together, started, watched and ended as one."""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from triton_worker.serving.flags import Flags, add_flag, add_worker_flags, port, settings_from
from triton_worker.serving.leftovers import sweep_dead_runs
from triton_worker.serving.settings import WorkerSettings

_EXIT_SECONDS = 60.0
"""For a part to end after SIGTERM, beyond the time that the gateway gives requests in flight."""
_WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}
_EXAMPLE_PICTURE = Path("examples/pictures/red-circle.png")
_GATEWAY_OPTIONS = {
    "api_key_file": "Callers need one of the keys in this file, a line each: KEY or NAME KEY.",
    "cors_origins": "Web origins whose pages may call, with commas between; * is all.",
    "tls_certificate": "Serve https with this certificate chain (PEM).",
    "tls_key": "The certificate's private key (PEM), if in a file of its own.",
}
"""Handed to the gateway as they are, which checks them."""
_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)


@dataclass(frozen=True)
class _Part:
    """One of the two processes."""

    name: str
    process: subprocess.Popen[bytes]


def main(argv: Sequence[str] | None = None) -> None:
    """Serve until Ctrl-C or SIGTERM; exits with 0 then, and with 1 when a part failed."""
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog="deploy_inframework_triton",
        description="Serve a NeMo 2.0 vision-language checkpoint: Triton, our engine and the REST gateway.",
        allow_abbrev=False,
    )
    add_worker_flags(parser)
    _add_gateway_flags(
        parser.add_argument_group("gateway", "Its other settings are variables: see multimodal-gateway --help.")
    )
    arguments = parser.parse_args(argv)
    _end_if_port_is_taken(parser, arguments)

    gateway_parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    _add_gateway_flags(gateway_parser)
    _, worker_argv = gateway_parser.parse_known_args(argv)

    stop_asked = threading.Event()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signal_number, lambda *_: stop_asked.set())
    worker = _Part("worker", _start("triton_worker", worker_argv, {}))
    gateway = _Part("gateway", _start("app", [], _gateway_environment(arguments, settings_from(arguments))))
    failed = _watch(stop_asked, (worker, gateway), arguments)
    _stop(gateway, _EXIT_SECONDS + _gateway_drain_seconds())
    _stop(worker, _EXIT_SECONDS)
    sweep_dead_runs()
    # A part that was asked to end before it could listen to that ends by the signal itself.
    clean = all(part.process.returncode in (0, -signal.SIGTERM) for part in (worker, gateway))
    sys.exit(0 if clean and not failed else 1)


def _add_gateway_flags(flags: Flags) -> None:
    add_flag(flags, "-sp", "--server_port", type=port, default=8080, help="Port of the REST gateway.")
    add_flag(flags, "-sa", "--server_address", default="0.0.0.0", help="Address of the REST gateway.")
    for name, told in _GATEWAY_OPTIONS.items():
        add_flag(flags, f"--{name}", help=told)


def _gateway_drain_seconds() -> float:
    """The gateway's own settings, where they are numbers; the gateway refuses what is not."""
    try:
        delay = float(os.environ.get("MULTIMODAL_DRAIN_DELAY_SECONDS") or "0")
        return delay + float(os.environ.get("MULTIMODAL_SHUTDOWN_SECONDS") or "30")
    except ValueError:
        return 0.0


def _gateway_environment(arguments: argparse.Namespace, worker: WorkerSettings) -> dict[str, str]:
    given = {name: getattr(arguments, name) for name in _GATEWAY_OPTIONS}
    return {
        "MULTIMODAL_OTLP_ENDPOINT": worker.otlp_endpoint or "",
        "MULTIMODAL_HOST": arguments.server_address,
        "MULTIMODAL_PORT": str(arguments.server_port),
        "MULTIMODAL_TRITON_GRPC_URL": worker.triton.grpc_target,
        **{f"MULTIMODAL_{name.upper()}": value for name, value in given.items() if value is not None},
    }


def _start(module: str, argv: Sequence[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """A process of its own session, so that Ctrl-C reaches this one alone and the parts end in order."""
    return subprocess.Popen(
        [sys.executable, "-m", module, *argv],
        env={**os.environ, **environment},
        start_new_session=True,
        preexec_fn=_end_with_parent,
    )


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGTERM)


def _watch(stop_asked: threading.Event, parts: tuple[_Part, _Part], arguments: argparse.Namespace) -> bool:
    """Wait until asked to stop, announcing readiness once; whether a part ended by itself."""
    announced = False
    while not stop_asked.wait(0.2):
        for part in parts:
            if part.process.poll() is not None:
                print(f"error: the {part.name} ended with exit code {part.process.returncode}.", file=sys.stderr)
                return True
        if not announced and _is_ready(arguments):
            _announce(arguments)
            announced = True
    return False


def _is_ready(arguments: argparse.Namespace) -> bool:
    host = _WILDCARDS.get(arguments.server_address, arguments.server_address)
    url = f"{_scheme(arguments)}://{f'[{host}]' if ':' in host else host}:{arguments.server_port}/health/ready"
    # The certificate is for the name that callers use, not for this address.
    unverified = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    unverified.check_hostname = False
    unverified.verify_mode = ssl.CERT_NONE
    try:
        # Whatever proxy the environment names, it does not know this machine's gateway.
        direct = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=unverified)
        )
        with direct.open(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _scheme(arguments: argparse.Namespace) -> str:
    return "https" if arguments.tls_certificate else "http"


def _announce(arguments: argparse.Namespace) -> None:
    url = f"{_scheme(arguments)}://localhost:{arguments.server_port}"
    key = '\n  -H "Authorization: Bearer $API_KEY" \\' if arguments.api_key_file else ""
    picture = _EXAMPLE_PICTURE if _EXAMPLE_PICTURE.exists() else Path("picture.png")
    print(
        f"""
Ready: {arguments.triton_model_name}

  Try it in the browser   {url}/
  Triton                  http {arguments.triton_port}, gRPC {arguments.triton_grpc_port}, \
metrics {arguments.triton_metrics_port}
  Ask about a picture:

curl {url}/v1/multimodal/generate \\{key}
  -F image=@{picture} \\
  -F prompt="What is in this image?" \\
  -F 'params={{"max_tokens": 40, "temperature": 0}}'

Ctrl-C ends it.
""",
        flush=True,
    )


def _stop(part: _Part, seconds: float) -> None:
    part.process.terminate()
    try:
        part.process.wait(seconds)
    except subprocess.TimeoutExpired:
        print(f"error: the {part.name} did not end within {seconds:g} seconds and is killed.", file=sys.stderr)
        part.process.kill()
        part.process.wait()


def _end_if_port_is_taken(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    family = socket.AF_INET6 if ":" in arguments.server_address else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((arguments.server_address, arguments.server_port))
        except OSError:
            parser.exit(
                1,
                f"error: port {arguments.server_port} on {arguments.server_address} is taken or not allowed; "
                "choose another with --server_port.\n",
            )


if __name__ == "__main__":
    main()
