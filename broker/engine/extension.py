"""What others may add to the broker: the port to which the host of plugins is attached (`broker.plugins`), or nobody.

Rules
-----
1. It can only refuse. It is asked about what the broker's own admission and policy have let through, and about nothing
   else; what they refuse it never hears of.
2. What it needs time for is an `Inquiry`: the client's packet waits, and nothing behind it is read, so that what one
   client sends keeps its order. None means that everything asked is known already: `refusal` then says it at once.
3. It raises nothing. What it does not know is refused.
4. Nobody attached: nothing of this is called, and the data path is as if it did not exist.
"""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from enum import StrEnum
from typing import Protocol

from broker.admission.inquiry import Inquiry
from broker.engine.client import Client
from broker.mqtt.codes import ReasonCode
from broker.mqtt.connect import Connect
from broker.mqtt.message import Message
from broker.mqtt.publication import Publish
from broker.routing.router import Subscriber
from broker.session.session import Session


class Action(StrEnum):
    """What is done with a topic."""

    PUBLISH = "publish"
    SUBSCRIBE = "subscribe"
    RECEIVE = "receive"


class Extension(Protocol):
    """The host of plugins, as the broker sees it."""

    @property
    def looks_at_messages(self) -> bool:
        """Whether it is asked about, or told of, each message: the data path then inlines none."""

    @property
    def looks_at_packets(self) -> bool:
        """Whether it is told of each packet."""

    @property
    def figures(self) -> AbstractSet[str]:
        """Topics below ``$SYS/broker/`` that it publishes to: the broker's own figures of that name give way."""

    def describe(self) -> list[dict[str, object]]:
        """Return what it consists of, for operators."""

    def authenticate(self, connection: Client, client_id: str, packet: Connect) -> Inquiry | None:
        """Ask about a client whom admission would let in as *client_id*; None: nobody has to be asked."""

    def ask_subscribe(self, session: Session, filters: Sequence[str]) -> Inquiry | None:
        """Ask whether the client of *session* may subscribe to *filters*."""

    def ask_publish(self, session: Session, topic: str, receivers: Sequence[Subscriber]) -> Inquiry | None:
        """Ask whether the client of *session* may publish to *topic*, and *receivers* may get what it publishes."""

    def ask_will(self, session: Session, topic: str, receivers: Sequence[Subscriber]) -> Inquiry | None:
        """Ask the same of a will of *session*, whose client has gone, and may be another when the answer is there.

        Its `refusal` is the answer, which counts for that will alone. None: it may be published.
        """

    def ask_receivers(self, topic: bytes, receivers: Sequence[Subscriber]) -> Inquiry | None:
        """Ask whether *receivers* may get a message of *topic*."""

    def refusal(self, session: Session, action: Action, topic: str) -> tuple[ReasonCode, str] | None:
        """Return why the client of *session* may not do *action* with *topic*, as was last found out, or None."""

    def connected(self, connection: Client, session: Session, packet: Connect) -> None:
        """Tell that the client of *session* is let in."""

    def disconnected(self, session: Session) -> None:
        """Tell that the client of *session* is gone."""

    def subscribed(self, session: Session, topic_filter: str, qos: int) -> None:
        """Tell that a subscription was granted."""

    def unsubscribed(self, session: Session, topic_filter: str) -> None:
        """Tell that a subscription was taken away."""

    def received(self, session: Session, topic: str, packet: Publish) -> None:
        """Tell of a message that is permitted, before it is routed."""

    def retained(self, message: Message) -> None:
        """Tell of a message that is kept, or forgotten if its payload is empty."""

    def packet_received(self, session: Session | None, first: int, size: int) -> None:
        """Tell of a packet from a client: its first byte, and its bytes in all."""

    def packet_sent(self, session: Session | None, first: int, size: int) -> None:
        """Tell of a packet to a client."""
