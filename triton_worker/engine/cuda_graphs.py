"""One computation in CUDA graphs: hundreds of launches become one, and none of them waits for Python."""

from __future__ import annotations

import gc
from collections.abc import Callable
from collections.abc import Sequence as SequenceOf

import torch


class GraphLadder:
    """A graph for each of some sizes of a batch; a batch runs in the next larger one, its rest is padding."""

    def __init__(self, sizes: SequenceOf[int], compute: Callable[[int], None]) -> None:
        """``sizes``: rising; ``compute``: launches what is recorded for one, on tensors that stay where they are."""
        self.sizes = sizes
        self.compute = compute
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}

    def size_for(self, count: int) -> int:
        """The size in which a batch of ``count`` runs."""
        return next(size for size in self.sizes if size >= count)

    def keep(self, size: int, graph: torch.cuda.CUDAGraph) -> None:
        """``graph`` is what was recorded for ``size``."""
        self._graphs[size] = graph

    def replay(self, size: int) -> None:
        """Compute once more what was recorded for ``size``."""
        self._graphs[size].replay()


@torch.inference_mode()
def capture(ladders: SequenceOf[GraphLadder], progress: Callable[[int, int], None] = lambda done, total: None) -> None:
    """Record all graphs, the largest first: the others use its memory. Tells how many of how many are done."""
    gc.collect()
    pool = torch.cuda.graph_pool_handle()
    done, total = 0, sum(len(ladder.sizes) for ladder in ladders)
    for ladder in ladders:
        for size in reversed(ladder.sizes):
            for _ in range(2):  # kernels are compiled and libraries choose theirs before anything is recorded
                ladder.compute(size)
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            # Of this thread alone: NCCL has one that looks after exchanges in the meantime.
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                ladder.compute(size)
            ladder.keep(size, graph)
            done += 1
            progress(done, total)
