"""What Host may not say: who reads it elsewhere must not find another host in it."""

from __future__ import annotations

import pytest

from provisioning.connections.host_header import check_host


@pytest.mark.parametrize(
    "host", [b"x\x0b", b"x\x00", b" x", b"x:8a", b"x:80X", b"[::1", b"[::1]x", b"a@b", b"x,y/z", b"\xe9"]
)
def test_what_is_no_host_with_a_port_is_refused(host: bytes) -> None:  # RFC 9110 section 7.2
    with pytest.raises(ValueError, match="the Host header is no host"):
        check_host([host], "1.1")


@pytest.mark.parametrize("address", [b"1", b"::1::", b"192.0.2.1"])
def test_in_brackets_is_an_ipv6_address(address: bytes) -> None:  # RFC 3986 section 3.2.2
    with pytest.raises(ValueError, match=r"[Aa]t (least|most)|permitted"):
        check_host([b"[" + address + b"]"], "1.1")
    check_host([b"[2001:db8::192.0.2.1]:443"], "1.1")
