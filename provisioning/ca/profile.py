"""What an issuer may put in a certificate of each role.

Theory
------
`ProfileConfig` is what an operator writes and may be wrong; `Profile` is what the issuer works with and cannot be:
only `profile_of` makes one, and it checks. Two uses of a certificate are never mixed up later, because the extended
key usage is fixed here by role, whatever a request asks for.

Rules
-----
1. A device, service or operator certificate authenticates a client and nothing else; a broker's also a server, since
   brokers call one another; the provisioning service's own is a server's only.
2. Every end-entity certificate is for signatures: key agreement of TLS 1.3 and of ECDHE needs no other key usage.
3. No I/O and no clock: "now" is an argument.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from provisioning.pki.identity import Role

MAXIMUM_LIFE = timedelta(days=825)
"""Longer, and revocation lists only ever grow (the bound public CAs had until 2020)."""

_MINIMUM_LIFE = timedelta(minutes=1)
_MAXIMUM_BACKDATE = timedelta(hours=1)


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


class ProfileName(StrEnum):
    """Which profile: one for each role, and one for the service's own HTTPS certificate."""

    DEVICE = "device"
    BROKER = "broker"
    SERVICE = "service"
    OPERATOR = "operator"
    PROVISIONING = "provisioning"


class InvalidProfile(ValueError):
    """A profile's configuration breaks a limit; the text names the field and the limit."""


@dataclass(frozen=True, slots=True)
class ProfileConfig:
    """How long certificates of one kind live, as configured."""

    name: ProfileName
    life: timedelta
    backdate: timedelta = timedelta(minutes=1)  # Devices' clocks run behind; a minute covers ordinary skew.


@dataclass(frozen=True, slots=True)
class Profile:
    """What the issuer puts in a certificate of one kind. Made by `profile_of` only."""

    name: ProfileName
    role: Role
    life: timedelta
    backdate: timedelta
    extended_key_usages: tuple[x509.ObjectIdentifier, ...]
    server_names_allowed: bool

    def validity(
        self, now: datetime, issuer_not_after: datetime, life: timedelta | None = None
    ) -> tuple[datetime, datetime]:
        """Return notBefore and notAfter of a certificate made *now*, cut off at the issuer's own end.

        *life* is a wish: it can shorten what the profile grants, never lengthen it.
        """
        granted = self.life if life is None else min(life, self.life)
        now = now.replace(microsecond=0)  # RFC 5280 §4.1.2.5: no fractions of a second.
        return now - self.backdate, min(now + granted, issuer_not_after)


@dataclass(frozen=True, slots=True)
class _Usage:
    role: Role
    extended_key_usages: tuple[x509.ObjectIdentifier, ...]
    server_names_allowed: bool = False


_CLIENT = (ExtendedKeyUsageOID.CLIENT_AUTH,)
_SERVER = (ExtendedKeyUsageOID.SERVER_AUTH,)

_USAGES = {
    ProfileName.DEVICE: _Usage(Role.DEVICE, _CLIENT),
    ProfileName.SERVICE: _Usage(Role.SERVICE, _CLIENT),
    ProfileName.OPERATOR: _Usage(Role.OPERATOR, _CLIENT),
    ProfileName.BROKER: _Usage(Role.BROKER, _SERVER + _CLIENT, server_names_allowed=True),
    ProfileName.PROVISIONING: _Usage(Role.SERVICE, _SERVER, server_names_allowed=True),
}


def profile_of(config: ProfileConfig) -> Profile:
    """Return the profile that *config* describes; raise `InvalidProfile` naming the field that breaks a limit."""
    if not _MINIMUM_LIFE <= config.life <= MAXIMUM_LIFE:
        raise InvalidProfile(
            f"life of the {config.name} profile is {config.life}: choose {_MINIMUM_LIFE} to {MAXIMUM_LIFE.days} days"
        )
    if not timedelta() <= config.backdate <= _MAXIMUM_BACKDATE:
        raise InvalidProfile(f"backdate of the {config.name} profile is {config.backdate}: choose 0 to 1 hour")
    usage = _USAGES[config.name]
    return Profile(
        config.name, usage.role, config.life, config.backdate, usage.extended_key_usages, usage.server_names_allowed
    )
