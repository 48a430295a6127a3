"""A TLS 1.3 server that wants a client certificate and believes any: neither it nor its proof is looked at.

    async with credulous() as port:
        …

OpenSSL checks every proof, so no broker built on it shows whether the tester would notice one that does not. Behind the
handshake is a broker that admits everybody. Fair to clients of `device_sim.attack.tls13_client` only.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from broker.mqtt.codes import PacketType, ProtocolVersion, ReasonCode
from broker.mqtt.connect import Connack
from device_sim.attack.tls13_client import FINISHED, SUITE, Transcript, message
from device_sim.attack.tls13_keys import APPLICATION_DATA, KeySchedule, Protection

_HANDSHAKE = 22
_HEADER = 5
_ADMITTED = Connack(ReasonCode.SUCCESS).encode(ProtocolVersion.V5)


def _extension(kind: int, content: bytes) -> bytes:
    return kind.to_bytes(2) + len(content).to_bytes(2) + content


def _share_of(hello: bytes) -> bytes:
    """Return the client's X25519 share, which it offers alone."""
    at = hello.index(b"\x00\x1d\x00\x20") + 4
    return hello[at : at + 32]


async def _record(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    header = await reader.readexactly(_HEADER)
    return header, await reader.readexactly(int.from_bytes(header[3:]))


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(asyncio.IncompleteReadError, ConnectionError):
        transcript = Transcript()
        _, hello = await _record(reader)
        transcript.add(hello)
        private = X25519PrivateKey.generate()
        share = _extension(51, b"\x00\x1d\x00\x20" + private.public_key().public_bytes_raw())
        extensions = _extension(43, b"\x03\x04") + share
        answer = message(
            2, b"\x03\x03" + secrets.token_bytes(32) + b"\0" + SUITE + b"\0" + len(extensions).to_bytes(2) + extensions
        )
        transcript.add(answer)
        writer.write(b"\x16\x03\x03" + len(answer).to_bytes(2) + answer)
        schedule = KeySchedule(private.exchange(X25519PublicKey.from_public_bytes(_share_of(hello))))
        client, server = schedule.handshake(transcript.digest())
        schemes = _extension(13, b"\x00\x04\x04\x03\x08\x08")
        for each in (message(8, b"\0\0"), message(13, b"\0" + len(schemes).to_bytes(2) + schemes)):
            transcript.add(each)
            writer.write(server.seal(_HANDSHAKE, each))
        finished = message(FINISHED, server.finished(transcript.digest()))
        transcript.add(finished)
        writer.write(server.seal(_HANDSHAKE, finished))
        theirs, ours = schedule.application(transcript.digest())
        await _admit(reader, writer, client, theirs, ours)
    writer.close()


async def _admit(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, client: Protection, theirs: Protection, ours: Protection
) -> None:
    """Read what the client sends up to its Finished, and answer its CONNECT."""
    content = b""
    while content[:1] != bytes((FINISHED,)):
        _, content = client.open(*await _record(reader))
    kind, connect = theirs.open(*await _record(reader))
    assert (kind, connect[0] >> 4) == (APPLICATION_DATA, PacketType.CONNECT)
    writer.write(ours.seal(APPLICATION_DATA, _ADMITTED))
    await writer.drain()


@asynccontextmanager
async def credulous() -> AsyncIterator[int]:
    """Yield the port of one on loopback."""
    async with await asyncio.start_server(_serve, "127.0.0.1", 0) as listener:
        yield listener.sockets[0].getsockname()[1]
