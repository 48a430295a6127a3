"""What a session may not have under a topic policy: judged filter by filter, as at SUBSCRIBE."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol, Self

from broker.admission.policy import TopicPolicy
from broker.mqtt.topics import SharedSubscription
from broker.session.will import Will
from provisioning.pki.identity import Identity

_SHOWN_FILTER = 100


class Judged(Protocol):
    """What is judged of a session."""

    @property
    def owner(self) -> Identity:
        """Whose it is."""

    @property
    def client_id(self) -> str:
        """Its client identifier."""

    @property
    def subscriptions(self) -> Collection[str]:
        """Its topic filters."""

    @property
    def will(self) -> Will | None:
        """Its will, if any."""

    @property
    def connected(self) -> bool:
        """Whether its client is connected."""

    @property
    def expiry_interval(self) -> int:
        """How long it outlives its connection."""


@dataclass(frozen=True, slots=True)
class Seen:
    """The same as it was at one moment, to be judged in a thread while the session goes on."""

    owner: Identity
    client_id: str
    subscriptions: tuple[str, ...]
    will: Will | None
    connected: bool
    expiry_interval: int

    @classmethod
    def of(cls, session: Judged) -> Self:
        """Return what *session* has now."""
        filters = tuple(session.subscriptions)
        return cls(session.owner, session.client_id, filters, session.will, session.connected, session.expiry_interval)


@dataclass(frozen=True, slots=True)
class Loss:
    """What a session may not have under a policy."""

    known: bool
    subscriptions: tuple[str, ...]
    will: bool

    @property
    def disconnects(self) -> bool:
        """Whether its client is disconnected for it."""
        return not self.known or bool(self.subscriptions)

    def why(self, session: Judged) -> str:
        """Return the reason in words."""
        name = session.owner.name
        if not self.known:
            return f"no section of the policy admits {name}"
        if self.subscriptions:
            first, *others = self.subscriptions
            more = f" and {len(others)} more" if others else ""
            return f"may not subscribe to {first[:_SHOWN_FILTER]!r}{more}"
        return "its will may not be published"


def judge(policy: TopicPolicy, session: Judged, *, ours: bool, goes: bool = False, wills: bool = True) -> Loss | None:
    """Return what *session* would lose under *policy*, or None; *ours*: its owner is of our own trust domain.

    *goes*: as if its client had been disconnected before, leaving its will (*wills*) or not.
    """
    must_be_known = session.connected and not goes
    if not (session.subscriptions or session.will or must_be_known):
        return None
    permissions = policy.permissions(session.owner, session.client_id, ours=ours)
    withdrawn = []
    for topic_filter in session.subscriptions:
        shared = SharedSubscription.parse(topic_filter)
        if not permissions.may_subscribe(topic_filter if shared is None else shared.topic_filter):
            withdrawn.append(topic_filter)
    will = left_will(session, goes=goes, wills=wills)
    unpublishable = will is not None and not permissions.may_publish(will.message.topic.decode())
    if not (withdrawn or unpublishable or must_be_known):
        return None
    known = policy.knows(session.owner, ours=ours)
    return Loss(known, tuple(withdrawn), unpublishable) if withdrawn or unpublishable or not known else None


def left_will(session: Judged, *, goes: bool, wills: bool) -> Will | None:
    """Return the will that is judged; for *goes* and *wills* see `judge`."""
    will = session.will
    if goes and will is not None and (not wills or min(will.delay, session.expiry_interval) == 0):
        return None  # It was dropped then, or sent.
    return will
