"""When a certificate should be renewed: public, in the format of ACME's renewal information (RFC 9773).

Theory
------
If devices renew when they like, the whole fleet renews at once, on the anniversary of its installation. So each
certificate has its own window: around two thirds of its lifetime (half if that is less than ten days), shifted
by up to a fortieth of the lifetime either way, by a number derived from issuer and serial. The window does not change
between two queries, needs no row, and spreads devices that take its first moment.

An operator can move windows into the past (`RenewalService.hasten`): when the key of an issuing CA is in doubt, or a
profile has changed. Certificates issued before the order are then to be renewed, each at its own moment of the spread;
the successor is issued after the order, and has an ordinary window again. The window of a revoked certificate is over,
and that of one on trial, which only waits for its successor.

Rules
-----
1. The query needs only what the certificate contains, so callers are not authenticated (RFC 9773 §4.1).
2. The answer is a hint: whether a renewal is granted is decided when it is requested.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Final

import structlog
from sqlalchemy.engine import Connection

from provisioning.errors import Code, Refused
from provisioning.pki.identity import InvalidIdentity, check_name
from provisioning.program.durations import out_of_bounds
from provisioning.store import audit, certificates, claims, groups, renewals
from provisioning.store.audit import Action
from provisioning.store.database import Database
from provisioning.store.renewals import Hastened

MAXIMUM_SPREAD: Final = timedelta(days=30)
_LONGEST_IDENTIFIER: Final = 128
_BASE64URL: Final = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
_SHORT_LIFE: Final = timedelta(days=10)
_JITTER: Final = 1 / 40
_WIDTH: Final = 1 / 50
_RETRY: Final = (timedelta(minutes=1), timedelta(hours=6))

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class RenewalInfo:
    """The window in which a certificate should be renewed, and how long this answer is valid."""

    start: datetime
    end: datetime
    retry_after: timedelta


@dataclass(frozen=True, slots=True)
class HastenedOutcome:
    """What an order to renew covers."""

    group: str | None
    at: datetime
    spread: timedelta
    certificates: int


class RenewalService:
    """Tells when to renew, and takes orders to renew early."""

    def __init__(self, database: Database, clock: Callable[[], datetime]) -> None:
        self._database = database
        self._clock = clock

    async def info(self, identifier: str) -> RenewalInfo:
        """Return the window of the certificate that RFC 9773's *identifier* names; raise `Refused`."""
        issuer_key_id, serial = parse_identifier(identifier)

        def look(connection: Connection) -> RenewalInfo:
            stored = certificates.find(connection, issuer_key_id, serial)
            if stored is None:
                raise Refused(Code.SERIAL_UNKNOWN, "this service has not issued that certificate")
            share = _share(issuer_key_id, serial)
            if stored.on_hold and claims.on_trial(connection, stored.id):
                return _over(stored.issued_at)  # Good for nothing but its successor: an agent that waits is not in.
            if stored.revocation is not None and stored.revocation.reason.final:
                return _over(stored.revocation.revoked_at)
            if stored.ended_above is not None:
                return _over(stored.ended_above)
            orders = renewals.concerning(connection, stored.device.group, stored.issued_at)
            # Not from notBefore: a certificate backdated by more than its lifetime would be renewed at once, for ever.
            return window(stored.issued_at, stored.not_after, share, *orders)

        return await self._database.read(look)

    async def hasten(self, *, group: str | None, spread: timedelta, by: str) -> HastenedOutcome:
        """Order that everything issued until now, in *group* or in all groups, is renewed now; raise `Refused`."""
        if group is not None:
            try:
                check_name("group", group)
            except InvalidIdentity as error:
                raise Refused(Code.INVALID_REQUEST, str(error)) from error
        if not timedelta() <= spread <= MAXIMUM_SPREAD:
            raise Refused(Code.INVALID_REQUEST, out_of_bounds("spread_seconds", spread, timedelta(), MAXIMUM_SPREAD))

        # Before the order, and not in its transaction: this reads all certificates of the fleet.
        number = await self._database.survey(partial(renewals.concerned, group=group, at=self._clock()))

        def record(connection: Connection) -> HastenedOutcome:
            now = self._clock()
            renewals.add(connection, group, Hastened(now, spread), by=by)
            if group is not None and not number and groups.find(connection, group) is None:
                raise Refused(
                    Code.GROUP_UNKNOWN,
                    f"no group {group!r} is configured, and no device of such a group has a "
                    "certificate: device list shows groups",
                )
            facts = {"spread": spread, "certificates": number}
            audit.append(connection, now, by, Action.RENEWAL_HASTENED, group or "every group", facts)
            return HastenedOutcome(group, now, spread, number)

        outcome = await self._database.write(record)
        log.info("renewal hastened", group=group, certificates=outcome.certificates, by=by)
        return outcome


def window(issued_at: datetime, not_after: datetime, share: float, *orders: Hastened) -> RenewalInfo:
    """Return when to renew a certificate whose position in a spread is *share*, from 0 to 1: the earliest of *orders*.

    A later one may be sooner done: the operator was in no hurry at first.
    """
    life = not_after - issued_at
    middle = issued_at + life * (1 / 2 if life < _SHORT_LIFE else 2 / 3) + life * _JITTER * (2 * share - 1)
    half = life * _WIDTH / 2
    start, end = middle - half, middle + half
    hastened = min((each.at + each.spread * share for each in orders), default=start)
    if hastened < start:
        start = hastened - timedelta(seconds=2)
        end = start + timedelta(seconds=1)
    return RenewalInfo(
        start.replace(microsecond=0), end.replace(microsecond=0), min(max(life / 20, _RETRY[0]), _RETRY[1])
    )


def parse_identifier(identifier: str) -> tuple[bytes, int]:
    """Return issuer key identifier and serial number from ``base64url(AKI).base64url(serial)`` (RFC 9773 §4.1)."""
    issuer, _, serial = identifier[:_LONGEST_IDENTIFIER].partition(".")
    key, number = _decoded(issuer), _decoded(serial)
    if not key or not number:
        raise Refused(
            Code.INVALID_REQUEST,
            "the identifier is not base64url(key identifier of the issuer).base64url(serial number), without padding",
        )
    return key, int.from_bytes(number)


def _decoded(text: str) -> bytes:
    """Return *text* decoded as base64url without padding; empty if it is not."""
    if not _BASE64URL.fullmatch(text):
        return b""
    try:
        return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except binascii.Error:
        return b""


def _share(issuer_key_id: bytes, serial: int) -> float:
    digest = hashlib.sha256(issuer_key_id + serial.to_bytes(_LONGEST_IDENTIFIER)).digest()
    return int.from_bytes(digest[:8]) / (1 << 64)


def _over(since: datetime) -> RenewalInfo:
    return RenewalInfo(since - timedelta(seconds=2), since - timedelta(seconds=1), _RETRY[1])
