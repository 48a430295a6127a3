"""Who a certificate names: the one parser and the one renderer of an identity.

Theory
------
Every party of a fleet has a certificate whose Subject Alternative Name holds exactly one URI::

    spiffe://<trust-domain>/<role>/<group>/<name>      a device always has a group
    spiffe://<trust-domain>/<role>/<name>              other roles may have none

and whose Common Name equals ``name``. Role and group are in the certificate, so a verifier can authorise without
asking another party.

Rules
-----
1. Nothing is repaired: a URI that `render` would not have produced is refused.
2. A name or group is safe as an MQTT topic level, a file name and a URL path segment: letters, digits, ``.``, ``_``
   and ``-``, beginning with a letter or digit, 64 at most (the upper bound of a Common Name, RFC 5280 appendix A.1).
3. No I/O and no clock.
"""

from __future__ import annotations

import re
import string
import sys
from dataclasses import dataclass
from typing import Final

from cryptography import x509
from cryptography.x509.oid import NameOID

from provisioning.pki.extension import extension
from provisioning.pki.role import Role

SCHEME: Final = "spiffe://"
PROVISIONING: Final = "provisioning"
"""The provisioning service's own name; its role is service."""
AUTHORITY_PREFIX: Final = "ca:"
"""Prefix of the name under which a revoked CA is listed among the devices; no device's name contains ``:``."""

_LONGEST_NAME: Final = 64
_INNER: Final = "._-"
"""What a name may contain, but not begin with."""
_OF_NAMES: Final = string.ascii_letters + string.digits + _INNER
_TRUST_DOMAIN: Final = re.compile(r"[a-z0-9]([a-z0-9._-]{0,253}[a-z0-9])?", re.ASCII)
_ROLES: Final = {role.value: role for role in Role}
_MOST_KNOWN: Final = 16
_known_domains: Final[set[str]] = set()
"""The first trust domains that were checked and may be ones: as a rule there is one."""


class InvalidIdentity(ValueError):
    """The name, group, trust domain or URI does not denote an identity; the text says which and why."""


@dataclass(slots=True, init=False, eq=False)
class Identity:
    """One party: its trust domain, role, group (always set for a device) and name. Immutable.

    What `dataclass` would generate is written out, for mypyc: a broker makes and compares one per connection.
    Raises `InvalidIdentity` when a part breaks rule 2.
    """

    trust_domain: str
    role: Role
    name: str
    group: str | None

    def __init__(self, trust_domain: str, role: Role, name: str, group: str | None = None) -> None:
        """Refuse parts that the renderer could not write safely."""
        check_trust_domain(trust_domain)
        check_name("name", name)
        if group is not None:
            check_name("group", group)
        elif role is Role.DEVICE:
            raise InvalidIdentity("group is missing: a device always belongs to a group")
        self.trust_domain = trust_domain
        self.role = role
        self.name = name
        self.group = group

    def __eq__(self, other: object) -> bool:
        """Whether *other* is the same party."""
        return (
            isinstance(other, Identity)
            and self.name == other.name
            and self.role is other.role
            and self.group == other.group
            and self.trust_domain == other.trust_domain
        )

    def __hash__(self) -> int:
        """Return a hash of the name, which is almost unique."""
        return hash(self.name)

    @property
    def uri(self) -> str:
        """The identity as the URI of the Subject Alternative Name."""
        group = f"{self.group}/" if self.group is not None else ""
        return f"{SCHEME}{self.trust_domain}/{self.role}/{group}{self.name}"

    def __str__(self) -> str:
        return self.uri


def check_trust_domain(value: str) -> str:
    """Return *value* if it may be a trust domain; raise `InvalidIdentity` otherwise."""
    if value in _known_domains:
        return value
    if not _TRUST_DOMAIN.fullmatch(value):
        raise InvalidIdentity(f"trust domain {value[:80]!r}: use lower-case letters, digits, '.', '-' or '_'")
    if len(_known_domains) < _MOST_KNOWN:
        _known_domains.add(value)
    return value


def check_name(field: str, value: str) -> str:
    """Return *value* if it may be a name or group; raise `InvalidIdentity` naming *field* otherwise."""
    if not 0 < len(value) <= _LONGEST_NAME or value[0] in _INNER or value.strip(_OF_NAMES):  # Nothing else is left.
        raise InvalidIdentity(
            f"{field} {value[:80]!r}: use 1 to 64 letters, digits, '.', '_' or '-', beginning with a letter or digit"
        )
    return value


def parse_uri(uri: str) -> Identity:
    """Return the identity that *uri* denotes; raise `InvalidIdentity` if it is not exactly one of ours."""
    if not uri.startswith(SCHEME):
        raise InvalidIdentity(f"URI {uri[:120]!r} does not begin with {SCHEME}")
    trust_domain, *path = uri[len(SCHEME) :].split("/")
    group: str | None = None
    # Interned: a fleet has few trust domains and groups, and a broker holds an identity for each connection.
    match path:
        case [role, name]:
            pass
        case [role, named_group, name]:
            group = sys.intern(named_group)
        case _:
            raise InvalidIdentity(f"URI {uri[:120]!r} is not {SCHEME}<trust-domain>/<role>/<group>/<name>")
    known_role = _ROLES.get(role)
    if known_role is None:
        raise InvalidIdentity(f"role {role[:80]!r} is not one of {', '.join(Role)}")
    return Identity(sys.intern(trust_domain), known_role, name, group)


def identity_of(certificate: x509.Certificate) -> Identity:
    """Return whom *certificate* names.

    Raises `InvalidIdentity` if there is no identity URI, more than one, or a Common Name that differs from it.
    """
    names = extension(certificate, x509.SubjectAlternativeName)
    if names is None:
        raise InvalidIdentity("the certificate has no Subject Alternative Name")
    uris = [
        name.value for name in names if type(name) is x509.UniformResourceIdentifier and name.value.startswith(SCHEME)
    ]
    if len(uris) != 1:
        raise InvalidIdentity(f"the certificate has {len(uris)} identity URIs where one is needed")
    identity = parse_uri(uris[0])
    common_names = [name.value for name in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    if common_names != [identity.name]:
        raise InvalidIdentity(f"the Common Name {common_names!r} is not the name in {identity.uri}")
    return identity
