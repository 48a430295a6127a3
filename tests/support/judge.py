"""An `Extension` controlled by a test: it is asked and told, and answers when the test lets it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet

from broker.admission.inquiry import Inquiry
from broker.admission.refusal import RefusalCode, Refused
from broker.engine.client import Client
from broker.engine.extension import Action
from broker.mqtt.codes import ReasonCode
from broker.mqtt.connect import Connect
from broker.mqtt.message import Message
from broker.mqtt.publication import Publish
from broker.routing.router import Subscriber
from broker.routing.shared import ShareGroup
from broker.session.session import Session
from tests.support.wire import MemoryBroker

Question = tuple[str, str, str]
"""Client, action, topic."""
REFUSED = Refused(RefusalCode.REFUSED_BY_PLUGIN, ReasonCode.NOT_AUTHORIZED, "no")


class Judge:
    """Asked about everything in *asks*; `asked` holds pending questions, `told` what it was told."""

    looks_at_packets = False
    figures: AbstractSet[str] = frozenset()

    def __init__(self, broker: MemoryBroker, *asks: str) -> None:
        self.asks = set(asks)
        self.asked: list[tuple[Question, Inquiry]] = []
        self.known: dict[Question, bool] = {}
        self.told: list[tuple[str, ...]] = []
        self._broker = broker
        broker.engine.extension = self
        if Action.RECEIVE in self.asks:
            broker.engine.registry.permits = lambda session, topic: self.known.get(
                (session.client_id, "receive", topic.decode()), False
            )
            broker.engine.replays.ask = lambda session, message: self._ask(
                [(session.client_id, Action.RECEIVE, message.topic.decode())]
            )

    @property
    def looks_at_messages(self) -> bool:
        return True

    def describe(self) -> list[dict[str, object]]:
        return []

    def answer(self, allows: Callable[[Question], bool] = lambda _: True) -> None:
        """Answer all pending questions."""
        asked, self.asked = self.asked, []
        for question, _ in asked:
            self.known[question] = allows(question)
        for question, inquiry in asked:
            refusal = REFUSED if question[1] == "connect" and not self.known[question] else None
            self._broker.engine.turn.begin()
            inquiry.answer(refusal, self._broker.now)
            self._broker.engine.turn.end()
            self._broker.settle()

    def _ask(self, questions: Sequence[Question]) -> Inquiry | None:
        missing = [each for each in questions if each[1] in self.asks and each not in self.known]
        if not missing:
            return None
        inquiry = Inquiry()
        self.asked += [(each, inquiry) for each in missing]
        return inquiry

    def authenticate(self, _connection: Client, client_id: str, _packet: Connect) -> Inquiry | None:
        return self._ask([(client_id, "connect", "")])

    def ask_subscribe(self, session: Session, filters: Sequence[str]) -> Inquiry | None:
        return self._ask([(session.client_id, Action.SUBSCRIBE, each) for each in filters])

    def ask_publish(self, session: Session, topic: str, receivers: Sequence[Subscriber]) -> Inquiry | None:
        return self._ask([(session.client_id, Action.PUBLISH, topic), *self._receiving(topic, receivers)])

    def ask_will(self, session: Session, topic: str, receivers: Sequence[Subscriber]) -> Inquiry | None:
        asked, will = self.ask_publish(session, topic, receivers), Inquiry()

        def known(now: float) -> None:
            will.answer(REFUSED if self.refusal(session, Action.PUBLISH, topic) else None, now)

        if asked is None:
            known(self._broker.now)
        else:
            asked.when_done(known)
        return will

    def ask_receivers(self, topic: bytes, receivers: Sequence[Subscriber]) -> Inquiry | None:
        return self._ask(self._receiving(topic.decode(), receivers))

    def _receiving(self, topic: str, receivers: Sequence[Subscriber]) -> list[Question]:
        all_of_them = [each.members if isinstance(each, ShareGroup) else (each,) for each in receivers]
        sessions = [one for each in all_of_them for one in each if isinstance(one, Session)]
        return [(each.client_id, Action.RECEIVE, topic) for each in sessions]

    def refusal(self, session: Session, action: Action, topic: str) -> tuple[ReasonCode, str] | None:
        refused = action in self.asks and not self.known.get((session.client_id, action, topic), False)
        return (ReasonCode.NOT_AUTHORIZED, "no") if refused else None

    def connected(self, _connection: Client, session: Session, _packet: Connect) -> None:
        self.told.append(("connected", session.client_id))

    def disconnected(self, session: Session) -> None:
        self.told.append(("disconnected", session.client_id))

    def subscribed(self, session: Session, topic_filter: str, _qos: int) -> None:
        self.told.append(("subscribed", session.client_id, topic_filter))

    def unsubscribed(self, session: Session, topic_filter: str) -> None:
        self.told.append(("unsubscribed", session.client_id, topic_filter))

    def received(self, session: Session, topic: str, _packet: Publish) -> None:
        self.told.append(("received", session.client_id, topic))

    def retained(self, message: Message) -> None:
        self.told.append(("retained", message.topic.decode()))

    def packet_received(self, _session: Session | None, first: int, size: int) -> None:
        self.told.append(("in", f"{first:02x}", str(size)))

    def packet_sent(self, _session: Session | None, first: int, size: int) -> None:
        self.told.append(("out", f"{first:02x}", str(size)))
