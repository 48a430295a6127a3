"""Case 46: a genuine device breaks the rules of WebSocket (RFC 6455, and MQTT 5 §6), in place of CONNECT or around it.

Tried with `--websocket` only: there is nothing to be tried at another listener.

Rules
-----
1. What is in the frames is a good CONNECT of the device's own: nothing but the frame is wrong.
"""

from __future__ import annotations

import os
import time
from dataclasses import replace

from broker.mqtt.packets import Connack
from device_sim.attack.case import IN, Chapter
from device_sim.attack.packet_cases import instead_of_connect
from device_sim.attack.raw_client import RawClient
from device_sim.attack.scene import Scene
from device_sim.attack.verdict import CLOSED, Seen, seen_in
from device_sim.link.tls_dial import NotAdmitted
from device_sim.link.websocket import WebSocket

_FIN, _RESERVED, _MASKED = 0x80, 0x40, 0x80
_CONTINUATION, _TEXT, _BINARY, _PING = 0x0, 0x1, 0x2, 0x9
_TWO_BYTES = 126
_LONG_PING = 126
_ANSWER = 10.0
_ORIGIN = "https://other.example"

chapter = Chapter()
case = chapter.case


def _frame(opcode: int, payload: bytes, *, flags: int = _FIN, masked: bool = True) -> bytes:
    """Return one frame, whatever may be wrong with it."""
    bit, length = (_MASKED if masked else 0), len(payload)
    short = length < _TWO_BYTES
    head = bytes((flags | opcode, bit | (length if short else _TWO_BYTES))) + (b"" if short else length.to_bytes(2))
    if not masked:
        return head + payload
    mask = os.urandom(4)
    return head + mask + bytes(byte ^ mask[index % 4] for index, byte in enumerate(payload))


@case("46-pieces", "sends its CONNECT in frames of one byte each, some of them of one message (control)", IN)
async def _pieces(scene: Scene) -> Seen:
    paper = await scene.device()
    client = await scene.dialled(paper)
    try:
        *rest, before, last = (bytes((byte,)) for byte in scene.connect(paper.name, keep_alive=60).encode())
        frames = [_frame(_BINARY, each) for each in rest]
        frames += [_frame(_BINARY, before, flags=0), _frame(_CONTINUATION, last)]
        started = time.monotonic()
        await client.send(b"".join(frames), framed=False)
        return (await client.answer(Connack, deadline=scene.at_most(_ANSWER))).since(started)
    finally:
        client.close()


# In place of a frame that a client may send: each is to end the connection.


def _sends(name: str, description: str, opcode: int, *, flags: int = _FIN, masked: bool = True) -> None:
    instead_of_connect(
        chapter, name, description, lambda own: _frame(opcode, own.connect.encode(), flags=flags, masked=masked),
        framed=False,
    )  # fmt: skip


_sends("46-text-frame", "sends its CONNECT in a text frame", _TEXT)  # [MQTT-6.0.0-1]
_sends("46-unmasked", "sends its CONNECT in a frame without a mask", _BINARY, masked=False)  # RFC 6455 §5.1
_sends("46-reserved-bit", "sends its CONNECT in a frame with a reserved bit", _BINARY, flags=_FIN | _RESERVED)  # §5.2
_sends("46-continues-nothing", "sends its CONNECT as the continuation of nothing", _CONTINUATION)  # §5.4
instead_of_connect(
    chapter, "46-long-ping", "sends a ping of 126 bytes before its CONNECT",  # §5.5
    lambda own: _frame(_PING, bytes(_LONG_PING)) + _frame(_BINARY, own.connect.encode()), framed=False,
)  # fmt: skip


# A browser sends its user's client certificate to whom any page names, and says which page it was (RFC 6455 §10.2).
@case("46-other-origin", "is a browser that a foreign web page has told to connect", CLOSED)
async def _other_origin(scene: Scene) -> Seen:
    paper = await scene.device()
    (await scene.dialled(paper)).close()  # Without a page it is let in.
    endpoint = replace(scene.target.endpoint, websocket=False)
    started = time.monotonic()
    try:
        client = await RawClient.dial(
            endpoint, scene.context(paper.pem), version=scene.version, deadline=scene.at_most(_ANSWER)
        )
        await client.upgrade(WebSocket(endpoint.server_name, _ORIGIN, endpoint.path), scene.at_most(_ANSWER))
    except NotAdmitted as error:
        return seen_in(error.closure).since(started)
    try:
        connect = scene.connect(paper.name, keep_alive=60)
        return (await client.connect(connect, scene.at_most(_ANSWER))).since(started)
    finally:
        client.close()
