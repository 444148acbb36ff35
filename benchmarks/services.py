"""The gateway beside the REST service of NeMo Export-Deploy 0.3.1, in front of the same worker.

Short requests for the fixture model, whose random weights cost the least, so that services are compared and not
engines; each has the picture that the reference cannot do without. The reference does not stream: neither does.
"""

from __future__ import annotations

import base64
import functools
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.figures import ms
from benchmarks.load import CHAT, callers, whole
from benchmarks.measured import Loop, measure
from benchmarks.parts import ENGINE, FRONT, GATEWAY, LOAD_GENERATOR, TRITON, Parts
from benchmarks.reference_release import reference_service
from tests.e2e.deployment import MODEL, deployed, free_ports, picture

CONCURRENT = 32
REQUESTS = 8 * CONCURRENT
REFERENCE = "Export-Deploy's service"
IMAGE = base64.b64encode(picture(size=(56, 56))).decode()
BODY = {
    "model": MODEL,
    "messages": [
        {"role": "user", "content": [{"type": "image", "image": IMAGE}, {"type": "text", "text": "What is this?"}]}
    ],
    "max_tokens": 1,
    "temperature": 1.0,
    "top_k": 1,
    "top_p": 0.0,
}


async def compare_services(rounds: int) -> tuple[list[Loop[bytes]], list[Loop[bytes]]]:
    """Rounds of the reference's service and of the gateway, in turns; one of each that is not counted before them.

    Raises:
        ReleaseMissing: the reference cannot be had.
    """
    theirs, ours = [], []
    with tempfile.TemporaryDirectory() as directory, deployed(Path(directory)) as deployment:
        parts = Parts(deployment.process.pid)
        with reference_service(deployment.ports["http"], *free_ports(1)) as (url, process):
            parts.add(REFERENCE, process)
            async with callers(url) as reference, callers(deployment.url) as gateway:
                for _ in range(rounds + 1):
                    for loops, session, path in ((theirs, reference, f"{CHAT}/"), (ours, gateway, CHAT)):
                        asks = [functools.partial(whole, session, BODY, path)] * REQUESTS
                        loops.append(await measure(asks, CONCURRENT, parts.cpu_seconds))
    return theirs[1:], ours[1:]


def service_rows(theirs: list[Loop[bytes]], ours: list[Loop[bytes]]) -> Iterator[tuple[str, str, str, str]]:
    """What was measured, of the reference's service, of the gateway, and the ratio."""
    rates = [statistics.median(loop.requests_per_second for loop in loops) for loops in (theirs, ours)]
    yield "requests/s", f"{rates[0]:,.1f}", f"{rates[1]:,.1f}", f"{rates[1] / rates[0]:.1f}"
    of_service = [
        statistics.median(loop.cpu(part) for loop in loops) for loops, part in ((theirs, REFERENCE), (ours, GATEWAY))
    ]
    yield "CPU a request, service", ms(of_service[0]), ms(of_service[1]), f"{of_service[1] / of_service[0]:.2f}"
    for part in (TRITON, FRONT, ENGINE, LOAD_GENERATOR):
        their, our = (statistics.median(loop.cpu(part) for loop in loops) for loops in (theirs, ours))
        yield f"CPU a request, {part}", ms(their), ms(our), ""
