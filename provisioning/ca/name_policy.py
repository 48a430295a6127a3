"""Which names go into a certificate beside the identity: the server builds them, and honours requests where allowed.

Theory
------
Every certificate has the Common Name and the identity URI, both made by the server from what it has authorised. A
profile may add more, from three sources::

    built      the same for every device: an organization, host names by a pattern ({name}.{group}.devices.example)
    granted    server names that a token allows, for roles that serve
    honoured   what a request asks for, within what the profile says: subject attributes, host names below a domain,
               addresses of a network

Rules
-----
1. By default no requested name is honoured; names are left out as if they had not been requested.
2. If a profile honours some, a request for others is refused with the reason, rather than answered with less.
3. A successor keeps what the profile allows now. Other names of its predecessor are left out, not refused: a
   changed profile locks no device out.
4. A certificate gets no new name beyond `MAXIMUM_NAMES`: each host name is claimed in the store, while others wait. A
   successor keeps more, if its predecessor has them.
5. No wildcards, no I/O, no clock.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from cryptography import x509
from cryptography.x509.oid import NameOID

from provisioning.ca.host_patterns import AmbiguousHostName, filled
from provisioning.ca.server_names import InvalidServerName, IpAddress, check_host_name
from provisioning.errors import Code, Refused
from provisioning.pki.identity import Identity
from provisioning.quick_values import quickly_made

IpNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

SUBJECT_ATTRIBUTES: Final[Mapping[str, x509.ObjectIdentifier]] = {
    "country": NameOID.COUNTRY_NAME,
    "stateOrProvince": NameOID.STATE_OR_PROVINCE_NAME,
    "locality": NameOID.LOCALITY_NAME,
    "organization": NameOID.ORGANIZATION_NAME,
    "organizationalUnit": NameOID.ORGANIZATIONAL_UNIT_NAME,
    "serialNumber": NameOID.SERIAL_NUMBER,
}
"""The subject's possible attributes beside the Common Name, in this order, under the names that profiles use."""

MAXIMUM_NAMES: Final = 32
"""Host names and addresses in a certificate, beside those that a pattern makes."""
_LONGEST_ATTRIBUTE: Final = 64  # RFC 5280 appendix A.1.
_FORMS: Final = {
    "country": (re.compile("[A-Za-z]{2}"), "two letters"),
    # A PrintableString (X.680 §41.4), into which the library writes whatever it is given.
    "serialNumber": (re.compile(r"[A-Za-z0-9 '()+,./:=?-]+"), "letters, digits, spaces and '()+,-./:=?"),
}
"""The attributes that have another form than text (RFC 5280 appendix A.1), and what it is made of."""


class NameRefused(Refused):
    """The request asks for a name that its profile does not allow."""


@quickly_made
@dataclass(frozen=True, slots=True)
class SubjectNames:
    """The alternative names beside the identity, and the subject's attributes beside the Common Name."""

    dns_names: tuple[str, ...] = ()
    ip_addresses: tuple[IpAddress, ...] = ()
    attributes: tuple[x509.NameAttribute[str | bytes], ...] = ()


