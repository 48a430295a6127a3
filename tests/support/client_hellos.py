"""ClientHellos of TLS 1.3 with anything in them (RFC 8446 §4.1.2), and what a server answers."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Sequence

from device_sim.attack.client_hello import AUTHORITIES, GROUPS, RECORD, SHARES, X25519, hello, numbers, sized

__all__ = ["AUTHORITIES", "GROUPS", "SHARES", "X25519", "hello", "numbers", "sized"]

KEYS, RESPONDERS = 41, 5
"""Numbers of extensions: pre_shared_key, status_request."""
P256, P384, HYBRID, FFDHE2048, FFDHE3072 = 0x0017, 0x0018, 0x11EC, 0x0100, 0x0101
RETRY = bytes.fromhex("cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c")
"""The random of a HelloRetryRequest (RFC 8446 §4.1.3)."""
ILLEGAL_PARAMETER = b"\x15\x03\x03\x00\x02\x02\x2f"
HANDSHAKE_FAILURE = b"\x15\x03\x03\x00\x02\x02\x28"


def offered_keys(names: Sequence[bytes]) -> list[bytes]:
    """Return the two extensions that offer pre-shared keys called *names*, the last ones of a hello."""
    offered = b"".join(sized(name) + bytes(4) for name in names)
    binders = b"".join(b"\x20" + bytes(32) for _ in names)
    return [numbers(45) + sized(b"\x01\x01"), numbers(KEYS) + sized(sized(offered) + sized(binders))]


def answer_of(context: ssl.SSLContext, *said: bytes) -> bytes:
    """Return what a server with *context* answers to the last of these messages of one client."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = context.wrap_bio(incoming, outgoing, server_side=True)
    answer = b""
    for each in said:
        incoming.write(each)
        with contextlib.suppress(ssl.SSLError):
            server.do_handshake()
        answer = outgoing.read()
    return answer


# TLS 1.2 (RFC 5246 §7.4), in which certificates are not encrypted.


def handshake(kind: int, said: bytes) -> bytes:
    """Return the records of a message of TLS 1.2."""
    message = bytes((kind,)) + len(said).to_bytes(3) + said
    pieces = [message[start : start + RECORD] for start in range(0, len(message), RECORD)]
    return b"".join(b"\x16\x03\x03" + sized(piece) for piece in pieces)


def hello_12() -> bytes:
    """Return a ClientHello of TLS 1.2."""
    extensions = numbers(13) + sized(sized(numbers(0x0403))) + numbers(GROUPS) + sized(sized(numbers(P256)))
    return handshake(1, b"\x03\x03" + bytes(32) + b"\0" + sized(numbers(0xC02B)) + b"\x01\0" + sized(extensions))


def server_hello_12() -> bytes:
    """Return what a server answers."""
    renegotiation = numbers(0xFF01) + sized(b"\0")
    return handshake(2, b"\x03\x03" + bytes(32) + b"\0" + numbers(0xC02B) + b"\0" + sized(renegotiation))


def certificates_12(ders: Sequence[bytes]) -> bytes:
    """Return a Certificate message, a client's or a server's."""
    listed = b"".join(len(each).to_bytes(3) + each for each in ders)
    return handshake(11, len(listed).to_bytes(3) + listed)
