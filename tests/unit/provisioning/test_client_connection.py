"""What a client of the service says of a server that it does not trust."""

from __future__ import annotations

import ssl
from datetime import timedelta

import httpx
import pytest

from provisioning.client.connection import explain
from provisioning.pki.tls import ClientCertificate, client_context, server_context
from tests.support.pki import Held, Pki, shared_pki

PKI = shared_pki()
CLOCK = "; the clock here says "


def refused(server: Held) -> ssl.SSLCertVerificationError:
    """Return why a client does not trust *server*, which presents its certificate in memory."""
    towards, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = server_context(server.credential, PKI.anchors, client_certificate=ClientCertificate.OPTIONAL)
    serving = context.wrap_bio(towards, back, server_side=True)
    client = client_context(PKI.anchors, None).wrap_bio(back, towards, server_hostname="localhost")
    for each in (client, serving):
        with pytest.raises(ssl.SSLWantReadError):
            each.do_handshake()
    with pytest.raises(ssl.SSLCertVerificationError) as caught:
        client.do_handshake()
    return caught.value


@pytest.mark.parametrize(
    ("server", "words"),
    [
        (
            PKI.broker(not_before=PKI.now - timedelta(days=2), not_after=PKI.now - timedelta(days=1)),
            f"(certificate has expired{CLOCK}",
        ),
        (PKI.broker(not_before=PKI.now + timedelta(days=1)), f"(certificate is not yet valid{CLOCK}"),
        (Pki().broker(), "(unable to get local issuer certificate)"),
    ],
    ids=["expired", "not yet", "of another CA"],
)
def test_where_the_clock_may_be_the_cause_it_is_told(server: Held, words: str) -> None:
    error = httpx.ConnectError("failed")
    error.__cause__ = refused(server)
    assert words in explain("https://localhost:8443", error)
