"""What the broker counts. Plain integers: the data path adds to them, everybody else only reads.

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
    admitted: int = 0
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
    """Messages that were delivered and not retained, for want of room."""
    sessions_expired: int = 0
    revocations: int = 0
    revocation_to_close_seconds: Histogram = field(default_factory=Histogram)
    """From the moment at which provisioning has recorded a revocation to the end of a live session."""
    store_commit_seconds: Histogram = field(default_factory=Histogram)
    """One batch to disk, fsync included."""
    revocation_alarms: Counter[str] = field(default_factory=Counter)
    """Lists that are late, expired or refused, by stable code."""
    staple_this_update_timestamp: float = 0.0
    """When what is stapled was made, wall time; 0: nothing is; shown as ``staple_this_update_timestamp_seconds``."""
    staple_next_update_timestamp: float = 0.0
    """When it ends; shown as ``staple_next_update_timestamp_seconds``."""
    ocsp_rechecks: Counter[str] = field(default_factory=Counter)
    """Questions to responders about clients that are connected: answered, failed."""
    ocsp_oldest_answer_seconds: dict[str, float] = field(default_factory=dict)
    """By trust bundle, how old the oldest answer of a responder is that a connected client stands on."""
    ocsp_unanswered: dict[str, float] = field(default_factory=dict)
    """By trust bundle, how many connected clients a responder has said nothing of."""
    refused: Counter[str] = field(default_factory=Counter)
    closed: Counter[str] = field(default_factory=Counter)
    audit_entries: Counter[str] = field(default_factory=Counter)
    """Entries of the audit log: written, lost; and how often it could not be written (write failed)."""
    anchor_fetches: Counter[str] = field(default_factory=Counter)
    """Fetches of trust anchors from URLs, by what became of them: new, unchanged, or a stable code."""
    anchors_confirmed_timestamp_seconds: dict[str, float] = field(default_factory=dict)
    """By trust bundle, the wall time at which the URL of its anchors last said what counts here."""
    plugin_outcomes: Counter[str] = field(default_factory=Counter)
    """What plugins have refused, failed to do, or were not told of, by stable code."""
    plugin_blocked: dict[str, float] = field(default_factory=dict)
    """Seconds for which a plugin has kept the event loop, by plugin; shown as ``plugin_blocked_seconds``."""
    clones_suspected: int = 0
    expiry_notices: int = 0
    """How often it was said that the certificate of a connected client ends soon."""
    rests: int = 0
    """How often a client was not read for a while because it sends faster than it may."""
    accepts_paused: int = 0
    """How often a listener has left newcomers in the kernel's queue."""
    loop_lag: float = 0.0
    """Seconds that the event loop is late, the worst of the last second; shown as ``loop_lag_seconds``."""
    reloads: Counter[str] = field(default_factory=Counter)
    """By part and outcome: ``policy.refused``."""

    @property
    def dropped(self) -> int:
        """Messages that were not delivered, for whatever reason."""
        return (
            self.dropped_slow_consumer
            + self.dropped_queue_full
            + self.dropped_too_large
            + self.dropped_expired
            + self.dropped_retained_full
        )
