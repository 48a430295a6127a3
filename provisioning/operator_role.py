"""What an operator may do, least first."""

from __future__ import annotations

from enum import StrEnum


class OperatorRole(StrEnum):
    """What an operator may do; each may do what those before it may."""

    AUDITOR = "auditor"
    """See everything, change nothing."""
    ENROLLER = "enroller"
    """Let devices in: tokens, approvals, lists of expected devices."""
    ADMIN = "admin"
    """Everything: revoke, suspend, groups, claims, manufacturers, other operators, brokers and services."""

    def permits(self, needed: OperatorRole) -> bool:
        """Whether this role may do what *needed* may."""
        order = list(OperatorRole)
        return order.index(self) >= order.index(needed)
