"""What an operator whose key is compromised has made: tokens that nobody has used, which become worthless with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import datetime

from sqlalchemy.engine import Connection

from provisioning.pki.identity import Role
from provisioning.pki.revocation import RevocationReason
from provisioning.revocation.grounds import Grounds
from provisioning.store import tokens
from provisioning.store.devices import Device


def void_made_with(connection: Connection, ended: Sequence[Device], grounds: Grounds, now: datetime) -> Counter[str]:
    """Make worthless what operators among *ended* have made, if their keys are compromised; return how many of each."""
    names = [device.name for device in ended if device.role is Role.OPERATOR]
    if grounds.reason is not RevocationReason.KEY_COMPROMISE or not names:
        return Counter()
    return tokens.void_made_by(connection, names, now)
