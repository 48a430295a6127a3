"""Health metrics for alerts: whether the service can do its work, and when its own certificates expire.

Rules
-----
1. The checks are those of ``/readyz``. A scrape waits at most `_PATIENCE_SECONDS` for their results, less than one
   worker waits for another; a check that takes longer counts as failed, and is not started again while it runs.
2. Of the CAs, those whose expiry would be a fault are included: active ones and the roots. A retiring one may expire.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from cryptography import x509
from prometheus_client.core import GaugeMetricFamily, Metric

from provisioning.api.health import Check

_PATIENCE_SECONDS: Final = 0.5


class HealthCollector:
    """The last results of the checks, and the certificates at the time of the scrape."""

    def __init__(self, checks: Mapping[str, Check], certificates: Callable[[], Mapping[str, x509.Certificate]]) -> None:
        """*certificates*: the service's own, by name."""
        self._checks = checks
        self._certificates = certificates
        self._asking: dict[str, asyncio.Future[str]] = {}
        self._fit: dict[str, bool] = {}

    async def refresh(self) -> None:
        """Run the checks; call it before `collect`."""
        for name, check in self._checks.items():
            if name not in self._asking:
                self._asking[name] = asyncio.ensure_future(check())
        asked = dict(self._asking)  # Simultaneous scrapes wait for the same results.
        await asyncio.wait(asked.values(), timeout=_PATIENCE_SECONDS)
        for name, asking in asked.items():
            if asking.done() and self._asking.get(name) is asking:
                del self._asking[name]
            self._fit[name] = asking.done() and asking.result() == "ok"

    def collect(self) -> Iterable[Metric]:
        """Yield what is known."""
        fit = GaugeMetricFamily(
            "fleet_provisioning_ready", "Whether a part of the service works: 1 or 0.", labels=["check"]
        )
        for name, is_fit in self._fit.items():
            fit.add_metric([name], float(is_fit))
        ends = GaugeMetricFamily(
            "fleet_provisioning_certificate_not_after_timestamp_seconds",
            "Expiry of a certificate of the service itself, seconds since 1970.",
            labels=["certificate"],
        )
        for name, certificate in self._certificates().items():
            ends.add_metric([name], certificate.not_valid_after_utc.timestamp())
        yield from (fit, ends)


def issuers_and_roots(
    told: Mapping[str, x509.Certificate], issuing: Iterable[x509.Certificate]
) -> dict[str, x509.Certificate]:
    """Return, of the CAs that are *told*, by name, those among *issuing*, and the roots."""
    at_work = set(issuing)
    return {name: each for name, each in told.items() if each in at_work or each.issuer == each.subject}
