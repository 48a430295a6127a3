"""Client identifier to session: created, resumed, taken over, expired.

Rules
-----
1. One session a client identifier [MQTT-3.1.4-3]; it belongs to the identity that created it, and to no other, ever
   (decision D5). `find` and `open` are only called for an admitted client.
2. A session without a connection lives for its Session Expiry Interval; NEVER keeps it. Zero ends it with the
   connection [MQTT-3.1.2-23].
3. No I/O, no clock. `due` tells which sessions to look at; what is due is written on the session.
"""

from __future__ import annotations

import heapq
from itertools import count

from broker.metrics import Metrics
from broker.session.queue import QueueLimits
from broker.session.session import Session
from provisioning.pki.identity import Identity


class SessionRegistry:
    """Every session."""

    __slots__ = ("_limits", "_metrics", "_order", "_schedule", "_sessions")

    def __init__(self, limits: QueueLimits, metrics: Metrics) -> None:
        self._sessions: dict[str, Session] = {}
        self._schedule: list[tuple[float, int, Session]] = []
        self._order = count()
        self._limits = limits
        self._metrics = metrics

    def __len__(self) -> int:
        return len(self._sessions)

    def find(self, client_id: str) -> Session | None:
        """Return the session of *client_id*, or None."""
        return self._sessions.get(client_id)

    def create(self, client_id: str, owner: Identity) -> Session:
        """Return a new session; whatever had its client identifier was discarded before."""
        session = self._sessions[client_id] = Session(client_id, owner, self._limits, self._metrics)
        return session

    def discard(self, session: Session) -> None:
        """Forget *session*."""
        if self._sessions.get(session.client_id) is session:
            del self._sessions[session.client_id]

    def schedule(self, session: Session, when: float) -> None:
        """Make `due` name *session* at *when*, or before: a delayed will, or its end.

        A session that flaps is filed once, however often it goes: it keeps its earliest place.
        """
        if session.scheduled_at is None or when < session.scheduled_at:
            session.scheduled_at = when
            heapq.heappush(self._schedule, (when, next(self._order), session))

    def due(self, now: float) -> list[Session]:
        """Return the sessions to look at now; what is not due yet must be scheduled again."""
        due = []
        while self._schedule and self._schedule[0][0] <= now:
            when, _, session = heapq.heappop(self._schedule)
            if session.scheduled_at == when:
                session.scheduled_at = None
                if self._sessions.get(session.client_id) is session:
                    due.append(session)
        return due
