"""What the ranks tell each other, and what they do when they find that they have parted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.triton_worker.models.reference import NEMO_FIXTURE
from tests.triton_worker.parallel.engine_harness import IMAGE_PAD
from tests.triton_worker.parallel.exchange import exchange
from triton_worker.checkpoint import open_checkpoint
from triton_worker.engine.engine import Engine, EngineError
from triton_worker.engine.fork_server import fork_server
from triton_worker.engine.limits import EngineLimits
from triton_worker.engine.rank import _serve
from triton_worker.models.registry import load_model
from triton_worker.parallel import Ranks, RanksLost


class Parted(Ranks):
    """A rank whose first computes something else."""

    def from_first(self, value: Any) -> Any:
        messages, (running, waiting, free_blocks) = value
        return messages, (running + 1, waiting, free_blocks)


def test_ranks_that_no_longer_compute_the_same_end() -> None:
    model = load_model(open_checkpoint(NEMO_FIXTURE), torch.float32, torch.device("cpu"))
    engine = Engine(model, IMAGE_PAD, 128, EngineLimits(kv_cache_bytes=2**24))
    with pytest.raises(EngineError, match="do not agree"):
        _serve(engine, Parted(), inbox=None, say=lambda message: None)


def test_a_device_that_waits_for_others_is_not_waited_for_beyond_the_deadline() -> None:
    ranks = Ranks(tensor_size=2, exchange_seconds=0.01)
    with pytest.raises(RanksLost):
        ranks.wait_for(lambda: False)
    asked = iter([False, False, True])
    ranks.wait_for(lambda: next(asked))
    assert list(asked) == []


def test_what_is_exchanged_arrives(tmp_path: Path) -> None:
    in_four_processes(exchange, str(tmp_path / "ranks"))


def in_four_processes(target: Callable[[int, str], None], meeting: str) -> None:
    processes = [fork_server().Process(target=target, args=(rank, meeting), daemon=True) for rank in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * 4
