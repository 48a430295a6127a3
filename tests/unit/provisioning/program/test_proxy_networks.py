"""Networks of proxies: who is in them, and what cannot be one."""

from __future__ import annotations

import pytest

from provisioning.program.proxy_networks import ProxyNetworks, network_of_proxies, networks


def test_who_is_in_them() -> None:
    proxies = ProxyNetworks(["10.0.0.0/8", "192.0.2.7/32", "2001:db8::/32"])
    for host in ("10.255.0.1", "::ffff:10.0.0.1", "192.0.2.7", "2001:db8:1::1"):
        assert host in proxies, host
    for host in ("11.0.0.1", "::ffff:192.0.2.8", "2001:db9::1", "fe80::1%lo", "::10.0.0.1"):
        assert host not in proxies, host
    assert networks([]) is None


@pytest.mark.parametrize(
    ("text", "is_"),
    [
        ("10.0.0.0/8", "10.0.0.0/8"),
        (" 10.0.0.0/255.0.0.0 ", "10.0.0.0/8"),
        ("10.0.0.7", "10.0.0.7/32"),
        ("2001:DB8::/32", "2001:db8::/32"),
        ("::1", "::1/128"),
    ],
)
def test_a_network_is_written_as_usual(text: str, is_: str) -> None:
    assert network_of_proxies(text) == is_


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("proxy.example", "'proxy.example' is no network of proxies: write one as 10.0.0.0/8, or an address"),
        ("", "'' is no network"),
        ("10.0.0.0/33", "'10.0.0.0/33' is no network"),
        ("10.0.0.1/8", "10.0.0.1/8 is an address in a network: write 10.0.0.0/8 for the network, or the address alone"),
        ("0.0.0.0/0", "0.0.0.0/0 would let everybody claim to be any client: name the networks of the proxies"),
        ("::/0", "::/0 would let everybody claim"),
        ("::ffff:10.0.0.0/104", "::ffff:10.0.0.0/104: write it as the IPv4 network that it is"),
    ],
)
def test_what_cannot_be_one_is_refused(text: str, why: str) -> None:
    with pytest.raises(ValueError, match="^" + why):
        network_of_proxies(text)
