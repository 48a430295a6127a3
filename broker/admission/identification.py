"""The identity in a foreign CA's certificate: ordered sources, each with a pattern that captures name, group and role.

Theory
------
Our own certificates state it in one URI, which `provisioning.pki.identity` reads. Other CAs put the name elsewhere. A
source takes the values from one place of the certificate; the first source with a matching value decides. What is
captured becomes an `Identity` in the bundle's trust domain, under the same rules as any other: a name is one safe topic
level, and nothing is repaired.

Rules
-----
1. A pattern must match a whole value. If two values of one source name different parties, the certificate is refused.
2. The length of values is bounded before a pattern is applied, and so is the time that all of a certificate take: the
   nested repetition of a pattern like ``([a-z]+-?)+`` takes hours for 40 characters, which the CA chooses, and in which
   nobody else is served.
3. In a subject, what separates names never stands for itself inside one: whoever may choose his organisation would
   otherwise choose ``Plant,CN=meter-2``, and a pattern that looks for ``,CN=`` would find it.
4. No I/O, no clock.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import NameOID

from broker.settings.trust_settings import IdentitySource
from broker.timing.processor_limit import TooLong, processor_limit
from provisioning.pki.extension import extension
from provisioning.pki.identity import Identity, InvalidIdentity, identity_of
from provisioning.pki.keys import spki_fingerprint
from provisioning.pki.role import Role

_LONGEST_VALUE = 1024
_LONGEST_SEARCH = 0.02
"""Seconds of the processor; usual patterns take some microseconds."""
_TOO_LONG = (
    "a pattern of the trust bundle takes too long with what is in the certificate: write it without a repetition "
    "inside another, or so that each character can be matched in one way"
)
_ESCAPED = re.compile(r"\\([^0])", re.DOTALL)
"""A special character as the library escapes it; a NUL is already in hexadecimal."""


class IdentityPipeline:
    """The compiled sources of one bundle."""

    def __init__(self, trust_domain: str, sources: Sequence[IdentitySource]) -> None:
        self._trust_domain = trust_domain
        self._sources = [(source, re.compile(source.pattern)) for source in sources]

    def identify(self, certificate: x509.Certificate) -> Identity:
        """Return the identity in *certificate*; raise `InvalidIdentity` if no source has one, or one has two."""
        try:
            with processor_limit(_LONGEST_SEARCH):
                return self._identify(certificate)
        except TooLong:
            raise InvalidIdentity(_TOO_LONG) from None

    def _identify(self, certificate: x509.Certificate) -> Identity:
        tried = []
        for source, pattern in self._sources:
            if source.source == "spiffe":
                try:
                    return identity_of(certificate)
                except InvalidIdentity as error:
                    tried.append(str(error))
                    continue
            values = [each for each in _VALUES[source.source](certificate) if len(each) <= _LONGEST_VALUE]
            matches = [found for each in values if (found := pattern.fullmatch(each)) is not None]
            found_here = {self._made(source, match.groupdict()) for match in matches}
            if len(found_here) == 1:
                return found_here.pop()
            if found_here:
                raise InvalidIdentity(f"{source.source}: {len(found_here)} values name different parties")
            tried.append(f"{source.source}: {'nothing matches' if values else 'there is none'}")
        raise InvalidIdentity(f"the certificate contains no identity ({'; '.join(tried)})")

    def _made(self, source: IdentitySource, captured: Mapping[str, str | None]) -> Identity:
        role = captured.get("role")
        try:
            known = source.role if role is None else Role(role)
        except ValueError:
            raise InvalidIdentity(f"role {str(role)[:80]!r} is not one of {', '.join(Role)}") from None
        return Identity(self._trust_domain, known, captured["name"] or "", captured.get("group") or source.group)


def _alternative_names(kind: Any, certificate: x509.Certificate) -> list[str]:
    """Return the Subject Alternative Names of that *kind*."""
    names = extension(certificate, x509.SubjectAlternativeName)
    return [] if names is None else [str(each) for each in names.get_values_for_type(kind)]


def _common_names(certificate: x509.Certificate) -> list[str]:
    return [str(each.value) for each in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]


def _subject(certificate: x509.Certificate) -> str:
    """Return the subject by RFC 4514, with special characters, and ``=``, as pairs of hexadecimal digits (rule 3)."""
    return ",".join("+".join(map(_attribute, each)) for each in reversed(certificate.subject.rdns))


def _attribute(attribute: x509.NameAttribute[str | bytes]) -> str:
    kind, _, value = attribute.rfc4514_string().partition("=")
    value = _ESCAPED.sub(lambda found: f"\\{ord(found[1]):02X}", value)
    return f"{kind}={value.replace('=', chr(92) + '3D')}"


_VALUES: Mapping[str, Callable[[x509.Certificate], list[str]]] = {
    "san-uri": partial(_alternative_names, x509.UniformResourceIdentifier),
    "san-dns": partial(_alternative_names, x509.DNSName),
    "san-email": partial(_alternative_names, x509.RFC822Name),
    "san-ip": partial(_alternative_names, x509.IPAddress),
    "common-name": _common_names,
    "subject": lambda certificate: [_subject(certificate)],
    "fingerprint": lambda certificate: [certificate.fingerprint(hashes.SHA256()).hex()],
    "public-key": lambda certificate: [spki_fingerprint(certificate.public_key()).hex()],
}
