"""Requests that arrived complete: answered without the application's layers, by the same rules.

The layers' work for every other request is done here in the same order: counting, rate limiting, answering, and
logging internal errors in full and answering them without detail. The layers' state (a caller's bucket, the counters)
is shared, so neither path gives a caller an advantage.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

import structlog
from starlette.responses import Response
from starlette.types import Scope

from provisioning.api.cut_off import cut_off
from provisioning.api.est import MAXIMUM_BODY, Answer, EstResponder
from provisioning.api.metrics import Metrics
from provisioning.api.rate_limit import RequestRates
from provisioning.enrolment.problems import INTERNAL_ERROR
from provisioning.errors import Refused
from provisioning.pki.panic import NoPanic

if TYPE_CHECKING:  # It knows the framework, which is late: `provisioning.api.late`.
    from provisioning.api.whole_revocations import RevocationResponder

log = structlog.get_logger(__name__)


class WholeRequests:
    """Answers EST's operations and, once there is a responder for them, revocations."""

    def __init__(
        self, responder: EstResponder, metrics: Metrics, port: str, rates: RequestRates | None, answer: Answer
    ) -> None:
        """*port* names the listener in metrics; without *rates*, nobody is limited."""
        self._responder = responder
        self._metrics = metrics
        self._port = port
        self._rates = rates
        self._answer = answer
        self.revocations: RevocationResponder | None = None

    def takes(self, method: bytes, target: bytes, size: int) -> bool:
        """Whether it is a POST to something known, just so, and a body of *size* octets is none too many."""
        if method != b"POST" or not target.isascii() or b"%" in target:  # What is encoded is the library's to decode.
            return False
        path = target.decode("ascii")
        if self.revocations is not None and self.revocations.knows(path, size):
            return True
        return size <= MAXIMUM_BODY and self._responder.knows(path)

    def answering(self, scope: Scope, body: bytes) -> Coroutine[Any, Any, Response] | None:
        """Return what answers a request that is taken, None if it is the application's after all."""
        responder = self.revocations
        if responder is None or not responder.knows(scope["path"], len(body)):
            return self._answered(scope, lambda: self._responder.respond(scope, body))
        asked = responder.read(scope, body)
        return None if asked is None else self._answered(scope, lambda: responder.respond(scope, asked))

    async def _answered(self, scope: Scope, respond: Callable[[], Coroutine[Any, Any, Response]]) -> Response:
        begun = self._metrics.now()
        try:
            with NoPanic():  # A panic would leave the caller without an answer.
                response = None if self._rates is None else self._rates.refuse(scope)
                if response is None:
                    response = await respond()
        except Refused as refusal:
            response = self._answer(scope["path"], refusal, None)
        except asyncio.CancelledError:  # By the stop.
            response = self._answer(scope["path"], cut_off(), None)
        except Exception:
            # As the application's: whatever it is, it is ours.
            log.exception("request failed", code="INTERNAL", method=scope["method"], path=scope["path"])
            response = self._answer(scope["path"], INTERNAL_ERROR, None)
        self._metrics.answered(self._port, scope, response.status_code, begun)
        return response
