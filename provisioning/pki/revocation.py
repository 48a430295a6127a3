"""The revocation index: the one place that every certificate check asks.

Theory
------
A certificate is identified by its issuer's key identifier and its serial number. The issuer is part of the key: two CAs
may use the same serial, and a CA keeps its key when it is renamed. A look-up is one dict access whatever the size, so
it is made after *every* TLS handshake: a resumed TLS session skips OpenSSL's own checks.

Revocations arrive in two ways. *Events* (provisioning's feed) are added and released one by one. *Lists* (CRLs, OCSP
responses) contain everything that one source knows of one issuer, and are replaced whole: what is no longer in the new
one has been released. A certificate is revoked while any source says so.

Rules
-----
1. A certificate's first revocation by an event stands; it is final (RFC 5280 §5.3.1; certificateHold, the only
   reversible reason, is undone by `RevocationIndex.release` or replaced by a final one). Its reason may be changed
   to keyCompromise, which may be discovered later (CA/Browser Forum, Baseline Requirements 7.2.2); the time of
   revocation stays. Of two certificateHolds, of which the first is heard of once more, the later one stands.
2. A list is published by one assignment: a look-up sees the old one or the new one, whole.
3. Every entry is one integer (`pack`): a million revoked certificates take 120 MB, from either source.
4. No I/O and no clock: callers that feed the index read files and time.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from cryptography import x509

from provisioning.pki.extension import extension
from provisioning.pki.revocation_reason import RevocationReason

CertificateKey = tuple[bytes, int]
"""Issuer's key identifier, serial number."""


_ITSELF = b"the key "
"""Before an identifier: no list is about an issuer that is called so."""


def whole_key(key_id: bytes) -> CertificateKey:
    """Return by what the index has a CA's own key with this identifier, in whichever certificate it is."""
    return _ITSELF + key_id, 0


def whole_key_text(key: CertificateKey) -> str | None:
    """Return what *key* is to readers if it is a CA's own key (`whole_key`); None: it is a certificate."""
    issuer_key_id, _ = key
    return f"with the key {issuer_key_id.removeprefix(_ITSELF).hex()}" if issuer_key_id.startswith(_ITSELF) else None


@dataclass(frozen=True, slots=True)
class Revocation:
    """One certificate's revocation: which, why, and since when (UTC)."""

    issuer_key_id: bytes
    serial: int
    reason: RevocationReason
    revoked_at: datetime

    @property
    def key(self) -> CertificateKey:
        """Its key in the index."""
        return self.issuer_key_id, self.serial


Entries = Mapping[int, int]
"""A list's revoked serial numbers, each with reason and time in one integer (`pack`): a million take 120 MB."""

OCSP = "ocsp"
"""The name of the list of OCSP responses."""
_REASONS = tuple(RevocationReason)
_REASON_BITS = 4


def pack(reason: RevocationReason, revoked_at: datetime) -> int:
    """Return *reason* and *revoked_at*, to the second, as one integer."""
    return int(revoked_at.timestamp()) << _REASON_BITS | _REASONS.index(reason)


_packed_together = functools.lru_cache(16)(pack)
"""The same, cached: what is revoked together is so at one time, for one reason."""


def unpack(key: CertificateKey, packed: int) -> Revocation:
    """Return the revocation of the certificate *key* from *packed*, which `pack` made."""
    return Revocation(*key, _reason(packed), datetime.fromtimestamp(packed >> _REASON_BITS, UTC))


def _reason(packed: int) -> RevocationReason:
    return _REASONS[packed & (1 << _REASON_BITS) - 1]


def certificate_key(certificate: x509.Certificate) -> CertificateKey:
    """Return the index key of *certificate*.

    Without an Authority Key Identifier, which RFC 5280 §4.2.1.1 requires and foreign CAs omit, a hash of the
    issuer's name takes its place: of its text, whatever string types encode it. That is stored, and so upper and lower
    case stay, unlike in `provisioning.pki.issued_by`.
    """
    authority = extension(certificate, x509.AuthorityKeyIdentifier)
    issuer_key_id = None if authority is None else authority.key_identifier
    if issuer_key_id is None:
        issuer_key_id = _name_digest(certificate.issuer)
    return issuer_key_id, certificate.serial_number


def _name_digest(name: x509.Name) -> bytes:
    """Return a digest that is the same for all equal names, and only for them."""
    said = [sorted((each.oid.dotted_string, repr(each.value)) for each in part) for part in name.rdns]
    return hashlib.sha256(repr(said).encode()).digest()


