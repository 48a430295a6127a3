"""Subscriptions for operators: what a client has subscribed to, and who receives what is published to a topic.

Theory
------
It is the first question when a command does not arrive. The answer comes from the sessions, including those of clients
that are away, and not from the routes, which know the receivers of one topic and are dropped. A hundred thousand
sessions may have a hundred subscriptions each, so those of one session are copied, and after every few hundred the loop
gets a turn.

Rules
-----
1. No message content is shown (`broker.admin.sessions`): a filter is what a client asked for, not what was published.
2. ``topic`` finds the matching filters: who would receive a message published there now. Of the members of a Shared
   Subscription one receives it; all are shown, with their complete filter, including ``$share/``.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any, Final

from broker.admin.sessions import InvalidSelection, Selection, matching
from broker.engine.engine import Engine
from broker.mqtt.errors import MalformedPacket
from broker.mqtt.subscription import Subscription
from broker.mqtt.topics import SharedSubscription, check_topic_name, matches
from broker.session.session import Session

_STRETCH: Final = 200
"""Subscriptions between two turns of the loop: a third of a millisecond to examine, a whole one to show."""


async def subscriptions_document(
    engine: Engine, selection: Selection, topic: str | None, limit: int | None
) -> AsyncIterator[bytes]:
    """Yield a JSON document of at most *limit* subscriptions: ``{"subscriptions": […], "matched": n, "shown": n}``.

    They are those of the sessions in *selection*; with *topic*, those that match it.
    """
    matched = shown = since = 0
    yield b'{"subscriptions": ['
    async for sessions in matching(engine, selection):
        for session in sessions:
            for stretch in _stretches(tuple(session.subscriptions.values())):
                found = [each for each in stretch if topic is None or _gets(each, topic)]
                matched += len(found)
                told = found if limit is None else found[: limit - shown]
                if told:
                    text = ", ".join(json.dumps(_described(session, each)) for each in told)
                    yield f"{', ' if shown else ''}{text}".encode()
                    shown += len(told)
                since += len(stretch)
                if since >= _STRETCH:
                    since = 0
                    await asyncio.sleep(0)
    yield f'], "matched": {matched}, "shown": {shown}}}\n'.encode()


def checked_topic(topic: str | None) -> str | None:
    """Return *topic* if it is valid for publishing. Raises `InvalidSelection`."""
    if topic is None:
        return None
    try:
        return check_topic_name(topic)
    except MalformedPacket as error:
        raise InvalidSelection(f"topic: {error}") from None


def _stretches(subscriptions: tuple[Subscription, ...]) -> Iterator[tuple[Subscription, ...]]:
    return (subscriptions[start : start + _STRETCH] for start in range(0, len(subscriptions), _STRETCH))


def _gets(subscription: Subscription, topic: str) -> bool:
    shared = SharedSubscription.parse(subscription.topic_filter)
    return matches(subscription.topic_filter if shared is None else shared.topic_filter, topic)


def _described(session: Session, subscription: Subscription) -> dict[str, Any]:
    return {
        "client_id": session.client_id,
        "identity": session.owner.uri,
        "connected": session.connected,
        "filter": subscription.topic_filter,
        "qos": subscription.qos,
        "no_local": subscription.no_local,
        "retain_as_published": subscription.retain_as_published,
    }
