"""What a client of the service says of a server that it does not trust."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import struct
from contextlib import aclosing
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509

from provisioning.client.connection import NAME_THE_ADDRESS, explain, open_pool
from provisioning.client.csr import build_csr
from provisioning.client.est import EnrolmentUnavailable, EstClient
from provisioning.client.feed_reader import Current, FeedLost
from provisioning.client.genuine_server import GenuineServer, trust_domain_of
from provisioning.client.network_words import network_words
from provisioning.client.operator import OperatorClient, ServiceUnavailable
from provisioning.pki.identity import Identity
from provisioning.pki.keys import generate_key
from provisioning.pki.role import Role
from provisioning.pki.tls import (
    ClientCertificate,
    CredentialFiles,
    CredentialPem,
    TlsConfigurationError,
    client_context,
    server_context,
)
from tests.support.feed_events import follow
from tests.support.impostor import impostor
from tests.support.pki import DOMAIN, SERVER, Held, Pki, shared_pki
from tests.support.responder import Responder, delegate, question_about

PKI = shared_pki()
CLOCK = "; the clock here says "


LOCALHOST = [x509.DNSName("localhost")]
ELSEWHERE = [x509.DNSName("ca.example.org")]


def ready(
    server: Held, client_certificate: ClientCertificate = ClientCertificate.OPTIONAL
) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    """Return a client that has heard all that *server* says of itself, and has not judged that yet; and the server."""
    towards, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = server_context(server.credential, PKI.anchors, client_certificate=client_certificate)
    serving = context.wrap_bio(towards, back, server_side=True)
    trusting = client_context(PKI.anchors, None)
    trusting.sslobject_class = GenuineServer
    client = trusting.wrap_bio(back, towards, server_hostname="localhost")
    for each in (client, serving):
        with pytest.raises(ssl.SSLWantReadError):
            each.do_handshake()
    return client, serving


def refused(server: Held) -> ssl.SSLCertVerificationError:
    """Return why a client does not trust *server*."""
    client, _ = ready(server)
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
        (PKI.broker(not_before=PKI.now + timedelta(days=1)), f"(certificate is not yet valid…{CLOCK}"),
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
    told = explain("https://localhost:8443", error)
    assert all(part in told for part in words.split("…")), "from 3.6 on OpenSSL names the clock itself, too"


def test_the_service_itself_is_trusted() -> None:
    ready(serving_as(Role.SERVICE, "provisioning"))[0].do_handshake()


OTHERS = "plant-7.example"
TOKEN = "fgt_" + "A" * 43


async def test_another_fleets_service_below_the_same_root_is_not_taken_for_ones_own() -> None:
    theirs = PKI.certify(Identity(OTHERS, Role.SERVICE, "provisioning"), purposes=SERVER, names=LOCALHOST)
    device, operator = PKI.device("meter-1").credential, Identity(DOMAIN, Role.OPERATOR, "admin")
    request = build_csr(generate_key(), "meter-1")
    refused = f"it is the service of trust domain {OTHERS}, not of {DOMAIN}"
    response = Responder(PKI.issuing, delegate(PKI), [theirs], nonce=False)(question_about(theirs))
    async with impostor(theirs.credential, PKI.anchors, response=response or b"") as (url, heard):
        with pytest.raises(FeedLost, match=refused):
            await anext(follow(url, PKI.anchors, PKI.broker().credential, 0))
        async with OperatorClient(url, PKI.anchors, PKI.certify(operator).credential) as ours:
            with pytest.raises(ServiceUnavailable, match=refused):
                await ours.status()
        async with EstClient(url, PKI.anchors, device) as est:
            with pytest.raises(EnrolmentUnavailable, match=refused):
                await est.reenrol(request)
        async with EstClient(url, PKI.anchors, trust_domain=DOMAIN) as est:
            with pytest.raises(EnrolmentUnavailable, match=refused):
                await est.enrol(request, user="meter-1", token=TOKEN)
        assert not any(heard), "no token is told, and no other word"

        broker = PKI.certify(Identity(OTHERS, Role.BROKER, "broker-1")).credential
        async with aclosing(follow(url, PKI.anchors, broker, 0)) as feed:
            assert await anext(feed) == Current(0), "its own clients believe it"
        for client in (
            EstClient(url, PKI.anchors),  # Who has no identity and names none: docs/decisions/0168.
            EstClient(url, PKI.anchors, device, trust_domain=OTHERS),  # Who comes from one fleet into the other.
        ):
            async with client as est:
                with pytest.raises(EnrolmentUnavailable, match="is no EST service"):
                    await est.enrol(request, user="meter-1", token=TOKEN)


async def test_no_proxy_of_the_environment_is_told_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    service = PKI.certify(Identity(DOMAIN, Role.SERVICE, "provisioning"), purposes=SERVER, names=LOCALHOST)
    response = Responder(PKI.issuing, delegate(PKI), [service], nonce=False)(question_about(service))
    async with impostor(service.credential, PKI.anchors, response=response or b"") as (url, heard):
        async with EstClient(url, PKI.anchors) as est:
            with pytest.raises(EnrolmentUnavailable, match="is no EST service"):
                await est.enrol(build_csr(generate_key(), "meter-1"), user="meter-1", token=TOKEN)
        assert any(heard), "the service itself was asked"


async def test_an_operator_s_client_keeps_no_connection_when_it_ends() -> None:
    async with OperatorClient("https://localhost", PKI.anchors, PKI.device("meter-1").credential) as client:
        pass
    assert client._pool.is_closed


def test_who_names_no_identity_belongs_to_no_fleet_and_what_is_no_certificate_is_told_of(tmp_path: Path) -> None:
    assert trust_domain_of(PKI.device("meter-1").credential) == DOMAIN
    assert trust_domain_of(serving_as(Role.SERVICE, "claim", uris=[]).credential) is None
    nowhere = tmp_path / "nowhere.pem"
    with pytest.raises(TlsConfigurationError, match=r"nowhere\.pem cannot be read"):
        trust_domain_of(CredentialFiles(nowhere, nowhere))
    with pytest.raises(TlsConfigurationError, match=r"^the credential holds no PEM certificate"):
        trust_domain_of(CredentialPem(b"something else"))


def test_an_operator_s_credential_may_come_from_pipes_as_a_shell_gives_them() -> None:
    credential = PKI.device("meter-1").credential
    assert isinstance(credential, CredentialPem)
    key = credential.pem.index(b"-----BEGIN PRIVATE KEY")
    pipes = []
    for part in (credential.pem[:key], credential.pem[key:]):
        reading, writing = os.pipe()
        os.write(writing, part)
        os.close(writing)
        pipes.append(Path(f"/dev/fd/{reading}"))
    client = OperatorClient("https://localhost", PKI.anchors, CredentialFiles(*pipes))
    assert client.trust_domain == DOMAIN
    for pipe in pipes:
        os.close(int(pipe.name))


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
    assert "nothing listens there; start it, or name the first address of its ready line" in await told_of(port)


async def test_a_port_that_resets_is_told_of_with_what_to_do() -> None:
    """That of a mosquitto without TLS: it closes with the rest of the hello unread, and the kernel sends a reset."""

    async def mqtt(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        made = writer.get_extra_info("socket")
        made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    async with await asyncio.start_server(mqtt, "127.0.0.1", 0) as server:
        told = await told_of(server.sockets[0].getsockname()[1])
    assert told.endswith("does not answer: it resets the connection, as what speaks no TLS does; " + NAME_THE_ADDRESS)


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (
            httpx.ConnectTimeout("timed out"),
            "it takes too long to connect; is it the service that listens there, and does it still run?",
        ),
        (httpx.ReadTimeout(""), "nothing came any more for too long"),
        (httpx.ReadError(""), "the connection broke off"),
        (httpx.RemoteProtocolError("Server disconnected"), "Server disconnected"),
    ],
)
def test_a_link_that_breaks_off_or_falls_silent_is_told_of_in_words(error: httpx.HTTPError, why: str) -> None:
    said = explain("https://ca.example:8443", error)
    assert said == f"the provisioning service at https://ca.example:8443 does not answer: {why}"


def test_a_host_that_is_not_found_is_told_of_with_what_to_do() -> None:
    error = httpx.ConnectError("")
    error.__cause__ = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    told = "its host is not found (Name or service not known); correct the name in the URL"
    assert explain("https://ca.exmaple", error).endswith(f"https://ca.exmaple does not answer: {told}")
    assert network_words(error) == "its host is not found (Name or service not known)"


def test_every_kind_of_silence_and_breaking_off_has_words() -> None:
    for kind in (*httpx.TimeoutException.__subclasses__(), *httpx.NetworkError.__subclasses__()):
        assert kind.__name__ not in network_words(kind(""))


def test_a_certificate_that_is_refused_behind_the_handshake_breaks_the_connection() -> None:
    """The HTTP library had let OpenSSL's error through, which ended a broker at its enrolment with a traceback."""
    client, serving = ready(serving_as(Role.SERVICE, "provisioning"), ClientCertificate.REQUIRED)
    client.do_handshake()
    with pytest.raises(ssl.SSLError, match="PEER_DID_NOT_RETURN_A_CERTIFICATE"):
        serving.do_handshake()
    with pytest.raises(ssl.SSLSyscallError) as told:
        client.read(1024)
    error = httpx.ReadError("")
    error.__cause__ = told.value
    assert explain("https://ca", error) == (
        "the server at https://ca refuses the connection by a TLS alert: certificate required"
    )
