"""The PROXY protocol's header: how a load balancer says at the beginning of a connection which client it is for.

Theory
------
A load balancer on layer 4 passes on bytes, so its own address is all that a server sees. With the PROXY protocol of
HAProxy (doc/proxy-protocol.txt, versions 1 and 2) it sends a header before the client's first byte: version 1 is a line
of text, version 2 a block of bytes. `read_header` is a pure function of the bytes that have arrived.

Rules
-----
1. A header is believed only from an address that the settings name (`provisioning.program.proxy_networks`): nothing in
   it proves anything.
2. While `read_header` returns None, every byte that it was given belongs to the header, and those are fewer than
   `LONGEST`: who reads need never read past the header, where the client's TLS begins.
3. Only the client's address and port are taken from it. What a proxy says of TLS or of a client certificate is skipped:
   TLS is the client's with us, and its certificate is verified here.
4. A checksum (CRC32C) is verified if there is one. Further fields are skipped, but have to be complete.
5. A connection of the proxy itself (LOCAL), or for a client whose address it does not know (UNKNOWN, AF_UNSPEC) or that
   has none (AF_UNIX), has the proxy's own address: `client` is None.

Does not handle: reading (`provisioning.program.proxy_arrivals`); headers for datagrams, which are refused.
"""

from __future__ import annotations

import functools
import ipaddress
from dataclasses import dataclass
from typing import Final

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
Address = tuple[str, int]
"""A peer's host and port."""

_SIGNATURE: Final = b"\r\n\r\n\x00\r\nQUIT\n"
_FIXED: Final = 16
"""Bytes of version 2 before those that it counts."""
_MOST_COUNTED: Final = 4096
"""The standard asks for 520; fields with names and identifiers make it longer, and a certificate longer still."""
LONGEST: Final = _FIXED + _MOST_COUNTED
"""Bytes of the longest header that is accepted."""

_LOCAL, _PROXY = 0x20, 0x21
_UNSPECIFIED: Final = 0x00
_IPV4_STREAM, _IPV6_STREAM, _UNIX_STREAM = 0x11, 0x21, 0x31
_DATAGRAMS: Final = frozenset({0x12, 0x22, 0x32})
_ADDRESSES: Final = {_IPV4_STREAM: 12, _IPV6_STREAM: 36, _UNIX_STREAM: 216}
"""Bytes of both addresses and ports."""
_CHECKSUM: Final = 0x03
_CHECKSUM_BYTES: Final = 4
_FIELD_HEAD: Final = 3

_WORD: Final = b"PROXY "
_UNKNOWN: Final = b"UNKNOWN"
_LONGEST_LINE: Final = 107
_MOST_PORT: Final = 65_535
_PORT_DIGITS: Final = 5
_PARTS: Final = 6

_TLS_HANDSHAKE: Final = 0x16
"""The first byte of a client's TLS."""


class InvalidHeader(ValueError):
    """What has arrived is no header, or one that must be refused; the text says why."""


@dataclass(frozen=True, slots=True)
class ProxyHeader:
    """A complete header."""

    size: int
    """Its bytes."""
    client: Address | None
    """None: the connection has the proxy's own address."""


def read_header(begun: bytes) -> ProxyHeader | None:
    """Return the header that *begun*, the first bytes of a connection, begin with; None: it is not complete.

    Raises `InvalidHeader`.
    """
    if _SIGNATURE.startswith(begun[: len(_SIGNATURE)]):
        return _block(begun)
    if _WORD.startswith(begun[: len(_WORD)]):
        return _line(begun)
    if begun[0] == _TLS_HANDSHAKE:
        raise InvalidHeader("TLS began without a PROXY header: the proxy does not send it")
    raise InvalidHeader("the connection does not begin with a PROXY header")


def _line(begun: bytes) -> ProxyHeader | None:
    """Return the header of version 1."""
    end = begun.find(b"\r\n", 0, _LONGEST_LINE)
    if end < 0:
        if len(begun) >= _LONGEST_LINE:
            raise InvalidHeader(f"the PROXY line is longer than {_LONGEST_LINE} bytes")
        return None
    size, parts = end + 2, begun[:end].split(b" ")
    if parts[1] == _UNKNOWN:
        return ProxyHeader(size, None)
    if len(parts) != _PARTS or parts[1] not in {b"TCP4", b"TCP6"}:
        raise InvalidHeader("the PROXY line is neither TCP4 nor TCP6 with two addresses and two ports, nor UNKNOWN")
    source, _ = (_host(each, parts[1] == b"TCP6") for each in parts[2:4])
    port, _ = (_port(each) for each in parts[4:])
    return ProxyHeader(size, (source, port))


