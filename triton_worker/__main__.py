"""The worker's command: ``python -m triton_worker`` or ``multimodal-worker``."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable

from triton_worker.serving.flags import parse_worker_flags
from triton_worker.serving.open_files import raise_open_file_limit


def main() -> None:
    """Serve until stopped, then end the process: PyTriton's threads would keep it."""
    settings = parse_worker_flags()
    logging.basicConfig(
        level=logging.DEBUG if settings.debug else logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    for noisy in ("pytriton", "sh", "grpc"):
        logging.getLogger(noisy).setLevel(logging.DEBUG if settings.debug else logging.WARNING)
    raise_open_file_limit()
    _when_asked_to_stop(lambda: os._exit(0))  # nothing is there yet that would have to be cleared away
    # After the flags: --help need not wait for torch.
    from triton_worker.parallel.torchrun import Torchrun
    from triton_worker.serving.follower import run_follower
    from triton_worker.serving.worker import run_worker

    stop_asked = threading.Event()
    _when_asked_to_stop(stop_asked.set)
    torchrun = Torchrun.from_environment()
    if torchrun is not None and torchrun.rank > 0:
        code = run_follower(settings, torchrun)
    else:
        code = run_worker(settings, stop_asked)
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _when_asked_to_stop(action: Callable[[], None]) -> None:
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signal_number, lambda *_: action())


if __name__ == "__main__":
    main()
