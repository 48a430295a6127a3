"""Asks OCSP responders about certificates: once for many waiting clients, a few at a time, and caches the answers.

Rules
-----
1. A revoked certificate enters the revocation index, and leaves it when a later answer says that it is good, not one
   of the same time: which of the two came first nobody can tell. One on hold is asked about until then, or until it
   has expired: then its client is refused for that, and many responders no longer know it.
2. If a responder cannot be asked or believed, there is no answer; the bundle's policy decides what follows.
3. At most `_MOST_ANSWERS` are cached, the least recently used dropped first. A certificate known to be revoked stays in
   the index.
4. Each bundle has its own questions under way, and its own certificates on hold: a responder that hangs, or suspends
   every certificate, affects one bundle only. So does one that replays an old answer: a CA of one bundle may have
   certified the key of another's, so an answer there about such a certificate spares no other bundle its own question.
   And so does one that gives no answer: a partner's certificate may name our responder, which may not know it.
5. If any source calls a responder's own certificate revoked, its answers do not count, neither new nor remembered ones:
   a thief of its key could call everybody good. Whom it has called revoked stays so until another says otherwise.
6. Of the responders that a certificate names only the first few are asked: it has room for a thousand, each of which
   would add a line to the log if it does not answer, and others of its bundle would wait for hours while they hang.
7. A suspension that the feed has ended is asked about again at once: what is remembered is from before.
8. Answers are judged by the clock, or by a time that is proven to be later: if the clock was set back, each new answer
   would seem to be from the future, and the last one before that would stay good. Of answers from the future only a
   good one, of a time when all clocks were ahead, gives way to a revocation: by a clock that was set back, all that is
   known is from the future.
9. If a responder is late with one answer, and has answered another question of the bundle since, it is busy, not
   silent: the late answer is only counted. In a reconnection storm each would otherwise be a warning, taken back at the
   next answer, and the clients behind it would not be asked about. A minute with more late ones than answers is
   reported (`LateAnswers`).
"""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial

import structlog
from cryptography import x509

from broker.admission.issuers import Issuer
from broker.admission.status import RevocationStatus
from broker.metrics import Metrics
from broker.sources.late_answers import LateAnswers, MostlyLate
from broker.sources.ocsp_http import OcspHttp, OcspUnreachable, is_signed_by_revoked, refuse_if_signed_by_revoked
from provisioning.pki.ocsp import CLOCK_TOLERANCE, Answer, OcspRefused, responders
from provisioning.pki.revocation import OCSP, CertificateKey, pack, unpack
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.pki.serial_number import serial_text
from provisioning.program.event_loop import ON_BEHALF_OF
from provisioning.program.shielded import shielded

log = structlog.get_logger("broker")

_AT_ONCE = 16
"""Questions per bundle; others do not wait for its responders."""
_MOST_ON_HOLD = 10_000
"""Per bundle."""
_SILENCE = 5.0
"""Seconds for which an unreachable responder is not tried: no client waits for it meanwhile."""
_MOST_ANSWERS = 100_000
_MOST_RESPONDERS = 1_000
_MOST_NAMED = 4
"""Responders of one certificate."""
LIST = OCSP
"""The name of the answers among the lists of the revocation index."""


@dataclass(frozen=True, slots=True)
class _About:
    """Where to ask about a certificate, and when it expires."""

    urls: Sequence[str]
    issuer: Issuer
    ends: datetime


