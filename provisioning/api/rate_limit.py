"""How many requests one caller may make: a bucket for each, filled at a steady rate.

Theory
------
A bucket holds `burst` requests at most and gains `rate` a second; a request takes one. It is computed when it is asked:
nothing runs in between. A caller is his client certificate, or, without one, his address.

Rules
-----
1. It comes before the body is read, before routing and before the store.
2. The number of buckets is bounded. The one that was used longest ago goes; as it is the fullest, next to nothing is
   forgiven to whoever makes others go.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from typing import Final

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from provisioning.errors import Code, Refused

_BUCKETS: Final = 16_384


class Buckets:
    """The callers' buckets. No clock: the time is an argument."""

    def __init__(self, rate: float, burst: int) -> None:
        self._rate = rate
        self._burst = float(burst)
        self._held: OrderedDict[Hashable, tuple[float, float]] = OrderedDict()

    def take(self, caller: Hashable, now: float) -> float:
        """Take one request of *caller*'s; return 0, or for how many seconds there is none."""
        level, at = self._held.pop(caller, (self._burst, now))
        level = min(self._burst, level + (now - at) * self._rate)
        wait = 0.0 if level >= 1 else (1 - level) / self._rate
        self._held[caller] = (level if wait else level - 1, now)
        if len(self._held) > _BUCKETS:
            self._held.popitem(last=False)
        return wait


class RateLimit:
    """Answers 429 to a caller whose bucket is empty; an ASGI middleware."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        rate: float,
        burst: int,
        clock: Callable[[], float],
        answer: Callable[[str, Refused, Mapping[str, str]], Response],
    ) -> None:
        """*clock* is monotonic; *answer* makes the response for a path, a refusal and headers."""
        self._app = app
        self._buckets = Buckets(rate, burst)
        self._clock = clock
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        wait = self._buckets.take(_caller(scope), self._clock()) if scope["type"] == "http" else 0.0
        if not wait:
            await self._app(scope, receive, send)
            return
        seconds = math.ceil(wait)
        refusal = Refused(Code.RATE_LIMITED, f"too many requests from you: wait {seconds} s")
        await self._answer(scope["path"], refusal, {"Retry-After": str(seconds)})(scope, receive, send)


def _caller(scope: Scope) -> Hashable:
    certificate: bytes | None = scope.get("extensions", {}).get("tls", {}).get("client_cert_der")
    if certificate is not None:
        return certificate
    client = scope.get("client")
    return client[0] if client else ""
