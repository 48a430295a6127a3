"""The networks of the proxies that send the PROXY protocol's header, as a setting, and who is in them.

Rules
-----
1. Who is named here is believed about every client's address, so a network of all addresses is refused: whoever
   can connect could claim to be anybody.
2. An IPv4-mapped IPv6 address is the IPv4 address that it is: so a listener on ``::`` shows the proxies in IPv4.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator
from pydantic_settings import NoDecode

from provisioning.program.by_commas import by_commas
from provisioning.program.proxy_header import unmapped


class ProxyNetworks:
    """Networks."""

    __slots__ = ("_networks",)

    def __init__(self, names: Iterable[str]) -> None:
        """Take each network's name in the form of `network_of_proxies`."""
        self._networks = [ipaddress.ip_network(each) for each in names]

    def __contains__(self, host: str) -> bool:
        """Whether the address *host* is in one of them."""
        sought = unmapped(ipaddress.ip_address(host))
        return any(sought in each for each in self._networks)


def networks(names: Iterable[str]) -> ProxyNetworks | None:
    """Return the networks with these *names*; None: there is none, and nobody sends a header."""
    named = tuple(names)
    return ProxyNetworks(named) if named else None


def network_of_proxies(text: str) -> str:
    """Return the network, or the address, in *text*. Raises ValueError, which says what to write instead."""
    word = text.strip()
    try:
        found = ipaddress.ip_network(word, strict=False)
    except ValueError:
        raise ValueError(f"{text[:80]!r} is no network of proxies: write one as 10.0.0.0/8, or an address") from None
    exact = word if "/" in word else f"{word}/{found.max_prefixlen}"
    if ipaddress.ip_interface(exact).ip != found.network_address:
        raise ValueError(f"{word} is an address in a network: write {found} for the network, or the address alone")
    if found.prefixlen == 0:
        raise ValueError(f"{word} would let everybody claim to be any client: name the networks of the proxies")
    if isinstance(found, ipaddress.IPv6Network) and found.network_address.ipv4_mapped is not None:
        raise ValueError(f"{word}: write it as the IPv4 network that it is")
    return str(found)


def _listed(value: object) -> object:
    return by_commas(value, "networks")


ProxyNames = Annotated[
    tuple[Annotated[str, AfterValidator(network_of_proxies)], ...], NoDecode, BeforeValidator(_listed)
]
"""Networks of proxies; in the environment by commas."""
