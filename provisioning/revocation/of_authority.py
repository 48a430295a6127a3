"""The revocation of an issuing CA: of its certificate, by its root, and of everything that it has issued.

Theory
------
A CA's certificate is revoked like any other: as issued by its root, with a place in the feed, so that the root's CRL
and every follower say so. Whoever holds the stolen key can certify serial numbers that nobody knows; against those
helps only that relying parties ask about the CA. Those who do not hear of each certificate.

Rules
-----
1. One transaction: the CA first, then its certificates, devices before brokers and operators, in the feed's order.
2. A reason that is said of CAs only is not said of what one has issued (RFC 5280 §5.3.1): nothing is known against
   those keys. Nor is "superseded": no certificate has come in the place of any of them, as relying parties would take
   it to mean, which keep the session of a device for its newer certificate.
3. The CA stands among the devices under a name that no device can have, from then on only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy.engine import Connection

from provisioning.errors import ConfigurationError
from provisioning.pki.identity import AUTHORITY_PREFIX, Role
from provisioning.pki.revocation import RevocationReason
from provisioning.revocation.grounds import Grounds
from provisioning.revocation.reasons import REASON_USES, ReasonUse
from provisioning.store import audit, authorities, certificates, devices, revocations
from provisioning.store.audit import Action
from provisioning.store.authorities import AuthorityKind, AuthorityState
from provisioning.store.certificates import StoredCertificate
from provisioning.store.devices import Device, DeviceState
from provisioning.store.server_parameters import rest_longer

AUTHORITY_REASONS: Final = (
    RevocationReason.CA_COMPROMISE,
    RevocationReason.AFFILIATION_CHANGED,
    RevocationReason.SUPERSEDED,
    RevocationReason.CESSATION_OF_OPERATION,
    RevocationReason.UNSPECIFIED,
)
"""Why a CA may be revoked (RFC 5280 §5.3.1)."""


@dataclass(frozen=True, slots=True)
class RevokedAuthority:
    """What was revoked."""

    name: str
    affected: Sequence[StoredCertificate]


def device_name(authority: str) -> str:
    """Return under which name a revoked CA stands among the devices."""
    return f"{AUTHORITY_PREFIX}{authority}"


def is_authority(device: Device) -> bool:
    """Whether *device* stands for a revoked CA."""
    return device.name.startswith(AUTHORITY_PREFIX)


def revoke_authority(
    connection: Connection, name: str, grounds: Grounds, *, by: str, now: datetime
) -> RevokedAuthority:
    """Revoke the issuing CA called *name* and what it has issued; raise `ConfigurationError` if there is none."""
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
    device = devices.add(connection, device_name(name), Role.SERVICE, None, now)
    identifier = certificates.add(connection, certificates.issued(ca.certificate), device.id, now)
    rest_longer(connection)
    why: dict[str, Any] = {"reason": grounds.reason, "revoked_by": by, "invalidity_date": grounds.invalidity_date}
    revocations.add(connection, [identifier], revoked_at=now, **why)
    devices.set_state(connection, [device.id], DeviceState.REVOKED, now)
    # A follower's feed ends with its own certificate: those that follow come last.
    affected = sorted(
        certificates.good_of_issuer(connection, ca.key_id, now), key=lambda each: each.device.role is not Role.DEVICE
    )
    why["reason"] = _below(grounds.reason)
    if held := {each.id: each.revocation for each in affected if each.revocation is not None}:
        revocations.finalise(connection, held, **why)
    if fresh := [each.id for each in affected if each.revocation is None]:
        revocations.add(connection, fresh, revoked_at=now, **why)
    authorities.set_state(connection, name, AuthorityState.REVOKED, now)
    facts = {**grounds.facts, "certificates": len(affected)}
    audit.append(connection, now, by, Action.CA_CHANGED, name, facts | {"state": AuthorityState.REVOKED})
    return RevokedAuthority(name, affected)


def _below(reason: RevocationReason) -> RevocationReason:
    """Return why what a CA has issued is revoked, if the CA is for *reason*."""
    of_the_ca_alone = REASON_USES[reason] is ReasonUse.CA or reason is RevocationReason.SUPERSEDED
    return RevocationReason.UNSPECIFIED if of_the_ca_alone else reason
