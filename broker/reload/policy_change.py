"""Applying a changed topic policy to existing sessions.

Theory
------
What a client may publish is checked again at its next PUBLISH, once the connections have dropped their caches. A
subscription, however, was granted permanently; so after a change every session, even one kept for a client that is
away, is judged again. It loses what it may no longer have, and if its client is connected, that is disconnected with
0x87 and a sentence that names the filter. MQTT has no other way to say that a subscription is gone, and a client that
waits for messages in silence is worse off than one that reconnects and reads its SUBACK.

Rules
-----
1. The new policy applies to all at once; afterwards the sessions are judged in small steps, with the event loop in
   between, so that messages keep flowing.
2. The session stays, with its other subscriptions and with the messages that it was granted. Its will is dropped if it
   may not be published any more.
3. Judging (`broker.reload.alike`) changes nothing: a dry run and the real change agree.
4. A dry run judges in a thread, and rests as long as it works: any operator may ask for one, with a policy of his own,
   and a policy can be written so that it takes a hundred times as long as ours.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType

import structlog

from broker.admission.admission import Admission
from broker.admission.foreign_roles import warn_of_roles
from broker.admission.policy import TopicPolicy
from broker.admission.refusal import RefusalCode
from broker.engine.engine import Engine
from broker.mqtt.codes import ReasonCode
from broker.reload.alike import Judge
from broker.reload.loss import Judged, Loss, Seen
from broker.reload.report import SHOWN, Affected, Effects
from broker.session.session import Session

log = structlog.get_logger("broker")

_SESSIONS_A_STEP = 100
_SECONDS_A_TURN = 0.01
"""After so long of enforcing, others have a turn: each of a step's sessions may lose a hundred subscriptions."""
_BRIEF = 0.001
"""Seconds of work after which a thread rests."""

_Asked = tuple[Judged, bool, bool, bool]
"""A session; whether its owner is ours, it has gone before, and its will stays then."""


def enforce(engine: Engine, session: Session, loss: Loss, now: float) -> None:
    """Take from *session* what it may no longer have, and disconnect its client if that has to know."""
    for topic_filter in loss.subscriptions:
        engine.unsubscribe(session, topic_filter)
    if loss.will:
        session.will = None
        engine.note(session, None if session.connected else session.expires_at - session.expiry_interval)
    if session.connection is not None and loss.disconnects:
        code = RefusalCode.SUBSCRIPTION_NOT_PERMITTED if loss.known else RefusalCode.WRONG_ROLE
        detail = f"the topic policy has changed: {session.owner.name} {loss.why(session)}"
        if not loss.known:
            detail = f"the topic policy has changed: {loss.why(session)}"
        session.connection.disconnect(code, ReasonCode.NOT_AUTHORIZED, detail, now)


def enforce_at_start(engine: Engine, now: float) -> None:
    """Judge the recovered sessions: the policy may have changed while the broker was down."""
    warn_of_reach(engine.admission)
    ended, judge, is_ours = 0, Judge(engine.admission.policy), engine.admission.is_ours
    for session in engine.registry.all():
        loss = judge.loss(session, ours=is_ours(session.owner))
        if loss is not None:
            ended += len(loss.subscriptions)
            enforce(engine, session, loss, now)
    if ended:
        log.warning("subscriptions ended by the topic policy", code="POLICY_ENFORCED", subscriptions=ended)


def warn_of_reach(admission: Admission) -> str:
    """Log which names in the policy match no client, and which roles may reach too far; return the former."""
    bundles = [] if admission.trust is None else admission.trust.bundles
    settings = [each.terms.settings for each in bundles if each.terms.settings is not None]
    warn_of_roles(admission.trust_domain, settings, admission.policy)
    idle = admission.idle_names(admission.policy)
    if idle:
        log.warning("names in the topic policy match no client", code="POLICY_NAMES_NOBODY", detail=idle)
    return idle


async def preview(
    engine: Engine,
    policy: TopicPolicy,
    admission: Admission | None = None,
    going: Mapping[Session, bool] = MappingProxyType({}),
) -> Effects:
    """Return what `change` would do; *admission*, if given, decides who is of our own trust domain.

    *going*: sessions whose clients would have been disconnected before, for another reason; whether their wills stay.
    """
    return await _sweep(engine, policy, None, admission or engine.admission, going)


async def change(engine: Engine, policy: TopicPolicy, clock: Callable[[], float]) -> Effects:
    """Apply *policy* from now on, to all sessions; return what it did."""
    engine.admission.policy = policy
    for connection in engine.connections():
        connection.topics.forget_permissions()
    return await _sweep(engine, policy, clock, engine.admission)


async def _sweep(
    engine: Engine,
    policy: TopicPolicy,
    clock: Callable[[], float] | None,
    admission: Admission,
    going: Mapping[Session, bool] = MappingProxyType({}),
) -> Effects:
    connected = engine.connected
    losing = disconnected = subscriptions = dropped = 0
    here: list[Affected] = []
    away: list[Affected] = []
    judge, sessions, turn_ends = Judge(policy), engine.registry.all(), 0.0
    for start in range(0, len(sessions), _SESSIONS_A_STEP):
        # One that goes, and is not kept, ends with its connection.
        step = [each for each in sessions[start : start + _SESSIONS_A_STEP] if each not in going or each.persistent]
        asked = [(each, admission.is_ours(each.owner), each in going, going.get(each, True)) for each in step]
        losses = _losses(judge, asked)
        if clock is None:
            seen = [(Seen.of(each), ours, goes, wills) for each, ours, goes, wills in asked]
            losses = await asyncio.to_thread(_losses_apart, judge, seen)
        for (session, _, goes, _), loss in zip(asked, losses, strict=True):
            if loss is None:  # Also for a session that has ended meanwhile: it has nothing left.
                continue
            losing += 1
            subscriptions += len(loss.subscriptions)
            dropped += loss.will
            stays = session.connected and not goes
            disconnected += stays and loss.disconnects
            kind = here if stays else away
            if len(kind) < SHOWN:
                kind.append(Affected(session.client_id, session.owner.uri, loss.why(session)))
            if clock is not None:
                enforce(engine, session, loss, now := clock())
                if now >= turn_ends:
                    engine.turn.request()
                    await asyncio.sleep(0)
                    turn_ends = clock() + _SECONDS_A_TURN
        await asyncio.sleep(0)
    named = [*here, *away][:SHOWN]
    return Effects(connected, disconnected, subscriptions, dropped, tuple(named), losing - len(named))


def _losses(judge: Judge, asked: Sequence[_Asked]) -> Iterator[Loss | None]:
    """Yield what each of *asked* loses, as it is when its turn comes."""
    for session, ours, goes, wills in asked:
        yield judge.loss(session, ours=ours, goes=goes, wills=wills)


def _losses_apart(judge: Judge, asked: Sequence[_Asked]) -> Iterator[Loss | None]:
    """Return what each of *asked* loses; for a thread, which leaves the processor to the event loop in between."""
    found: list[Loss | None] = []
    begun = time.perf_counter()
    for loss in _losses(judge, asked):
        found.append(loss)
        if (spent := time.perf_counter() - begun) > _BRIEF:
            time.sleep(spent)
            begun = time.perf_counter()
    return iter(found)
