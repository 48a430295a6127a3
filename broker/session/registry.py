"""Client identifier to session: created, resumed, taken over, expired.

Rules
-----
1. One session a trust domain, role and client identifier [MQTT-3.1.4-3]; it belongs to the identity that created it,
   and to no other, ever (decision D5). The role is part of the name, so that instance ``meter-1`` of a service
   ``meter`` does not shut out the device ``meter-1``; the domain is, so that nobody of another one does, whose CA calls
   its parties what it likes (docs/decisions/0141). `find` and `create` are only called for an admitted client.
2. A session without a connection lives for its Session Expiry Interval; NEVER keeps it. Zero ends it with the
   connection [MQTT-3.1.2-23].
3. No I/O, no clock. `due` tells which sessions to look at; what is due is written on the session.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator
from itertools import chain, count

from broker.metrics import Metrics
from broker.session.queue import QueueLimits
from broker.session.session import Permits, Session
from provisioning.pki.identity import Identity, Role


class SessionRegistry:
    """Every session."""

    __slots__ = ("_instances", "_left", "_metrics", "_order", "_schedule", "_sessions", "limits", "permits")

    def __init__(self, limits: QueueLimits, metrics: Metrics) -> None:
        self._sessions: dict[tuple[str, Role], dict[str, Session]] = {}
        """By trust domain and role, where there are any, then by client identifier."""
        self._instances: Counter[Identity] = Counter()
        self._left: set[Session] = set()
        self._schedule: list[tuple[float, int, Session]] = []
        self._order = count()
        self.limits = limits
        self._metrics = metrics
        self.permits: Permits | None = None
        """What new sessions ask before they take a message, see `Session.permits`."""

    def __len__(self) -> int:
        return sum(map(len, self._sessions.values()))

    def find(self, trust_domain: str, role: Role, client_id: str) -> Session | None:
        """Return the session that *client_id* names among those of *role* in *trust_domain*, or None."""
        sessions = self._sessions.get((trust_domain, role))
        return None if sessions is None else sessions.get(client_id)

    def called(self, client_id: str) -> list[Session]:
        """Return the sessions that *client_id* names, of every trust domain and role."""
        return [sessions[client_id] for sessions in self._sessions.values() if client_id in sessions]

    def has(self, session: Session) -> bool:
        """Whether *session* has not ended."""
        owner = session.owner
        return self.find(owner.trust_domain, owner.role, session.client_id) is session

    def count(self, trust_domain: str) -> int:
        """Return how many sessions parties of *trust_domain* have."""
        return sum(len(sessions) for (domain, _), sessions in self._sessions.items() if domain == trust_domain)

    def all(self) -> list[Session]:
        """Return every session, in a list of its own."""
        return list(chain.from_iterable(sessions.values() for sessions in self._sessions.values()))

    def instances(self, owner: Identity) -> int:
        """Return how many sessions *owner* has beside the one of its own name, and those of which a will is left."""
        return self._instances[owner]

    def create(self, client_id: str, owner: Identity, *, left: bool = False) -> Session:
        """Return a new session; whatever had its client identifier was discarded before.

        *left*: it has ended, with another broker process, and only its will is left.
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
        if self.has(session):
            space = owner.trust_domain, owner.role
            del self._sessions[space][session.client_id]
            if not self._sessions[space]:  # A CA whose domain nobody has named may make up any number of them.
                del self._sessions[space]
            if session in self._left:
                self._left.remove(session)
            elif session.client_id != owner.name:
                self._instances[owner] -= 1
                if not self._instances[owner]:
                    del self._instances[owner]

    def schedule(self, session: Session, when: float) -> None:
        """Make `due` name *session* at *when*, or before: a delayed will, or its end.

        A session that flaps is filed once, however often it goes: it keeps its earliest place.
        """
        if session.scheduled_at is None or when < session.scheduled_at:
            session.scheduled_at = when
            heapq.heappush(self._schedule, (when, next(self._order), session))

    def due(self, now: float) -> Iterator[Session]:
        """Yield the sessions to look at now; what is not due yet must be scheduled again.

        Each as it stands when it is its turn: between two of them others may come, go or be discarded.
        """
        while self._schedule and self._schedule[0][0] <= now:
            when, _, session = heapq.heappop(self._schedule)
            if session.scheduled_at == when:
                session.scheduled_at = None
                if self.has(session):
                    yield session
