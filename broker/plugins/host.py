"""The host of amqtt's plugins: passes the broker's questions and events (`broker.engine.extension`) on to them.

Theory
------
Plugins are coroutines; the broker's engine waits for nothing. So a question to a plugin is an `Inquiry` (a client's
packet waits for it, and nothing behind that packet is read), and an event is put into the plugin's queue
(`broker.plugins.events`). Answers of topic plugins are cached for a while (`broker.plugins.verdicts`), so that for a
device that publishes to its topic every second they are asked now and then, not every second.

All questions about a message are asked when it arrives: whether its publisher may publish it, and whether each
subscriber may receive it. When all answers are known it is routed at once, and each session checks again (`permits`),
which is a look-up. So the order of a publisher's messages is kept, and what is acknowledged is on disk, as without
plugins.

Rules
-----
1. Plugins see nothing that the broker's own rules refuse: no client, no message, no subscription.
2. Plugins run in the broker's event loop, as in amqtt. One that blocks it (``time.sleep``) stops the broker meanwhile:
   `broker.plugins.watch` reports which one it was.

Handles: every event of amqtt's broker, packets with their type and length only. Does not handle:
``broker_retained_message`` for messages queued for a client that is away (amqtt reports those too).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from broker.admission.inquiry import Inquiry
from broker.admission.refusal import RefusalCode, Refused, unauthorised, unavailable
from broker.engine.client import Client
from broker.engine.engine import Engine
from broker.engine.extension import Action
from broker.mqtt.codes import ReasonCode
from broker.mqtt.connect import Connect
from broker.mqtt.message import Message
from broker.mqtt.publication import Publish
from broker.plugins.events import PluginEvents
from broker.plugins.plugin_set import PluginSet
from broker.plugins.questions import Questions, Wanted
from broker.plugins.sessions import HostedSession, described, password_of
from broker.plugins.views import ReceivedMessage, SeenPacket, kept_message
from broker.routing.router import Subscriber
from broker.routing.shared import ShareGroup
from broker.session.session import Session

_ROOM_SECONDS = 1.0
"""How long a publisher is held because a plugin has not handled the earlier events yet."""
_SAID = {
    RefusalCode.REFUSED_BY_PLUGIN: "REFUSED_BY_PLUGIN: a plugin does not permit it",
    RefusalCode.PLUGIN_FAILED: "PLUGIN_FAILED: a plugin that must be asked has not answered; try again later",
}


class Newcomer(Inquiry):
    """A question about a client that is not admitted yet, and the client as plugins see it."""

    __slots__ = ("session",)

    def __init__(self, session: HostedSession) -> None:
        super().__init__()
        self.session = session


class PluginHost:
    """The plugins of one broker, as an `Extension`."""

    def __init__(self, engine: Engine, *, claimed_names: bool, keeps_passwords: bool = False) -> None:
        """With *claimed_names* plugins see the user names in CONNECT, which one of them is expected to check.

        With *keeps_passwords* they see its password as long as the client is connected.
        """
        self._engine = engine
        self._claimed_names = claimed_names
        self._keeps_passwords = keeps_passwords
        self.figures: set[str] = set()
        self._loop = asyncio.get_running_loop()
        self._sessions: dict[Session, HostedSession] = {}
        self._plugin_set: PluginSet
        self._questions: Questions

    def attach(self, plugin_set: PluginSet, questions: Questions) -> None:
        """Begin to ask and notify the plugins of *plugin_set*."""
        self._plugin_set = plugin_set
        self._questions = questions
        self._engine.extension = self
        if questions.topic_plugins:
            self._engine.registry.permits = self._may_receive
            self._engine.replays.ask = self._ask_receive

    @property
    def looks_at_messages(self) -> bool:
        """Whether plugins want each message."""
        return self._plugin_set.looks_at_messages or bool(self._questions.topic_plugins)

    @property
    def looks_at_packets(self) -> bool:
        """Whether plugins want each packet."""
        return self._plugin_set.looks_at_packets

    def describe(self) -> list[dict[str, object]]:
        """Return which plugins there are, for operators."""
        return self._plugin_set.describe()

    def hosted(self, session: Session) -> HostedSession:
        """Return *session* as plugins see it."""
        found = self._sessions.get(session)
        if found is None:
            named = self._engine.admission.name_of(session.owner)
            found = self._sessions[session] = described(session, named, self._client_of(session))
        return found

    def _client_of(self, session: Session) -> str:
        return self._engine.admission.client_of(session.owner, session.client_id)

    def sweep(self) -> None:
        """Forget the sessions that have ended."""
        for session in [each for each in self._sessions if not self._engine.registry.has(each)]:
            del self._sessions[session]

    # Admission

    def authenticate(self, connection: Client, client_id: str, packet: Connect) -> Inquiry | None:
        """Ask every authentication plugin."""
        peer = connection.peer
        if not self._questions.auth_plugins or peer is None:
            return None
        session = HostedSession()
        session.present(connection, peer, self._engine.admission.name_of(peer.identity), client_id, packet)
        session.claim(packet)
        newcomer = Newcomer(session)

        async def find_out() -> None:
            code: RefusalCode | None = RefusalCode.PLUGIN_FAILED
            try:
                code = await self._questions.authenticate(session)
            finally:
                session.believe(claimed=self._claimed_names)
                newcomer.answer(None if code is None else _refused(code), self._loop.time())

        self._questions.start(find_out())
        return newcomer

    # Topics

    def ask_subscribe(self, session: Session, filters: Sequence[str]) -> Inquiry | None:
        """Ask what is unknown about subscribing to *filters*."""
        hosted = self.hosted(session)
        if not self._questions.topic_plugins:
            return None
        return self._questions.ask([(hosted, Action.SUBSCRIBE, topic_filter) for topic_filter in filters])

    def _ask_receive(self, session: Session, message: Message) -> Inquiry | None:
        return self._questions.ask([(self.hosted(session), Action.RECEIVE, message.topic.decode())])

    def ask_publish(self, session: Session, topic: str, receivers: Sequence[Subscriber]) -> Inquiry | None:
        """Ask what is unknown about publishing and receiving a message of *topic*; or wait for room."""
        if self._plugin_set.looks_at_messages and (holding := self._plugin_set.holding()):
            return self._wait_for_room(holding)
        if not self._questions.topic_plugins:
            return None
        return self._questions.ask([(self.hosted(session), Action.PUBLISH, topic), *self._receiving(topic, receivers)])

    def ask_will(self, session: Session, topic: str, receivers: Sequence[Subscriber]) -> Inquiry | None:
        """Ask the same about a will and the client that left it, not about one that has connected meanwhile."""
        if not self._questions.topic_plugins:
            return None
        hosted = self.hosted(session)
        standing, receiving = hosted.standing, self._receiving(topic, receivers)
        asked, will = self._questions.ask([(hosted, Action.PUBLISH, topic), *receiving]), Inquiry()

        def known(now: float) -> None:
            code = self._questions.known_of(standing, Action.PUBLISH, topic)
            will.answer(None if code is None else unauthorised(code, _SAID[code]), now)

        if asked is None:
            known(self._loop.time())
        else:
            asked.when_done(known)
        return will

    def _wait_for_room(self, holding: Sequence[PluginEvents]) -> Inquiry:
        room = Inquiry()

        def there_is() -> None:
            room.answer(None, self._loop.time())

        def give_up() -> None:
            if not room.done:
                for events in holding:
                    events.give_up()
                there_is()

        for events in holding:
            events.when_room(there_is)
        self._loop.call_later(_ROOM_SECONDS, give_up)
        return room

    def ask_receivers(self, topic: bytes, receivers: Sequence[Subscriber]) -> Inquiry | None:
        """Ask what is unknown about receiving a message of *topic*."""
        if not self._questions.topic_plugins:
            return None
        return self._questions.ask(self._receiving(topic.decode(), receivers))

    def refusal(self, session: Session, action: Action, topic: str) -> tuple[ReasonCode, str] | None:
        """Return the latest verdict; see `Extension.refusal`."""
        if not self._questions.topic_plugins:
            return None
        code = self._questions.known(self.hosted(session), action, topic)
        return None if code is None else (ReasonCode.NOT_AUTHORIZED, _SAID[code])

    def _may_receive(self, session: Session, topic: bytes) -> bool:
        return self._questions.known(self.hosted(session), Action.RECEIVE, topic.decode()) is None

    def _receiving(self, topic: str, receivers: Sequence[Subscriber]) -> list[Wanted]:
        sessions: list[Session] = []
        for receiver in receivers:
            members = receiver.members if isinstance(receiver, ShareGroup) else (receiver,)
            sessions += [member for member in members if isinstance(member, Session)]
        return [(self.hosted(session), Action.RECEIVE, topic) for session in sessions]

    # Events

    def connected(self, connection: Client, session: Session, packet: Connect) -> None:
        """Report that a client was admitted."""
        hosted, client = self.hosted(session), self._client_of(session)
        hosted.of = session
        if connection.peer is not None:
            named = self._engine.admission.name_of(connection.peer.identity)
            hosted.present(connection, connection.peer, named, client, packet)
        if isinstance(connection.consulted, Newcomer):
            hosted.resemble(connection.consulted.session)
        hosted.password = password_of(packet) if self._keeps_passwords else None
        hosted.standing = object()
        hosted.set_connected(True)
        self._plugin_set.tell("broker_client_connected", client_id=client, client_session=hosted)

    def disconnected(self, session: Session) -> None:
        """Report that a client has left."""
        hosted = self.hosted(session)
        hosted.set_connected(False)
        hosted.password = None
        client = self._client_of(session)
        self._plugin_set.tell("broker_client_disconnected", client_id=client, client_session=hosted)
        if not self._engine.registry.has(session):
            del self._sessions[session]

    def subscribed(self, session: Session, topic_filter: str, qos: int) -> None:
        """Report a subscription."""
        client = self._client_of(session)
        self._plugin_set.tell("broker_client_subscribed", client_id=client, topic=topic_filter, qos=int(qos))

    def unsubscribed(self, session: Session, topic_filter: str) -> None:
        """Report the end of one."""
        client = self._client_of(session)
        self._plugin_set.tell("broker_client_unsubscribed", client_id=client, topic=topic_filter)

    def received(self, session: Session, topic: str, packet: Publish) -> None:
        """Report a permitted message: that it arrived, and that it goes to its subscribers."""
        if self._plugin_set.looks_at_messages:
            message, client = ReceivedMessage(topic, packet), self._client_of(session)
            self._plugin_set.tell("broker_message_received", client_id=client, message=message)
            self._plugin_set.tell("broker_message_broadcast", client_id=client, message=message)

    def retained(self, message: Message) -> None:
        """Report a message that was retained, or deleted."""
        self._plugin_set.tell("broker_retained_message", client_id=None, retained_message=kept_message(message))

    def packet_received(self, session: Session | None, first: int, size: int) -> None:
        """Report a packet from a client."""
        hosted = None if session is None else self.hosted(session)
        self._plugin_set.tell("mqtt_packet_received", packet=SeenPacket(first, size), session=hosted)

    def packet_sent(self, session: Session | None, first: int, size: int) -> None:
        """Report a packet to a client."""
        hosted = None if session is None else self.hosted(session)
        self._plugin_set.tell("mqtt_packet_sent", packet=SeenPacket(first, size), session=hosted)


def _refused(code: RefusalCode) -> Refused:
    if code is RefusalCode.PLUGIN_FAILED:
        return unavailable(code, "a plugin that must be asked has not answered; try later")
    return unauthorised(code, "a plugin does not let this client in")