@dataclass(frozen=True, slots=True)
class NamePolicy:
    """What one profile allows. Validated by `provisioning.ca.profile.profile_of`."""

    organization: str | None = None
    dns_patterns: tuple[str, ...] = ()
    granted: bool = False
    honoured_attributes: frozenset[str] = frozenset()
    honoured_domains: tuple[str, ...] = ()
    honoured_networks: tuple[IpNetwork, ...] = ()
    shared_host_names: bool = False
    """Whether several devices may share a host name below the honoured domains."""

    def names_for(self, identity: Identity, held: SubjectNames, asked: SubjectNames) -> SubjectNames:
        """Return the names of a certificate for *identity*; raise `NameRefused`.

        *held* are those that a token grants or the predecessor has, *asked* those of the request.
        """
        names = SubjectNames(
            self._dns_names(identity, held, asked), self._ip_addresses(held, asked), self._attributes(asked)
        )
        self._check_number(identity, held, names)
        return names

    def own_host_names(self, identity: Identity, held: SubjectNames, names: SubjectNames) -> tuple[str, ...]:
        """Return those of *names* that only one device may have.

        That is all honoured and built names: under other patterns, or none, another device may have had them. Granted
        names are shared on purpose, for instance by brokers behind one address.
        """
        if not names.dns_names:
            return ()
        granted = held.dns_names if self.granted else ()
        built = self._built(identity) if self.shared_host_names else names.dns_names
        return tuple(name for name in names.dns_names if name in built and name not in granted)

    def allows(self, identity: Identity, names: SubjectNames) -> bool:
        """Whether a certificate for *identity* may have *names*: the same rules, applied to the result."""
        attributes = {
            name for name, oid in SUBJECT_ATTRIBUTES.items() if any(oid == each.oid for each in names.attributes)
        }
        built = set(self._built(identity))
        return (
            all(self.granted or name in built or self._honours_host(name) for name in names.dns_names)
            and all(self.granted or self._honours_address(address) for address in names.ip_addresses)
            and attributes <= self.honoured_attributes | ({"organization"} if self.organization else set())
        )

    def _dns_names(self, identity: Identity, held: SubjectNames, asked: SubjectNames) -> tuple[str, ...]:
        granted = held.dns_names if self.granted else ()
        built = self._built(identity)
        honoured = []
        for name in asked.dns_names if self.honoured_domains else ():
            if self._honours_host(name):
                honoured.append(name)
            elif name not in (*granted, *built, *held.dns_names):
                raise NameRefused(
                    Code.CSR_NAME,
                    f"the request asks for the DNS name {name[:80]!r}: names below "
                    f"{', '.join(self.honoured_domains)} are allowed here",
                )
        return tuple(dict.fromkeys((*granted, *built, *honoured)))

    def _ip_addresses(self, held: SubjectNames, asked: SubjectNames) -> tuple[IpAddress, ...]:
        granted = held.ip_addresses if self.granted else ()
        honoured = []
        for address in asked.ip_addresses if self.honoured_networks else ():
            if self._honours_address(address):
                honoured.append(address)
            elif address not in (*granted, *held.ip_addresses):
                raise NameRefused(
                    Code.CSR_NAME,
                    f"the request asks for the address {address}: addresses in "
                    f"{', '.join(map(str, self.honoured_networks))} are allowed here",
                )
        return tuple(dict.fromkeys((*granted, *honoured)))

    def _check_number(self, identity: Identity, held: SubjectNames, names: SubjectNames) -> None:
        number = len(names.dns_names) + len(names.ip_addresses)
        if number <= MAXIMUM_NAMES:
            return
        built = self._built(identity)
        new = {*names.dns_names, *names.ip_addresses} - {*held.dns_names, *held.ip_addresses, *built}
        if new and number - len(built) > MAXIMUM_NAMES:
            raise NameRefused(
                Code.CSR_NAME,
                f"the request asks for more than {MAXIMUM_NAMES} host names and addresses, the most that a certificate "
                "holds: ask for fewer",
            )

    def _attributes(self, asked: SubjectNames) -> tuple[x509.NameAttribute[str | bytes], ...]:
        if self.organization is None and not self.honoured_attributes:
            return ()
        chosen: list[x509.NameAttribute[str | bytes]] = []
        for name, oid in SUBJECT_ATTRIBUTES.items():
            if name == "organization" and self.organization is not None:
                chosen.append(x509.NameAttribute(oid, self.organization))
            elif name in self.honoured_attributes:
                chosen.extend(_checked(name, each) for each in asked.attributes if each.oid == oid)
        return tuple(chosen)

    def _built(self, identity: Identity) -> tuple[str, ...]:
        return tuple(host_name_of(pattern, identity) for pattern in self.dns_patterns)

    def _honours_host(self, name: str) -> bool:
        return _is_host(name) and any(name.endswith(f".{domain}") for domain in self.honoured_domains)

    def _honours_address(self, address: IpAddress) -> bool:
        return any(address in network for network in self.honoured_networks)


def host_name_of(pattern: str, identity: Identity) -> str:
    """Return the host name that *pattern* gives *identity*; raise `NameRefused` if the result is no host name."""
    try:
        return check_host_name(filled(pattern, identity))
    except AmbiguousHostName as error:
        raise NameRefused(Code.CSR_NAME, str(error)) from error
    except InvalidServerName as error:
        raise NameRefused(
            Code.CSR_NAME,
            f"the profile makes a host name of name and group, and {error}",
        ) from error


def _is_host(name: str) -> bool:
    try:
        check_host_name(name)
    except InvalidServerName:
        return False
    return True


def _checked(name: str, attribute: x509.NameAttribute[str | bytes]) -> x509.NameAttribute[str | bytes]:
    value = attribute.value
    if not isinstance(value, str) or not value.isprintable() or not 0 < len(value) <= _LONGEST_ATTRIBUTE:
        raise NameRefused(Code.CSR_NAME, f"the subject's {name} is not 1 to {_LONGEST_ATTRIBUTE} printable characters")
    form, words = _FORMS.get(name, (None, ""))
    if form is not None and form.fullmatch(value) is None:
        raise NameRefused(Code.CSR_NAME, f"the subject's {name} is {value!r}: use {words}")
    return x509.NameAttribute(attribute.oid, value)


def asked_names(subject: x509.Name, alternative: x509.SubjectAlternativeName | None) -> SubjectNames:
    """Return the names that a request asks for; none of them is allowed yet."""
    known = set(SUBJECT_ATTRIBUTES.values())
    attributes = tuple(each for each in subject if each.oid in known)
    if alternative is None:
        return SubjectNames(attributes=attributes)
    return SubjectNames(tuple(alternative.get_values_for_type(x509.DNSName)), addresses_of(alternative), attributes)


def addresses_of(alternative: x509.SubjectAlternativeName) -> tuple[IpAddress, ...]:
    """Return the addresses among alternative names; networks, which only constraints may hold, are left out."""
    found: Iterable[object] = alternative.get_values_for_type(x509.IPAddress)
    return tuple(each for each in found if isinstance(each, ipaddress.IPv4Address | ipaddress.IPv6Address))
