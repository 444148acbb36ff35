"""The KV blocks: who holds which, and which ones are worth finding again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence


class BlockPool:
    """Hands out block numbers and takes them back.

    A block is held by one sequence or, when its content has a key, by several. A block with a key that nobody holds any
    more stays as it is until its room is needed: the one that was given back longest ago is forgotten first.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self._empty = list(range(total - 1, -1, -1))
        self._holders: dict[int, int] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()  # with a key and without a holder
        self._block_of: dict[bytes, int] = {}
        self._key_of: dict[int, bytes] = {}

    @property
    def free_count(self) -> int:
        """Blocks nobody holds."""
        return len(self._empty) + len(self._idle)

    def take(self, count: int) -> list[int]:
        """``count`` blocks for the caller alone.

        Raises:
            RuntimeError: fewer are free; the scheduler asks before it takes.
        """
        if count > self.free_count:
            raise RuntimeError(f"{count} KV blocks asked for, {self.free_count} free")
        blocks = [self._empty.pop() if self._empty else self._forget_oldest() for _ in range(count)]
        self._holders.update(dict.fromkeys(blocks, 1))
        return blocks

    def find(self, keys: Iterable[bytes]) -> list[int]:
        """The blocks of the longest run of ``keys``, from the first one on, that are known."""
        blocks: list[int] = []
        for key in keys:
            block = self._block_of.get(key)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def has_room(self, count: int, found: Iterable[int]) -> bool:
        """Whether ``count`` blocks could be taken after the ``found`` ones were shared."""
        return count <= self.free_count - sum(block in self._idle for block in found)

    def share(self, blocks: Iterable[int]) -> None:
        """Hold blocks that :meth:`find` found."""
        for block in blocks:
            self._idle.pop(block, None)
            self._holders[block] = self._holders.get(block, 0) + 1

    def remember(self, block: int, key: bytes) -> None:
        """The content of a held block is complete, and ``key`` stands for it; nothing new where a key is known."""
        if key not in self._block_of and block not in self._key_of:
            self._block_of[key] = block
            self._key_of[block] = key

    def give_back(self, blocks: Sequence[int]) -> None:
        """Hold a sequence's blocks no more. Its last ones are the first to be forgotten: fewest prompts have them."""
        for block in reversed(blocks):
            self._holders[block] -= 1
            if self._holders[block]:
                continue
            del self._holders[block]
            if block in self._key_of:
                self._idle[block] = None
            else:
                self._empty.append(block)

    @property
    def leak(self) -> str | None:
        """What is wrong when no sequence should hold a block; ``None`` when all is well."""
        if self._holders or self.free_count != self.total:
            return (
                f"{len(self._holders)} KV blocks are held by nobody's request; {self.free_count} of {self.total} free"
            )
        return None

    def _forget_oldest(self) -> int:
        block, _ = self._idle.popitem(last=False)
        del self._block_of[self._key_of.pop(block)]
        return block
