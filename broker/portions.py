"""A client that asks for much at once gets it in portions, with a turn for everybody else between two.

Theory
------
A read brings 16 KB at most. Of packets that the data path acts on by itself that is some milliseconds; of small ones
that it does not, PUBLISH packets without permission say, it would be hundreds, in which nobody else is served. So after
a number of those the rest waits for the event loop to come round, as a packet waits that somebody is asked about, and
nothing behind it is read meanwhile. The order stays.

Rules
-----
1. What is waited for is one round of the loop: who is alone loses some microseconds.
2. No I/O, no clock: by when it is acted on, the time of the read has passed by as long as the others took.
"""

from __future__ import annotations

from typing import Final, NoReturn

from broker.admission.inquiry import Inquiry, Waits
from broker.client import Client
from broker.mqtt.packets import Packet
from broker.turn import Turn

PORTION: Final = 128
"""Packets of one read that are acted on the obvious way before the rest waits: a few milliseconds."""
_PUBLISH_AND_ITS_ANSWERS: Final = 0x80


def work_of(first: int, length: int) -> int:
    """Return how many packets one counts as, by its first byte and the *length* of its body.

    Of one behind a PUBLISH and its answers, in the order of packet types, each filter is as much as a packet.
    """
    return 1 if first < _PUBLISH_AND_ITS_ANSWERS else 1 + (length >> 4)


def wait_a_turn(connection: Client, packet: Packet, turn: Turn, now: float) -> NoReturn:
    """Let *packet*, and what is behind it, wait until everybody has had a turn. Raises `Waits`.

    It is acted on as of *now*, the time of the read: a client that has to rest (`broker.meter`) is not taken to have
    done so in between.
    """
    inquiry = Inquiry()
    connection.wait(inquiry, packet)
    turn.later(lambda: inquiry.answer(None, now))
    raise Waits
