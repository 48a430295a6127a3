"""What a client of the service says of a server that it does not trust."""

from __future__ import annotations

import asyncio
import ssl
from datetime import timedelta
from typing import Any

import httpx
import pytest
from cryptography import x509

from provisioning.client.connection import explain, open_pool
from provisioning.client.genuine_server import GenuineServer
from provisioning.pki.identity import Identity, Role
from provisioning.pki.tls import ClientCertificate, client_context, server_context
from tests.support.pki import DOMAIN, SERVER, Held, Pki, shared_pki

PKI = shared_pki()
CLOCK = "; the clock here says "


LOCALHOST = [x509.DNSName("localhost")]
ELSEWHERE = [x509.DNSName("ca.example.org")]


def ready(server: Held) -> ssl.SSLObject:
    """Return a client that has heard all that *server* says of itself; it has not judged that yet."""
    towards, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = server_context(server.credential, PKI.anchors, client_certificate=ClientCertificate.OPTIONAL)
    serving = context.wrap_bio(towards, back, server_side=True)
    trusting = client_context(PKI.anchors, None)
    trusting.sslobject_class = GenuineServer
    client = trusting.wrap_bio(back, towards, server_hostname="localhost")
    for each in (client, serving):
        with pytest.raises(ssl.SSLWantReadError):
            each.do_handshake()
    return client


def refused(server: Held) -> ssl.SSLCertVerificationError:
    """Return why a client does not trust *server*."""
    client = ready(server)
    with pytest.raises(ssl.SSLCertVerificationError) as caught:
        client.do_handshake()
    return caught.value


def serving_as(role: Role, name: str, group: str | None = None, **different: Any) -> Held:
    return PKI.certify(Identity(DOMAIN, role, name, group), purposes=SERVER, names=LOCALHOST, **different)


@pytest.mark.parametrize(
    ("server", "words"),
    [
        (
            PKI.broker(not_before=PKI.now - timedelta(days=2), not_after=PKI.now - timedelta(days=1)),
            f"(certificate has expired{CLOCK}",
        ),
        (PKI.broker(not_before=PKI.now + timedelta(days=1)), f"(certificate is not yet valid{CLOCK}"),
        (Pki().broker(), "(unable to get local issuer certificate; are the anchors this service's ca-bundle.crt?)"),
        (
            PKI.certify(Identity(DOMAIN, Role.SERVICE, "provisioning"), purposes=SERVER, names=ELSEWHERE),
            "certificate is not valid for 'localhost'; give a URL with a name that it has)",
        ),
        (PKI.broker(), f"(its certificate is that of spiffe://{DOMAIN}/broker/broker-1)"),
        (serving_as(Role.DEVICE, "provisioning", "meters"), "/device/meters/provisioning)"),
        (serving_as(Role.SERVICE, "billing"), "/service/billing)"),
        (serving_as(Role.SERVICE, "provisioning", "north"), "/service/north/provisioning)"),
        (serving_as(Role.SERVICE, "provisioning", uris=[]), "(the certificate has 0 identity URIs"),
        (serving_as(Role.SERVICE, "provisioning", common_name="billing"), "(the Common Name ['billing'] is not"),
    ],
    ids=[
        "expired",
        "not yet",
        "of another CA",
        "another name",
        "a broker",
        "a device",
        "another service",
        "a group's service",
        "nobody",
        "two names",
    ],
)
def test_who_is_not_the_service_is_told_of_and_the_clock_where_that_may_be_the_cause(server: Held, words: str) -> None:
    error = httpx.ConnectError("failed")
    error.__cause__ = refused(server)
    assert words in explain("https://localhost:8443", error)


def test_the_service_itself_is_trusted() -> None:
    ready(serving_as(Role.SERVICE, "provisioning")).do_handshake()


async def told_of(port: int) -> str:
    """Return what is told of a service that should listen at *port*, by the same client as all programs have."""
    url = f"https://localhost:{port}"
    async with open_pool(url, PKI.anchors, None, timeout=20) as pool:
        with pytest.raises(httpx.HTTPError) as failed:
            await pool.get("/")
    return explain(url, failed.value)


async def test_a_port_of_nobody_and_one_without_tls_are_told_of_with_what_to_do() -> None:
    async def http(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(http, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        assert "it speaks no TLS; name the first address of its ready line" in await told_of(port)
    assert "nobody listens there; start it, or name the first address of its ready line" in await told_of(port)
