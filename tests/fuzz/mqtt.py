"""What anybody sends to the broker's port: packets, streams of them, WebSocket, PROXY headers."""

from __future__ import annotations

from typing import Any, Final

from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties as PahoProperties

from broker.metrics import Metrics
from broker.mqtt.codes import ProtocolVersion, QoS
from broker.mqtt.errors import PacketError
from broker.mqtt.packets import Packet, Pingreq, Publish, decode_packet
from broker.sockets.websocket import WebSocket
from provisioning.pki.certificate_reader import CertificateReader
from provisioning.program.proxy_header import InvalidHeader, ProxyHeader, read_header
from tests.fuzz.target import Disagreement, Target, agree, cuts
from tests.support.packet_cases import PACKET_CASES, split_packet
from tests.support.pki import shared_device, shared_service
from tests.support.plain import PlainConnection
from tests.support.proxy_headers import LOCAL, SIGNATURE, UNKNOWN, block, line
from tests.support.wire import V5, V31, V311, MemoryBroker, connect_packet, request

_VERSIONS: Final = (V31, V311, V5)


def _codec(data: bytes) -> None:
    """The first byte chooses the version, the next is the packet's first; what is decoded is encoded the same."""
    if len(data) < 2:
        return
    version, first, body = _VERSIONS[data[0] % 3], data[1], data[2:]
    try:
        packet = decode_packet(first, body, version)
    except PacketError as error:
        str(error).encode()
        return
    flags, encoded = split_packet(packet.encode(version))
    if len(encoded) > len(body):
        raise Disagreement(f"{packet} was encoded in fewer bytes")
    agree("encoded again", decode_packet(flags, encoded, version), packet)
    if version is V5 and isinstance(packet, Publish):
        _as_paho_reads(packet, body)


def _as_paho_reads(packet: Publish, body: bytes) -> None:
    begin = 2 + int.from_bytes(body[:2], "big") + (2 if packet.qos else 0)
    _, size = PahoProperties(PacketTypes.PUBLISH).unpack(body[begin:])
    agree("the payload, by paho", body[begin + size :], packet.payload)


_READER: Final = CertificateReader()
"""One for all brokers: a third of their time would be for certificates."""


def _played(pieces: list[bytes], version: ProtocolVersion, kind: type[Any] | None) -> tuple[Any, ...]:
    """Return what the client, and somebody who has subscribed to all, are sent."""
    parts: dict[str, Any] = {} if kind is None else {"connection_type": kind}
    limits: dict[str, Any] = {
        "max_connect_size": 1 << 20,
        "max_packet_size": 1 << 20,
        "max_cached_routes": 3,
        "max_allowed_topics": 4,
    }
    broker = MemoryBroker(**limits, **parts)
    broker.engine.admission._reader = _READER
    listener = broker.open(shared_service("backend"))
    listener.connect(client_id="backend")
    listener.subscribe(request("fleet/#", 1))
    client = broker.open(shared_device("meter-1"), version=version)
    for piece in pieces:
        if client.transport.closed:
            break
        broker.engine.turn.begin()
        client.connection.receive(piece, broker.now)
        broker.engine.turn.end()
        broker.settle()
    return (
        [bytes(each) for each in client.transport.packets],
        bool(client.transport.closed),
        [bytes(each) for each in listener.transport.packets],
    )


def _stream(data: bytes) -> None:
    """A client's bytes behind a valid CONNECT, if the first says so: whole, and on the slow way, one of them cut."""
    if len(data) < 2:
        return
    version = _VERSIONS[data[0] % 3]
    sent = (connect_packet(version, client_id="meter-1").encode(version) if data[0] & 64 else b"") + data[1:]
    fast, slowly = (cuts(sent), [sent]) if data[0] & 32 else ([sent], cuts(sent))
    agree("cut elsewhere, on the slow way", _played(slowly, version, PlainConnection), _played(fast, version, None))


def _streams() -> list[bytes]:
    seeds = []
    for number, version in enumerate(_VERSIONS):
        begin = bytes([64 | (number - 64) % 3])
        say: list[Packet] = [Publish("fleet/meters/meter-1/t", b"x", qos, packet_id=qos and 7) for qos in QoS]
        sent = b"".join(each.encode(version) for each in (*say, Pingreq()))
        seeds += [begin + sent, begin + sent * 3]
        seeds += [begin + case.data * 2 for case in PACKET_CASES if case.version == version]
        seeds.append(bytes([number]) + connect_packet(version, client_id="meter-1").encode(version) + sent)
    return seeds


