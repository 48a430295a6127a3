"""Maps client identifiers to sessions: created, resumed, taken over, expired.

Rules
-----
1. One session per trust domain, role and client identifier [MQTT-3.1.4-3]; it belongs to the identity that created it,
   and never to another (decision 0005). The role is part of the key, so that instance ``meter-1`` of a service
   ``meter`` does not shut out the device ``meter-1``; the domain is, because a CA of another domain may name its
   parties as it likes (decision 0141). `find` and `create` are only called for an admitted client.
2. A session without a connection lives for its Session Expiry Interval; with NEVER it is kept. Zero ends it with the
   connection [MQTT-3.1.2-23].
3. No I/O, no clock. `due` returns the sessions to look at; what is due is stored in the session.
4. A session that has ended is not kept until it is scheduled: a client that starts afresh each time, with an expiry of
   a week, would leave one behind with each connection, together with its queue.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from itertools import chain
from typing import Final

from broker.metrics import Metrics
from broker.session.queue import QueueLimits
from broker.session.session import Permits, Session
from provisioning.pki.identity import Identity
from provisioning.pki.role import Role

_PARTS: Final = 64
"""Into so many parts those of one second are divided, to be sorted."""
_FILED_A_STEP: Final = 1024
"""How many of them one step divides: less than a millisecond."""


class SessionRegistry:
    """Every session."""

    __slots__ = ("_instances", "_left", "_metrics", "_reached", "_schedule", "_sessions", "limits", "permits")

    def __init__(self, limits: QueueLimits, metrics: Metrics) -> None:
        self._sessions: dict[tuple[str, Role], dict[str, Session]] = {}
        """By trust domain and role (no empty entries), then by client identifier."""
        self._instances: Counter[Identity] = Counter()
        self._left: set[Session] = set()
        self._schedule: dict[int, dict[Session, None]] = {}
        """By the second in which they are to be looked at."""
        self._reached = 0.0
        self.limits = limits
        self._metrics = metrics
        self.permits: Permits | None = None
        """What new sessions use to decide whether they may get a message, see `Session.permits`."""

    def __len__(self) -> int:
        return sum(map(len, self._sessions.values()))

    def find(self, trust_domain: str, role: Role, client_id: str) -> Session | None:
        """Return the session of *client_id* among those of *role* in *trust_domain*, or None."""
        sessions = self._sessions.get((trust_domain, role))
        return None if sessions is None else sessions.get(client_id)

    def called(self, client_id: str) -> list[Session]:
        """Return the sessions of *client_id* in all trust domains and roles."""
        return [sessions[client_id] for sessions in self._sessions.values() if client_id in sessions]

    def has(self, session: Session) -> bool:
        """Whether *session* has not ended."""
        owner = session.owner
        return self.find(owner.trust_domain, owner.role, session.client_id) is session

    def count(self, trust_domain: str) -> int:
        """Return how many sessions parties of *trust_domain* have."""
        return sum(len(sessions) for (domain, _), sessions in self._sessions.items() if domain == trust_domain)

    def all(self) -> list[Session]:
        """Return every session, as a copy."""
        return list(chain.from_iterable(sessions.values() for sessions in self._sessions.values()))

    def instances(self, owner: Identity) -> int:
        """Return how many sessions *owner* has besides that of its own name and those of which only a will is left."""
        return self._instances[owner]

    def create(self, client_id: str, owner: Identity, *, left: bool = False) -> Session:
        """Return a new session; any with the same client identifier was discarded before.

        *left*: it ended with an earlier broker process, and only its will is left.
        """
        session = Session(client_id, owner, self.limits, self._metrics)
        self._sessions.setdefault((owner.trust_domain, owner.role), {})[client_id] = session
        session.permits = self.permits
        if left:
            self._left.add(session)
        elif client_id != owner.name:
            self._instances[owner] += 1
        return session

    def discard(self, session: Session) -> None:
        """Forget *session*."""
        owner = session.owner
        self._unfile(session)
        if self.has(session):
            space = owner.trust_domain, owner.role
            del self._sessions[space][session.client_id]
            if not self._sessions[space]:  # A CA not limited to one domain may make up any number of them.
                del self._sessions[space]
            if session in self._left:
                self._left.remove(session)
            elif session.client_id != owner.name:
                self._instances[owner] -= 1
                if not self._instances[owner]:
                    del self._instances[owner]

    def schedule(self, session: Session, when: float) -> None:
        """Make `due` return *session* at *when* or earlier: for a delayed will, or its expiry.

        A session that flaps is filed once, however often it disconnects: it keeps its earliest time.
        """
        if session.scheduled_at is None or when < session.scheduled_at:
            self._unfile(session)
            session.scheduled_at = when = max(when, self._reached)  # If overdue, it is due next.
            self._schedule.setdefault(int(when), {})[session] = None

    def due(self, now: float) -> Iterator[Session | None]:
        """Yield the sessions to look at now, and None for an empty step; those not due yet must be scheduled again.

        Each is yielded as it then is: between two of them others may connect, disconnect or be discarded.
        """
        first, last = int(self._reached), int(now)
        self._reached = max(self._reached, now)
        if last - first > len(self._schedule):
            seconds = sorted(second for second in self._schedule if second <= last)
        else:
            seconds = [second for second in range(first, last + 1) if second in self._schedule]
        for second in seconds:
            parts: list[list[tuple[float, Session]]] = [[] for _ in range(_PARTS)]
            for number, session in enumerate(list(self._schedule.get(second, ())), 1):
                if session.scheduled_at is not None and int(session.scheduled_at) == second:
                    parts[int((session.scheduled_at - second) * _PARTS)].append((session.scheduled_at, session))
                if not number % _FILED_A_STEP:
                    yield None
            for part in parts:  # To sort or to free a hundred thousand at once would hold up everybody.
                left = deque(sorted(part, key=_first))
                part.clear()
                while left:
                    when, session = left.popleft()
                    if when <= now and session.scheduled_at == when:
                        self._unfile(session)
                        if self.has(session):
                            yield session

    def _unfile(self, session: Session) -> None:
        if session.scheduled_at is not None:
            second = int(session.scheduled_at)
            filed = self._schedule[second]
            del filed[session]
            if not filed:
                del self._schedule[second]
            session.scheduled_at = None


def _first(filed: tuple[float, Session]) -> float:
    return filed[0]
