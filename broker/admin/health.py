"""Whether the broker is alive and admits newcomers: for supervisors and load balancers, beside the metrics page.

``/healthz`` says that the event loop runs. ``/readyz`` is 503 in these cases: newcomers are refused, because revocation
data is outdated or missing or a required audit log cannot be written; the broker's own certificate has expired, or is
revoked or on hold, so that clients that look do not accept it; the store takes no writes. A broker that cannot do its
work gets no traffic, but is not killed for what a restart would not fix. ``issuing_cas`` is ``unknown`` while clients
of one of provisioning's CAs would be refused; that is no reason to send the others away, so not a 503. Nor is it that
``clock`` is ``behind``. The reasons are in the log, and for operators in ``fleet-broker crl status``; others only see
the names. The same as provisioning's two paths.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from http import HTTPStatus
from time import monotonic

from broker.admin.http_messages import Request, Response, problem
from broker.admin.newcomers import newcomers_facts
from broker.credentials.own_certificate import OF_NO_USE, OwnCertificate
from broker.engine.engine import Engine
from broker.revocation.issuing_authorities import IssuingAuthorities

HEALTH = "/healthz"
READY = "/readyz"


class Health:
    """Answers the two paths for one engine."""

    def __init__(
        self,
        engine: Engine,
        own: OwnCertificate,
        authorities: IssuingAuthorities,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        """*own* is the broker's certificate; *clock* is the event loop's: monotonic seconds."""
        self._authorities = authorities
        self._engine = engine
        self._own = own
        self._clock = clock

    def answer(self, request: Request) -> Response | None:
        """Return the answer to *request*, or None if it asks for something else."""
        if request.path not in (HEALTH, READY):
            return None
        if request.method != "GET":
            return problem(HTTPStatus.METHOD_NOT_ALLOWED, "METHOD_NOT_ALLOWED", "use GET or HEAD")
        return Response.json({"status": "ok"}) if request.path == HEALTH else self._ready()

    def _ready(self) -> Response:
        now = datetime.now(UTC)
        facts = newcomers_facts(self._engine.admission, now, self._clock())
        checks = {
            "newcomers": "ok" if facts["newcomers_admitted"] else "refused",
            "certificate": self._own.state_at(now),
            "store": store_state(self._engine),
            "issuing_cas": self._authorities.state,
            "clock": "behind" if self._engine.admission.status.proven.is_behind(now.timestamp()) else "ok",
        }
        ended = checks["certificate"] in OF_NO_USE
        ready = checks["newcomers"] == "ok" and not ended and checks["store"] != "failed"
        status = HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE
        return Response.json({"ready": ready, "checks": checks}, status)


def store_state(engine: Engine) -> str:
    """Return the state of the store: ok, failed, or off without persistence."""
    if engine.journal is None:
        return "off"
    return "failed" if engine.journal.failed else "ok"
