"""What four ranks exchange, in a module that a process imports quickly: transformers, say, it has no need of."""

from __future__ import annotations

import torch

from triton_worker.parallel import Layout, connect


def exchange(rank: int, meeting: str) -> None:
    layout = Layout(tensor_size=2, pipeline_size=2)
    ranks = connect(layout, rank, meeting, torch.device("cpu"), exchange_seconds=60.0)
    stage = 10.0 * ranks.pipeline_rank
    for dtype in (torch.float32, torch.bfloat16):
        mine = torch.full((3, 2), stage + ranks.tensor_rank, dtype=dtype)
        assert ranks.sum(mine.clone()).eq(2 * stage + 1).all()
        assert ranks.gather(mine)[0].tolist() == [stage, stage, stage + 1, stage + 1]
        assert ranks.same(mine.clone()).eq(stage).all()
        if ranks.is_last_stage:
            assert ranks.receive_hidden(mine).eq(ranks.tensor_rank).all()
        else:
            ranks.send_hidden(mine)
    for size in (0, 1, 4000, 4087, 4088, 4089, 5000, 10**6):
        value = b"x" * size
        assert ranks.from_first(value if rank == 0 else b"") == value
        assert ranks.from_last_stage([value] if ranks.is_last_stage else []) == [value]
    assert ranks.smallest(100 - rank) == 97
    assert (ranks.rank, ranks.is_last_stage) == (rank, rank >= 2)
    ranks.leave_together()
