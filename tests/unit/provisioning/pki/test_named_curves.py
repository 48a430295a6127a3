"""Certificates that take long to read are refused unread: by a server, and by whoever connects to one."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Iterator

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from device_sim.attack.der import content, element, elements
from device_sim.attack.tls13_client import Transcript, exchange
from device_sim.attack.unsendable_cases import _certificates, _entry
from device_sim.attack.verdict import Seen
from device_sim.link.tls_dial import Endpoint
from provisioning.pki.named_curves import MOST_CERTIFICATES
from provisioning.pki.polite_handshake import PoliteHandshake
from provisioning.pki.tls import ClientCertificate, CredentialPem, client_context, server_context
from tests.support.client_hellos import answer_of, certificates_12, hello_12, server_hello_12
from tests.support.pki import pem_of, shared_device, shared_pki

PKI = shared_pki()
HELD = shared_device("meter-1")
DECODE_ERROR = b"\x15\x03\x03\x00\x02\x02\x32"
PATIENCE = 60.0
_PRIME = 0x800000000000541 << 600 | 1
"""With 2**600 in it less one, so that a square root takes a hundred thousand multiplications."""
_EC_KEY, _PRIME_FIELD = bytes.fromhex("06072a8648ce3d0201"), bytes.fromhex("06072a8648ce3d0101")


def integer(value: int) -> bytes:
    return element(2, value.to_bytes(value.bit_length() // 8 + 1))


def own_curve() -> bytes:
    """Return HELD's certificate with a key on a curve of its own: y² = x³ + x + 14."""
    size = (_PRIME.bit_length() + 7) // 8
    one, fourteen = (value.to_bytes(size) for value in (1, 14))
    point = b"\x02" + one  # y is 4.
    field = element(0x30, _PRIME_FIELD + integer(_PRIME))
    curve = element(0x30, element(4, one) + element(4, fourteen))
    parameters = element(0x30, integer(1) + field + curve + element(4, point) + integer(_PRIME - 2) + integer(1))
    key = element(0x30, element(0x30, _EC_KEY + parameters) + element(3, b"\0" + point))
    certificate = HELD.certificate
    named = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    signed, *signature = elements(content(certificate.public_bytes(Encoding.DER)))
    return element(0x30, element(0x30, content(signed).replace(named, key)) + b"".join(signature))


OWN = own_curve()


def server(asked: ClientCertificate = ClientCertificate.REQUIRED) -> ssl.SSLContext:
    return server_context(PKI.broker().credential, PKI.anchors, client_certificate=asked, allow_tls12=True)


@pytest.mark.parametrize("asked", ClientCertificate)
def test_a_curve_of_its_own_is_refused_unread(asked: ClientCertificate) -> None:
    """Read, it would be a bad certificate, two tenths of a second later."""
    for sent in ([OWN], [HELD.der, OWN]):
        assert answer_of(server(asked), hello_12(), certificates_12(sent)) == DECODE_ERROR


async def test_so_it_is_where_nobody_else_can_see_it() -> None:
    def flight(context: bytes, _transcript: Transcript) -> Iterator[bytes]:
        yield _certificates(context, _entry(OWN))

    def made(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    context = server()
    context.sslobject_class = PoliteHandshake
    async with await asyncio.start_server(made, "127.0.0.1", 0, ssl=context) as listening:
        port = listening.sockets[0].getsockname()[1]
        seen = await exchange(Endpoint("127.0.0.1", port, "localhost"), flight, b"", PATIENCE)
    assert isinstance(seen, Seen)
    assert seen.code == "decode_error"


def test_a_server_s_is_refused_as_well() -> None:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context(PKI.anchors, allow_tls12=True).wrap_bio(incoming, outgoing, server_hostname="localhost")
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    outgoing.read()
    incoming.write(server_hello_12() + certificates_12([OWN]))
    with pytest.raises(ssl.SSLError):
        client.do_handshake()
    assert outgoing.read() == DECODE_ERROR


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
