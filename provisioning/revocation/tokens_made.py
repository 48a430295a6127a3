"""Voids the unused tokens that an operator whose key is compromised has made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import datetime

from sqlalchemy.engine import Connection

from provisioning.pki.revocation_reason import RevocationReason
from provisioning.pki.role import Role
from provisioning.revocation.grounds import Grounds
from provisioning.store import tokens
from provisioning.store.devices import Device


def void_made_with(connection: Connection, ended: Sequence[Device], grounds: Grounds, now: datetime) -> Counter[str]:
    """Void tokens made by operators among *ended*, if their keys are compromised; return the number for each."""
    names = [device.name for device in ended if device.role is Role.OPERATOR]
    if grounds.reason is not RevocationReason.KEY_COMPROMISE or not names:
        return Counter()
    return tokens.void_made_by(connection, names, now)
