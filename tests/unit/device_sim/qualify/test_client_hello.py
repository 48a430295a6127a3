"""The TLS version that a ClientHello offers, as OpenSSL writes it."""

from __future__ import annotations

import ssl

import pytest

from device_sim.qualify.client_hello import name_of, offered, record_length


def hello(highest: ssl.TLSVersion) -> bytes:
    context = ssl.create_default_context()
    context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1_2, highest
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
    version = offered(data)
    assert version is not None
    assert name_of(version) == name
    assert record_length(data) == len(data)


def test_what_is_no_whole_client_hello_says_nothing() -> None:
    data = hello(ssl.TLSVersion.TLSv1_3)
    assert offered(b"") is None
    assert offered(b"\x10\x20" + data) is None
    assert offered(data[:60]) is None
    assert record_length(data[:4]) is None
    assert name_of(0x7F1C) == "0x7f1c"
