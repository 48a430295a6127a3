"""Which certificates a revocation affects, among those that it names and those that belong to them.

Rules
-----
1. A certificate that is good or on hold can be revoked.
2. A final revocation keeps its reason, with one exception: it may be changed to keyCompromise, once and for ever, as
   relying parties have to know and the key must never be certified again (CA/Browser Forum, Baseline Requirements
   7.2.2). The revocation time stays.
3. A CA's certificate is revoked for reasons of its own (`provisioning.revocation.of_authority`): they are not changed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from provisioning.pki.revocation_reason import RevocationReason
from provisioning.revocation.grounds import Grounds
from provisioning.revocation.of_authority import is_authority
from provisioning.store.certificates import StoredCertificate

_COMPROMISED = RevocationReason.KEY_COMPROMISE


def is_affected(certificate: StoredCertificate, grounds: Grounds) -> bool:
    """Whether revoking *certificate* for *grounds* changes anything."""
    if certificate.revocation is None or not certificate.revocation.reason.final:
        return True
    to_be_changed = certificate.revocation.reason is not _COMPROMISED and not is_authority(certificate.device)
    return grounds.reason is _COMPROMISED and to_be_changed


def is_affected_with_its_device(
    certificate: StoredCertificate, grounds: Grounds, expired: Mapping[int, datetime]
) -> bool:
    """Whether the revocation of its device affects *certificate*; *expired*: `surely_expired`."""
    counts = expired[certificate.device.id] < certificate.not_after or certificate.revocation is not None
    return is_affected(certificate, grounds) and (counts or grounds.reason is _COMPROMISED)


def facts_before(affected: Sequence[StoredCertificate]) -> Mapping[str, object]:
    """Return the audit log's facts about changed final reasons: which certificates had which."""
    before = {
        each.serial: each.revocation.reason.value
        for each in affected
        if each.revocation is not None and each.revocation.reason.final
    }
    return {"before": before} if before else {}
