"""What an issuer may put in a certificate: one profile for each kind of certificate.

Theory
------
`ProfileConfig` is what an operator writes and may be invalid; `Profile` is what the issuer uses and is always valid:
only `profile_of` makes one, after checking. There is a built-in profile for each role and for the service's own HTTPS
server; configuration changes them and adds others, each for one role.

Rules
-----
1. A profile is for one role for ever. It fixes the purposes of its certificates, whatever a request asks for.
2. Certificates of clients have clientAuth: without it no broker admits them, and no renewal succeeds. None here can
   sign certificates, CRLs, OCSP responses or time stamps, or have anyExtendedKeyUsage.
3. Every end-entity certificate is for signatures: key agreement in TLS 1.3 and with ECDHE needs no other key usage.
4. No I/O and no clock: "now" is an argument.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from provisioning.ca.host_patterns import PLACEHOLDER, AmbiguousHostName, check_unambiguous
from provisioning.ca.name_policy import SUBJECT_ATTRIBUTES, IpNetwork, NamePolicy
from provisioning.ca.server_names import InvalidServerName, check_host_name
from provisioning.pki.identity import InvalidIdentity, check_name
from provisioning.pki.role import Role

MAXIMUM_LIFE = timedelta(days=825)
"""With longer lives, CRLs would only ever grow (public CAs had this limit until 2020)."""

MINIMUM_LIFE = timedelta(minutes=1)
_MAXIMUM_BACKDATE = timedelta(hours=1)
_RSA_BITS: Final = range(2048, 8192 + 1)


DIGITAL_SIGNATURE = x509.KeyUsage(
    digital_signature=True,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=False,
    crl_sign=False,
    encipher_only=False,
    decipher_only=False,
)
"""The one key usage of every end-entity certificate here."""


class KeyType(StrEnum):
    """The key types that can be certified."""

    P256 = "P-256"
    P384 = "P-384"
    ED25519 = "Ed25519"
    RSA = "RSA"


class ProfileName(StrEnum):
    """The built-in profiles: one for each role, and one for the service's own HTTPS certificate."""

    DEVICE = "device"
    BROKER = "broker"
    SERVICE = "service"
    OPERATOR = "operator"
    PROVISIONING = "provisioning"


class InvalidProfile(ValueError):
    """A profile's configuration breaks a limit; the text names the key and says what may be there."""


@dataclass(frozen=True, slots=True)
class ProfileConfig:
    """One profile as configured."""

    name: str
    life: timedelta
    backdate: timedelta = timedelta(minutes=1)  # Devices' clocks may be behind; a minute covers ordinary skew.
    role: str | None = None
    """None: the built-in profile's own."""
    key_types: tuple[str, ...] = tuple(KeyType)
    minimum_rsa_bits: int = _RSA_BITS.start
    extended_key_usages: tuple[str, ...] | None = None
    """None: the role's."""
    organization: str | None = None
    dns_patterns: tuple[str, ...] = ()
    honoured_attributes: tuple[str, ...] = ()
    honoured_domains: tuple[str, ...] = ()
    honoured_networks: tuple[str, ...] = ()
    shared_host_names: bool = False
    """Whether several devices may share a name below `honoured_domains`."""
    crl_url: bool = True
    ocsp_url: bool = True
    issuer_url: bool = True


@dataclass(frozen=True, slots=True)
class Profile:
    """What the issuer puts in a certificate of one kind. Made by `profile_of` only."""

    name: str
    role: Role
    life: timedelta
    backdate: timedelta
    key_types: frozenset[KeyType]
    minimum_rsa_bits: int
    extended_key_usages: tuple[x509.ObjectIdentifier, ...]
    names: NamePolicy = field(default_factory=NamePolicy)
    crl_url: bool = True
    ocsp_url: bool = True
    issuer_url: bool = True

    def validity(self, now: datetime, issuer_not_after: datetime, life: timedelta | None) -> tuple[datetime, datetime]:
        """Return notBefore and notAfter of a certificate made *now*, limited to the issuer's own notAfter.

        *life* can shorten what the profile grants, never lengthen it.
        """
        granted = self.life if life is None else min(life, self.life)
        now = now.replace(microsecond=0)  # RFC 5280 §4.1.2.5: no fractions of a second.
        return now - self.backdate, min(now + granted, issuer_not_after)

    def takes(self, key: object) -> bool:
        """Whether this profile allows *key*, which the key policy has found strong."""
        kind = key_type_of(key)
        if kind not in self.key_types:
            return False
        return not isinstance(key, rsa.RSAPublicKey) or key.key_size >= self.minimum_rsa_bits

    @property
    def serves(self) -> bool:
        """Whether clients take who has such a certificate for a server."""
        return ExtendedKeyUsageOID.SERVER_AUTH in self.extended_key_usages

    @property
    def keys_taken(self) -> str:
        """The key types that it allows, as text for messages."""
        words = [kind.value for kind in KeyType if kind in self.key_types and kind is not KeyType.RSA]
        if KeyType.RSA in self.key_types:
            words.append(f"RSA of {self.minimum_rsa_bits} bits or more")
        return " or ".join(words)


