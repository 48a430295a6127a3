"""CONNECT and CONNACK: how a Network Connection begins (MQTT 5 §3.1, §3.2; 3.1.1 and 3.1 alike).

Rules
-----
1. A CONNECT states its version; no other packet does. `protocol_version_of` reads only that, so that a server can
   answer a CONNECT it cannot accept in the client's own version.
2. A CONNACK of MQTT 3.1.1 has a return code in place of a reason code; `Connack.reason_code` is a `ReasonCode` in
   every version.
3. A `repr` contains no password and no Will payload.

Does not handle: whether the client may use the identifier (an empty one included), and whether it is who it claims.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Final, Self

from broker.mqtt.codes import (
    CONNECT_REASONS,
    ConnectReturnCode,
    PacketType,
    ProtocolVersion,
    QoS,
    ReasonCode,
    connect_return_code,
)
from broker.mqtt.errors import MalformedPacket, ProtocolError
from broker.mqtt.properties import NO_PROPERTIES, WILL, Properties, encode_properties, read_properties
from broker.mqtt.reason import read_reason_code
from broker.mqtt.topics import check_topic_name
from broker.mqtt.wire import Reader, encode_binary, encode_byte, encode_frame, encode_string, encode_two_byte_integer

_VERSIONS: Final = {
    ("MQIsdp", 3): ProtocolVersion.V31,
    ("MQTT", 4): ProtocolVersion.V311,
    ("MQTT", 5): ProtocolVersion.V5,
}
_PREFIX: Final = {version: encode_string(name) + encode_byte(version) for (name, _level), version in _VERSIONS.items()}

_USER_NAME: Final = 0x80
_PASSWORD: Final = 0x40
_WILL_RETAIN: Final = 0x20
_WILL_QOS_SHIFT: Final = 3
_WILL: Final = 0x04
_CLEAN_START: Final = 0x02
_RESERVED: Final = 0x01
_WILL_QOS_AND_RETAIN: Final = 0x38

_SESSION_PRESENT: Final = 0x01

CONNACK_REASONS: Final = frozenset(
    {
        ReasonCode.SUCCESS,
        ReasonCode.UNSPECIFIED_ERROR,
        ReasonCode.MALFORMED_PACKET,
        ReasonCode.PROTOCOL_ERROR,
        ReasonCode.IMPLEMENTATION_SPECIFIC_ERROR,
        ReasonCode.UNSUPPORTED_PROTOCOL_VERSION,
        ReasonCode.CLIENT_IDENTIFIER_NOT_VALID,
        ReasonCode.BAD_USER_NAME_OR_PASSWORD,
        ReasonCode.NOT_AUTHORIZED,
        ReasonCode.SERVER_UNAVAILABLE,
        ReasonCode.SERVER_BUSY,
        ReasonCode.BANNED,
        ReasonCode.BAD_AUTHENTICATION_METHOD,
        ReasonCode.TOPIC_NAME_INVALID,
        ReasonCode.PACKET_TOO_LARGE,
        ReasonCode.QUOTA_EXCEEDED,
        ReasonCode.PAYLOAD_FORMAT_INVALID,
        ReasonCode.RETAIN_NOT_SUPPORTED,
        ReasonCode.QOS_NOT_SUPPORTED,
        ReasonCode.USE_ANOTHER_SERVER,
        ReasonCode.SERVER_MOVED,
        ReasonCode.CONNECTION_RATE_EXCEEDED,
    }
)


def protocol_version_of(body: bytes) -> ProtocolVersion:
    """Return the version in which the CONNECT with this *body* is written.

    Raises `ProtocolError` with ``UNSUPPORTED_PROTOCOL_VERSION`` for an unsupported version or protocol; answer it with
    a CONNACK of MQTT 3.1.1, the shortest one, which clients of any version understand.
    """
    return _read_protocol_version(Reader(body))


def _read_protocol_version(reader: Reader) -> ProtocolVersion:
    name, level = reader.string("protocol name"), reader.byte("protocol version")
    version = _VERSIONS.get((name, level))
    if version is None:  # [MQTT-3.1.2-1], [MQTT-3.1.2-2]
        raise ProtocolError(
            f"protocol name {name[:16]!r} version {level}: use 'MQTT' with 5 or 4, or 'MQIsdp' with 3",
            ReasonCode.UNSUPPORTED_PROTOCOL_VERSION,
        )
    return version


@dataclass(frozen=True, slots=True)
class Will:
    """The message that the server publishes when the connection ends without a DISCONNECT."""

    topic: str
    payload: bytes = field(default=b"", repr=False)
    qos: QoS = QoS.AT_MOST_ONCE
    retain: bool = False
    properties: Properties = NO_PROPERTIES


@dataclass(slots=True, init=False)
class Connect:
    """A client asks for a connection. ``clean_start`` is called Clean Session in 3.1.1. Immutable."""

    packet_type: ClassVar[PacketType] = PacketType.CONNECT

    client_id: str = ""
    protocol_version: ProtocolVersion = ProtocolVersion.V5
    clean_start: bool = True
    keep_alive: int = 0
    will: Will | None = None
    username: str | None = None
    password: bytes | None = field(default=None, repr=False)
    properties: Properties = NO_PROPERTIES

    def __init__(  # Written out for mypyc to compile.
        self,
        client_id: str = "",
        protocol_version: ProtocolVersion = ProtocolVersion.V5,
        clean_start: bool = True,
        keep_alive: int = 0,
        will: Will | None = None,
        username: str | None = None,
        password: bytes | None = None,
        properties: Properties = NO_PROPERTIES,
    ) -> None:
        self.client_id = client_id
        self.protocol_version = protocol_version
        self.clean_start = clean_start
        self.keep_alive = keep_alive
        self.will = will
        self.username = username
        self.password = password
        self.properties = properties

    @staticmethod
    def read(reader: Reader, _flags: int, _version: ProtocolVersion) -> Connect:
        """Take a CONNECT off *reader*, in the version it announces."""
        version = _read_protocol_version(reader)
        flags = _check_flags(reader.byte("connect flags"), version)
        keep_alive = reader.two_byte_integer("keep alive")
        v5 = version is ProtocolVersion.V5
        properties = read_properties(reader, PacketType.CONNECT) if v5 else NO_PROPERTIES
        if properties.authentication_data is not None and properties.authentication_method is None:  # §3.1.2.11.10
            raise ProtocolError("authentication data: not allowed without an authentication method")
        client_id = reader.string("client identifier")  # [MQTT-3.1.3-1] fixes the order from here on.
        will = _read_will(reader, flags, version) if flags & _WILL else None
        # MQTT 3.1 §3.1: the Remaining Length overrides the flags: a missing user name, or password, is valid.
        username = reader.string("user name") if flags & _USER_NAME and _is_there(reader, version) else None
        password = reader.binary("password") if flags & _PASSWORD and _is_there(reader, version) else None
        return Connect(
            client_id=client_id,
            protocol_version=version,
            clean_start=bool(flags & _CLEAN_START),
            keep_alive=keep_alive,
            will=will,
            username=username,
            password=password,
            properties=properties,
        )

    def encode(self, _version: ProtocolVersion | None = None) -> bytes:
        """Return the packet in its own version, regardless of the argument."""
        version, will = self.protocol_version, self.will
        v5 = version is ProtocolVersion.V5
        flags = _CLEAN_START if self.clean_start else 0
        payload = encode_string(self.client_id)
        if will is not None:
            flags |= _WILL | will.qos << _WILL_QOS_SHIFT | (_WILL_RETAIN if will.retain else 0)
            payload += encode_properties(will.properties, WILL) if v5 else b""
            payload += encode_string(will.topic) + encode_binary(will.payload)
        if self.username is not None:
            flags |= _USER_NAME
            payload += encode_string(self.username)
        if self.password is not None:
            flags |= _PASSWORD
            payload += encode_binary(self.password)
        header = _PREFIX[version] + encode_byte(flags) + encode_two_byte_integer(self.keep_alive)
        header += encode_properties(self.properties, PacketType.CONNECT) if v5 else b""
        return encode_frame(PacketType.CONNECT << 4, header + payload)


def _check_flags(flags: int, version: ProtocolVersion) -> int:
    if flags & _RESERVED and version is not ProtocolVersion.V31:  # [MQTT-3.1.2-3]; "x", don't care, in MQTT 3.1.
        raise MalformedPacket("connect flags: the reserved bit is set")
    if flags & _WILL:
        if flags >> _WILL_QOS_SHIFT & 3 > QoS.EXACTLY_ONCE:  # [MQTT-3.1.2-12]
            raise MalformedPacket("connect flags: will QoS 3 does not exist")
    elif flags & _WILL_QOS_AND_RETAIN and version is not ProtocolVersion.V31:  # [MQTT-3.1.2-11], [MQTT-3.1.2-13]
        raise MalformedPacket("connect flags: will QoS and will retain must be 0 without a will")
    if flags & _PASSWORD and not flags & _USER_NAME and version is not ProtocolVersion.V5:
        raise MalformedPacket("connect flags: a password needs a user name")  # 3.1.1 [MQTT-3.1.2-22]
    return flags


def _is_there(reader: Reader, version: ProtocolVersion) -> bool:
    """Whether a field that the flags announce is read: in MQTT 3.1, if anything is left; otherwise it must be there."""
    return version is not ProtocolVersion.V31 or reader.remaining > 0


def _read_will(reader: Reader, flags: int, version: ProtocolVersion) -> Will:
    properties = read_properties(reader, WILL) if version is ProtocolVersion.V5 else NO_PROPERTIES
    return Will(  # [MQTT-3.1.2-9]
        topic=check_topic_name(reader.string("will topic")),
        payload=reader.binary("will payload"),
        qos=QoS(flags >> _WILL_QOS_SHIFT & 3),
        retain=bool(flags & _WILL_RETAIN),
        properties=properties,
    )


@dataclass(frozen=True, slots=True)
class Connack:
    """The server's answer to a CONNECT."""

    packet_type: ClassVar[PacketType] = PacketType.CONNACK

    reason_code: ReasonCode = ReasonCode.SUCCESS
    session_present: bool = False
    properties: Properties = NO_PROPERTIES

    @classmethod
    def read(cls, reader: Reader, _flags: int, version: ProtocolVersion) -> Self:
        """Take a CONNACK off *reader*."""
        flags = reader.byte("connect acknowledge flags")
        if version is ProtocolVersion.V31:
            flags = 0  # A reserved byte, "not used" (MQTT 3.1 §3.2).
        elif flags & ~_SESSION_PRESENT:  # [MQTT-3.2.2-1]
            raise MalformedPacket("connect acknowledge flags: a reserved bit is set")
        if version is ProtocolVersion.V5:
            reason_code = read_reason_code(reader, CONNACK_REASONS, PacketType.CONNACK)
            properties = read_properties(reader, PacketType.CONNACK)
        else:
            reason_code, properties = _read_return_code(reader), NO_PROPERTIES
        if flags and reason_code is not ReasonCode.SUCCESS:  # [MQTT-3.2.2-6]
            raise ProtocolError("session present: must be 0 when the connection is refused")
        return cls(reason_code, bool(flags), properties)

    def encode(self, version: ProtocolVersion) -> bytes:
        """Return the packet; before MQTT 5 with the nearest return code and without properties."""
        flags = _SESSION_PRESENT if self.session_present and version is not ProtocolVersion.V31 else 0
        if version is ProtocolVersion.V5:
            answer = encode_byte(self.reason_code) + encode_properties(self.properties, PacketType.CONNACK)
        else:
            answer = encode_byte(connect_return_code(self.reason_code))
        return encode_frame(PacketType.CONNACK << 4, encode_byte(flags) + answer)


def _read_return_code(reader: Reader) -> ReasonCode:
    value = reader.byte("connect return code")
    try:
        return CONNECT_REASONS[ConnectReturnCode(value)]
    except ValueError:
        raise ProtocolError(f"connect return code: {value} is reserved") from None
