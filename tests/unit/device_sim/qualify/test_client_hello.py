"""The TLS version that a ClientHello offers, and whether it asks for a staple, as OpenSSL writes it."""

from __future__ import annotations

import ssl

import pytest

from device_sim.qualify.client_hello import LONGEST, client_hello, in_clear, name_of, settled
from provisioning.pki.stapling import ask_for_staple


def hello(highest: ssl.TLSVersion, *, asks: bool = False) -> bytes:
    context = ssl.create_default_context()
    context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1_2, highest
    if asks:
        assert ask_for_staple(context)
    outgoing = ssl.MemoryBIO()
    tls = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


@pytest.mark.parametrize(
    ("highest", "name"), [(ssl.TLSVersion.TLSv1_3, "TLS 1.3"), (ssl.TLSVersion.TLSv1_2, "TLS 1.2")]
)
def test_the_highest_version_is_read(highest: ssl.TLSVersion, name: str) -> None:
    data = hello(highest)
    said = client_hello(data)
    assert said is not None
    assert name_of(said.version) == name
    assert settled(data)
    assert not settled(data[:-1])


@pytest.mark.parametrize("highest", [ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_2])
@pytest.mark.parametrize("asks", [False, True])
def test_it_is_read_whether_a_staple_is_asked_for(highest: ssl.TLSVersion, asks: bool) -> None:
    said = client_hello(hello(highest, asks=asks))
    assert said is not None
    assert said.asks_for_staple is asks


def test_what_is_no_whole_client_hello_says_nothing() -> None:
    data = hello(ssl.TLSVersion.TLSv1_3)
    assert client_hello(b"") is None
    assert client_hello(b"\x10\x20" + data) is None
    assert client_hello(data[:60]) is None
    assert client_hello(data[:-1]) is None
    assert client_hello(data[:5] + b"\x02" + data[6:]) is None, "a ServerHello"
    assert not any(settled(data[:length]) for length in range(len(data)))
    assert settled(b"\x10\x20" + data)
    assert settled(data[:5] + b"\x02")
    assert settled(data[:3] + b"\xff\xff\x01" + bytes(LONGEST))
    assert name_of(0x7F1C) == "0x7f1c"


def in_records(data: bytes, size: int) -> bytes:
    body = data[5:]
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(data[:3] + len(each).to_bytes(2, "big") + each for each in pieces)


@pytest.mark.parametrize("size", [1, 3, 50, 512])
@pytest.mark.parametrize("asks", [False, True])
def test_it_may_be_in_several_records(size: int, asks: bool) -> None:
    """OpenSSL cuts it where the program has set a small fragment (SSL_CTX_set_max_send_fragment)."""
    whole = hello(ssl.TLSVersion.TLSv1_3, asks=asks)
    data = in_records(whole, size)
    assert client_hello(data) == client_hello(whole)
    assert settled(data)
    assert client_hello(data[:-1]) is None
    assert not settled(data[:-1])
    other = data[: 5 + min(size, 512)] + b"\x17" + data[6 + min(size, 512) :]
    assert client_hello(other) is None
    assert settled(other)


@pytest.mark.parametrize(
    ("data", "clear"),
    [
        (b"", False),
        (b"\x16", False),
        (b"\x15\x03\x01", False),
        (b"\x80\x2e\x01", False),  # The ClientHello of SSL 2.0, which says that more is spoken.
        (b"\x10\x0c\x00\x04MQTT", True),
        (b"GET / HTTP/1.1", True),
        (b"\x13", True),
        (b"\x19", True),
    ],
)
def test_what_begins_like_no_tls_is_readable_by_everybody(data: bytes, clear: bool) -> None:
    assert in_clear(data) is clear