class OcspClient:
    """Answers, by certificate."""

    def __init__(
        self,
        status: RevocationStatus,
        metrics: Metrics,
        tell: Callable[..., None],
        on_revoked: Callable[[], None],
        refresh: float,
        clock: Callable[[], float],
    ) -> None:
        """Enter revoked certificates in the index of *status*, by whose time answers are judged, and call *on_revoked*.

        Count in *metrics*, and *tell* the audit log.

        An answer is requested again after *refresh* seconds, however long it is valid.
        """
        self._refresh = refresh
        self._clock = clock
        self._slept = 0.0
        self._index = status.index
        self._time_for = status.time_for
        self._metrics = metrics
        self._tell = tell
        self._on_revoked = on_revoked
        self._answers: OrderedDict[CertificateKey, tuple[Answer, float, str]] = OrderedDict()
        """The newest answer about each certificate, when one came last, and the bundle that asked then."""
        self._asking: dict[tuple[str, CertificateKey], asyncio.Task[Answer | None]] = {}
        self._revoked: dict[bytes, dict[int, int]] = {}
        self._on_hold: defaultdict[str, dict[CertificateKey, _About]] = defaultdict(dict)
        self._slots: defaultdict[str, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(_AT_ONCE))
        self._silent: defaultdict[str, dict[str, float]] = defaultdict(dict)
        """By bundle and responder: until when an unreachable one is not tried."""
        self._late = LateAnswers()
        self.failing: defaultdict[str, set[str]] = defaultdict(set)
        """By bundle: responders whose failure has been logged."""
        self._http = OcspHttp()

    def released(self, key: CertificateKey) -> None:
        """Have a suspension that is remembered, or being asked about, asked about again soon: the feed has ended it."""
        for (_, asked), task in self._asking.items():
            if asked == key:
                task.add_done_callback(lambda _: self._forget_when_held(key))
        self._forget_when_held(key)

    def _forget_when_held(self, key: CertificateKey) -> None:
        found = self._answers.get(key)
        if found is not None and found[0].reason is RevocationReason.CERTIFICATE_HOLD:
            self._answers[key] = found[0], -math.inf, found[2]

    def known(self, key: CertificateKey, bundle: str) -> Answer | None:
        """Return the last answer about *key*, however old, if *bundle* has asked for it."""
        found = self._found(key)
        if found is None or found[2] != bundle:
            return None
        self._answers.move_to_end(key)
        return found[0]

    def _found(self, key: CertificateKey) -> tuple[Answer, float, str] | None:
        """Return what is remembered about *key*, if its signer is not revoked by now."""
        found = self._answers.get(key)
        return None if found is None or is_signed_by_revoked(found[0], self._index) else found

    def is_current(self, key: CertificateKey, bundle: str, now: datetime) -> bool:
        """Whether there is no need for *bundle* to ask about *key* again yet."""
        found = self._found(key)
        if found is None or found[2] != bundle or not found[0].known:
            return False
        return now < found[0].fresh_until and self._clock() + self._slept - found[1] < self._refresh

    def slept(self, seconds: float) -> None:
        """Take note that the machine may have slept so long, while the clock of this object stood still."""
        self._slept += seconds

    def age(self, key: CertificateKey, now: datetime) -> float | None:
        """Return how many seconds ago the last answer about *key* was certainly true; None: there is none."""
        found = self._found(key)
        return None if found is None else max(0.0, (now - found[0].this_update).total_seconds())

    def is_silent(self, responder: str | None, bundle: str) -> bool:
        """Whether *responder* was unreachable a moment ago, for *bundle*."""
        return responder is not None and self._clock() < self._silent[bundle].get(responder, 0.0)

    async def ask_again(self, certificate: x509.Certificate, issuer: Issuer) -> None:
        """Ask about a connected client, and count the result."""
        if not all(self.is_silent(url, issuer.bundle.name) for url in urls_of(certificate, issuer)):
            answer = await self.ask(certificate, issuer)
            self._metrics.ocsp_rechecks["failed" if answer is None else "answered"] += 1

    async def ask(self, certificate: x509.Certificate, issuer: Issuer) -> Answer | None:
        """Return the responder's present answer about *certificate*; None: no credible one."""
        urls, ends = urls_of(certificate, issuer), certificate.not_valid_after_utc
        return await self.ask_at(urls, certificate.serial_number, issuer, ends)

    async def ask_at(
        self, urls: Sequence[str], serial: int, issuer: Issuer, ends: datetime | None = None
    ) -> Answer | None:
        """Return the answer of the first of *urls* that responds, about the certificate with that serial number.

        It expires when it *ends*; None: with its issuer at the latest.
        """
        key, about = (issuer.key_id, serial), _About(urls, issuer, ends or issuer.not_after)
        asking = issuer.bundle.name, key
        task = self._asking.get(asking)
        if task is None:
            task = self._asking[asking] = asyncio.get_running_loop().create_task(self._ask(key, about))
            task.add_done_callback(lambda _: self._asking.pop(asking, None))
        # Shielded: a caller that stops waiting does not stop the question, for which others may wait.
        return await shielded(task)

    @property
    def holding(self) -> list[str]:
        """The bundles with suspended certificates, by their names at that time."""
        return [bundle for bundle, on_hold in self._on_hold.items() if on_hold]

    async def ask_about_holds(self, bundle: str) -> None:
        """Ask again about suspended certificates of *bundle*: their clients are refused before any question."""
        now = datetime.now(UTC)
        due = [
            (about.urls, key[1], about.issuer, about.ends)
            for key, about in self._on_hold[bundle].items()
            if not self.is_current(key, bundle, now) and not self._has_ended(about, now)
        ]
        await asyncio.gather(*(self.ask_at(*each) for each in due))

    async def close(self) -> None:
        """Stop asking."""
        for task in list(self._asking.values()):
            task.cancel()
        await asyncio.gather(*self._asking.values(), return_exceptions=True)
        await self._http.close()

    async def _ask(self, key: CertificateKey, about: _About) -> Answer | None:
        issuer, bundle = about.issuer, about.issuer.bundle.name
        terms = issuer.bundle.ocsp
        is_ours = terms is not None and terms.responder is not None  # The settings name it: nobody else has chosen it.
        ON_BEHALF_OF.set(None if is_ours else bundle)  # Of this task.
        for url in about.urls:
            if self.is_silent(url, bundle):
                continue
            asked = math.inf
            try:
                async with self._slots[bundle]:
                    if self.is_silent(url, bundle):  # By now: it was given up while this question waited.
                        continue
                    asked = self._clock()
                    time_at = partial(self._time_for, issuer)
                    answer, _ = await self._http.ask(url, key[1], issuer.certificate, time_at=time_at)
                    refuse_if_signed_by_revoked(answer, self._index)
            except OcspRefused as error:
                self._metrics.revocation_alarms["OCSP_FAILED"] += 1
                unreachable = isinstance(error, OcspUnreachable)
                if unreachable and self._late.has_answered_since(bundle, url, asked):  # Rule 9.
                    self._judge(url, bundle, self._late.late(bundle, url, self._clock()))
                    continue
                self._failed(url, bundle, str(error))
                if unreachable:
                    self._silent[bundle][url] = self._clock() + _SILENCE
            else:
                self._silent[bundle].pop(url, None)
                self._judge(url, bundle, self._late.answered(bundle, url, self._clock()))
                if url in self.failing[bundle]:
                    self.failing[bundle].discard(url)
                    log.info("OCSP answers again", code="OCSP_CURRENT", url=url, bundle=bundle)
                    self._tell("OCSP answers", code="OCSP_CURRENT", source=url, bundle=bundle)
                return self._note(key, answer, about)
        return None

    def _hold(self, key: CertificateKey, about: _About) -> None:
        on_hold = self._on_hold[about.issuer.bundle.name]
        if key not in on_hold and len(on_hold) >= _MOST_ON_HOLD:
            now = datetime.now(UTC)
            for ended in [each for each, held in on_hold.items() if self._has_ended(held, now)]:
                del on_hold[ended]
            if len(on_hold) >= _MOST_ON_HOLD:
                return
        on_hold[key] = about

    def _has_ended(self, about: _About, now: datetime) -> bool:
        return self._time_for(about.issuer, now) > about.ends

    def _is_from_ahead(self, known: Answer, answer: Answer, issuer: Issuer) -> bool:
        latest = self._time_for(issuer, datetime.now(UTC)) + CLOCK_TOLERANCE
        return answer.reason is not None and known.reason is None and known.this_update > latest

    def _failed(self, url: str, bundle: str, detail: str) -> None:
        """Log that *url* does not answer *bundle* correctly: once, not a line per client of a storm."""
        failing = self.failing[bundle]
        if url in failing:
            return
        if len(failing) >= _MOST_RESPONDERS:  # Certificates determine their number.
            failing.clear()
            self._silent[bundle].clear()
        failing.add(url)
        log.warning("OCSP failed", code="OCSP_FAILED", url=url, bundle=bundle, detail=detail)
        self._tell("OCSP lost", code="OCSP_FAILED", source=url, bundle=bundle, detail=detail)

    def _judge(self, url: str, bundle: str, found: MostlyLate | None) -> None:
        """Log the minute in which *url* gave fewer answers than it owed; it does give some, so it is not failing."""
        if found is not None:
            facts = {"code": "OCSP_FAILED", "bundle": bundle, "answered": found.answered, "late": found.late}
            log.warning("OCSP answers mostly late", url=url, **facts)
            self._tell("OCSP mostly late", source=url, **facts)

    def _note(self, key: CertificateKey, answer: Answer, about: _About) -> Answer:
        issuer = about.issuer
        found, bundle = self._found(key), issuer.bundle.name
        if found is not None and answer.gives_way_to(found[0]) and not self._is_from_ahead(found[0], answer, issuer):
            # Replayed, or from a lagging cache: the known answer is newer. The next client has it asked about again.
            before, at, asker = found
            self._answers[key] = before, at if asker == bundle else -math.inf, bundle
            return before
        self._answers[key] = answer, self._clock() + self._slept, bundle
        self._answers.move_to_end(key)
        if len(self._answers) > _MOST_ANSWERS:
            self._answers.popitem(last=False)
        if answer.reason is RevocationReason.CERTIFICATE_HOLD:
            self._hold(key, about)
        elif answer.known:
            self._on_hold[bundle].pop(key, None)
        issuer_key_id, serial = key
        entries = self._revoked.setdefault(issuer_key_id, {})
        if answer.reason is None:
            if answer.known and entries.pop(serial, None) is not None:
                log.info("released", code="RELEASED", serial=serial_text(serial), source=LIST)
                self._tell(
                    "released", code="RELEASED", source=LIST, issuer=issuer_key_id.hex(), serial=serial_text(serial)
                )
        elif serial not in entries or unpack(key, entries[serial]).reason is not answer.reason:  # A hold may be final.
            entries[serial] = pack(answer.reason, answer.revoked_at or answer.this_update)
            self._index.publish(issuer_key_id, LIST, entries)
            facts = {"code": "REVOKED", "serial": serial_text(serial), "reason": str(answer.reason), "source": LIST}
            log.info("revoked", **facts)
            self._tell("revoked", issuer=issuer_key_id.hex(), **facts)
            self._on_revoked()
        return answer


def urls_of(certificate: x509.Certificate, issuer: Issuer) -> Sequence[str]:
    """Return the responders for *certificate*: the bundle's, or those that the certificate names."""
    terms = issuer.bundle.ocsp
    if terms is None:
        return ()
    if terms.responder is not None:
        return (terms.responder,)
    if not terms.from_certificates:
        return ()
    return [url for url in responders(certificate) if url.startswith("http://")][:_MOST_NAMED]
