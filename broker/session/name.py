"""The name of a session: unique among all identities and roles; and of what its client has published."""

from __future__ import annotations

from typing import Final

from provisioning.pki.identity import Identity
from provisioning.pki.role import Role

_OF_DEVICE: Final = f"/{Role.DEVICE}/"
_UNDER_ANOTHER_NAME: Final = f"/{_OF_DEVICE}"


def session_name(owner: Identity, client_id: str) -> str:
    """Return the name of the session that *owner* has, or would have, with that client identifier."""
    return f"/{owner.role}/{owner.trust_domain}/{client_id}"


def claim_of(owner: Identity, client_id: str) -> int:
    """Return how much of *client_id* is *owner*'s name: of two, the identifier is whose name is more of it. 0: none."""
    name = owner.name
    return len(name) if client_id == name or client_id.startswith(f"{name}-") else 0


def publisher_name(owner: Identity, client_id: str) -> str:
    """Return the name of the session as a publisher's: it also tells which device has it.

    That is the session's own name, unless a device uses another client identifier than its name.
    """
    if owner.role is Role.DEVICE and client_id != owner.name:
        return f"{_UNDER_ANOTHER_NAME}{owner.trust_domain}/{owner.name}/{client_id}"
    return session_name(owner, client_id)


def device_of(publisher: str) -> str:
    """Return the name of the device that has a session with this `publisher_name`; empty: it is none."""
    if publisher.startswith(_UNDER_ANOTHER_NAME):
        domain, name, _ = publisher.removeprefix(_UNDER_ANOTHER_NAME).split("/", 2)
        return f"{_OF_DEVICE}{domain}/{name}"
    return publisher if publisher.startswith(_OF_DEVICE) else ""