@dataclass(frozen=True, slots=True)
class _BuiltIn:
    role: Role
    extended_key_usages: tuple[str, ...]
    needed: str
    server_names_allowed: bool = False


_BUILT_IN: Final[Mapping[ProfileName, _BuiltIn]] = {
    ProfileName.DEVICE: _BuiltIn(Role.DEVICE, ("clientAuth",), "clientAuth"),
    ProfileName.SERVICE: _BuiltIn(Role.SERVICE, ("clientAuth",), "clientAuth"),
    ProfileName.OPERATOR: _BuiltIn(Role.OPERATOR, ("clientAuth",), "clientAuth"),
    # Brokers connect to one another, and to the provisioning service.
    ProfileName.BROKER: _BuiltIn(Role.BROKER, ("serverAuth", "clientAuth"), "clientAuth", server_names_allowed=True),
    ProfileName.PROVISIONING: _BuiltIn(Role.SERVICE, ("serverAuth",), "serverAuth", server_names_allowed=True),
}

_USAGES: Final = {
    "clientAuth": ExtendedKeyUsageOID.CLIENT_AUTH,
    "serverAuth": ExtendedKeyUsageOID.SERVER_AUTH,
}
_PRIVATE_USAGE: Final = re.compile(r"1\.3\.6\.1\.4\.1(\.(0|[1-9][0-9]{0,9})){2,10}", re.ASCII)
_LONGEST_ORGANIZATION: Final = 64  # RFC 5280 appendix A.1


def profile_of(config: ProfileConfig) -> Profile:
    """Return the profile that *config* describes; raise `InvalidProfile` naming the key that breaks a limit."""
    try:
        check_name("name", config.name)
    except InvalidIdentity as error:
        raise InvalidProfile(f"profiles: {error}") from error
    built_in = _built_in(config)
    if not MINIMUM_LIFE <= config.life <= MAXIMUM_LIFE:
        raise _invalid(config, "life", f"is {config.life}: choose 1 minute to {MAXIMUM_LIFE.days} days")
    if not timedelta() <= config.backdate <= _MAXIMUM_BACKDATE:
        raise _invalid(config, "backdate", f"is {config.backdate}: choose 0 to 1 hour")
    if config.minimum_rsa_bits not in _RSA_BITS:
        raise _invalid(config, "minimum_rsa_bits", f"is {config.minimum_rsa_bits}: choose 2048 to 8192")
    return Profile(
        config.name,
        built_in.role,
        config.life,
        config.backdate,
        _key_types(config),
        config.minimum_rsa_bits,
        _usages(config, built_in),
        _name_policy(config, built_in),
        config.crl_url,
        config.ocsp_url,
        config.issuer_url,
    )


def key_type_of(key: object) -> KeyType | None:
    """Return the type of a public key, None if it is no type that can be certified."""
    match key:
        case ec.EllipticCurvePublicKey(curve=ec.SECP256R1()):
            return KeyType.P256
        case ec.EllipticCurvePublicKey(curve=ec.SECP384R1()):
            return KeyType.P384
        case ed25519.Ed25519PublicKey():
            return KeyType.ED25519
        case rsa.RSAPublicKey():
            return KeyType.RSA
        case _:
            return None


def _invalid(config: ProfileConfig, key: str, text: str) -> InvalidProfile:
    return InvalidProfile(f"profiles.{config.name}.{key} {text}")


