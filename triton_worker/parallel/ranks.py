"""Where a process stands among those that share a model, and all that it exchanges with them."""

from __future__ import annotations

import contextlib
import math
import pickle
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")

_INLINE_BYTES = 4096
"""Objects that pickle to less travel in one broadcast, others in two."""
_LENGTH = struct.Struct("<q")

_POLL_SECONDS = 50e-6
_LOST = "Another rank of the model ended, or did not answer in time."


class RanksLost(Exception):
    """Another rank ended, or did not answer in time; what was exchanged is void and this rank must end too."""


@dataclass(frozen=True)
class Ranks:
    """The place of this rank in a grid of pipeline stages by tensor ranks; stage after stage in rank order.

    Alone, as it is by default, it exchanges nothing and needs no ``torch.distributed``. Otherwise
    :func:`triton_worker.parallel.connect` makes it. Every exchange must be entered by all who take part, in the same
    order, and raises :class:`RanksLost` when one of them is gone or keeps the others waiting beyond the deadline.
    """

    tensor_rank: int = 0
    tensor_size: int = 1
    """Ranks that share each layer."""
    pipeline_rank: int = 0
    pipeline_size: int = 1
    """Stages that the layers are split into."""
    tensor_group: dist.ProcessGroup | None = None
    """The ranks of this stage."""
    loading_group: dist.ProcessGroup | None = None
    """All ranks, with a deadline for what takes minutes."""
    exchange_seconds: float = math.inf
    """The deadline of every other exchange."""

    @property
    def rank(self) -> int:
        """The number of this one, from 0."""
        return self.pipeline_rank * self.tensor_size + self.tensor_rank

    @property
    def count(self) -> int:
        """All ranks."""
        return self.tensor_size * self.pipeline_size

    @property
    def is_first_stage(self) -> bool:
        """Whether this rank embeds tokens and pictures."""
        return self.pipeline_rank == 0

    @property
    def is_last_stage(self) -> bool:
        """Whether this rank has logits."""
        return self.pipeline_rank == self.pipeline_size - 1

    @property
    def is_one_stage(self) -> bool:
        """Whether every rank has the logits, and so knows a step's tokens without being told."""
        return self.pipeline_size == 1

    # -- within a stage ------------------------------------------------------------------------------------------------

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over the ranks of the stage, the same bits on each; overwrites ``tensor``."""
        if self.tensor_size > 1:
            with _exchange():
                dist.all_reduce(tensor, group=self.tensor_group)
        return tensor

    def gather(self, tensor: Tensor) -> Tensor:
        """``[n, m]`` of each rank of the stage, side by side: ``[n, m * tensor_size]``."""
        if self.tensor_size == 1:
            return tensor
        parts = [torch.empty_like(tensor) for _ in range(self.tensor_size)]
        with _exchange():
            dist.all_gather(parts, tensor.contiguous(), group=self.tensor_group)
        return torch.cat(parts, dim=-1)

    def same(self, tensor: Tensor) -> Tensor:
        """The ``tensor`` of the stage's first rank, on each of its ranks; overwrites the others'."""
        if self.tensor_size > 1:
            with _exchange():
                dist.broadcast(tensor, self.pipeline_rank * self.tensor_size, group=self.tensor_group)
        return tensor

    # -- from stage to stage -------------------------------------------------------------------------------------------

    def send_hidden(self, hidden: Tensor) -> None:
        """Hand a stage's result to the rank of the same tensor rank in the next stage."""
        with _exchange():
            dist.send(hidden.contiguous(), self.rank + self.tensor_size)

    def receive_hidden(self, like: Tensor) -> Tensor:
        """What the stage before sent; shape, dtype and device are those of ``like``."""
        hidden = torch.empty_like(like)
        with _exchange():
            dist.recv(hidden, self.rank - self.tensor_size)
        return hidden

    # -- among all -----------------------------------------------------------------------------------------------------

    def from_first(self, value: T) -> T:
        """Rank 0's ``value``, on every rank. Anything that pickles; what the others give is not looked at."""
        return self._from(0, value)

    def from_last_stage(self, value: T) -> T:
        """The ``value`` of the last stage, where all have the same, on every rank."""
        return value if self.is_one_stage else self._from(self.count - self.tensor_size, value)

    def wait_for(self, is_done: Callable[[], bool]) -> None:
        """Wait for the device, which may wait for other ranks: an exchange that a graph replays has no deadline."""
        if self.count == 1:
            return
        deadline = time.monotonic() + self.exchange_seconds
        while not is_done():
            if time.monotonic() > deadline:
                raise RanksLost(_LOST)
            time.sleep(_POLL_SECONDS)

    def smallest(self, number: int) -> int:
        """The least ``number`` of any rank."""
        if self.count == 1:
            return number
        least = torch.tensor([number])
        with _exchange():
            dist.all_reduce(least, op=dist.ReduceOp.MIN)
        return int(least)

    def wait_until_loaded(self) -> None:
        """Wait for the rank that is slowest to come here: the deadline of other exchanges is too short for that."""
        if self.count > 1:
            with _exchange():
                dist.all_reduce(torch.zeros(1), group=self.loading_group)

    def leave_together(self) -> None:
        """Wait until all are about to end, so that none takes the end of another for its death."""
        if self.count > 1:
            with contextlib.suppress(RanksLost), _exchange():
                dist.all_reduce(torch.zeros(1))

    def _from(self, source: int, value: T) -> T:
        if self.count == 1:
            return value
        first = torch.zeros(_INLINE_BYTES, dtype=torch.uint8)
        data = b""
        if self.rank == source:
            data = pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
            content = _LENGTH.pack(len(data)) + data[: _INLINE_BYTES - _LENGTH.size]
            first[: len(content)] = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        with _exchange():
            dist.broadcast(first, source)
        received = first.numpy().tobytes()
        (length,) = _LENGTH.unpack_from(received)
        data = data or received[_LENGTH.size : _LENGTH.size + length]
        if length > _INLINE_BYTES - _LENGTH.size:
            whole = torch.frombuffer(bytearray(data.ljust(length, b"\0")), dtype=torch.uint8)
            with _exchange():
                dist.broadcast(whole, source)
            data = whole.numpy().tobytes()
        return value if self.rank == source else pickle.loads(data)


@contextlib.contextmanager
def _exchange() -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # what gloo and NCCL raise for a lost connection and for a deadline alike
        raise RanksLost(_LOST) from error
