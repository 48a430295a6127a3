"""Which issuing CAs provisioning has, and which of them the broker would not trust; reported before anyone is refused.

Theory
------
A fleet's next issuing CA is announced a day or more before it issues (docs/ca-life.md). A broker with an outdated copy
of the anchors would refuse every client certified by it. The feed lists the CAs; they are compared with the anchors in
use here. A missing CA is a warning, a figure and a line of ``fleet-broker status``, and is reported to provisioning,
which then activates that CA only on explicit request.

A CA is trusted here in one of two ways: it is an anchor, or an anchor vouches for it and clients send its certificate
with their own. The second counts only if no other CA under the same name above is an anchor: an operator who names only
roots has chosen to rely on that.

Rules
-----
1. What the feed says adds nothing to what is trusted: the anchors are those that the operator has named. It is only a
   reason to read those again, files and URLs, before anything is called missing.
2. Once per change: the log does not repeat itself.
3. With ``[[trust]]`` tables a line of CAs of which no bundle knows any is assumed to be not meant for this broker.
   ``cafile`` alone applies to all of them.
4. Nothing here delays the feed or ends anything: it is for operators.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from enum import Enum, auto
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

import structlog
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256

from broker.admission.trust import Trust
from broker.engine.engine import Engine
from provisioning.pki.extension import UNREADABLE

if TYPE_CHECKING:
    from provisioning.client.feed_reader import IssuingAuthority

log = structlog.get_logger("broker")

STATES: Final = ("announced", "active", "retiring")
_LOOK_SECONDS = 1.0
_AGAIN_SECONDS = 3600.0
"""Seconds after which provisioning is told the same again: it only counts brokers heard from recently."""
_RETRY_SECONDS = 30.0
_REMEDY = (
    "put provisioning's present ca-bundle.crt where this broker's cafile, or the anchors of its bundle, are; where a "
    "bundle names issuers, name this one"
)


class _Way(Enum):
    """How the path of a CA's clients ends at an anchor."""

    ANCHOR = auto()
    VOUCHED = auto()
    """Only if clients send its certificate with their own."""
    NONE = auto()


class IssuingAuthorities:
    """The CAs listed by the feed, compared with the anchors of one engine."""

    def __init__(self, engine: Engine, clock: Callable[[], float] = monotonic) -> None:
        self._engine = engine
        self._clock = clock
        self._told: tuple[IssuingAuthority, ...] | None = None
        self._news = asyncio.Event()
        self._judged_by: Trust | None = None
        self._known: dict[str, bool] = {}
        """By name: what provisioning is told. CAs not meant for this broker are not in it."""
        self._said: set[tuple[str, str]] = set()
        """Names and states of the CAs that the log has reported as unknown."""
        self._has_told: tuple[dict[str, bool], float] = {}, -_AGAIN_SECONDS

    @property
    def unknown(self) -> list[IssuingAuthority]:
        """The CAs whose clients would be refused here."""
        return [each for each in self._told or () if self._known.get(each.name) is False]

    @property
    def state(self) -> str:
        """``off`` if no feed lists CAs, ``ok``, or ``unknown``."""
        if self._told is None:
            return "off"
        return "unknown" if self.unknown else "ok"

    def documents(self) -> list[dict[str, Any]] | None:
        """Return the unknown ones for operators; None if no feed lists CAs."""
        if self._told is None:
            return None
        return [{"name": each.name, "line": each.line, "state": each.state} for each in self.unknown]

    def hear(self, issuing: Iterable[IssuingAuthority]) -> None:
        """Take note of the present list of CAs."""
        self._told = tuple(issuing)
        self._news.set()

    async def run(
        self, reread: Callable[[], Awaitable[object]], tell: Callable[[Mapping[str, bool]], Awaitable[bool]]
    ) -> None:
        """Compare after each change, until cancelled.

        *reread* reads the anchors again from their sources; *tell* tells provisioning what is known here, and returns
        whether it could.
        """
        while True:
            try:
                async with asyncio.timeout(_LOOK_SECONDS):
                    await self._news.wait()
            except TimeoutError:
                pass
            if self._told is None:
                continue
            if self._news.is_set():
                self._news.clear()
                if not all(self._compare().values()):
                    await reread()
                self._look()
            elif self._judged_by is not self._engine.admission.believed:
                self._look()
            before, again_at = self._has_told
            if self._known != before or self._clock() >= again_at:
                self._has_told = await self._tell(tell)

    async def _tell(self, tell: Callable[[Mapping[str, bool]], Awaitable[bool]]) -> tuple[dict[str, bool], float]:
        """Return what provisioning knows now, and when to tell it again even without a change."""
        known = dict(self._known)
        if await tell(known):
            return known, self._clock() + _AGAIN_SECONDS
        return known, self._clock() + _RETRY_SECONDS

    def _look(self) -> None:
        """Judge every CA, and report changes."""
        self._known = self._compare()
        unknown = self.unknown
        for each in unknown:
            if (each.name, each.state) not in self._said:
                facts = {"ca": each.name, "line": each.line, "state": each.state, "sha256": _sha256(each)}
                log.warning(
                    "clients under an issuing CA would be refused", code="ISSUING_CA_UNKNOWN", **facts, remedy=_REMEDY
                )
                self._engine.history.told("issuing CA unknown", code="ISSUING_CA_UNKNOWN", **facts)
        for name in {name for name, _ in self._said} - {each.name for each in unknown}:
            log.info("an unknown issuing CA is known now", code="ISSUING_CA_KNOWN", ca=name)
            self._engine.history.told("issuing CA known", code="ISSUING_CA_KNOWN", ca=name)
        self._said = {(each.name, each.state) for each in unknown}

    def _compare(self) -> dict[str, bool]:
        """Return which CAs would be trusted here, by name, without those not meant for this broker."""
        trust = self._judged_by = self._engine.admission.believed
        told = self._told or ()
        if trust is None:
            return {}
        ways = {each.name: _way(trust, each.certificate) for each in told}
        lines = {each.line for each in told if ways[each.name] is not _Way.NONE}
        is_for_all = self._engine.admission.trust is None or all(each.terms.settings is None for each in trust.bundles)
        anchored = {_above(each) for each in told if ways[each.name] is _Way.ANCHOR}
        return {
            each.name: ways[each.name] is _Way.ANCHOR
            or (ways[each.name] is _Way.VOUCHED and _above(each) not in anchored)
            for each in told
            if is_for_all or each.line in lines
        }


def _way(trust: Trust, der: bytes) -> _Way:
    try:
        certificate = x509.load_der_x509_certificate(der)
        found = [each.issuer_at([certificate]) for each in trust.bundles if each.feed]
    except UNREADABLE:
        return _Way.NONE
    believed = [each for each in found if each is not None and each.fault is None]
    if any(each.is_anchor for each in believed):
        return _Way.ANCHOR
    return _Way.VOUCHED if believed else _Way.NONE


def _above(authority: IssuingAuthority) -> bytes:
    """Return the name of the CA that certified *authority*: successive roots share it."""
    return x509.load_der_x509_certificate(authority.certificate).issuer.public_bytes()


def _sha256(authority: IssuingAuthority) -> str:
    try:
        return x509.load_der_x509_certificate(authority.certificate).fingerprint(SHA256()).hex()
    except UNREADABLE:
        return ""