class _Above:
    """What a WebSocket's messages are for."""

    def __init__(self) -> None:
        self.received = b""
        self.lost_by: str | None = None

    def receive(self, data: bytes, _now: float) -> None:
        self.received += data

    def lost(self, code: str, _now: float, _detail: str = "") -> None:
        self.lost_by = code

    def secured(self, *_: Any) -> None: ...

    def choke(self, *_: Any) -> None: ...

    unchoke = drained = choke


class _Below:
    """What a WebSocket is sent over; it may be closed once, and not be written to then."""

    address = "192.0.2.1:1"
    unsent = choked = False
    untaken = 0

    def __init__(self) -> None:
        self.sent = b""
        self.closed = self.is_held = False

    def write(self, packets: list[bytes]) -> None:
        agree("written when it is closed", self.closed, other=False)
        self.sent += b"".join(packets)

    def close(self, last: tuple[bytes, ...] = ()) -> None:
        self.write(list(last))
        self.closed = True

    def reset(self) -> None:
        self.closed = True

    def hold(self) -> None:
        agree("held", self.is_held, other=False)
        self.is_held = True

    def release(self) -> None:
        self.is_held = False


UPGRADE: Final = (
    b"GET /mqtt HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n"
)


def _framed(pieces: list[bytes]) -> tuple[Any, ...]:
    broker, below, above = MemoryBroker(), _Below(), _Above()
    transport: Any = below
    socket = WebSocket(transport, Metrics(), broker.engine.turn)
    user: Any = above
    socket.serve(user)
    for piece in pieces:
        if below.closed:
            break
        broker.engine.turn.begin()
        socket.receive(piece, 1.0)
        broker.engine.turn.end()
        broker.settle()
    return above.received, above.lost_by, below.closed


def _websocket(data: bytes) -> None:
    """Frames behind an upgrade, if the first byte is odd; or the whole."""
    if len(data) > 1:
        sent = (UPGRADE if data[0] & 1 else b"") + data[1:]
        agree("cut elsewhere", _framed(cuts(sent)), _framed([sent]))


def _frame(opcode: int, content: bytes, *, last: bool = True, reserved: int = 0) -> bytes:
    mask = b"\1\2\3\4"
    size = bytes([128 | len(content)]) if len(content) < 126 else b"\xfe" + len(content).to_bytes(2, "big")
    masked = bytes(each ^ mask[place % 4] for place, each in enumerate(content))
    return bytes([last << 7 | reserved << 4 | opcode]) + size + mask + masked


_FRAMES: Final = (
    *(_frame(2, b"abc"), _frame(2, b"z" * 200), _frame(2, b""), _frame(1, b"text"), _frame(2, b"x", reserved=4)),
    _frame(2, b"a", last=False) + _frame(0, b"b", last=False) + _frame(9, b"ping") + _frame(0, b"c"),
    *(_frame(8, b"\x03\xe8bye"), _frame(8, b""), _frame(9, b"x") * 5, _frame(10, b"")),
)


def _proxy_header(data: bytes) -> None:
    """However little has come: what a header says stays what it is when more comes."""
    said: ProxyHeader | str | None = None
    for end in range(1, min(len(data), 600) + 1):
        try:
            now: ProxyHeader | str | None = read_header(data[:end])
        except InvalidHeader as error:
            str(error).encode()
            now = "refused"
        if said is not None:
            agree("with more bytes", now, said)
        elif isinstance(now, ProxyHeader):
            agree("how long it is", now.size, end)
        said = now


TARGETS: Final = (
    Target(
        "codec",
        _codec,
        [bytes([_VERSIONS.index(case.version), *split_packet(case.data)[:1]]) + split_packet(case.data)[1]
         for case in PACKET_CASES],
        longest=600,
    ),
    Target("stream", _stream, _streams(), longest=800),
    Target(
        "websocket",
        _websocket,
        [b"\0" + UPGRADE, *(b"\1" + each for each in _FRAMES), b"\0GET / HTTP/1.1\r\n\r\n", b"\0\x10\x0c\0\4MQTT"],
        words=[b"Upgrade", b"websocket", b"\r\n\r\n", b"Transfer-Encoding: chunked\r\n", b"Origin: http://x\r\n"],
        longest=900,
    ),
    Target(
        "proxy_header",
        _proxy_header,
        [line(("1.2.3.4", 5)), line(("::1", 5), ("::2", 7)), LOCAL, UNKNOWN, block(("::ffff:1.2.3.4", 5)), block(None)],
        words=[b"PROXY ", b"TCP4 ", b"TCP6 ", b"UNKNOWN", b"\r\n", SIGNATURE],
        longest=600,
    ),
)  # fmt: skip
