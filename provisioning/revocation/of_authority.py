"""Revokes an issuing CA: its certificate, by its root, and everything that it has issued.

Theory
------
A CA's certificate is revoked like any other: as issued by its root, with an event in the feed, so that the root's CRL
and every subscriber say so. Whoever has stolen the key can issue certificates with serial numbers that nobody knows;
only relying parties that check the CA's own status refuse those. For those that do not check it, each certificate is
revoked too, in portions (`provisioning.revocation.portions`): there may be a hundred thousand::

    the CA revoked, in one short transaction ─► portion ─ others ─ portion ─ others ─ … ─► nothing is left
     nothing of it is good here, nor at a broker    feed, CRL of the CA follow each portion

Rules
-----
1. From that transaction on the CA's state counts for all its unexpired certificates: none is accepted, renewed or
   released here, or can follow the feed, and OCSP reports each as revoked (`provisioning.store.certificates`).
2. Each still gets a row and an event: a CRL lists certificates, and so does the feed for subscribers that ignore CAs.
   Devices come first, brokers and operators last: a subscriber's feed ends with its own certificate.
3. They are revoked as of their CA's revocation. A reason that applies to CAs only is not given for what one has issued
   (RFC 5280 §5.3.1): nothing is known against those keys. Nor is "superseded": none of them was replaced, as relying
   parties would assume, which keep a device's session for its newer certificate.
4. No certificate is added to those left: a CA signs in a transaction that checks its state, and writers take turns. So
   they are listed once, outside of transactions, by whoever finishes the end, with no position to keep.
5. A CA whose revocation lies in the future was revoked by a clock that was ahead. What that clock called expired was
   passed over, and is good again: the revocation counts from now on instead, and the rest follows (`date_again`).
6. The CA is listed among the devices, under a name that no device can have, only from its revocation on.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

import structlog
from sqlalchemy.engine import Connection

from provisioning.errors import ConfigurationError
from provisioning.pki.identity import AUTHORITY_PREFIX
from provisioning.pki.revocation import certificate_key
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.pki.role import Role
from provisioning.revocation.grounds import Grounds
from provisioning.revocation.reasons import REASON_USES, ReasonUse
from provisioning.revocation.recording import IN_WHAT_FOLLOWS
from provisioning.store import (
    audit,
    authorities,
    certificates,
    devices,
    revocations,
    unfinished_authority_ends,
)
from provisioning.store.audit import Action
from provisioning.store.authorities import AuthorityKind, AuthorityState, StoredAuthority
from provisioning.store.devices import Device, DeviceState
from provisioning.store.unfinished_authority_ends import EndedIssuer, UnfinishedAuthorityEnd

log = structlog.get_logger(__name__)

_AHEAD: Final = timedelta(minutes=1)
"""More than the clocks of several processes on a store differ by."""
_FARTHEST: Final = timedelta(days=366)
"""Beyond, ours is taken to be behind, as that of a machine that has no battery is until it has asked for the time: all
that the CA ever issued would be revoked."""
_ACTOR: Final = "provisioning"


@dataclass(frozen=True, slots=True)
class RevokedAuthority:
    """A revoked CA whose certificates are still to be revoked."""

    name: str
    issuer: EndedIssuer
    sequence: int
    """Its own sequence number in the feed: its certificates' events follow."""


def device_name(authority: str) -> str:
    """Return the name under which a revoked CA is listed among the devices."""
    return f"{AUTHORITY_PREFIX}{authority}"


def is_authority(device: Device) -> bool:
    """Whether *device* stands for a revoked CA."""
    return device.name.startswith(AUTHORITY_PREFIX)


def revoke_authority(
    connection: Connection, name: str, grounds: Grounds, *, by: str, now: datetime
) -> RevokedAuthority:
    """Revoke the issuing CA called *name*, and schedule what it has issued; raise `ConfigurationError`."""
    ca = next(
        (
            each
            for each in authorities.every(connection, for_update=True)
            if each.name == name and each.kind is AuthorityKind.ISSUING
        ),
        None,
    )
    if ca is None or ca.state is AuthorityState.REVOKED:
        raise ConfigurationError(f"{name} is revoked already" if ca else f"there is no issuing CA {name!r}")
    sequence = _revoke_own(connection, ca, grounds, by, now)
    issuer, since = EndedIssuer(ca.key_id.hex()), grounds.invalidity_date
    unfinished_authority_ends.begin(connection, issuer, UnfinishedAuthorityEnd(_below(grounds.reason), since, now, by))
    facts = {**grounds.facts, "certificates": IN_WHAT_FOLLOWS, "state": AuthorityState.REVOKED}
    audit.append(connection, now, by, Action.CA_CHANGED, name, facts)
    return RevokedAuthority(name, issuer, sequence)


