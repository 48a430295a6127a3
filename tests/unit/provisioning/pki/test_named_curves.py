"""Certificates that take long to read are refused unread: by a server, and by whoever connects to one."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import sys
from collections.abc import Iterator
from types import FrameType

import pytest

from broker.sockets.tls_session import open_tls
from device_sim.attack.own_curve import on_own_curve
from device_sim.attack.tls13_client import Transcript, exchange
from device_sim.attack.unsendable_cases import _certificates, _entry
from device_sim.attack.verdict import Seen
from device_sim.link.tls_dial import Endpoint
from provisioning.pki import named_curves
from provisioning.pki.named_curves import MOST_CERTIFICATES
from provisioning.pki.polite_handshake import PoliteHandshake
from provisioning.pki.tls import ClientCertificate, CredentialPem, client_context, server_context
from tests.support.client_hellos import answer_of, certificates_12, hello, hello_12, server_hello_12
from tests.support.cut_records import cut
from tests.support.pki import pem_of, shared_device, shared_pki
from tests.support.tls_server import Server

PKI = shared_pki()
HELD = shared_device("meter-1")
DECODE_ERROR = b"\x15\x03\x03\x00\x02\x02\x32"
PATIENCE = 60.0
OWN = on_own_curve(HELD.certificate)


def server(
    asked: ClientCertificate = ClientCertificate.REQUIRED, *, allow_tls12: bool = True, remembered: int = 0
) -> ssl.SSLContext:
    return server_context(
        PKI.broker().credential,
        PKI.anchors,
        client_certificate=asked,
        allow_tls12=allow_tls12,
        remembered_sessions=remembered,
    )


def refusal_of_a_server_s() -> bytes:
    """Return what a client answers whose server presents OWN."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context(PKI.anchors, allow_tls12=True).wrap_bio(incoming, outgoing, server_hostname="localhost")
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    outgoing.read()
    incoming.write(server_hello_12() + certificates_12([OWN]))
    with pytest.raises(ssl.SSLError):
        client.do_handshake()
    return outgoing.read()


@pytest.mark.parametrize("asked", ClientCertificate)
def test_a_curve_of_its_own_is_refused_unread(asked: ClientCertificate) -> None:
    """Read, it would be a bad certificate, two tenths of a second later."""
    for sent in ([OWN], [HELD.der, OWN]):
        assert answer_of(server(asked), hello_12(), certificates_12(sent)) == DECODE_ERROR


def hidden(context: bytes, _transcript: Transcript) -> Iterator[bytes]:
    """Send OWN where nobody else can see it, in TLS 1.3."""
    yield _certificates(context, _entry(OWN))


async def test_so_it_is_where_nobody_else_can_see_it() -> None:
    def made(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    context = server()
    context.sslobject_class = PoliteHandshake
    async with await asyncio.start_server(made, "127.0.0.1", 0, ssl=context) as listening:
        port = listening.sockets[0].getsockname()[1]
        seen = await exchange(Endpoint("127.0.0.1", port, "localhost"), hidden, b"", PATIENCE)
    assert isinstance(seen, Seen)
    assert seen.code == "decode_error"


async def test_so_it_is_where_handshakes_are_taken_in_steps() -> None:
    broker = Server(open_tls, server(allow_tls12=False, remembered=100))
    asking = asyncio.create_task(exchange(Endpoint("127.0.0.1", broker.port, "localhost"), hidden, b"", PATIENCE))
    try:
        told = await broker.accept()
        seen = await asking
        await told.ended
    finally:
        await broker.close()
    assert isinstance(seen, Seen)
    assert seen.code == "decode_error"


def test_a_server_s_is_refused_as_well() -> None:
    assert refusal_of_a_server_s() == DECODE_ERROR


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
def test_what_cannot_be_looked_at_is_refused_unread(
    error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Anybody can have a server be short of memory."""

    def fail(_message: bytes, _version: int) -> bool:
        raise error

    monkeypatch.setattr(named_curves, "_is_costly", fail)
    assert answer_of(server(), hello_12(), certificates_12([HELD.der])) == DECODE_ERROR
    assert refusal_of_a_server_s() == DECODE_ERROR


@pytest.mark.parametrize("allow_tls12", [False, True])
def test_a_hello_is_not_looked_at_record_by_record(*, allow_tls12: bool) -> None:
    """Of one byte each, and thousands: each would be a call."""
    times = 0

    def count(frame: FrameType, event: str, _argument: object) -> None:
        nonlocal times
        times += event == "call" and frame.f_code is named_curves._look.__code__

    context, sent = server(allow_tls12=allow_tls12), cut(hello())
    sys.setprofile(count)
    try:
        answer = answer_of(context, sent)
    finally:
        sys.setprofile(None)
    assert answer[:1] == b"\x16"
    assert 0 < times < len(hello())


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("number", [1, MOST_CERTIFICATES, MOST_CERTIFICATES + 1])
def test_a_path_has_so_many_certificates_at_most(version: ssl.TLSVersion, number: int) -> None:
    credential = CredentialPem(HELD.pem + pem_of(*[HELD.certificate] * (number - 1 - len(HELD.chain))))
    context = client_context(PKI.anchors, credential, allow_tls12=True)
    context.maximum_version = version
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(to_client, to_server, server_hostname="localhost")
    serving = server().wrap_bio(to_server, to_client, server_side=True)
    outcome = ""
    for _ in range(3):
        for side in (client, serving):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLError as error:
                outcome = outcome or error.reason or ""
    assert bool(outcome) == (number > MOST_CERTIFICATES), outcome
    if not outcome:
        client.write(OWN)
        assert serving.read(len(OWN)) == OWN, "as data it is nobody's concern"
        assert serving.getpeercert(binary_form=True) == HELD.der
