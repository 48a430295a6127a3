"""The name of a session: unique among all identities and roles."""

from __future__ import annotations

from provisioning.pki.identity import Identity


def session_name(owner: Identity, client_id: str) -> str:
    """Return the name of the session that *owner* has, or would have, with that client identifier."""
    return f"/{owner.role}/{owner.trust_domain}/{client_id}"
