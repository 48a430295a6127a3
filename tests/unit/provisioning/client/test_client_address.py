"""Whom the clients of the service speak to: nobody over plain HTTP."""

from __future__ import annotations

import pytest

from provisioning.client.connection import open_pool
from provisioning.client.est import EstClient
from provisioning.pki.tls import TlsConfigurationError
from tests.support.feed_events import follow
from tests.support.pki import shared_device, shared_pki

PLAIN = "http://127.0.0.1:8443"


@pytest.mark.parametrize(
    "url", [PLAIN, "https://", "localhost:8443", "https://a:99999", "https://[x", "https://a\n", "https://me:word@a"]
)
def test_only_an_https_address_is_one(url: str) -> None:
    with pytest.raises(TlsConfigurationError, match="is no address of a provisioning service: give https://host:port"):
        open_pool(url, shared_pki().anchors, None)


@pytest.mark.parametrize("url", ["https://\u2603.net", "https://xn--", "https://" + "a" * 70_000])
def test_a_name_that_is_none_is_said(url: str) -> None:
    with pytest.raises(TlsConfigurationError, match="is no address of a provisioning service: "):
        open_pool(url, shared_pki().anchors, None)


async def test_no_token_goes_out_and_no_feed_is_believed_over_plain_http() -> None:
    with pytest.raises(TlsConfigurationError):
        EstClient(PLAIN, shared_pki().anchors)
    with pytest.raises(TlsConfigurationError):
        await anext(follow(PLAIN, shared_pki().anchors, shared_device("meter-1").credential, 0))
