"""The TLS version that a ClientHello offers, and whether it asks for a staple, as OpenSSL writes it."""

from __future__ import annotations

import ssl

import pytest

from device_sim.qualify.client_hello import client_hello, name_of, record_length
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
    assert record_length(data) == len(data)


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
    assert record_length(data[:4]) is None
    assert name_of(0x7F1C) == "0x7f1c"