class RevocationIndex:
    """Every revoked certificate known here, by issuer's key identifier and serial number."""

    __slots__ = ("_events", "_lists")

    def __init__(self) -> None:
        self._events: dict[bytes, dict[int, int]] = {}
        self._lists: dict[bytes, dict[Hashable, Entries]] = {}

    def __len__(self) -> int:
        return sum(self.sizes().values())

    def sizes(self) -> dict[str, int]:
        """Return the number of entries from events (``feed``), from OCSP responses, and from CRLs."""
        asked = sum(len(lists.get(OCSP, ())) for lists in self._lists.values())
        listed = sum(len(entries) for lists in self._lists.values() for entries in lists.values()) - asked
        told = sum(len(issued) for issuer, issued in self._events.items() if not issuer.startswith(_ITSELF))
        return {"feed": told, "crl": listed, OCSP: asked}

    def add(self, revocation: Revocation) -> bool:
        """Record *revocation*, its time to the second; return whether the certificate was not revoked before."""
        issued = self._events.setdefault(revocation.issuer_key_id, {})
        known = issued.get(revocation.serial)
        if known is None or _reason(known) is RevocationReason.CERTIFICATE_HOLD:
            told = _packed_together(revocation.reason, revocation.revoked_at)
            again = known if revocation.reason is RevocationReason.CERTIFICATE_HOLD else None
            issued[revocation.serial] = told if again is None else max(again, told)
        elif revocation.reason is RevocationReason.KEY_COMPROMISE:
            issued[revocation.serial] = pack(revocation.reason, unpack(revocation.key, known).revoked_at)
        return known is None

    def release(self, key: CertificateKey) -> bool:
        """Forget a certificateHold; return whether there was one. Any other reason is final and stays."""
        issuer_key_id, serial = key
        issued = self._events.get(issuer_key_id, {})
        known = issued.get(serial)
        if known is None or _reason(known) is not RevocationReason.CERTIFICATE_HOLD:
            return False
        del issued[serial]
        return True

    def publish(self, issuer_key_id: bytes, name: Hashable, entries: Entries) -> None:
        """Replace the entries of the list *name* about the issuer's certificates by *entries*."""
        self._lists.setdefault(issuer_key_id, {})[name] = entries

    def withdraw(self, issuer_key_id: bytes, name: Hashable) -> None:
        """Forget the list *name* about the issuer's certificates: there is no such list any more."""
        lists = self._lists[issuer_key_id]
        del lists[name]
        if not lists:
            del self._lists[issuer_key_id]

    def listed(self, issuer_key_id: bytes, name: Hashable) -> Entries:
        """Return the entries of the list *name* about the issuer's certificates."""
        return self._lists.get(issuer_key_id, {}).get(name, {})

    def find(self, key: CertificateKey) -> Revocation | None:
        """Return the revocation of the certificate named *key*, or None if it is not revoked."""
        packed = self._packed(key)
        return None if packed is None else unpack(key, packed)

    def reason(self, key: CertificateKey) -> RevocationReason | None:
        """Return why the certificate named *key* is revoked, as `find` does, or None."""
        packed = self._packed(key)
        return None if packed is None else _reason(packed)

    def _packed(self, key: CertificateKey) -> int | None:
        issued = self._events.get(key[0])
        packed = None if issued is None else issued.get(key[1])
        return self._listed(key) if packed is None and self._lists else packed

    def _listed(self, key: CertificateKey) -> int | None:
        issuer_key_id, serial = key
        for entries in self._lists.get(issuer_key_id, {}).values():
            packed = entries.get(serial)
            if packed is not None:
                return packed
        return None


class CasAbove(Protocol):
    """The CAs above a certificate."""

    @property
    def issuing(self) -> x509.Certificate | None:
        """The one that has issued it; None: that is not known."""

    def verified(self) -> Iterable[x509.Certificate]:
        """Return their certificates as a handshake has verified them, upwards; empty: not known."""

    @property
    def cas(self) -> Sequence[bytes]:
        """By their names and keys, these, and who has certified the last one, as far as it says; empty: not known."""

    @property
    def path_revoked_as(self) -> Sequence[CertificateKey]:
        """How the revocation index identifies them."""

    def find_revoked(self, index: RevocationIndex) -> tuple[str, Revocation] | None:
        """Return the name of the first one that is revoked, with its revocation."""
