"""PROXY headers are read as HAProxy's text has it, and what is none is refused with its reason."""

from __future__ import annotations

import struct

import pytest

from provisioning.program.proxy_header import LONGEST, InvalidHeader, ProxyHeader, crc32c, read_header
from tests.support.proxy_headers import LOCAL, SIGNATURE, UNKNOWN, block, line

FOUR, SIX = ("198.51.100.7", 49152), ("2001:db8::7", 1)
TLS = b"\x16\x03\x01\x02\x00\x01"


def checked(header: bytes) -> bytes:
    """Return *header* with the checksum in its last field."""
    assert header.endswith(bytes((3, 0, 4)) + bytes(4))
    return header[:-4] + struct.pack("!I", crc32c(header))


GOOD = {
    "v1, IPv4": (line(FOUR), FOUR),
    "v1, IPv6": (line(SIX, ("2001:db8::1", 8883)), SIX),
    "v1, IPv6 in full": (line(("2001:0DB8:0000:0000:0000:0000:0000:0007", 1), ("::1", 1)), SIX),
    "v1, IPv4 in IPv6": (line(("::ffff:198.51.100.7", 49152), ("::ffff:192.0.2.1", 1)), FOUR),
    "v1, as long as it may be": (
        b"PROXY UNKNOWN ffff:f...f:ffff ffff:f...f:ffff 65535 65535".ljust(105) + b"\r\n",
        None,
    ),
    "v1, ports at their ends": (b"PROXY TCP4 192.0.2.7 192.0.2.1 65535 0\r\n", ("192.0.2.7", 65535)),
    "v1, unknown": (UNKNOWN, None),
    "v1, unknown with anything": (b"PROXY UNKNOWN \xff\x00 what ever\r\n", None),
    "v2, IPv4": (block(FOUR), FOUR),
    "v2, IPv6": (block(SIX), SIX),
    "v2, IPv4 in IPv6": (block(("::ffff:198.51.100.7", 49152)), FOUR),
    "v2, with fields": (block(FOUR, fields=[(0x02, b"broker.example"), (0x04, bytes(300)), (0xEA, b"\x01vpce")]), FOUR),
    "v2, with a checksum": (checked(block(FOUR, fields=[(0x20, bytes(5)), (0x03, bytes(4))])), FOUR),
    "v2, as long as it may be": (block(FOUR, fields=[(0x04, bytes(LONGEST - 31))]), FOUR),
    "v2, local": (LOCAL, None),
    "v2, local with addresses": (block(FOUR, command=0x20), None),
    "v2, local with what is no field": (LOCAL[:-1] + b"\x03abc", None),
    "v2, family unspecified": (block(None), None),
    "v2, family unspecified with anything": (block(None)[:-1] + b"\x05abcde", None),
    "v2, a Unix socket": (SIGNATURE + b"\x21\x31\x00\xd8" + b"/run/x".ljust(216, b"\0"), None),
}


@pytest.mark.parametrize("case", GOOD)
def test_a_header_is_read_whole_wherever_it_is_divided(case: str) -> None:
    header, client = GOOD[case]
    for end in range(len(header)):
        assert read_header(header[:end]) is None
    assert read_header(header) == ProxyHeader(len(header), client)
    assert read_header(header + TLS) == ProxyHeader(len(header), client), "and TLS behind it is left alone"


