"""Keys that the service generates for devices that cannot: EST's /serverkeygen, where a group allows it.

Rules
-----
1. A key made here is in memory until the response is sent, and nowhere afterwards: not in the store, not in a log.
2. It is made after the decision: an RSA key costs a tenth of a second, which strangers could request at will.
3. It has the type of the request's own key if the profile allows that, else the profile's first.
"""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from provisioning.ca.csr_attributes import preferred_key
from provisioning.ca.profile import KeyType, Profile, key_type_of
from provisioning.pki.keys import PrivateKey


def make_key(profile: Profile, wished: object) -> PrivateKey:
    """Return a new key that *profile* allows, of the type of the public key *wished* if possible."""
    kind = key_type_of(wished)
    match kind if kind in profile.key_types else preferred_key(profile):
        case KeyType.P256:
            return ec.generate_private_key(ec.SECP256R1())
        case KeyType.P384:
            return ec.generate_private_key(ec.SECP384R1())
        case KeyType.ED25519:
            return ed25519.Ed25519PrivateKey.generate()
        case KeyType.RSA:
            # Never larger than the profile asks for: a key of 8192 bits takes seconds.
            return rsa.generate_private_key(65537, profile.minimum_rsa_bits)
