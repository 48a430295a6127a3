"""The staple: an OCSP response about the broker's own certificate, handed to each client that asks for it within TLS.

Theory
------
A device that wants to know whether the broker's certificate is revoked would otherwise have to ask a responder, from
wherever it is. So the broker asks in advance (RFC 6066 §8) and passes the signed response on. Since the broker asks and
the client relies on the answer, the response is verified here like any other (`provisioning.pki.ocsp`), and carries no
nonce. The handshake itself uses the present response and never waits (`provisioning.pki.stapling`).

Rules
-----
1. Only a credible response is stapled: about the certificate that the context presents, signed by an authorised signer,
   in date. OpenSSL is told its expiry, so that it stops without a timer of ours. A response that is not valid yet,
   because the clock was set back, is dropped and requested again.
2. It is renewed at half of its lifetime, and at least every `ocsp_refresh_seconds`; a failure is retried with growing
   pauses. Without a response none is sent, clients are served, and an alarm reports it.
3. A response that the certificate is revoked is stapled too: clients that ask must know. A "good" response is not, once
   any source of revocations knows better; nor is one by which the responder does not know the certificate. When a
   suspension known to another source ends, the responder is asked at once.
4. A certificate that names no responder has no staple, and nothing is reported about that.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog
from cryptography import x509

from broker.credentials.own_certificate import OwnCertificate, read_certificate
from broker.engine.engine import Engine
from broker.settings.config import BrokerConfig
from broker.sources.ocsp_http import PATIENCE, OcspHttp, refuse_if_signed_by_revoked
from broker.timing.beat import left_until
from broker.timing.growing_pause import GrowingPause
from provisioning.pki import stapling
from provisioning.pki.extension import UNREADABLE
from provisioning.pki.issued_by import is_issued_by
from provisioning.pki.keys import key_identifier
from provisioning.pki.ocsp import CLOCK_TOLERANCE, Answer, OcspRefused, responders
from provisioning.pki.revocation import CertificateKey, certificate_key
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.pki.serial_number import serial_text
from provisioning.pki.tls import certificates_in
from provisioning.program.given_file import PEM_BYTES, contents_of
from provisioning.program.moments import rfc3339

log = structlog.get_logger("broker")

_LOOK = 1.0
_PAUSES = 1.0, 60.0
"""After failures, in seconds: the first, and the longest."""
_LARGEST = 16 * 1024
"""The largest response, in bytes, handed to devices; those of our own service have less than one thousand."""


@dataclass(frozen=True, slots=True)
class _Own:
    """The broker's certificate, as presented by *context*, and its issuer."""

    context: ssl.SSLContext
    certificate: x509.Certificate
    key: CertificateKey
    """How the index identifies it."""
    issuer: x509.Certificate | None
    responders: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Held:
    """A response that passed verification."""

    answer: Answer
    der: bytes


