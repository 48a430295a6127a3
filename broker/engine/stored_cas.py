"""The CAs above a certificate as text in the store: what the revocation index calls them, and their names and keys.

After a restart that is all that is known of a CA that is no anchor, until a client shows it. A text from an older
broker lacks the latter.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from provisioning.pki.revocation import CasAbove, CertificateKey, Revocation, RevocationIndex, whole_key_text
from provisioning.pki.serial_number import serial_text

_CA: Final = b"the CA "
"""Before what identifies a CA, for which an older broker takes it to be a certificate that nobody revokes."""
_MOST_SHARED: Final = 1024
"""Paths of which those who are restored share what is known: a fleet has few."""


def certificate_text(key: CertificateKey) -> str:
    """Return the text that names a certificate in the store: its issuer's key identifier and serial number, in hex."""
    return f"{key[0].hex()}:{serial_text(key[1])}"


def certificate_of(text: str) -> CertificateKey:
    """Return the certificate that *text* names. Raises ValueError."""
    issuer_key_id, _, serial = text.partition(":")
    return bytes.fromhex(issuer_key_id), int(serial, 16)


def cas_text(above: CasAbove | None) -> str | None:
    """Return the text for the CAs *above* a certificate; None if they are not known."""
    if above is None:
        return None
    return " ".join(map(certificate_text, [*above.path_revoked_as, *((_CA + each, 0) for each in above.cas)]))


class StoredCas:
    """CAs above a certificate, as an earlier process of the broker knew them."""

    __slots__ = ("cas", "path_revoked_as")

    issuing = None

    def __init__(self, text: str) -> None:
        """Take the *text* that `cas_text` made. Raises ValueError."""
        said = list(map(certificate_of, text.split()))
        self.path_revoked_as = tuple(each for each in said if not each[0].startswith(_CA))
        self.cas = tuple(each[0].removeprefix(_CA) for each in said if each[0].startswith(_CA))

    def verified(self) -> tuple[()]:
        """Return nothing: their certificates are not known."""
        return ()

    def find_revoked(self, index: RevocationIndex) -> tuple[str, Revocation] | None:
        """Return the serial number, or the key, not the name, of the first CA that is revoked, with its revocation."""
        for key in self.path_revoked_as:
            if (revocation := index.find(key)) is not None:
                return whole_key_text(key) or serial_text(key[1]), revocation
        return None


@lru_cache(_MOST_SHARED)
def cas_of(text: str) -> StoredCas:
    """Return the CAs of *text*, once for all with the same. Raises ValueError."""
    return StoredCas(text)
