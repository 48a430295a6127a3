"""Why a certificate is revoked, in a module of its own: a command that lists the reasons needs no certificates."""

from __future__ import annotations

from enum import StrEnum


class RevocationReason(StrEnum):
    """Why a certificate is revoked, spelled as RFC 5280 §5.3.1 does."""

    UNSPECIFIED = "unspecified"
    KEY_COMPROMISE = "keyCompromise"
    CA_COMPROMISE = "cACompromise"
    AFFILIATION_CHANGED = "affiliationChanged"
    SUPERSEDED = "superseded"
    CESSATION_OF_OPERATION = "cessationOfOperation"
    CERTIFICATE_HOLD = "certificateHold"
    PRIVILEGE_WITHDRAWN = "privilegeWithdrawn"
    AA_COMPROMISE = "aACompromise"

    @property
    def final(self) -> bool:
        """Whether it is irreversible."""
        return self is not RevocationReason.CERTIFICATE_HOLD