BAD = {
    "TLS": (TLS, "TLS began without a PROXY header: the proxy does not send it"),
    "HTTP": (b"GET / HTTP/1.1\r\n", "the connection does not begin with a PROXY header"),
    "POST": (b"POST / HTTP/1.1\r\n", "the connection does not begin with a PROXY header"),
    "MQTT": (b"\x10\x10\x00\x04MQTT", "the connection does not begin with a PROXY header"),
    "another signature": (SIGNATURE[:-1] + b"\r", "the connection does not begin with a PROXY header"),
    "v1, too long": (b"PROXY UNKNOWN".ljust(106) + b"\r\n", "the PROXY line is longer than 107 bytes"),
    "v1, no end": (b"PROXY " * 20, "the PROXY line is longer than 107 bytes"),
    "v1, no family": (b"PROXY \r\n", "the PROXY line is neither"),
    "v1, UDP": (b"PROXY UDP4 192.0.2.7 192.0.2.1 1 2\r\n", "the PROXY line is neither"),
    "v1, unknown run on": (b"PROXY UNKNOWNS\r\n", "the PROXY line is neither"),
    "v1, in small letters": (b"PROXY tcp4 192.0.2.7 192.0.2.1 1 2\r\n", "the PROXY line is neither"),
    "v1, two spaces": (b"PROXY TCP4  192.0.2.7 192.0.2.1 1 2\r\n", "the PROXY line is neither"),
    "v1, more": (b"PROXY TCP4 192.0.2.7 192.0.2.1 1 2 3\r\n", "the PROXY line is neither"),
    "v1, less": (b"PROXY TCP4 192.0.2.7 192.0.2.1 1\r\n", "the PROXY line is neither"),
    "v1, IPv6 said to be IPv4": (b"PROXY TCP4 ::1 ::1 1 2\r\n", "the PROXY line has an invalid address"),
    "v1, IPv4 said to be IPv6": (b"PROXY TCP6 192.0.2.7 ::1 1 2\r\n", "the PROXY line has an invalid address"),
    "v1, octal": (b"PROXY TCP4 192.0.02.7 192.0.2.1 1 2\r\n", "the PROXY line has an invalid address"),
    "v1, other digits": (
        "PROXY TCP4 19\N{FULLWIDTH DIGIT TWO}.0.2.7 192.0.2.1 1 2\r\n".encode(),
        "the PROXY line has an invalid address",
    ),
    "v1, a name": (b"PROXY TCP4 localhost 192.0.2.1 1 2\r\n", "the PROXY line has an invalid address"),
    "v1, a zone": (b"PROXY TCP6 fe80::1%eth0 ::1 1 2\r\n", "the PROXY line has an address with a zone"),
    "v1, a bad target": (b"PROXY TCP4 192.0.2.7 192.0.2 1 2\r\n", "the PROXY line has an invalid address"),
    "v1, no port": (b"PROXY TCP4 192.0.2.7 192.0.2.1  2\r\n", "the PROXY line has an invalid port"),
    "v1, a signed port": (b"PROXY TCP4 192.0.2.7 192.0.2.1 +1 2\r\n", "the PROXY line has an invalid port"),
    "v1, a port with a zero before": (b"PROXY TCP4 192.0.2.7 192.0.2.1 01 2\r\n", "the PROXY line has an invalid port"),
    "v1, too high a port": (b"PROXY TCP4 192.0.2.7 192.0.2.1 65536 2\r\n", "the PROXY line has an invalid port"),
    "v1, too long a port": (b"PROXY TCP4 192.0.2.7 192.0.2.1 1 000000\r\n", "the PROXY line has an invalid port"),
    "v2, version 1": (SIGNATURE + b"\x11\x11\x00\x0c", "version and command of the PROXY header are 0x11: not of"),
    "v2, an unknown command": (SIGNATURE + b"\x22\x11\x00\x0c", "version and command of the PROXY header are 0x22"),
    "v2, UDP": (SIGNATURE + b"\x21\x12\x00\x0c", "the PROXY header is for datagrams"),
    "v2, an unknown family": (SIGNATURE + b"\x21\x41\x00\x0c", "the PROXY header has an unknown family 0x41"),
    "v2, no transport": (SIGNATURE + b"\x21\x10\x00\x0c", "the PROXY header has an unknown family 0x10"),
    "v2, too short": (SIGNATURE + b"\x21\x11\x00\x0b", "the PROXY header is too short for its addresses"),
    "v2, IPv6, too short": (SIGNATURE + b"\x21\x21\x00\x23", "the PROXY header is too short for its addresses"),
    "v2, too long": (SIGNATURE + b"\x21\x11\x10\x01", "the PROXY header says 4097 bytes follow: more than 4096"),
    "v2, local, too long": (SIGNATURE + b"\x20\x00\xff\xff", "the PROXY header says 65535 bytes follow"),
    "v2, half a field": (
        block(FOUR)[:-13] + b"\x0e" + block(FOUR)[-12:] + b"\x04\x00",
        "a field of the PROXY header is",
    ),
    "v2, a field too long": (block(FOUR)[:-13] + b"\x0f" + block(FOUR)[-12:] + b"\x04\x00\x01", "a field of the PROXY"),
    "v2, a wrong checksum": (block(FOUR, fields=[(0x03, bytes(4))]), "the checksum of the PROXY header is wrong"),
    "v2, a short checksum": (block(FOUR, fields=[(0x03, bytes(3))]), "the PROXY header has an invalid checksum field"),
    "v2, two checksums": (block(FOUR, fields=[(0x03, bytes(4))] * 2), "the PROXY header has an invalid checksum field"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_header_is_refused_with_its_reason(case: str) -> None:
    begun, why = BAD[case]
    with pytest.raises(InvalidHeader, match="^" + why.replace("(", r"\(")):
        read_header(begun)


def test_one_wrong_bit_is_found_by_the_checksum() -> None:
    header = checked(block(FOUR, fields=[(0x02, b"broker"), (0x03, bytes(4))]))
    of_checksum = len(header) - 7  # Of another kind, it is no checksum.
    for place in {*range(16, len(header))} - {of_checksum}:
        changed = header[:place] + bytes([header[place] ^ 1]) + header[place + 1 :]
        with pytest.raises(InvalidHeader):
            read_header(changed)


def test_the_checksum_is_that_of_the_standard() -> None:
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA, "RFC 3720, appendix B.4"
