"""The cases of WebSocket against a server that keeps none of its rules: each finds what it was made for."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from broker.mqtt.codes import PacketType, ProtocolVersion, ReasonCode
from broker.mqtt.connect import Connack
from broker.mqtt.errors import PacketError
from broker.mqtt.framing import split_frames
from device_sim.attack import run
from device_sim.attack.capabilities import Capabilities, Feature
from device_sim.attack.case import Case
from device_sim.attack.catalogue import WEBSOCKET
from device_sim.attack.scene import Scene
from device_sim.attack.target import SigningRegistrar, Target
from device_sim.attack.verdict import Verdict
from device_sim.link.tls_dial import Endpoint
from tests.support.own_server import own_server

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_PING = 0x9
_LARGEST = 1 << 16


async def _message(reader: asyncio.StreamReader) -> bytes:
    """Return what the next frame holds, whatever kind of frame it is; nothing of a ping."""
    first, second = await reader.readexactly(2)
    length = second & 0x7F
    if length == 126:
        length = int.from_bytes(await reader.readexactly(2))
    mask = await reader.readexactly(4) if second & 0x80 else bytes(4)
    payload = bytes(byte ^ mask[index % 4] for index, byte in enumerate(await reader.readexactly(length)))
    return b"" if first & 0xF == _PING else payload


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        key = head.partition(b"Sec-WebSocket-Key: ")[2].partition(b"\r\n")[0]
        accept = base64.b64encode(hashlib.sha1(key + _GUID).digest())  # noqa: S324 - RFC 6455 §4.2.2
        writer.write(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + accept + b"\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n"
        )
        said = b""
        while True:
            said += await _message(reader)
            frames, used = split_frames(said, _LARGEST)
            said = said[used:]
            if any(first >> 4 == PacketType.CONNECT for first, *_ in frames):
                answer = Connack(ReasonCode.SUCCESS).encode(ProtocolVersion.V5)
                writer.write(bytes((0x82, len(answer))) + answer)
    except (OSError, asyncio.IncompleteReadError, PacketError):
        pass
    finally:
        writer.close()


@asynccontextmanager
async def lenient(directory: Path) -> AsyncIterator[Target]:
    authority, context = own_server(directory)
    async with await asyncio.start_server(_serve, "127.0.0.1", 0, ssl=context) as listener:
        endpoint = Endpoint("127.0.0.1", listener.sockets[0].getsockname()[1], "localhost", websocket=True)
        claims = Capabilities(name="lenient", supports=frozenset({Feature.MQTT5}))
        yield Target(claims, endpoint, directory / "ca.pem", authority, SigningRegistrar(authority, None))


@pytest.mark.parametrize("case", WEBSOCKET, ids=lambda case: case.name)
async def test_a_server_that_keeps_no_rule_of_websocket_is_found(
    tmp_path: Path, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "MOST_WAITING", 10.0)
    async with lenient(tmp_path) as target:
        outcome = await run._tried(Scene(target), case)
    if case.name == "46-pieces":  # The control: it is no fault to take what is split.
        assert outcome.verdict is Verdict.PASS, outcome.judgement
        return
    assert (outcome.verdict, outcome.judgement.why) == (
        Verdict.FAIL, "the attack succeeded: the broker let it in",
    ), outcome.seen  # fmt: skip
