"""A client that asks for much at once gets it in portions, with a turn for everybody else between two.

Theory
------
A read brings 16 KB at most, a turn 64 of them. Of packets that the data path acts on by itself a read is some
milliseconds; of small ones that it does not, PUBLISH packets without permission say, or to topics that nobody has
published to, it would be hundreds, in which nobody else is served. So after so much work (`broker.sockets.work`) the
rest waits for the event loop to come round, as a packet waits that somebody is asked about, and nothing behind it is
read meanwhile; nor is another read of that connection begun (`broker.sockets.transport`). The order stays.

Rules
-----
1. What is waited for is one round of the loop: who is alone loses some microseconds.
2. No I/O, no clock: by when it is acted on, the time of the read has passed by as long as the others took.
"""

from __future__ import annotations

from typing import NoReturn

from broker.admission.inquiry import Inquiry, Waits
from broker.engine.client import Client
from broker.mqtt.packets import Packet
from broker.mqtt.publication import Publish
from broker.sockets.turn import Turn


def work_of(packet: Packet, length: int) -> int:
    """Return how many packets *packet* counts as (`broker.sockets.work`); *length*: of its body, in bytes.

    Of a PUBLISH its properties count, and its payload does not; of others, each filter or property as much as a packet.
    """
    if isinstance(packet, Publish):
        return 1 + (len(packet.properties.user_properties) >> 4)
    return 1 + (length >> 4)


def wait_a_turn(connection: Client, packet: Packet, turn: Turn, now: float) -> NoReturn:
    """Let *packet*, and what is behind it, wait until everybody has had a turn. Raises `Waits`.

    It is acted on as of *now*, the time of the read: a client that has to rest (`broker.connection.meter`) is not taken
    to have done so in between.
    """
    inquiry = Inquiry()
    connection.wait(inquiry, packet)
    turn.later(lambda: inquiry.answer(None, now))
    raise Waits


def wait_for_room(connection: Client, packet: Packet | None, turn: Turn, now: float) -> NoReturn:
    """Let *packet* (None: what is not decoded yet), and what is behind it, wait until `Turn.rounds` has room again.

    Raises `Waits`. For *now* see `wait_a_turn`.
    """
    inquiry = Inquiry()
    connection.wait(inquiry, packet)
    turn.rounds.wait(lambda: inquiry.answer(None, now))
    raise Waits
