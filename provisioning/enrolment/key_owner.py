"""Whose a key is that somebody wants certified: nobody's yet, the device's own, or another's, which is refused.

Theory
------
A certificate makes its key the device's, in the transaction that records it (`provisioning.store.device_keys`). Before
anybody is asked about a request, an operator or a webhook, it is looked up whose the key is: what is refused afterwards
in any case is refused now. Otherwise a device waits for a person, whose decision changes nothing.

Rules
-----
1. What is looked up refuses nothing that would not be refused in the end, as long as nothing changes meanwhile.
2. Whose a key is, is nobody else's business: no refusal says it.
"""

from __future__ import annotations

from sqlalchemy.engine import Connection

from provisioning.enrolment.authentication import check_key
from provisioning.errors import Code, Refused
from provisioning.store import device_keys, devices
from provisioning.store.devices import Device


def claim_key(connection: Connection, device: Device, fingerprint: bytes) -> None:
    """Make the key the device's; raise `Refused` if it is another's, or one that nothing is issued for."""
    if not device_keys.claim(connection, fingerprint, device.id):  # Else no certificate was ever issued for it.
        _check_held(connection, device, fingerprint)


def check_key_is_its_own(connection: Connection, name: str, fingerprint: bytes) -> None:
    """Raise `Refused` where `claim_key` would for the device called *name*, if there is one; change nothing."""
    if not device_keys.is_free(connection, fingerprint):
        _check_held(connection, devices.find(connection, name), fingerprint)


def _check_held(connection: Connection, device: Device | None, fingerprint: bytes) -> None:
    holder = device_keys.holder(connection, fingerprint)
    if holder is None:
        raise Refused(
            Code.KEY_REUSED, "this is a claim's key, which the whole batch holds: make a new key on each device"
        )
    if device is None or holder != device.id:
        raise Refused(Code.KEY_REUSED, "another device uses this key: make a new key on each device")
    check_key(connection, device, fingerprint)
