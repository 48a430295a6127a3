"""Certificates that a thief can make without any of our keys: everything is right except the signature.

Each names a real party, with the same identity URI and extensions as the genuine one, so that only the chain
verification can refuse it.
"""

from __future__ import annotations

from device_sim.credentials.certification import common_name, end_entity
from device_sim.credentials.credential import HeldCredential
from provisioning.pki.identity import Identity
from provisioning.pki.keys import generate_key


def self_signed(identity: Identity) -> HeldCredential:
    """Return a certificate for *identity* signed by its own key."""
    key = generate_key()
    return HeldCredential.of(end_entity(identity, key, issuer=common_name(identity.name), issuer_key=key), key)


def foreign(identity: Identity) -> HeldCredential:
    """Return a certificate for *identity* from an untrusted CA with a plausible name."""
    ca_key, key = generate_key(), generate_key()
    ca_name = common_name("Fleet Issuing CA")
    return HeldCredential.of(end_entity(identity, key, issuer=ca_name, issuer_key=ca_key), key)
