"""The port to which the host of plugins (`broker.plugins`) is attached, if there are plugins.

Rules
-----
1. An extension can only refuse. It is asked only about what the broker's own admission and policy permit; it never
   hears of what those refuse.
2. If it needs time, it returns an `Inquiry`: the client's packet waits, and nothing behind it is handled, so that the
   order of one client's packets is kept. None means that all answers are known already: `refusal` returns them at once.
3. It raises nothing. Without a known answer it refuses.
4. With no extension attached nothing of this is called, and the data path works as if it did not exist.
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
        """Whether it checks, or is notified of, each message: the data path then inlines none."""

    @property
    def looks_at_packets(self) -> bool:
        """Whether it is notified of each packet."""

    @property
    def figures(self) -> AbstractSet[str]:
        """Topics below ``$SYS/broker/`` that it publishes to; they replace the broker's figures of the same name."""

    def describe(self) -> list[dict[str, object]]:
        """Return the plugins it consists of, for operators."""

    def authenticate(self, connection: Client, client_id: str, packet: Connect) -> Inquiry | None:
        """Ask about a client that admission would let in as *client_id*; None: no plugin has to be asked."""

    def ask_subscribe(self, session: Session, filters: Sequence[str]) -> Inquiry | None:
        """Ask whether the client of *session* may subscribe to *filters*."""

    def ask_publish(self, session: Session, topic: str, receivers: Sequence[Subscriber]) -> Inquiry | None:
        """Ask whether the client of *session* may publish to *topic*, and whether *receivers* may receive it."""

    def ask_will(self, session: Session, topic: str, receivers: Sequence[Subscriber]) -> Inquiry | None:
        """Ask the same about a will of *session*, whose client has left, and may have been replaced before the answer.

        The answer is the inquiry's `refusal`, and applies to that will alone. None: it may be published.
        """

    def ask_receivers(self, topic: bytes, receivers: Sequence[Subscriber]) -> Inquiry | None:
        """Ask whether *receivers* may receive a message of *topic*."""

    def refusal(self, session: Session, action: Action, topic: str) -> tuple[ReasonCode, str] | None:
        """Return why the client of *session* may not do *action* with *topic*, by the latest verdict, or None."""

    def connected(self, connection: Client, session: Session, packet: Connect) -> None:
        """Report that the client of *session* was admitted."""

    def disconnected(self, session: Session) -> None:
        """Report that the client of *session* has left."""

    def subscribed(self, session: Session, topic_filter: str, qos: int) -> None:
        """Report that a subscription was granted."""

    def unsubscribed(self, session: Session, topic_filter: str) -> None:
        """Report that a subscription was removed."""

    def received(self, session: Session, topic: str, packet: Publish) -> None:
        """Report a permitted message, before it is routed."""

    def retained(self, message: Message) -> None:
        """Report that a message was retained, or that an empty payload has deleted one."""

    def packet_received(self, session: Session | None, first: int, size: int) -> None:
        """Report a packet from a client: its first byte, and its total size."""

    def packet_sent(self, session: Session | None, first: int, size: int) -> None:
        """Report a packet to a client."""
