"""A client that asks for much at once is served in portions, with a turn for all other clients between two.

Theory
------
A read brings at most 16 KB, a turn at most 64 reads. For packets that the data path handles itself, a read takes some
milliseconds; of the smallest, pings and PUBACKs, it takes only so many at once. For small packets that it does not
handle, such as PUBLISH without permission or to topics not published to before, a read would take hundreds, during
which no other client is served. So after a certain amount of work (`broker.sockets.work`) the rest waits for the next
round of the event loop, just as a packet waits for an inquiry.
Meanwhile nothing behind it is handled, and that connection is not read (`broker.sockets.transport`). Order is kept.

Rules
-----
1. The wait is one round of the loop: a client that is alone loses some microseconds. Of many who wait, as many are
   served in each round as do one portion of work together (`broker.sockets.turn`); what they ask for in one turn before
   they wait is bounded likewise.
2. What waits when its connection ends, because the client has cut it or connected anew, is not handled any more, except
   for a DISCONNECT: the client has said goodbye, so there is no will [MQTT-3.14.4-3].
3. No I/O, no clock: the portion is handled with the time of its read, which is older by as long as the others took.
"""

from __future__ import annotations

from typing import Final, NoReturn

from broker.admission.inquiry import Inquiry, Waits
from broker.engine.client import Client
from broker.mqtt.codes import PacketType, ProtocolVersion
from broker.mqtt.disconnect import Disconnect
from broker.mqtt.framing import split_frames
from broker.mqtt.packets import Packet, decode_packet
from broker.mqtt.publication import Publish
from broker.mqtt.wire import MAXIMUM_VARIABLE_INTEGER
from broker.sockets.turn import Turn

_DISCONNECT: Final = PacketType.DISCONNECT << 4
_FLAGS: Final = 0x0F


def work_of(packet: Packet, length: int) -> int:
    """Return how many packets *packet* counts as (`broker.sockets.work`); *length* is that of its body, in bytes.

    In a PUBLISH the properties count, the payload does not; in other packets each filter or property counts as one.
    """
    if isinstance(packet, Publish):
        return 1 + (len(packet.properties.user_properties) >> 4)
    return 1 + (length >> 4)


def wait_a_turn(connection: Client, packet: Packet | None, turn: Turn, now: float) -> NoReturn:
    """Delay *packet*, if any, and what is behind it, until all other clients have had a turn. Raises `Waits`.

    It is handled as of *now*, the time of the read, so that a client that has to rest (`broker.connection.meter`) gets
    no credit for the delay.
    """
    inquiry = Inquiry()
    connection.wait(inquiry, packet)
    turn.portion(lambda: inquiry.answer(None, now))
    raise Waits


def wait_for_room(connection: Client, packet: Packet | None, turn: Turn, now: float) -> NoReturn:
    """Delay *packet* (None: not decoded yet), and what is behind it, until `Turn.rounds` has room again.

    Raises `Waits`. For *now* see `wait_a_turn`.
    """
    inquiry = Inquiry()
    connection.wait(inquiry, packet)
    turn.rounds.wait(lambda: inquiry.answer(None, now))
    raise Waits


def goodbye_in(data: bytes, version: ProtocolVersion) -> Disconnect | None:
    """Return the DISCONNECT among the whole packets in *data*, a read of some KB; None: there is none.

    Raises `PacketError`.
    """
    if _DISCONNECT not in data and version is not ProtocolVersion.V31:  # Nearly always.
        return None
    frames, _ = split_frames(data, MAXIMUM_VARIABLE_INTEGER)
    for first, body, end in frames:
        if first & ~_FLAGS == _DISCONNECT:  # Which flags it may have is the codec's matter: in MQTT 3.1 any.
            packet = decode_packet(first, data[body:end], version)
            return packet if isinstance(packet, Disconnect) else None
    return None