class Staple:
    """The staple of a running broker."""

    def __init__(
        self, config: BrokerConfig, presented: OwnCertificate, engine: Engine, clock: Callable[[], float]
    ) -> None:
        """*presented* learns here whether it is revoked; its file also has the chain."""
        self._config = config
        self.presented = presented
        presented.find_revocation = self._found_revoked
        self._file = presented.files.certificate
        self._index = engine.admission.status.index
        self._metrics = engine.metrics
        self._history = engine.history
        self._clock = clock
        self._http = OcspHttp()
        self._own: _Own | None = None
        self._unasked: _Own | None = None
        """It instead of `_own`, if no responder is asked: other sources may know that it is revoked."""
        self._held: _Held | None = None
        self._due = 0.0
        self._pause = GrowingPause(*_PAUSES)
        self._problem = ""
        self._revoked: RevocationReason | None = None
        self._was_known_revoked = False
        """Whether another source said that the certificate is revoked when that was last looked up."""
        self._wake = asyncio.Event()
        self._tried = asyncio.Event()

    def adopt(self, context: ssl.SSLContext) -> None:
        """Use *context* for stapling: the listeners present it, or are about to."""
        before = self._own
        own, problem = self._own_of(context)
        self._unasked = own if own is not None and not own.responders else None
        self._own = own = own if self._unasked is None else None
        if own is not None and before is not None and own.certificate == before.certificate:
            if self._held is not None:
                self._staple(own, self._held)
        else:
            self._drop()
            self._problem, self._revoked, self._was_known_revoked = "", None, False
            self._ask_now()
            self._tried.clear()
            if problem:
                self._fail(problem)
        self._wake.set()

    async def tried(self) -> None:
        """Return when the responder was asked about the certificate, or its time has run out."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE):
                await self._tried.wait()

    async def run(self) -> None:
        """Renew until cancelled."""
        try:
            while True:
                self._wake.clear()
                await self._look()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(left_until(asyncio.get_running_loop().time(), _LOOK)):
                        await self._wake.wait()
        finally:
            await self._http.close()

    def document(self, wall: datetime) -> dict[str, Any]:
        """Return the document for operators."""
        own, held = self._own, self._held
        document: dict[str, Any] = {"state": self._state(wall)}
        if own is not None:
            document |= {"serial": _serial(own), "responder": own.responders[0]}
        if held is not None:
            answer = held.answer
            document |= {
                "this_update": rfc3339(answer.this_update),
                "next_update": rfc3339(answer.fresh_until),
                "age_seconds": round((wall - answer.this_update).total_seconds()),
                "seconds_left": round((answer.fresh_until - wall).total_seconds()),
            }
        return document | ({"problem": self._problem} if self._problem else {})

    def _state(self, wall: datetime) -> str:
        if not self._config.ocsp_stapling:
            return "off"
        if self._own is None:
            return "no responder" if not self._problem else "missing"
        if self._revoked is not None:
            return "revoked"
        if self._held is None:
            return "missing"
        answer = self._held.answer
        is_late = self._problem and answer.fresh_until - wall < (answer.fresh_until - answer.this_update) / 2
        return "late" if is_late else "current"

    def _found_revoked(self) -> RevocationReason | None:
        own = self._own or self._unasked
        known = self._index.find(own.key) if own is not None else None
        if known is not None:
            return known.reason
        return self._held.answer.reason if self._held is not None else None

    def _look_unasked(self) -> None:
        known = self._index.find(self._unasked.key) if self._unasked is not None else None
        if known is None:
            self._revoked = None
        elif self._revoked is not known.reason:
            self._tell_revoked(known.reason)

    async def _look(self) -> None:
        """Do what is due."""
        own, held, now = self._own, self._held, datetime.now(UTC)
        if own is None:
            self._look_unasked()
            self._tried.set()
            return
        if held is not None and held.answer.fresh_until <= now:
            self._drop()
            log.warning(
                "the stapled response has expired",
                code="STAPLE_FAILED",
                detail=self._problem or "it was not renewed in time",
            )
            self._due = self._clock()
        elif held is not None and held.answer.this_update > now + CLOCK_TOLERANCE:  # The clock was set back.
            self._drop()  # Otherwise the renewed one would seem older, and clients refuse this one.
            log.warning(
                "the stapled response is from the future", code="STAPLE_FAILED", detail="the clock was set back"
            )
            self._ask_now()
        known = self._index.find(own.key)
        if known is not None and held is not None and held.answer.reason is None:
            self._drop()  # The responder lags behind our other sources, or its answer is being replayed.
            self._ask_now()
        elif known is None and self._was_known_revoked:  # It was suspended: clients refuse a broker that staples so.
            self._ask_now()
        self._was_known_revoked = known is not None
        if self._clock() >= self._due:
            await self._renew(own, known.reason if known is not None else None)
            self._tried.set()

    def _ask_now(self) -> None:
        """Ask as soon as possible, however often that has failed before."""
        self._due = self._clock()
        self._pause.reset()

    async def _renew(self, own: _Own, known: RevocationReason | None) -> None:
        held, problem = None, ""
        if own.issuer is None:
            problem = f"the certificate of its issuer is neither in {self._file} nor in {self._config.cafile}"
        else:
            for url in own.responders:
                try:
                    held = await self._ask(url, own.certificate, own.issuer, known)
                    break
                except OcspRefused as error:
                    problem = f"{url}: {error}"
        if own is not self._own:
            return  # Another certificate has replaced it meanwhile: `adopt` has scheduled what is due.
        if held is None:
            if known is not None:
                self._tell_revoked(known)
            self._fail(problem)
            return
        before = self._held
        if before is not None and held.answer.this_update < before.answer.this_update:
            held = before  # Replayed, or from a lagging cache.
        left = (held.answer.fresh_until - datetime.now(UTC)).total_seconds()
        self._due = self._clock() + max(_LOOK, min(left / 2, self._config.ocsp_refresh_seconds))
        self._pause.reset()
        self._take(own, held)

    async def _ask(
        self, url: str, certificate: x509.Certificate, issuer: x509.Certificate, known: RevocationReason | None
    ) -> _Held:
        answer, der = await self._http.ask(url, certificate.serial_number, issuer, nonce=False)
        refuse_if_signed_by_revoked(answer, self._index)
        if not answer.known:
            raise OcspRefused("the responder does not know the certificate")
        if answer.reason is None and known is not None:
            raise OcspRefused("the responder says that the certificate is good, and another source that it is revoked")
        if len(der) > _LARGEST:
            raise OcspRefused(f"the response has {len(der)} bytes, too many for a handshake")
        return _Held(answer, der)

    def _take(self, own: _Own, held: _Held) -> None:
        is_news = self._held is None or bool(self._problem)
        self._held, self._problem = held, ""
        self._staple(own, held)
        if held.answer.reason is not None:
            self._tell_revoked(held.answer.reason)
            return
        if is_news or self._revoked is not None:
            facts = {"serial": _serial(own), "next_update": rfc3339(held.answer.fresh_until)}
            log.info("stapled", code="STAPLED", **facts)
            self._history.told("stapled", code="STAPLED", **facts)
        self._revoked = None

    def _staple(self, own: _Own, held: _Held) -> None:
        answer = held.answer
        stapling.staple(own.context, held.der, answer.fresh_until.timestamp())
        self._metrics.staple_this_update_timestamp = answer.this_update.timestamp()
        self._metrics.staple_next_update_timestamp = answer.fresh_until.timestamp()

    def _drop(self) -> None:
        """Drop the response. An earlier context keeps its own until it expires, for handshakes under way."""
        if self._held is not None and self._own is not None:
            stapling.staple(self._own.context, b"", 0.0)
        self._held = None
        self._metrics.staple_this_update_timestamp = self._metrics.staple_next_update_timestamp = 0.0

    def _fail(self, problem: str) -> None:
        self._metrics.revocation_alarms["STAPLE_FAILED"] += 1
        if not self._problem:  # Logged once, until there is a response.
            log.warning(
                "OCSP response for stapling not renewed",
                code="STAPLE_FAILED",
                detail=problem,
                stapling=self._held is not None,
            )
            self._history.told("staple lost", code="STAPLE_FAILED", detail=problem)
        self._problem = problem
        self._due = self._clock() + self._pause.after_failure()

    def _tell_revoked(self, reason: RevocationReason) -> None:
        self._metrics.revocation_alarms["OWN_CERTIFICATE_REVOKED"] += 1
        own = self._own or self._unasked
        if self._revoked is not reason and own is not None:
            facts = {"serial": _serial(own), "reason": str(reason)}
            log.error("the broker's own certificate is revoked", code="OWN_CERTIFICATE_REVOKED", **facts)
            self._history.told("own certificate revoked", code="OWN_CERTIFICATE_REVOKED", **facts)
        self._revoked = reason

    def _own_of(self, context: ssl.SSLContext) -> tuple[_Own | None, str]:
        """Return what *context* presents, and why it has no staple if it wants one and there can be none.

        Without responders if none is asked; None if it cannot be read.
        """
        der = stapling.own_certificate(context)
        try:
            certificate = x509.load_der_x509_certificate(der) if der else read_certificate(self._file)
            if certificate is None:
                return None, ""
            named, key = responders(certificate), certificate_key(certificate)
            issuer = self._issuer_of(certificate)
            if issuer is not None:  # As CRLs are filed, regardless of what the certificate says about its issuer.
                key = key_identifier(issuer.public_key()), certificate.serial_number
        except UNREADABLE as error:  # OpenSSL presents what other software cannot read.
            wanted = self._config.ocsp_stapling
            return None, f"the broker's own certificate cannot be read: {error}" if wanted else ""
        urls = tuple(url for url in named if url.startswith("http://"))
        if self._config.ocsp_stapling_responder is not None:
            urls = (self._config.ocsp_stapling_responder,)
        if not urls or not self._config.ocsp_stapling:
            return _Own(context, certificate, key, issuer, ()), ""
        if not stapling.CAN_STAPLE:
            why = "this Python's OpenSSL cannot be asked to staple (docs/decisions/0098)"
            return _Own(context, certificate, key, issuer, ()), why
        return _Own(context, certificate, key, issuer, urls), ""

    def _issuer_of(self, certificate: x509.Certificate) -> x509.Certificate | None:
        candidates = [*_certificates_in(self._file), *_certificates_in(self._config.cafile)]
        return next((each for each in candidates if is_issued_by(certificate, each)), None)


def _serial(own: _Own) -> str:
    return serial_text(own.certificate.serial_number)


def _certificates_in(file: Path) -> list[x509.Certificate]:
    try:
        return certificates_in(contents_of(file, PEM_BYTES))
    except (OSError, *UNREADABLE):
        return []
