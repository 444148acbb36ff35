"""The process that the ranks of engines are forked from: it has imported what they need, once for all of them."""

from __future__ import annotations

from multiprocessing import get_context
from multiprocessing.context import ForkServerContext

_IMPORTED = ["triton_worker.engine.rank"]
"""Its imports must not look for GPUs: CUDA, once asked, does not survive a fork."""


def fork_server() -> ForkServerContext:
    """Starts processes; those after the first start in a fraction of the seconds that importing torch takes.

    The server runs in the environment that this process had when it started the first.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload(_IMPORTED)
    return context
