"""What the broker counts. Plain integers: the data path adds to them, all others only read.

`broker.admin.metrics_page` shows every field to Prometheus, under its own name.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from broker.histogram import Histogram


@dataclass(slots=True)
class Metrics:
    """Counters since start; `refused` and `closed` by stable code."""

    connections_accepted: int = 0
    handshakes_completed: int = 0
    handshakes_resumed: int = 0
    handshakes: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By result (full, resumed, failed) and TLS version."""
    connects_received: int = 0
    admitted: int = 0
    packets_received: int = 0
    messages_received: int = 0
    messages_retained: int = 0
    bytes_received: int = 0
    bytes_sent: int = 0
    packets_sent: int = 0
    publishes_denied: int = 0
    subscriptions_denied: int = 0
    publishers_held: int = 0
    dropped_slow_consumer: int = 0
    dropped_queue_full: int = 0
    dropped_too_large: int = 0
    dropped_expired: int = 0
    dropped_retained_full: int = 0
    """Messages that were delivered but not retained, for lack of room."""
    sessions_expired: int = 0
    revocations: int = 0
    revocation_to_close_seconds: Histogram = field(default_factory=Histogram)
    """From provisioning recording a revocation to the end of a live session."""
    store_commit_seconds: Histogram = field(default_factory=Histogram)
    """Writing one batch to disk, fsync included."""
    revocation_alarms: Counter[str] = field(default_factory=Counter)
    """CRLs that are late, expired or refused, by stable code."""
    staple_this_update_timestamp: float = 0.0
    """thisUpdate of the staple, wall time; 0: no staple; shown as ``staple_this_update_timestamp_seconds``."""
    staple_next_update_timestamp: float = 0.0
    """nextUpdate of the staple; shown as ``staple_next_update_timestamp_seconds``."""
    ocsp_rechecks: Counter[str] = field(default_factory=Counter)
    """Questions to responders about connected clients: answered, failed."""
    ocsp_oldest_answer_seconds: dict[str, float] = field(default_factory=dict)
    """By trust bundle: the age of the oldest responder's answer on which a connected client relies."""
    ocsp_unanswered: dict[str, float] = field(default_factory=dict)
    """By trust bundle: how many connected clients have no answer from a responder."""
    refused: Counter[str] = field(default_factory=Counter)
    closed: Counter[str] = field(default_factory=Counter)
    audit_entries: Counter[str] = field(default_factory=Counter)
    """Entries of the audit log: written, lost; and how often writing failed (write failed)."""
    anchor_fetches: Counter[str] = field(default_factory=Counter)
    """Fetches of trust anchors from URLs, by result: new, unchanged, or a stable code."""
    anchors_confirmed_timestamp_seconds: dict[str, float] = field(default_factory=dict)
    """By trust bundle: the wall time at which its anchors' URL last confirmed the anchors in use."""
    plugin_outcomes: Counter[str] = field(default_factory=Counter)
    """What plugins have refused, failed to do, or were not told, by stable code."""
    plugin_blocked: dict[str, float] = field(default_factory=dict)
    """Seconds for which each plugin has blocked the event loop; shown as ``plugin_blocked_seconds``."""
    clones_suspected: int = 0
    expiry_notices: int = 0
    """How often it was reported that a connected client's certificate ends soon."""
    rests: int = 0
    """How often a client was not read for a while because it exceeded its rate."""
    accepts_paused: int = 0
    """How often a listener has left newcomers in the kernel's queue."""
    loop_lag: float = 0.0
    """The event loop's lag in seconds, the worst of the last second; shown as ``loop_lag_seconds``."""
    reloads: Counter[str] = field(default_factory=Counter)
    """By part and outcome: ``policy.refused``."""

    @property
    def dropped(self) -> int:
        """Messages that were not delivered, or not retained, for whatever reason."""
        return (
            self.dropped_slow_consumer
            + self.dropped_queue_full
            + self.dropped_too_large
            + self.dropped_expired
            + self.dropped_retained_full
        )
