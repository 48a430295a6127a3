"""The device inventory for operators: each device with the status of its certificates, in pages, in order of name.

Theory
------
A device's state is what was decided about it; certificates expire without a decision, and revoking the last one does
not revoke the device. So an active device may have no good certificate, and its `Standing` tells: there is a good
certificate, or else what became of the newest. It is computed from the certificates when requested, and is in
no column of its own: it changes as time passes.

Rules
-----
1. The cost of a page does not depend on the number of devices or certificates: each is looked up by an index, even
   if PostgreSQL has no statistics (docs/decisions/0085-index-look-ups-without-statistics.md), and a search by
   standing examines at most `LOOKED_AT` devices, one by state, part of the name or what let them in alone
   `LOOKED_AT_ALONE`. What it has found by then is the page, even if short or empty, and the cursor says where the next
   one begins.
2. A device's certificates are examined newest first, up to the first good one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

from sqlalchemy import ColumnElement, Select, and_, bindparam, case, func, select, true
from sqlalchemy.engine import Connection

from provisioning.pki.identity import PROVISIONING
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.store import admissions
from provisioning.store.admissions import Admission
from provisioning.store.certificates import ENDED_ABOVE, EXPIRY, NOT_ENDED_ABOVE, REASON, with_ends_above
from provisioning.store.devices import WIDTH, Device, DeviceState, device_from, state
from provisioning.store.tables import activations, certificates, devices
from provisioning.store.utc_date_time import UtcDateTime

LOOKED_AT: Final = 2000
"""Devices, for one page of a search by their certificates."""
LOOKED_AT_ALONE: Final = 20_000
"""For one of a search by what stands in a single row about a device: the certificates of no other are looked up."""
_AT_ONCE: Final = 500
_NAMED: Final = 50


class Standing(StrEnum):
    """What a device can show now."""

    VALID = "valid"
    """At least one of its certificates is good."""
    TRIAL = "trial"
    """None is; the newest is on trial: the device has yet to activate itself. A trial that has ended has expired."""
    SUSPENDED = "suspended"
    """None is; the newest is on hold."""
    REVOKED = "revoked"
    EXPIRED = "expired"
    NONE = "none"
    """It never had one."""


@dataclass(frozen=True, slots=True)
class DeviceSearch:
    """Which devices are wanted; None: whatever it is."""

    group: str | None = None
    state: DeviceState | None = None
    certificate: Standing | None = None
    part: str | None = None
    """Of its name, in capitals or not."""
    claim: str | None = None
    """That let them in, by its name."""
    manufacturer: str | None = None
    """Whose CA let them in, by its name."""

    @property
    def narrows(self) -> bool:
        """Whether it says something that a single row about a device answers, and no index."""
        return any(each is not None for each in (self.state, self.part, self.claim, self.manufacturer))

    def may_want(self, name: str, state_now: str) -> bool:
        """Whether it is one of those, as far as the device's own row says."""
        return self.state in (None, state_now) and (self.part is None or self.part.lower() in name.lower())

    def wants(self, shown: ShownDevice) -> bool:
        """Whether it is one of those, as far as its certificates say."""
        return self.certificate in (None, shown.certificate)

    def let_in(self, connection: Connection, now: datetime) -> ColumnElement[bool]:
        """Return whether what is wanted has let a device in, as an expression about `devices`; raise `Refused`."""
        conditions = [] if self.claim is None else [admissions.by_claim(connection, self.claim, now).is_not(None)]
        if self.manufacturer is not None:
            conditions.append(admissions.by_manufacturer(connection, self.manufacturer).is_not(None))
        return and_(true(), *conditions)


@dataclass(frozen=True, slots=True)
class ShownDevice:
    """A device, and what its certificates are worth."""

    device: Device
    issued: int
    """How many certificates it has had."""
    certificate: Standing
    not_after: datetime | None
    """When the newest good one ends, or the newest if none is good."""
    admission: Admission


_OF_DEVICE: Final = certificates.c.device_id == devices.c.id
# What is still to be recorded as revoked, for its key or its CA, is worth nothing already.
_GOOD_UNTIL: Final = (
    select(EXPIRY)
    .select_from(with_ends_above(certificates))
    .where(_OF_DEVICE, bindparam("now", type_=UtcDateTime) < EXPIRY, REASON.is_(None), NOT_ENDED_ABOVE)
    .order_by(certificates.c.id.desc())
    .limit(1)
    .scalar_subquery()
)
_LAST_GOOD: Final = (
    select(func.max(EXPIRY))
    .select_from(with_ends_above(certificates))
    .where(certificates.c.device_id == bindparam("wanted"))
    .where(bindparam("now", type_=UtcDateTime) < EXPIRY, REASON.is_(None), NOT_ENDED_ABOVE)
)
"""Of the service itself, whose newest certificate is an OCSP signer's: of a few days, and renewed by itself."""
_OF_TRIAL: Final = (
    select(case((activations.c.withdrawn_at.is_(None), 1), else_=0))
    .where(activations.c.certificate_id == certificates.c.id)
    .correlate(certificates)
    .scalar_subquery()
)
"""Of one that was issued on trial, and which nobody can suspend by itself: 1, or 0 if it ended with its claim."""
_SHOWN: Final = select(
    devices,
    select(func.count()).where(_OF_DEVICE).scalar_subquery().label("issued"),
    _GOOD_UNTIL.label("good_until"),
    *(
        select(what)
        .select_from(with_ends_above(certificates))
        .where(_OF_DEVICE)
        .order_by(certificates.c.id.desc())
        .limit(1)
        .scalar_subquery()
        .label(name)
        for what, name in (
            (EXPIRY, "newest_until"),
            (REASON, "newest_reason"),
            (ENDED_ABOVE, "newest_ended_above"),
            (_OF_TRIAL, "newest_trial"),
        )
    ),
).order_by(devices.c.name)


