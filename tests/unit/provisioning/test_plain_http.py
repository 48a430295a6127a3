"""Addresses come from certificates: one that is none is a failure like any other."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from provisioning.client.plain_http import HttpFailed, PlainHttp


@pytest.fixture
async def plain() -> AsyncIterator[PlainHttp]:
    http = PlainHttp(timeout=5)
    yield http
    await http.close()


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("https://ca.example/x.crl", "is no http:// URL"),
        ("http://xn--/x.crl", "Malformed A-label"),
        ("http://\u2603/x.crl", "Invalid IDNA hostname"),
        ("http://[::1/x.crl", "Invalid port"),
        ("http:///x.crl", "names no host"),
        ("http://ca.example:99999/x.crl", "no port 99999"),
        ("http://" + "a" * 70_000, "URL too long"),
    ],
)
async def test_an_address_that_is_none_is_said(plain: PlainHttp, url: str, why: str) -> None:
    with pytest.raises(HttpFailed, match=why):
        async with plain.asked("GET", url, {}):
            raise AssertionError("nobody is there")
