"""Which addresses are the machine's own network's, in whatever clothes."""

from __future__ import annotations

import pytest

from provisioning.client.neighbourhood import is_of_own_network


@pytest.mark.parametrize(
    "host",
    [
        "169.254.169.254",
        "169.254.170.2",
        "fe80::a9fe:a9fe",
        "fe80::1%eth0",
        "::ffff:169.254.169.254",
        "::169.254.169.254",
        "::ffff:0:169.254.169.254",
        "64:ff9b::169.254.169.254",
        "64:ff9b:1::169.254.169.254",
        "64:ff9b:1:a9fe:a9:fe00::",
        "64:ff9b:1:a9:fe:a9fe::",
        "64:ff9b:1:2a:a9:fea9:fe00:0",
        "2002:a9fe:a9fe::1",
        "2001:0:a9fe:a9fe::1",
        "2001:0:c000:201:0:ffff:5601:5601",
        "2001:db8::5efe:169.254.169.254",
        "2001:db8::200:5efe:169.254.169.254",
        "fd00:ec2::254",
        "fd20:ce::254",
        "fd00:42::42",
        "168.63.129.16",
        "::ffff:168.63.129.16",
        "64:ff9b::168.63.129.16",
        "100.100.100.200",
        "192.0.0.192",
        "0.0.0.0",
        "0.0.0.1",
        "::",
        "::ffff:0.0.0.0",
        "224.0.0.1",
        "ff02::1",
        "255.255.255.255",
        "2002:ffff:ffff::",
    ],
)
def test_the_machines_own_network_is_found_in_whatever_clothes(host: str) -> None:
    assert is_of_own_network(host)


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "::1",
        "::ffff:127.0.0.1",
        "10.1.2.3",
        "192.168.0.10",
        "fd00:1::5",
        "fd00:ec3::254",
        "198.51.100.7",
        "168.63.129.17",
        "2001:db8::169.254.169.254",  # Nobody takes it for an IPv4 address.
        "64:ff9b::198.51.100.7",
        "64:ff9b:1::198.51.100.7",
        "64:ff9b:1:c6e0:64:700::",  # 198.224.100.7
        "2002:c633:6407::1",
        "2001:0:c000:201:0:ffff:39cc:9bf8",
    ],
)
def test_any_other_address_is_somebodys(host: str) -> None:
    assert not is_of_own_network(host)


def test_a_name_is_no_address() -> None:
    with pytest.raises(ValueError, match="metadata"):
        is_of_own_network("metadata.google.internal")