def find(connection: Connection, name: str, now: datetime) -> ShownDevice | None:
    """Return the device called *name*."""
    return next(_shown(connection, _SHOWN.where(devices.c.name == name), now), None)


def page(
    connection: Connection, search: DeviceSearch, *, limit: int, after: str | None, now: datetime
) -> tuple[list[ShownDevice], str | None]:
    """Return up to *limit* devices in order of name, after the name *after*, and behind which the next page begins.

    Without a next page that is None. A page may be shorter though there is a next one.
    """
    if not search.narrows and search.certificate is None:
        found = list(_shown(connection, _behind(search, after).limit(limit + 1), now))
        return found[:limit], found[limit - 1].device.name if len(found) > limit else None
    most = LOOKED_AT_ALONE if search.certificate is None else LOOKED_AT
    found = []
    looked_at = 0
    let_in = search.let_in(connection, now)
    while True:
        part, size, last = _next_ones(connection, search, let_in, after, limit + 1 - len(found), now)
        found += filter(search.wants, part)
        if len(found) > limit:
            return found[:limit], found[limit - 1].device.name
        if size < _AT_ONCE:
            return found, None
        after = last
        looked_at += size
        if looked_at >= most:
            return found, after


def _next_ones(
    connection: Connection,
    search: DeviceSearch,
    let_in: ColumnElement[bool],
    after: str | None,
    room: int,
    now: datetime,
) -> tuple[list[ShownDevice], int, str | None]:
    """Look at the devices behind the name *after*, some at once; return those that may be wanted.

    Return also how many were looked at, and the last one's name. *room* is how many the page can take.
    """
    behind = _behind(search, after).limit(_AT_ONCE)
    if not search.narrows:
        part = list(_shown(connection, behind, now))
        return part, len(part), part[-1].device.name if part else None
    # Before the certificates of any are looked up.
    rows = connection.execute(behind.with_only_columns(devices.c.name, state(), let_in)).all()
    names = [name for name, is_now, is_one in rows if is_one and search.may_want(name, is_now)]
    if search.certificate is None:  # Then all of them are wanted.
        names = names[:room]
    return list(_named(connection, names, now)), len(rows), rows[-1][0] if rows else None


def _behind(search: DeviceSearch, after: str | None) -> Select[Any]:
    """Return the statement for all devices of the group behind a name, in order."""
    statement = _SHOWN if search.group is None else _SHOWN.where(devices.c.group_name == search.group)
    return statement if after is None else statement.where(devices.c.name > after)


def _named(connection: Connection, names: Sequence[str], now: datetime) -> Iterator[ShownDevice]:
    for first in range(0, len(names), _NAMED):  # For many more, PostgreSQL without statistics would read all devices.
        chosen = names[first : first + _NAMED]
        yield from _shown(connection, _SHOWN.where(devices.c.name.in_(chosen)), now)


def _shown(connection: Connection, statement: Select[Any], now: datetime) -> Iterator[ShownDevice]:
    rows = connection.execute(statement, {"now": now}).all()
    on_trial = {row[0] for row in rows if row[-1] is not None}
    found = admissions.of_devices(connection, [row[0] for row in rows], on_trial, now)
    for row in rows:
        issued, good_until, newest_until, reason, ended_above, trial = row[WIDTH:]
        standing = _standing(good_until, newest_until, reason, ended_above=bool(ended_above))
        if standing is Standing.SUSPENDED and trial is not None:
            standing = Standing.TRIAL if trial and now < newest_until else Standing.EXPIRED
        device = device_from(row)
        if device.name == PROVISIONING and good_until is not None:
            good_until = connection.scalar(_LAST_GOOD, {"wanted": device.id, "now": now})
        yield ShownDevice(device, issued, standing, good_until or newest_until, admissions.of(found, row[0]))


def _standing(
    good_until: datetime | None, newest_until: datetime | None, reason: str | None, *, ended_above: bool
) -> Standing:
    if good_until is not None:
        return Standing.VALID
    if newest_until is None:
        return Standing.NONE
    if ended_above:
        return Standing.REVOKED
    if reason is None:
        return Standing.EXPIRED
    return Standing.REVOKED if RevocationReason(reason).final else Standing.SUSPENDED
