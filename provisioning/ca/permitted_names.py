"""Which names a CA's name constraints keep its certificates from having (RFC 5280 §4.2.1.10), as OpenSSL reads them.

A CA whose constraints do not permit the service's own names certifies the service so that no client accepts it:
devices, brokers and operators are all shut out at once, as soon as that CA issues.

Rules
-----
1. A name must be within one of the permitted subtrees of its kind, if there are any, and within no excluded one.
2. A host is within a domain if it is that or below it; in a URI, only if it is that, or if it is below one that begins
   with a dot.
3. No I/O and no clock.

Handles: host names, addresses, URIs. Does not handle: directory names (`provisioning.ca.issuing_ca_findings`), and
Common Names that look like host names.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import IPv4Network, IPv6Network
from urllib.parse import urlsplit

from cryptography import x509


def names_refused(constraints: x509.NameConstraints, names: Iterable[x509.GeneralName]) -> Sequence[str]:
    """Return those of *names* that a certificate below *constraints* must not have, for messages."""
    return [str(each.value) for each in names if not _is_permitted(constraints, each)]


def _is_permitted(constraints: x509.NameConstraints, name: x509.GeneralName) -> bool:
    permitted = _of_its_kind(constraints.permitted_subtrees, name)
    excluded = _of_its_kind(constraints.excluded_subtrees, name)
    return (not permitted or any(_is_within(name, each) for each in permitted)) and not any(
        _is_within(name, each) for each in excluded
    )


def _of_its_kind(subtrees: Iterable[x509.GeneralName] | None, name: x509.GeneralName) -> list[x509.GeneralName]:
    return [each for each in subtrees or () if type(each) is type(name)]


def _is_within(name: x509.GeneralName, subtree: x509.GeneralName) -> bool:
    match name, subtree:
        case x509.DNSName(value=host), x509.DNSName(value=base):
            host, base = host.lower(), base.lower()
            return not base or host == base or host.endswith(base if base.startswith(".") else f".{base}")
        case x509.UniformResourceIdentifier(value=uri), x509.UniformResourceIdentifier(value=base):
            host, base = urlsplit(uri).hostname or "", base.lower()
            return host.endswith(base) if base.startswith(".") else host == base
        case x509.IPAddress(value=address), x509.IPAddress(value=network):
            return isinstance(network, IPv4Network | IPv6Network) and address in network
        case _:
            return False
