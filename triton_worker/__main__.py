"""The worker's command: ``python -m triton_worker`` or ``multimodal-worker``."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading

from triton_worker.serving.flags import parse_worker_flags


def main() -> None:
    """Serve until stopped, then end the process: PyTriton's threads would keep it."""
    settings = parse_worker_flags()
    logging.basicConfig(
        level=logging.DEBUG if settings.debug else logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    for noisy in ("pytriton", "sh", "grpc"):
        logging.getLogger(noisy).setLevel(logging.DEBUG if settings.debug else logging.WARNING)
    stop_asked = threading.Event()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signal_number, lambda *_: stop_asked.set())
    from triton_worker.serving.worker import run_worker  # after the flags: --help need not wait for torch

    code = run_worker(settings, stop_asked)
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
