"""Who may give which reason of RFC 5280 §5.3.1, and how."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from provisioning.pki.revocation_reason import RevocationReason


class ReasonUse(StrEnum):
    """How a reason gets into a CRL here."""

    REVOKE = "an operator revokes a device or a certificate"
    SUSPEND = "an operator suspends a device or a certificate, and may resume it"
    DECOMMISSION = "an operator revokes, or decommissions a device permanently"
    CA = "only for a CA's certificate, set by the CA above it; never for an end entity"
    NEVER = "only for attribute authorities, of which this service has none"


REASON_USES: Final[Mapping[RevocationReason, ReasonUse]] = {
    RevocationReason.UNSPECIFIED: ReasonUse.REVOKE,
    RevocationReason.KEY_COMPROMISE: ReasonUse.REVOKE,
    RevocationReason.CA_COMPROMISE: ReasonUse.CA,
    RevocationReason.AFFILIATION_CHANGED: ReasonUse.REVOKE,
    RevocationReason.SUPERSEDED: ReasonUse.REVOKE,
    RevocationReason.CESSATION_OF_OPERATION: ReasonUse.DECOMMISSION,
    RevocationReason.CERTIFICATE_HOLD: ReasonUse.SUSPEND,
    # removeFromCRL (8) is no reason to revoke: a delta CRL uses it for a hold that has ended (provisioning.ca.crl).
    RevocationReason.PRIVILEGE_WITHDRAWN: ReasonUse.REVOKE,
    RevocationReason.AA_COMPROMISE: ReasonUse.NEVER,
}

OPERATOR_REASONS: Final = frozenset(
    reason for reason, use in REASON_USES.items() if use in {ReasonUse.REVOKE, ReasonUse.DECOMMISSION}
)
"""The reasons that an operator may give to revoke an end entity."""
AUTHORITY_REASONS: Final = (
    RevocationReason.CA_COMPROMISE,
    RevocationReason.AFFILIATION_CHANGED,
    RevocationReason.SUPERSEDED,
    RevocationReason.CESSATION_OF_OPERATION,
    RevocationReason.UNSPECIFIED,
)
"""The reasons that an operator may give to revoke a CA (RFC 5280 §5.3.1)."""