def _built_in(config: ProfileConfig) -> _BuiltIn:
    if config.name in set(ProfileName):
        built_in = _BUILT_IN[ProfileName(config.name)]
        if config.role not in (None, built_in.role):
            raise _invalid(
                config, "role", f"is {config.role!r}: the built-in profile's is {built_in.role}, leave it out"
            )
        return built_in
    roles = ", ".join(Role)
    if config.role is None:
        raise _invalid(config, "role", f"is missing: a profile that is not built in needs a role, one of {roles}")
    try:
        return _BUILT_IN[ProfileName(Role(config.role))]
    except ValueError:
        raise _invalid(config, "role", f"is {config.role!r}: choose one of {roles}") from None


def _key_types(config: ProfileConfig) -> frozenset[KeyType]:
    try:
        kinds = frozenset(map(KeyType, config.key_types))
    except ValueError:
        wrong = sorted(set(config.key_types) - set(KeyType))
        raise _invalid(config, "key_types", f"has {wrong}: choose from {', '.join(KeyType)}") from None
    if not kinds:
        raise _invalid(config, "key_types", f"is empty: choose from {', '.join(KeyType)}")
    return kinds


def _usages(config: ProfileConfig, built_in: _BuiltIn) -> tuple[x509.ObjectIdentifier, ...]:
    names = built_in.extended_key_usages if config.extended_key_usages is None else config.extended_key_usages
    found = []
    for name in dict.fromkeys(names):
        if name not in _USAGES and not _PRIVATE_USAGE.fullmatch(name):
            raise _invalid(
                config,
                "extended_key_usages",
                f"has {name!r}: choose clientAuth, serverAuth, or an OID of your own below 1.3.6.1.4.1",
            )
        found.append(_USAGES.get(name) or x509.ObjectIdentifier(name))
    if built_in.needed not in names:
        raise _invalid(config, "extended_key_usages", f"lacks {built_in.needed}: its certificates could not be used")
    return tuple(found)


def _name_policy(config: ProfileConfig, built_in: _BuiltIn) -> NamePolicy:
    wrong = sorted(set(config.honoured_attributes) - SUBJECT_ATTRIBUTES.keys())
    if wrong:
        raise _invalid(config, "honoured_attributes", f"has {wrong}: choose from {', '.join(SUBJECT_ATTRIBUTES)}")
    organization = config.organization
    if organization is not None and not 0 < len(organization) <= _LONGEST_ORGANIZATION:
        raise _invalid(config, "organization", f"has {len(organization)} characters: use 1 to 64")
    if organization is not None and "organization" in config.honoured_attributes:
        raise _invalid(config, "honoured_attributes", "has organization, which the profile sets: leave one of them out")
    for pattern in config.dns_patterns:
        if "{name}" not in pattern:
            raise _invalid(config, "dns_patterns", f"has {pattern!r}: a name for each device needs {{name}} in it")
        _check_host(config, "dns_patterns", PLACEHOLDER.sub("x", pattern))
        if "{group}" in pattern and built_in.role is not Role.DEVICE:
            raise _invalid(config, "dns_patterns", f"has {pattern!r}: only a device always has a group")
        try:
            check_unambiguous(pattern)
        except AmbiguousHostName as error:
            raise _invalid(config, "dns_patterns", f"has one that is ambiguous: {error}") from error
    for domain in config.honoured_domains:
        _check_host(config, "honoured_domains", domain)
        if any(pattern.endswith(f".{domain}") for pattern in config.dns_patterns):
            raise _invalid(config, "honoured_domains", f"has {domain!r}, where dns_patterns put other devices' names")
    return NamePolicy(
        organization,
        config.dns_patterns,
        built_in.server_names_allowed,
        frozenset(config.honoured_attributes),
        config.honoured_domains,
        tuple(_network(config, network) for network in config.honoured_networks),
        config.shared_host_names,
    )


def _check_host(config: ProfileConfig, key: str, name: str) -> None:
    try:
        check_host_name(name)
    except InvalidServerName as error:
        raise _invalid(config, key, f"has one that is wrong: {error}") from error


def _network(config: ProfileConfig, network: str) -> IpNetwork:
    try:
        return ipaddress.ip_network(network)
    except ValueError as error:
        raise _invalid(config, "honoured_networks", f"has one that is wrong: {error}") from error
