"""API keys, from a file that may change while the gateway runs."""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from app.settings import UnusableSetting

SHORTEST = 16
LONGEST = 512
MOST_KEYS = 1000
"""Each request is compared with all of them."""
LOOK_SECONDS = 1.0
KEY = re.compile(r"[A-Za-z0-9._~+/-]+=*")  # what RFC 6750 lets a Bearer header carry
NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
READABLE_BY_OTHERS = 0o044

logger = logging.getLogger(__name__)


class _Key(NamedTuple):
    name: str
    digest: bytes


class KeyFile:
    """The keys in a file: a line is ``KEY`` or ``NAME KEY``; blank lines and lines that begin with ``#`` say nothing.

    A name stands for its key in logs, metrics and limits; several keys may share one. A key without a name is called
    after its line, ``line-3``. The file is looked at once a second at most, and read again when it has changed; a file
    that has become unusable leaves the keys as they were.
    """

    def __init__(self, path: Path) -> None:
        """Raises :class:`UnusableSetting`."""
        self._path = path
        self._looked_at = time.monotonic()
        self._version = _version(path)
        self._keys = _read(path)

    def name_of(self, presented: bytes) -> str | None:
        """Whose key this is. Takes the same time for every wrong key: all are compared, by their digests."""
        self._look_again()
        digest = hashlib.sha256(presented).digest()
        found = None
        for key in self._keys:
            if hmac.compare_digest(key.digest, digest):
                found = key.name
        return found

    def _look_again(self) -> None:
        now = time.monotonic()
        if now - self._looked_at < LOOK_SECONDS:
            return
        self._looked_at = now
        version = _version(self._path)
        if version == self._version:
            return
        self._version = version
        try:
            self._keys = _read(self._path)
            logger.info("API keys read again: %d", len(self._keys))
        except UnusableSetting as error:
            logger.error("%s The keys stay as they were.", error)


def _version(path: Path) -> tuple[int, int, int] | None:
    """Changes when the file does, also where another file takes its place."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_ino, stat.st_size


def _read(path: Path) -> list[_Key]:
    try:
        with path.open(encoding="utf-8") as file:
            if os.fstat(file.fileno()).st_mode & READABLE_BY_OTHERS:
                logger.warning("api_key_file %s can be read by other users of this machine: chmod 600 it.", path)
            keys = _parsed(file)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UnusableSetting(f"api_key_file {path} cannot be read: {reason}.") from None
    except ValueError as error:
        raise UnusableSetting(f"api_key_file {path}, {error}") from None
    if not keys:
        raise UnusableSetting(f"api_key_file {path} holds no key: write one a line.")
    return keys


def _parsed(lines: Iterable[str]) -> list[_Key]:
    """Raises :class:`ValueError`, which names the line and never says what is in it."""
    keys: dict[bytes, _Key] = {}
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) > 2:
            raise ValueError(f"line {number}: write a key, or a name and a key with a space between.")
        name, key = words if len(words) == 2 else (f"line-{number}", words[0])
        if not NAME.fullmatch(name):
            raise ValueError(f"line {number}: a name has at most 64 letters, digits, dots, dashes and underscores.")
        if not SHORTEST <= len(key) <= LONGEST:
            raise ValueError(f"line {number}: a key has {SHORTEST} to {LONGEST} characters, and this one {len(key)}.")
        if not KEY.fullmatch(key):
            raise ValueError(f"line {number}: a key is made of letters, digits and . _ ~ + / -, and may end with =.")
        digest = hashlib.sha256(key.encode()).digest()
        if digest in keys:
            raise ValueError(f"line {number}: this key stands in the file already.")
        keys[digest] = _Key(name, digest)
        if len(keys) > MOST_KEYS:
            raise ValueError(f"line {number}: at most {MOST_KEYS} keys are taken.")
    return list(keys.values())
