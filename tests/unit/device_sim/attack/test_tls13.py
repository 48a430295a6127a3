"""Our own TLS 1.3, held to the standard's worked example, and to OpenSSL as the server."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from device_sim.attack.issuer import SERVER_AUTH, Issuer, Paper
from device_sim.attack.tls13_client import _RETRY, Flight, HandshakeBroken, Transcript, _share_in, exchange, offer
from device_sim.attack.tls13_keys import BadRecord, KeySchedule, Protection, expand_label
from device_sim.attack.unsendable_cases import _certificates, _entry, _flight, _proof
from device_sim.attack.verdict import Layer, Seen
from device_sim.credentials.certification import common_name
from device_sim.link.tls_dial import Endpoint
from provisioning.pki.identity import Identity
from provisioning.pki.role import Role

# RFC 8448 §3, a simple 1-RTT handshake.
SHARED = bytes.fromhex("8bd4054fb55b9d63fdfbacf9f04b9f0d35e6d63f537563efd46272900f89492d")
UP_TO_SERVER_HELLO = bytes.fromhex("860c06edc07858ee8e78f0e7428c58edd6b43f2ca3e6e95f02ed063cf0e1cad8")
SERVER_SECRET = bytes.fromhex("b67b7d690cc16c4e75e54213cb2d37b4e9c912bcded9105d42befd59d391ad38")
SERVER_KEY = bytes.fromhex("3fce516009c21727d0f2e4e86ee403bc")
SERVER_IV = bytes.fromhex("5d313eb2671276ee13000b30")
PATIENCE = 60.0


def test_the_keys_are_those_of_the_standards_example() -> None:
    _, server = KeySchedule(SHARED).handshake(UP_TO_SERVER_HELLO)
    assert server._secret == SERVER_SECRET
    assert expand_label(SERVER_SECRET, "key", b"", 16) == SERVER_KEY
    assert expand_label(SERVER_SECRET, "iv", b"", 12) == SERVER_IV


def test_what_one_side_seals_the_other_opens_in_order_and_nobody_else() -> None:
    sealing, opening, stranger = Protection(SHARED), Protection(SHARED), Protection(SERVER_SECRET)
    records = [sealing.seal(22, b"first"), sealing.seal(23, b"second\0")]
    with pytest.raises(BadRecord):
        stranger.open(records[0][:5], records[0][5:])
    assert opening.open(records[0][:5], records[0][5:]) == (22, b"first")
    assert opening.open(records[1][:5], records[1][5:]) == (23, b"second\0")
    with pytest.raises(BadRecord):
        opening.open(records[1][:5], records[1][5:])


@pytest.fixture(scope="module")
def authority() -> Issuer:
    return Issuer.founded(common_name("Test CA"))


@pytest.fixture(scope="module")
def device(authority: Issuer) -> Paper:
    return authority.issue(Identity("fleet.internal", Role.DEVICE, "meter-1", "meters"))


@asynccontextmanager
async def openssl(directory: Path, authority: Issuer, curve: str = "") -> AsyncIterator[tuple[Endpoint, list[bytes]]]:
    """Yield where OpenSSL listens and wants a certificate, and whom it saw; it answers a line with its length."""
    saw: list[bytes] = []
    server = authority.issue(
        Identity("fleet.internal", Role.BROKER, "broker-1"), usages=SERVER_AUTH, dns_names=["localhost"]
    )
    (directory / "server.pem").write_bytes(server.pem.pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(directory / "server.pem")
    context.load_verify_locations(cadata=authority.pem.decode())
    context.verify_mode = ssl.CERT_REQUIRED
    if curve:
        context.set_ecdh_curve(curve)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        saw.append(writer.get_extra_info("ssl_object").getpeercert(binary_form=True))
        line = await reader.readline()
        writer.write(b"%d" % len(line))
        await writer.drain()
        writer.close()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    async with listener:
        yield Endpoint("127.0.0.1", listener.sockets[0].getsockname()[1], "localhost"), saw


@pytest.mark.parametrize("padding", [0, 40_000])
async def test_openssl_takes_the_handshake_and_what_follows(
    tmp_path: Path, authority: Issuer, device: Paper, padding: int
) -> None:
    good = device.certificate.public_bytes(Encoding.DER)
    more = _entry(authority.certificate.public_bytes(Encoding.DER)) * (padding // 500)  # More than one record.
    async with openssl(tmp_path, authority) as (endpoint, saw):
        answer = await exchange(endpoint, _flight(device, _entry(good) + more), b"four\n", PATIENCE)
    assert answer == b"5"
    assert saw == [good]


async def test_what_is_offered_alone_is_taken_or_refused(tmp_path: Path, authority: Issuer) -> None:
    async with openssl(tmp_path, authority) as (endpoint, saw):
        taken = await offer(endpoint, bytes.fromhex("1301"), PATIENCE)
        refused = await offer(endpoint, bytes.fromhex("c0b4c0b5"), PATIENCE)
    assert (taken.text, taken.reason, taken.got_in) == ("tls agreed", "the server takes suite 0x1301", True)
    assert (refused.code in {"handshake_failure", "closed", "reset"}, refused.got_in) == (True, False)
    assert saw == []


def spoilt(device: Paper) -> Flight:
    def sent(context: bytes, _: Transcript) -> Iterator[bytes]:
        yield _certificates(context, _entry(device.certificate.public_bytes(Encoding.DER)))
        yield _proof(device, bytes(32))

    return sent


async def test_a_proof_of_another_transcript_is_refused(tmp_path: Path, authority: Issuer, device: Paper) -> None:
    async with openssl(tmp_path, authority) as (endpoint, saw):
        answer = await exchange(endpoint, spoilt(device), b"four\n", PATIENCE)
    # asyncio closes before its alert is read; whichever of the two comes, nobody was served.
    assert isinstance(answer, Seen)
    assert answer.layer in {Layer.TLS, Layer.TCP}
    assert not answer.got_in
    assert saw == []


async def test_a_server_that_wants_another_group_is_no_answer(tmp_path: Path, authority: Issuer, device: Paper) -> None:
    async with openssl(tmp_path, authority, "secp384r1") as (endpoint, _):
        with pytest.raises(HandshakeBroken, match="the server refuses our hello"):
            await exchange(endpoint, spoilt(device), b"four\n", PATIENCE)


@pytest.mark.parametrize(
    ("random", "suite", "words"), [(_RETRY, "1301", "another hello"), (bytes(32), "1302", "another suite")]
)
def test_a_server_that_answers_otherwise_is_no_answer(random: bytes, suite: str, words: str) -> None:
    with pytest.raises(HandshakeBroken, match=words):
        _share_in(b"\x03\x03" + random + b"\0" + bytes.fromhex(suite) + b"\0\0\0")
