"""Keys of full KV blocks: blocks of equal keys hold equal keys and values, so sequences may share them.

A token's keys and values follow from all tokens up to it, pictures and positions included. So each block's key is a
hash over its parent's key and its own tokens, and the first parent stands for the salt: requests of different salts
never share. SHA-256, because whoever could make two prompts collide would read another's cache.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Sequence


def root_key(cache_salt: str | None) -> bytes:
    """The parent of a sequence's first block."""
    return hashlib.sha256(b"no salt" if cache_salt is None else b"salt " + cache_salt.encode()).digest()


def block_key(parent: bytes, token_ids: Sequence[int], pictures: Iterable[tuple[int, int, bytes]]) -> bytes:
    """The key of one block.

    ``pictures``: for each picture with tokens in the block, the place in the block where they begin, the place in the
    picture of the first of them, and the picture's digest. Each part has a fixed size, so no two inputs read alike.
    """
    hashed = hashlib.sha256(parent)
    hashed.update(array("q", token_ids).tobytes())
    for place, offset, digest in pictures:
        hashed.update(array("q", (place, offset)).tobytes() + digest)
    return hashed.digest()
