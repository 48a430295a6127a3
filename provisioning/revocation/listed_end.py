"""Revokes one portion of the certificates for a compromised key, or of a revoked CA.

No certificate is added to those left, so they are listed once, outside of transactions. The key's device is
locked in each portion; a CA's certificates need no lock, since writers take turns on either store.
Certificates that another process or an operator has revoked meanwhile are passed over, and so is what a fail-over that
lost the last commits has taken away since they were listed, or put in its place: ids are given again then.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.engine import Connection

from provisioning.pki.revocation_reason import RevocationReason
from provisioning.revocation.affected import facts_before, is_affected
from provisioning.revocation.grounds import Grounds
from provisioning.revocation.recording import Changed, record
from provisioning.store import (
    audit,
    authorities,
    certificates,
    certificates_of_issuer,
    certificates_of_key,
    devices,
    unfinished_authority_ends,
    unfinished_key_ends,
)
from provisioning.store.audit import Action
from provisioning.store.certificates import StoredCertificate
from provisioning.store.certificates_of_key import DeviceKey, key_of
from provisioning.store.unfinished_authority_ends import EndedIssuer

Listed = DeviceKey | EndedIssuer
"""What is ended: a key or a CA."""


@dataclass(frozen=True, slots=True)
class _End:
    name: str
    """The subject in the audit log: the device, or the CA."""
    grounds: Grounds
    since: datetime
    by: str


def list_left(connection: Connection, whose: Listed, now: datetime) -> list[int]:
    """Return the ids of the certificates still to be revoked, in the order in which to revoke them."""
    if isinstance(whose, DeviceKey):
        return certificates_of_key.not_compromised(connection, whose, now)
    end = unfinished_authority_ends.of_issuer(connection, whose)
    return [] if end is None else certificates_of_issuer.not_revoked(connection, whose.key_id, end.ended_at)


def revoke_portion(
    connection: Connection, whose: Listed, chosen: Sequence[int], now: datetime, *, last: bool
) -> tuple[Changed, bool]:
    """Revoke those *chosen*, by their ids and in their order; return them, and whether any are left.

    *last* says that these are the last ones.
    """
    end = _end_of_key(connection, whose, now) if isinstance(whose, DeviceKey) else _end_of_issuer(connection, whose)
    if end is None:
        return [], False
    theirs = (each for each in certificates.with_ids(connection, set(chosen)) if _is_of(each, whose))
    by_id = {each.id: each for each in theirs if is_affected(each, end.grounds)}
    taken = [by_id[identifier] for identifier in chosen if identifier in by_id]
    if taken:
        record(connection, taken, end.grounds, end.since, end.by)
        facts = {**end.grounds.facts, "serials": [each.serial for each in taken], **facts_before(taken)}
        audit.append(connection, now, end.by, Action.REVOKED, end.name, facts)
    if last:
        _finish(connection, whose)
    return taken, not last


def _is_of(certificate: StoredCertificate, whose: Listed) -> bool:
    if isinstance(whose, DeviceKey):
        return key_of(certificate) == whose
    return certificate.issuer_key_id == whose.key_id


def _end_of_key(connection: Connection, key: DeviceKey, now: datetime) -> _End | None:
    end = unfinished_key_ends.of_key(connection, key)
    if end is None:
        return None
    devices.find(connection, end.device, for_update=True)
    return _End(end.device, Grounds(RevocationReason.KEY_COMPROMISE, end.invalidity_date), now, end.ended_by)


def _end_of_issuer(connection: Connection, issuer: EndedIssuer) -> _End | None:
    end = unfinished_authority_ends.of_issuer(connection, issuer)
    if end is None:
        return None
    name = authorities.name_of(connection, issuer.key_id)
    return _End(name, Grounds(end.reason, end.invalidity_date), end.ended_at, end.ended_by)


def _finish(connection: Connection, whose: Listed) -> None:
    if isinstance(whose, DeviceKey):
        unfinished_key_ends.finish(connection, whose)
    else:
        unfinished_authority_ends.finish(connection, whose)
