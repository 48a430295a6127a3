"""MQTT over WebSocket, on the client's side: the upgrade request, and frames (RFC 6455; MQTT 5 §6, MQTT 3.1.1 §6).

Theory
------
``bytes → frame → bytes``. Each `framed` makes one binary message, however little it is: a packet may be cut anywhere
[MQTT-6.0.0-2]. What comes may be cut in another way; `unframed` returns the bytes that are whole so far.

Rules
-----
1. No I/O.
2. A client masks each frame (RFC 6455 §5.3), a server none (§5.1): one that does is reported, and nothing more is read.
3. Of several pings in one read only the last is answered (§5.5.3): `owed` is what is to be sent. Pongs are nobody's.
4. A frame of more than `LARGEST_FRAME` is refused when its length is known; a large one costs what its bytes do.
5. Nothing is negotiated but the subprotocol: a frame with a bit of an extension is refused (§5.2).
"""

from __future__ import annotations

import base64
import hashlib
import os
from typing import Final

_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_FIN: Final = 0x80
_RESERVED: Final = 0x70
_MASKED: Final = 0x80
_OPCODE: Final = 0x0F
_CONTINUATION, _BINARY, _CLOSE, _PING, _PONG = 0x0, 0x2, 0x8, 0x9, 0xA
_CONTROL: Final = 0x8
_LARGEST_CONTROL: Final = 125
_NORMAL: Final = (1000).to_bytes(2)
"""The status of a connection that has served its purpose (§7.4.1)."""
_TWO_BYTES, _EIGHT_BYTES = 126, 127
_END: Final = b"\r\n\r\n"
_LARGEST_HEAD: Final = 16_384
LARGEST_FRAME: Final = 64 * 1024 * 1024
MQTT_PATH: Final = "/mqtt"
"""What is asked for, unless the user says otherwise: what most brokers expect, if they expect anything."""
_LONGEST_PATH: Final = 2048


def checked_path(text: str) -> str:
    """Return *text* if an upgrade can ask for it (RFC 9112 §3.2.1); raise `ValueError` with what to write."""
    if not text.startswith("/") or len(text) > _LONGEST_PATH or any(not "!" <= each <= "~" for each in text):
        raise ValueError(f"{text!r} is no path: write one as /mqtt, in ASCII and without spaces")
    if set(text) & set("?#"):  # It is in reports, and a query may have a secret.
        raise ValueError(f"{text!r} is more than a path: leave out what begins with ? or #")
    return text


class NotUpgraded(Exception):
    """The server did not become a WebSocket; the text is the first line of its answer, or what is wrong with that."""


class NotWebSocket(Exception):
    """What the server sends is not a frame that it may send."""


class WebSocket:
    """One connection: `request` goes first, what comes goes to `unframed`, what is sent through `framed`."""

    def __init__(self, host: str, origin: str | None = None, path: str = MQTT_PATH) -> None:
        """*origin* is the web page that asks, where one does (RFC 6455 §4.1): devices have none."""
        key = base64.b64encode(os.urandom(16))
        self._accept = base64.b64encode(hashlib.sha1(key + _GUID).digest())  # noqa: S324 - RFC 6455 §4.2.2
        self.request = (
            f"GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key.decode()}\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: mqtt\r\n"
            + ("" if origin is None else f"Origin: {origin}\r\n")
            + "\r\n"
        ).encode()
        self._head = b""
        self._rest = bytearray()
        self.upgraded = False
        self.closed = False
        """Whether the server has said that nothing more will come."""
        self.owed = b""
        """The frame that answers what was read, if it wants an answer; whoever sends it, empties it."""

    @staticmethod
    def framed(data: bytes | bytearray) -> bytes:
        """Return *data* in a frame."""
        return _framed(_BINARY, data)

    @staticmethod
    def farewell() -> bytes:
        """Return the frame with which a client leaves."""
        return _framed(_CLOSE, _NORMAL)

    def unframed(self, data: bytes) -> bytes:
        """Return what the server has sent with *data*; raise `NotUpgraded` or `NotWebSocket`."""
        if not self.upgraded:
            self._head += data
            if _END not in self._head:
                if len(self._head) > _LARGEST_HEAD:
                    raise NotUpgraded("an answer without end")
                return b""
            head, _, data = self._head.partition(_END)
            self._check(head)
            self.upgraded = True
        self._rest += data
        payload = []
        at = 0
        while not self.closed and (frame := _frame(self._rest, at)) is not None:
            opcode, start, at = frame
            if opcode == _CLOSE:
                self.closed = True
            elif opcode == _PING:
                self.owed = _framed(_PONG, self._rest[start:at])
            elif opcode < _CONTROL:
                payload.append(self._rest[start:at])
        del self._rest[:at]
        return b"".join(payload)

    def _check(self, head: bytes) -> None:
        first, *lines = head.split(b"\r\n")
        fields = {name.strip().lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}
        said = first.decode("latin-1")
        if first.split(b" ")[1:2] != [b"101"]:
            raise NotUpgraded(said)
        if fields.get(b"sec-websocket-accept") != self._accept:
            raise NotUpgraded(f"{said}, with another Sec-WebSocket-Accept than asked for")
        if fields.get(b"sec-websocket-protocol") != b"mqtt":
            raise NotUpgraded(f"{said}, without the subprotocol mqtt")


def _framed(opcode: int, data: bytes | bytearray) -> bytes:
    first, length = _FIN | opcode, len(data)
    if length < _TWO_BYTES:
        head = bytes((first, _MASKED | length))
    elif length < 1 << 16:
        head = bytes((first, _MASKED | _TWO_BYTES)) + length.to_bytes(2)
    else:
        head = bytes((first, _MASKED | _EIGHT_BYTES)) + length.to_bytes(8)
    mask = os.urandom(4)
    # As one number: a flood of messages would take minutes byte by byte.
    covering = int.from_bytes((mask * (length // 4 + 1))[:length])
    return head + mask + (int.from_bytes(data) ^ covering).to_bytes(length)


def _frame(data: bytearray, at: int) -> tuple[int, int, int] | None:
    """Return opcode, begin and end of the payload of the frame at *at*; None: it is not whole yet."""
    if len(data) < at + 2:
        return None
    first, second = data[at], data[at + 1]
    if second & _MASKED:
        raise NotWebSocket("a masked frame, which only clients may send")
    if first & _RESERVED:
        raise NotWebSocket("a frame of an extension, and none was agreed on")
    if first & _OPCODE not in {_CONTINUATION, _BINARY, _CLOSE, _PING, _PONG}:
        raise NotWebSocket(f"a frame of type {first & _OPCODE}, where MQTT is binary")
    if first & _CONTROL and second > _LARGEST_CONTROL:
        raise NotWebSocket("a control frame of more than 125 bytes")
    length, start = second, at + 2
    extra = {_TWO_BYTES: 2, _EIGHT_BYTES: 8}.get(length, 0)
    if extra:
        if len(data) < start + extra:
            return None
        length, start = int.from_bytes(data[start : start + extra]), start + extra
    if length > LARGEST_FRAME:
        raise NotWebSocket(f"a frame of {length} bytes")
    end = start + length
    return (first & _OPCODE, start, end) if len(data) >= end else None