def revoke_cross(connection: Connection, cross: StoredAuthority, grounds: Grounds, *, by: str, now: datetime) -> None:
    """Revoke *cross*, by which one root vouches for the key of another, and which has issued nothing of its own."""
    _revoke_own(connection, cross, grounds, by, now)
    audit.append(connection, now, by, Action.CA_CHANGED, cross.name, {**grounds.facts, "state": AuthorityState.REVOKED})


def _revoke_own(connection: Connection, ca: StoredAuthority, grounds: Grounds, by: str, now: datetime) -> int:
    """Revoke the certificate of *ca*, as issued by the CA above it; return the sequence number."""
    device = devices.add(connection, device_name(ca.name), Role.SERVICE, None, now)
    identifier = certificates.add(connection, certificates.issued(ca.certificate), device.id, now)
    (sequence,) = revocations.add(
        connection,
        [identifier],
        reason=grounds.reason,
        revoked_at=now,
        revoked_by=by,
        invalidity_date=grounds.invalidity_date,
    )
    devices.set_state(connection, [device.id], DeviceState.REVOKED, now)
    authorities.set_state(connection, ca.name, AuthorityState.REVOKED, now)
    return sequence


def revoked_ahead(connection: Connection, now: datetime) -> list[EndedIssuer]:
    """Return the CAs that were revoked by a clock that was ahead of *now*, and of which nothing is left to do."""
    found = authorities.revoked_between(connection, now + _AHEAD, now + _FARTHEST, now)
    ahead = [EndedIssuer(each.hex()) for each in found]
    return [each for each in ahead if unfinished_authority_ends.of_issuer(connection, each) is None]


def date_again(connection: Connection, issuer: EndedIssuer, now: datetime) -> bool:
    """Let the revocation of *issuer* count from *now*, and schedule what is good by that; return False if it does."""
    name = authorities.name_of(connection, issuer.key_id)
    ca = next(each for each in authorities.every(connection, for_update=True) if each.name == name)
    if issuer not in revoked_ahead(connection, now):  # Another process was faster.
        return False
    own = certificates.find(connection, *certificate_key(ca.certificate))
    if own is None or own.revocation is None:
        raise AssertionError("it was recorded with the CA's state")
    reason, since = own.revocation.reason, own.revocation.invalidity_date
    authorities.set_state(connection, name, AuthorityState.REVOKED, now)
    unfinished_authority_ends.begin(connection, issuer, UnfinishedAuthorityEnd(_below(reason), since, now, _ACTOR))
    facts = {**Grounds(reason, since).facts, "certificates": IN_WHAT_FOLLOWS, "state": AuthorityState.REVOKED}
    audit.append(connection, now, _ACTOR, Action.CA_CHANGED, name, facts | {"instead_of": ca.changed_at})
    log.warning("CA was revoked by a clock that was ahead", code="REVOKED_AHEAD", ca=name, by_that_clock=ca.changed_at)
    return True


def begun(connection: Connection, name: str) -> RevokedAuthority | None:
    """Return the CA called *name* if it is revoked and its certificates are still to be, otherwise None."""
    found = revoked(connection, name)
    return None if found is None or unfinished_authority_ends.of_issuer(connection, found.issuer) is None else found


def revoked(connection: Connection, name: str) -> RevokedAuthority | None:
    """Return the CA called *name* if it is revoked, otherwise None."""
    ca = next((each for each in authorities.every(connection) if each.name == name), None)
    if ca is None or ca.state is not AuthorityState.REVOKED:
        return None
    own = certificates.find(connection, *certificate_key(ca.certificate))
    if own is None or own.revocation is None:
        raise AssertionError("it is revoked in the transaction that begins this")
    return RevokedAuthority(name, EndedIssuer(ca.key_id.hex()), own.revocation.sequence)


def _below(reason: RevocationReason) -> RevocationReason:
    """Return the reason for a CA's certificates if the CA is revoked for *reason*."""
    of_the_ca_alone = REASON_USES[reason] is ReasonUse.CA or reason is RevocationReason.SUPERSEDED
    return RevocationReason.UNSPECIFIED if of_the_ca_alone else reason
