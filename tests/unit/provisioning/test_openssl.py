"""What is asked of OpenSSL directly, on this Python."""

from __future__ import annotations

import ssl

import pytest

from provisioning.pki import openssl

NAMES = ("TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384")


def context() -> ssl.SSLContext:
    return ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)


def tls13_suites(of: ssl.SSLContext) -> list[str]:
    return [each["name"] for each in of.get_ciphers() if each["protocol"] == "TLSv1.3"]


def test_this_python_lets_openssl_be_asked() -> None:
    assert openssl.AVAILABLE, "without it every handshake and every record costs more: see docs/decisions/0080"


def test_suites_are_offered_in_the_order_that_is_preferred_and_no_others() -> None:
    fresh = context()
    assert openssl.prefer(fresh, NAMES)
    assert tls13_suites(fresh) == list(NAMES)
    assert openssl.prefer(fresh, NAMES[::-1])
    assert tls13_suites(fresh) == list(NAMES[::-1])


def test_an_unknown_suite_changes_nothing() -> None:
    fresh = context()
    before = tls13_suites(fresh)
    assert not openssl.prefer(fresh, ("TLS_NO_SUCH_SUITE",))
    assert tls13_suites(fresh) == before


def test_only_sessions_of_the_standard_library_read_ahead() -> None:
    inside = context().wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_side=True)
    assert openssl.read_ahead(inside) != 0
    assert openssl.has_pending(openssl.read_ahead(inside)) == 0
    assert openssl.read_ahead(object()) == 0


def test_where_openssl_cannot_be_asked_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openssl, "AVAILABLE", False)
    fresh = context()
    before = tls13_suites(fresh)
    if not hasattr(fresh, "set_ciphersuites"):
        assert not openssl.prefer(fresh, NAMES)
        assert tls13_suites(fresh) == before
    assert openssl.read_ahead(fresh.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_side=True)) == 0