def _host(text: bytes, is_ipv6: bool) -> str:
    try:
        word = text.decode("ascii")
        address: IPAddress = ipaddress.IPv6Address(word) if is_ipv6 else ipaddress.IPv4Address(word)
    except ValueError:
        raise InvalidHeader("the PROXY line has an invalid address") from None
    if "%" in word:  # The zone of an IPv6 address means something on one machine only.
        raise InvalidHeader("the PROXY line has an address with a zone")
    return str(unmapped(address))


def _port(digits: bytes) -> int:
    # int() would accept signs, spaces and underscores, and any number of digits.
    if not digits.isdigit() or len(digits) > _PORT_DIGITS or (digits[0] == ord("0") and len(digits) > 1):
        raise InvalidHeader("the PROXY line has an invalid port")
    port = int(digits)
    if port > _MOST_PORT:
        raise InvalidHeader("the PROXY line has an invalid port")
    return port


def _block(begun: bytes) -> ProxyHeader | None:
    """Return the header of version 2."""
    if len(begun) < _FIXED:
        return None
    command, family, counted = begun[12], begun[13], int.from_bytes(begun[14:16], "big")
    if command not in {_LOCAL, _PROXY}:
        raise InvalidHeader(f"version and command of the PROXY header are 0x{command:02x}: not of version 2")
    if counted > _MOST_COUNTED:
        raise InvalidHeader(f"the PROXY header says {counted} bytes follow: more than {_MOST_COUNTED}")
    if command == _PROXY:
        _check_family(family, counted)
    size = _FIXED + counted
    if len(begun) < size:
        return None
    if command == _LOCAL or family == _UNSPECIFIED:
        return ProxyHeader(size, None)  # Whatever follows is to be ignored.
    _check_fields(begun[:size], _FIXED + _ADDRESSES[family])
    if family == _UNIX_STREAM:
        return ProxyHeader(size, None)
    octets = 4 if family == _IPV4_STREAM else 16
    source = ipaddress.ip_address(begun[_FIXED : _FIXED + octets])
    port_at = _FIXED + 2 * octets
    return ProxyHeader(size, (str(unmapped(source)), int.from_bytes(begun[port_at : port_at + 2], "big")))


def _check_family(family: int, counted: int) -> None:
    if family in _DATAGRAMS:
        raise InvalidHeader("the PROXY header is for datagrams")
    if family != _UNSPECIFIED and family not in _ADDRESSES:
        raise InvalidHeader(f"the PROXY header has an unknown family 0x{family:02x}")
    if counted < _ADDRESSES.get(family, 0):
        raise InvalidHeader("the PROXY header is too short for its addresses")


def _check_fields(block: bytes, at: int) -> None:
    """Check that the fields (TLV) of *block* from *at* on are complete, and its checksum if one of them is that."""
    checksum_at = 0
    while at < len(block):
        value_at = at + _FIELD_HEAD
        end = value_at + int.from_bytes(block[at + 1 : value_at], "big")
        if end > len(block):
            raise InvalidHeader("a field of the PROXY header is longer than the header")
        if block[at] == _CHECKSUM:
            if checksum_at or end - value_at != _CHECKSUM_BYTES:
                raise InvalidHeader("the PROXY header has an invalid checksum field")
            checksum_at = value_at
        at = end
    if checksum_at:
        end = checksum_at + _CHECKSUM_BYTES
        without = block[:checksum_at] + bytes(_CHECKSUM_BYTES) + block[end:]
        if crc32c(without) != int.from_bytes(block[checksum_at:end], "big"):
            raise InvalidHeader("the checksum of the PROXY header is wrong")


def unmapped(address: IPAddress) -> IPAddress:
    """Return *address*; an IPv4-mapped one as the IPv4 address that it is."""
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return address if mapped is None else mapped


def crc32c(data: bytes) -> int:
    """Return the CRC32C of *data* (RFC 3720, appendix B.4)."""
    table, crc = _crc_table(), 0xFFFFFFFF
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


@functools.cache
def _crc_table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = (crc >> 1) ^ 0x82F63B78 if crc & 1 else crc >> 1
        table.append(crc)
    return tuple(table)
