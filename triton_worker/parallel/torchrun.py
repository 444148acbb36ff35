"""What torchrun tells the processes that it starts: several on each of several machines."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Torchrun:
    """The place of this process among those of one torchrun."""

    rank: int
    count: int
    local_rank: int
    local_count: int

    @classmethod
    def from_environment(cls) -> Torchrun | None:
        """``None`` where torchrun did not start this process."""
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        if "TORCHELASTIC_RUN_ID" not in os.environ:
            return None
        return cls(*(int(os.environ[name]) for name in names))
