"""Finds out what admission does not know about a certificate, while its client waits for admission.

Rules
-----
1. Each question has `_PATIENCE` seconds; then it is answered with what is known, by the bundle's policies.
2. Each thing is requested once: a CRL is fetched once and a responder asked once, however many clients need it.
3. Connected clients are asked about again periodically; a missing answer disconnects nobody. Clients that were
   connected when the previous process ended, and are not back, are asked about once before their will is sent.
4. Bundles are independent: if one's responders or CRL servers do not answer, no other bundle is delayed.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import defaultdict
from collections.abc import Callable, Collection, Coroutine, Sequence
from datetime import UTC, datetime
from typing import Any

import structlog
from cryptography import x509

from broker.admission.admission import Admission
from broker.admission.bundle import TrustBundle
from broker.admission.inquiry import Inquiry
from broker.admission.issuers import Issuer
from broker.admission.refusal import Refused
from broker.engine.client import Client
from broker.engine.engine import Engine
from broker.sources.crl_files import CrlFiles
from broker.sources.crl_urls import CrlUrls
from broker.sources.ocsp_client import OcspClient
from broker.timing.beat import next_beat
from provisioning.pki.crl import distribution_points
from provisioning.pki.panic import NoPanic
from provisioning.pki.revocation import CertificateKey
from provisioning.program.once_a_minute import OnceAMinute

log = structlog.get_logger("broker")

_PATIENCE = 3.0
_LOOK = 1.0
_AT_ONCE = 32
_LOOKED_AT = 500
"""Connections examined in one turn of the event loop."""
_ASKED_AT_ONCE = 1_000
"""Questions under way beyond which nothing is asked about absent clients."""


class StatusAsker:
    """Asks files, URLs and responders."""

    def __init__(
        self, admission: Admission, files: CrlFiles, urls: CrlUrls, ocsp: OcspClient, clock: Callable[[], float]
    ) -> None:
        self._admission = admission
        self._files = files
        self._urls = urls
        self._ocsp = ocsp
        self._clock = clock
        self._failures = OnceAMinute()
        """About connected clients that cannot be asked about."""
        self._late: defaultdict[str, OnceAMinute] = defaultdict(OnceAMinute)
        """By bundle: questions that were not answered in time, of which a storm has one for each client."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._rounds: dict[str, asyncio.Task[None]] = {}
        """By bundle: the questions about connected clients that are under way."""
        self._asked: dict[CertificateKey, float] = {}
        """The absent clients asked about, and until when an answer may arrive."""

    def ask(self, certificate: x509.Certificate, issuer: Issuer, refusal: Refused | None) -> Inquiry | None:
        """Look up what is unknown about *certificate*, if *refusal* says so, or if a responder must be asked.

        Under `advisory` a missing answer refuses nobody, but a revocation in an answer does, so one is looked up all
        the same.
        """
        bundle = issuer.bundle
        urls: list[str] = []
        if bundle.lists is not None and bundle.lists.from_certificates:
            urls = self._urls.follow(distribution_points(certificate), bundle.name, issuer.not_after)
            for each in issuer.path():
                urls += self._urls.follow(each.names, bundle.name, (each.above or each).not_after)
        wants_lists = refusal is not None or self._files.undecided or self._urls.untried(urls, bundle.name)
        key = issuer.key_id, certificate.serial_number
        wants_answer = bundle.ocsp is not None and not self._ocsp.is_current(key, bundle.name, datetime.now(UTC))
        if not wants_lists and not wants_answer:
            return None  # A cached answer is good enough.
        inquiry = Inquiry()
        self._begin(self._find_out(inquiry, certificate, issuer, urls if wants_lists else None, asks=wants_answer))
        return inquiry

    def ask_about(self, absent: CertificateKey) -> float:
        """Ask about a certificate of which only this key is known; return how many seconds to wait, 0: no longer.

        A responder named only in the certificate is therefore not known.
        """
        until = self._asked.get(absent)
        if until is not None:
            left = until - self._clock()
            if left <= 0:
                del self._asked[absent]
            return max(left, 0.0)
        trust, own = self._admission.trust, self._admission.trust_domain
        for issuer in trust.issuers_with(absent[0], own) if trust is not None else ():
            terms = issuer.bundle.ocsp
            responder = terms.responder if terms is not None else None
            if responder is None or self._ocsp.is_silent(responder, issuer.bundle.name):
                continue
            if self._ocsp.is_current(absent, issuer.bundle.name, datetime.now(UTC)):
                break
            if len(self._tasks) >= _ASKED_AT_ONCE:
                return _LOOK
            self._begin(self._ask_absent(responder, absent[1], issuer))
            self._asked[absent] = self._clock() + _PATIENCE
            return _PATIENCE
        return 0.0

    async def _ask_absent(self, responder: str, serial: int, issuer: Issuer) -> None:
        await self._ocsp.ask_at([responder], serial, issuer)

    def _begin(self, asking: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(asking)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def failing(self, bundle: str) -> Collection[str]:
        """Return the responders that currently give *bundle* no credible answer."""
        return self._ocsp.failing[bundle]

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:  # A bug; the client has its answer all the same.
            log.error("certificate status unknown", code="INTERNAL_ERROR", exc_info=task.exception())

    async def _find_out(
        self, inquiry: Inquiry, certificate: x509.Certificate, issuer: Issuer, urls: list[str] | None, *, asks: bool
    ) -> None:
        try:
            async with asyncio.timeout(_PATIENCE), asyncio.TaskGroup() as group:
                if asks:
                    group.create_task(self._ocsp.ask(certificate, issuer))
                if urls is not None:
                    group.create_task(self._files.look())
                    for url in urls:
                        group.create_task(self._urls.fetch(url, issuer.bundle.name))
        except TimeoutError:
            if times := self._late[issuer.bundle.name].happened(self._clock()):
                facts = {"issuer": issuer.subject, "patience": _PATIENCE, "times": times}
                log.info("certificate status not known in time", **facts)
        finally:
            now = datetime.now(UTC)
            refusal = self._admission.status.refuse_by_lists(certificate, issuer, now)
            if refusal is None:
                answer = self._ocsp.known((issuer.key_id, certificate.serial_number), issuer.bundle.name)
                refusal = self._admission.status.refuse_by_ocsp(issuer, answer, now)
            inquiry.answer(refusal, self._clock())

    async def ask_again(self, engine: Engine) -> None:
        """Ask about connected clients whenever an answer has become old, until cancelled."""
        while True:
            await next_beat(_LOOK)
            if all(bundle.ocsp is None for bundle in self._bundles()):
                continue
            await self._round(engine)

    async def _round(self, engine: Engine) -> None:
        """Ask about all clients that are due, and record how old the answers for the others are."""
        now = datetime.now(UTC)
        oldest: dict[str, float] = {}
        unanswered: dict[str, float] = {bundle.name: 0.0 for bundle in self._bundles() if bundle.ocsp is not None}
        due: dict[str, list[tuple[Client, Issuer]]] = {bundle: [] for bundle in (*unanswered, *self._ocsp.holding)}
        for number, connection in enumerate(engine.connections(), 1):
            if number % _LOOKED_AT == 0:
                await asyncio.sleep(0)
            peer = connection.peer
            if peer is None or peer.issuer is None or connection.session is None:
                continue
            bundle = peer.issuer.bundle
            if bundle.ocsp is None:
                continue
            age = self._ocsp.age(peer.certificate, now)
            if age is None:
                unanswered[bundle.name] = unanswered.get(bundle.name, 0.0) + 1
            else:
                oldest[bundle.name] = max(age, oldest.get(bundle.name, 0.0))
            is_current = self._ocsp.is_current(peer.certificate, bundle.name, now)
            if not is_current and not self._ocsp.is_silent(bundle.ocsp.responder, bundle.name):
                due.setdefault(bundle.name, []).append((connection, peer.issuer))
        engine.metrics.ocsp_oldest_answer_seconds, engine.metrics.ocsp_unanswered = oldest, unanswered
        for name, clients in due.items():
            under_way = self._rounds.get(name)
            if under_way is None or under_way.done():
                self._rounds[name] = self._begin(self._ask_about_each(name, clients))

    async def _ask_about_each(self, bundle: str, due: Sequence[tuple[Client, Issuer]]) -> None:
        await self._ocsp.ask_about_holds(bundle)
        for start in range(0, len(due), _AT_ONCE):
            await asyncio.gather(*itertools.starmap(self._ask_about_one, due[start : start + _AT_ONCE]))

    async def _ask_about_one(self, connection: Client, issuer: Issuer) -> None:
        try:
            with NoPanic():
                await self._ask_about(connection, issuer)
        except MemoryError:
            raise
        except Exception:  # A bug that one client meets: the others would not be asked about as long as it stays.
            if times := self._failures.happened(self._clock()):  # Each round meets it again.
                facts = {"address": connection.address, "times": times}
                log.exception("certificate status unknown", code="INTERNAL_ERROR", **facts)

    async def _ask_about(self, connection: Client, issuer: Issuer) -> None:
        der, _ = connection.presented() if connection.session is not None else (None, ())
        if der is not None:
            await self._ocsp.ask_again(x509.load_der_x509_certificate(der), issuer)

    def _bundles(self) -> tuple[TrustBundle, ...]:
        trust = self._admission.trust
        return () if trust is None else trust.bundles

    async def close(self) -> None:
        """Stop asking."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._ocsp.close()
