"""Finds out what admission does not know of a certificate, while its client waits at the door.

Rules
-----
1. Each question has `_PATIENCE` seconds; then it is answered with what is known, by the bundle's policy.
2. Nobody waits twice for the same: a list is fetched once, however many clients need it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime

import structlog
from cryptography import x509

from broker.admission.admission import Admission
from broker.admission.inquiry import Inquiry
from broker.admission.issuers import Issuer
from broker.admission.refusal import Refused
from broker.sources.crl_files import CrlFiles
from broker.sources.crl_urls import CrlUrls
from provisioning.pki.crl import distribution_points

log = structlog.get_logger("broker")

_PATIENCE = 3.0


class StatusAsker:
    """Asks files and URLs for the lists that a certificate needs."""

    def __init__(self, admission: Admission, files: CrlFiles, urls: CrlUrls, clock: Callable[[], float]) -> None:
        self._admission = admission
        self._files = files
        self._urls = urls
        self._clock = clock
        self._tasks: set[asyncio.Task[None]] = set()

    def ask(self, certificate: x509.Certificate, issuer: Issuer, refusal: Refused | None) -> Inquiry | None:
        """Look for the lists that *certificate* needs, if *refusal* says that they are not here, or they may come now.

        Under `advisory` nobody is refused for want of a list; whom a list names is, so it is looked for all the same.
        """
        urls: list[str] = []
        if issuer.bundle.lists is not None and issuer.bundle.lists.from_certificates:
            named = [*distribution_points(certificate), *(name for each in issuer.path() for name in each.names)]
            urls = self._urls.follow(named)
        if refusal is None and not self._files.undecided and not self._urls.untried(urls):
            return None
        inquiry = Inquiry()
        task = asyncio.get_running_loop().create_task(self._find_out(inquiry, certificate, issuer, urls))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return inquiry

    async def _find_out(self, inquiry: Inquiry, certificate: x509.Certificate, issuer: Issuer, urls: list[str]) -> None:
        try:
            async with asyncio.timeout(_PATIENCE):
                await self._files.look()
                await asyncio.gather(*map(self._urls.fetch, urls))
        except TimeoutError:
            log.info("no list in time", issuer=issuer.subject, patience=_PATIENCE)
        finally:
            refusal = self._admission.refuse_unknown_status(certificate, issuer, datetime.now(UTC))
            inquiry.answer(refusal, self._clock())

    async def close(self) -> None:
        """Stop asking."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
