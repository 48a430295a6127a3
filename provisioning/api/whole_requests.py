"""EST requests that have come whole: answered without the layers of the application, by the same rules.

What the layers do for every other request is done here in the same order: counted, limited, answered, and a fault of
ours logged whole and answered without detail. What a layer holds (a caller's bucket, the counters) is the same object
for both, so nobody gains by the way that his request takes.
"""

from __future__ import annotations

import structlog
from starlette.responses import Response
from starlette.types import Scope

from provisioning.api.est import MAXIMUM_BODY, Answer, EstResponder
from provisioning.api.rate_limit import RequestRates
from provisioning.enrolment.problems import INTERNAL_ERROR
from provisioning.metrics import Metrics

log = structlog.get_logger(__name__)


class WholeEstRequests:
    """Answers them; `provisioning.connection_protocol` asks."""

    def __init__(
        self, responder: EstResponder, metrics: Metrics, port: str, rates: RequestRates | None, answer: Answer
    ) -> None:
        """*port* names the listener in metrics; without *rates*, nobody is limited."""
        self._responder = responder
        self._metrics = metrics
        self._port = port
        self._rates = rates
        self._answer = answer

    def takes(self, target: bytes, size: int) -> bool:
        """Whether *target* is one of EST's operations, just so, and a body of *size* octets is none too many."""
        plain = target.isascii() and b"%" not in target  # What is encoded is the library's to decode.
        return plain and size <= MAXIMUM_BODY and self._responder.knows(target.decode("ascii"))

    async def answer(self, scope: Scope, body: bytes) -> Response:
        """Return the answer to a request."""
        begun = self._metrics.now()
        response = None if self._rates is None else self._rates.refuse(scope)
        if response is None:
            try:
                response = await self._responder.respond(scope, body)
            except Exception:
                # As the application's: whatever it is, it is ours.
                log.exception("request failed", method=scope["method"], path=scope["path"])
                response = self._answer(scope["path"], INTERNAL_ERROR, None)
        self._metrics.answered(self._port, scope, response.status_code, begun)
        return response
