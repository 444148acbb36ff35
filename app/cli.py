"""``multimodal-gateway``: the gateway as a process."""

from __future__ import annotations

import asyncio
import gc
import signal
import socket
import sys
from collections.abc import Sequence
from multiprocessing import parent_process
from multiprocessing.connection import Connection
from typing import NoReturn

import uvicorn
from pydantic import ValidationError
from pydantic_settings import CliApp, CliSettingsSource, SettingsError

from app.application import create_app
from app.connection import Config, Patience
from app.log import configure_logging
from app.media.fetcher import Network
from app.open_files import raise_open_file_limit
from app.settings import Settings, UnusableSetting
from app.supervisor import Supervisor
from app.tls import tls_options
from app.validation import sentence
from app.worker.pool import WorkerPool
from protocol import tracing

PROGRAM = "multimodal-gateway"
MAX_HEADER_BYTES = 64 * 1024
BACKLOG = 2048
CUT_SECONDS = 2
"""For callers that do not take the end of their answer when shutting down."""
END_SECONDS = 10
"""For a process to end after its last answer, before it is killed."""
TICK_SECONDS = 0.1


def main(arguments: Sequence[str] | None = None) -> None:
    settings = _settings(sys.argv[1:] if arguments is None else arguments)
    if settings.otlp_endpoint and not tracing.installed():
        _die(tracing.NEEDED)
    listener = _listener(settings.host, settings.port)
    if settings.workers == 1:
        serve(settings, listener)
        return
    configure_logging(settings.log_level)
    patience = settings.drain_delay_seconds + settings.shutdown_seconds + CUT_SECONDS + END_SECONDS
    supervisor = Supervisor(settings.workers, serve, (settings, listener), patience=patience)
    sys.exit(supervisor.run(on_stop=listener.close))


def serve(settings: Settings, listener: socket.socket, serves: Connection | None = None) -> None:
    """Serves until a signal ends it; ``serves`` is told when that begins. Exits with a sentence if it cannot."""
    configure_logging(settings.log_level)
    raise_open_file_limit(settings)
    try:
        server = build_server(settings, serves)
    except UnusableSetting as error:
        _die(str(error))
    # Uvicorn listens to signals only while it runs: one that comes before shall count too, and the one that it raises
    # once more, having stopped, shall not kill us.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, server.handle_exit)
    # What is here now stays: collections need not walk through it again and again.
    gc.collect()
    gc.freeze()
    server.run(sockets=[listener])
    if not server.started:
        _die("the gateway could not start.")


def build_server(
    settings: Settings, serves: Connection | None = None, network: Network | None = None
) -> uvicorn.Server:
    """Raises :class:`UnusableSetting`."""
    app = create_app(settings, network)
    patience = Patience(
        max_connections=settings.max_connections,
        head_seconds=settings.head_seconds,
        write_seconds=settings.write_seconds,
        on_cut=lambda reason: app.state.metrics.connections_cut.labels(reason).inc(),
    )
    config = Config(
        app,
        patience,
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        ws="none",
        lifespan="on",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=settings.keep_alive_seconds,
        timeout_graceful_shutdown=settings.shutdown_seconds + CUT_SECONDS,
        **tls_options(settings),
    )
    return _Server(config, app.state.worker, settings, serves)


class _Server(uvicorn.Server):
    """At shutdown, requests that take too long are ended with an error of ours before uvicorn cuts their lines."""

    def __init__(
        self, config: uvicorn.Config, worker: WorkerPool, settings: Settings, serves: Connection | None
    ) -> None:
        super().__init__(config)
        self._worker = worker
        self._settings = settings
        self._serves = serves

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and self._serves is not None:
            self._serves.send(True)
        if (parent := parent_process()) is not None:
            asyncio.get_running_loop().add_reader(parent.sentinel, self._end_with, parent.sentinel)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._worker.drain()
        await self._let_callers_leave()
        ending = asyncio.get_running_loop().call_later(self._settings.shutdown_seconds, self._worker.cancel_all)
        await super().shutdown(sockets)
        ending.cancel()

    async def _let_callers_leave(self) -> None:
        """Not ready, but still listening: balancers that ask for readiness go elsewhere in the meantime."""
        left = self._settings.drain_delay_seconds
        while left > 0 and not self.force_exit:
            await asyncio.sleep(min(left, TICK_SECONDS))
            left -= TICK_SECONDS

    def _end_with(self, parent_sentinel: int) -> None:
        """The supervisor is gone, and nobody would ever end this process."""
        asyncio.get_running_loop().remove_reader(parent_sentinel)
        self.should_exit = True


def _settings(arguments: Sequence[str]) -> Settings:
    try:
        source = CliSettingsSource[object](
            Settings, cli_prog_name=PROGRAM, cli_exit_on_error=False, cli_hide_none_type=True
        )
        return CliApp.run(Settings, cli_args=[_flag(a) for a in arguments], cli_settings_source=source)
    except ValidationError as error:
        name, complaint = sentence(error)
        _die(f"{name} {complaint} (--{name}, MULTIMODAL_{name.upper()} or .env)")
    except SettingsError as error:
        _die(str(error))


def _flag(argument: str) -> str:
    """Accepts ``--log-level`` for ``--log_level``."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value


def _listener(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        _die(f"cannot listen on {host}:{port}: {error.strerror or error}.")


def _die(message: str) -> NoReturn:
    sys.exit(f"{PROGRAM}: {message}")
