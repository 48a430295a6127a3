"""Which CAs are published to relying parties: all in the bundle, those that concern a label in its ``/cacerts``.

Theory
------
A device uses its label's ``/cacerts`` as its trust anchors (RFC 7030 §4.1.3), and needs them for two things: the path
of its own certificate, whose CAs are those of its group's line, and the paths of the service and the brokers, from the
default line. Other lines' CAs would only be more to trust. A party that needs all CAs, such as a broker, asks without
a label or takes the bundle (docs/decisions/0105-cacerts-under-a-label.md).

Rules
-----
1. With an issuing CA, all roots with its root's name are published, and the certificates between them: roots that
   succeed one another share their name, and a device may still trust only the first one.
2. The lists and mappings here are the same objects for ever; a change is seen between two awaits.
3. Subscribers of the feed are told the issuing CAs, to compare them with their own anchors
   (`broker.revocation.issuing_authorities`). It conveys no trust: no subscriber adds them to its anchors. And the keys
   of revoked ones, for a subscriber that had those events from a service which did not tell the keys yet.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from datetime import datetime
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from provisioning.pki.path_to_send import path_to_send
from provisioning.pki.revocation import certificate_key
from provisioning.pki.serial_number import serial_text
from provisioning.store.authorities import DEFAULT_LINE, AuthorityKind, AuthorityState, StoredAuthority

_ORDER: Final = (AuthorityKind.ROOT, AuthorityKind.ISSUING, AuthorityKind.CROSS)


class ToldAuthorities:
    """The CAs that are trusted now."""

    def __init__(self) -> None:
        self.certificates: Final[dict[str, x509.Certificate]] = {}
        """Certificates of all roots and issuing CAs, by name, roots first."""
        self._crosses: list[x509.Certificate] = []
        """The certificates between roots."""
        self.everything: Final[list[x509.Certificate]] = []
        """The content of ``/cacerts`` without a label: all of these."""
        self.event = b""
        """The feed's server-sent event that lists the issuing CAs of all lines."""
        self._lines: dict[str, list[x509.Certificate]] = {}

    def take(self, found: Sequence[StoredAuthority]) -> None:
        """Update the CAs from the store."""
        trusted = sorted((each for each in found if each.state.trusted), key=lambda each: _ORDER.index(each.kind))
        self.everything[:] = [each.certificate for each in trusted]
        self._crosses = [each.certificate for each in trusted if each.kind is AuthorityKind.CROSS]
        self.certificates.clear()
        self.certificates.update(
            (each.name, each.certificate) for each in trusted if each.kind is not AuthorityKind.CROSS
        )
        lines = {each.line for each in trusted if each.kind is AuthorityKind.ISSUING}
        issuing = [each for each in found if each.kind is AuthorityKind.ISSUING]
        revoked = [each for each in issuing if each.state is AuthorityState.REVOKED]
        self.event = _event_of([each for each in trusted if each.kind is AuthorityKind.ISSUING], revoked)
        self._lines = {line: _concerning({line, DEFAULT_LINE}, trusted) for line in lines | {DEFAULT_LINE}}

    @property
    def one_line(self) -> bool:
        """Whether every label gets the same CAs."""
        return len(self._lines) <= 1

    def between_roots(self, issuing: x509.Certificate, now: datetime) -> list[x509.Certificate]:
        """Return the certificates between roots as one sends them from *now* on, behind that of the CA *issuing*.

        First those that lead from there to older roots, in order: some clients look for no other order.
        """
        others = (each for each in self._crosses if now < each.not_valid_after_utc)
        return list(dict.fromkeys((*path_to_send(issuing, self.everything, now), *others)))

    def of_line(self, line: str) -> Sequence[x509.Certificate]:
        """Return the CAs for devices that *line* certifies."""
        return self._lines.get(line, self._lines[DEFAULT_LINE])


def _event_of(issuing: Sequence[StoredAuthority], revoked: Sequence[StoredAuthority]) -> bytes:
    facts = [
        {
            "name": each.name,
            "line": each.line,
            "state": each.state,
            "certificate": base64.b64encode(each.certificate.public_bytes(Encoding.DER)).decode(),
        }
        for each in issuing
    ]
    ended = [
        {"issuer_key_id": issuer.hex(), "serial": serial_text(serial), "authority_key": each.key_id.hex()}
        for each in revoked
        for issuer, serial in [certificate_key(each.certificate)]
    ]
    return f"event: authorities\ndata: {json.dumps({'issuing': facts, 'revoked': ended})}\n\n".encode()


def _concerning(lines: set[str], trusted: Sequence[StoredAuthority]) -> list[x509.Certificate]:
    issuing = [each for each in trusted if each.kind is AuthorityKind.ISSUING and each.line in lines]
    roots = {each.certificate.issuer for each in issuing}
    return [each.certificate for each in trusted if each in issuing or each.certificate.subject in roots]
