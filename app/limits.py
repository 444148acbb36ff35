"""How much one caller, and all of them, may ask for at once and in a minute."""

from __future__ import annotations

import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import islice

from app.errors import too_many_requests

MOST_CALLERS = 10_000
"""Whoever asked longest ago is forgotten beyond that, unless a request of theirs is in flight."""
PREFIX_OF_ONE_IPV6_CALLER = 64
LAST_ONES = 0.2
"""The weight of the last request in the mean time that a place is taken."""

Clock = Callable[[], float]


@dataclass(frozen=True)
class Rate:
    """What a caller has left of their requests a minute, after the one that was counted."""

    limit: int
    remaining: int
    reset_seconds: float
    """Until all of ``limit`` can be used again."""

    def headers(self) -> dict[str, str]:
        """Named and written as OpenAI's."""
        return {
            "x-ratelimit-limit-requests": str(self.limit),
            "x-ratelimit-remaining-requests": str(self.remaining),
            "x-ratelimit-reset-requests": f"{self.reset_seconds:.3f}s",
        }


class Places:
    """Places for requests in flight, and how long one is taken on average."""

    def __init__(self, limit: int, clock: Clock) -> None:
        self._limit = limit
        self._clock = clock
        self._mean_seconds = 1.0
        self.taken = 0

    @property
    def full(self) -> bool:
        return self.taken >= self._limit

    @property
    def wait_seconds(self) -> float:
        """Until one of the places is likely to be free, if requests go on to take as long as the last ones."""
        return self._mean_seconds / self._limit

    @contextmanager
    def one(self) -> Iterator[None]:
        self.taken += 1
        since = self._clock()
        try:
            yield
        finally:
            self.taken -= 1
            self._mean_seconds += LAST_ONES * (self._clock() - since - self._mean_seconds)


class TokenBucket:
    """Holds a minute's worth of requests and is filled evenly."""

    def __init__(self, per_minute: int, clock: Clock) -> None:
        self._per_minute = per_minute
        self._clock = clock
        self._left = float(per_minute)
        self._filled_at = clock()

    def take(self) -> bool:
        now = self._clock()
        self._left = min(self._per_minute, self._left + (now - self._filled_at) * self._per_minute / 60)
        self._filled_at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True

    @property
    def wait_seconds(self) -> float:
        """From the last :meth:`take` until the next can succeed."""
        return max(0.0, 1 - self._left) * 60 / self._per_minute

    @property
    def rate(self) -> Rate:
        reset_seconds = (self._per_minute - self._left) * 60 / self._per_minute
        return Rate(self._per_minute, int(self._left), reset_seconds)


@dataclass
class _Caller:
    places: Places | None
    bucket: TokenBucket | None

    @property
    def busy(self) -> bool:
        return self.places is not None and self.places.taken > 0


class Limits:
    """What is in flight and what was asked lately, by caller and in all."""

    def __init__(
        self,
        *,
        concurrent: int,
        concurrent_per_caller: int | None,
        per_minute: int | None,
        clock: Clock = time.monotonic,
    ) -> None:
        """``None`` is no limit."""
        self._places = Places(concurrent, clock)
        self._concurrent_per_caller = concurrent_per_caller
        self._per_minute = per_minute
        self._clock = clock
        self._callers: OrderedDict[str, _Caller] = OrderedDict()

    @contextmanager
    def admitted(self, caller: str) -> Iterator[Rate | None]:
        """Counts one request as in flight. Raises :class:`ApiError` for one too many; a refused one uses up nothing."""
        asking = self._caller(caller)
        if self._places.full:
            message = "The server has all the requests in flight that it takes. Try again shortly."
            raise too_many_requests("server_busy", message, self._places.wait_seconds)
        if asking.places is not None and asking.places.full:
            message = f"You have {self._concurrent_per_caller} requests in flight, and may have no more."
            raise too_many_requests("too_many_concurrent_requests", message, asking.places.wait_seconds)
        if asking.bucket is not None and not asking.bucket.take():
            message = f"You have asked {self._per_minute} times within a minute, and may not ask more often."
            raise too_many_requests("rate_limit_exceeded", message, asking.bucket.wait_seconds)
        with self._places.one(), asking.places.one() if asking.places else nullcontext():
            yield asking.bucket.rate if asking.bucket else None

    def _caller(self, name: str) -> _Caller:
        caller = self._callers.get(name)
        if caller is None:
            caller = self._callers[name] = _Caller(
                None if self._concurrent_per_caller is None else Places(self._concurrent_per_caller, self._clock),
                None if self._per_minute is None else TokenBucket(self._per_minute, self._clock),
            )
            self._forget()
        self._callers.move_to_end(name)
        return caller

    def _forget(self) -> None:
        for name in list(islice(self._callers, max(0, len(self._callers) - MOST_CALLERS))):
            if not self._callers[name].busy:
                del self._callers[name]


def address_of_caller(host: str) -> str:
    """The address under which a caller without a key is counted: an IPv6 caller owns a whole network of them."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is None:
        return str(ipaddress.ip_network((address, PREFIX_OF_ONE_IPV6_CALLER), strict=False))
    return str(address)
