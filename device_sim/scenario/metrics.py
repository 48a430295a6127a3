"""Everything that a run measures or counts, under the names used in thresholds and reports.

Theory
------
A duration has a *service* time, from when the simulator really began, and a *response* time, from when it was due. They
differ when the simulator is late; thresholds judge the response time, because a real device would have waited.
Durations are in milliseconds.

QoS 1 means at least once: messages that a device had sent, unacknowledged, when its connection broke are sent again
(`repeated`). Only other messages that arrive twice are `duplicated`.

A message that the broker has not acknowledged ten seconds after the last stage, on a connection that was up all that
time, is `unacknowledged`, delivered or not: at QoS 1 and 2 it must be acknowledged.

A reading that is due while its device is out (it was to be connected, and was not) is never made, and so is in no
latency: a broker that lets its fleet in slowly publishes less, and what it publishes is as quick as ever. It is
`missed`.

A message that does not arrive as it was published is `altered`: another value, number or time, or another device's
content (`telemetry.seal`). It is `lost` as well; a command or an answer that is altered leaves the command unanswered.

A message that the broker refuses (a reason code of 0x80 or more in PUBACK, PUBREC or PUBCOMP) is one of
`refused_messages`, and `lost` like any other that never arrives: the report names the code.

A receiver (the run's own backend) whose connection ends by itself is one of `lost_receivers`, and reconnects. It keeps
no session, unless the scenario restarts the broker: messages published meanwhile are `lost`, whatever the cause. One
that is not back, connected and subscribed, when all has drained is one of the `unreached`, like a device that should be
in and is not: where all devices sleep or are revoked, nothing else tells that the broker is gone.

A device that is revoked or suspended and whose connection is still open at the stage's deadline has `stayed_in`; it has
no closing time. If an attempt of it is admitted, it is `readmitted`. Both are false admissions. A revocation,
suspension or resumption that the service did not do, or did not confirm, is one of `failed_revocations`: the device's
status is unknown then, so nothing else about it is judged.

A count of failures says nothing where nothing was tried: of a run that has published nothing, nothing was lost, and yet
nothing is known about losses (`NEEDS`). Like a duration without a sample it is not measured then, and meets no
threshold.
"""

from __future__ import annotations

from enum import StrEnum


class Duration(StrEnum):
    """What is measured in milliseconds."""

    TCP = "tcp"
    TLS = "tls"
    UPGRADE = "upgrade"
    CONNACK = "connack"
    ADMITTED = "admitted"
    OUTAGE = "outage"
    SUBACK = "suback"
    PUBACK = "puback"
    END_TO_END = "end_to_end"
    PROBE_END_TO_END = "probe_end_to_end"
    COMMAND = "command"
    REVOKED_CLOSED = "revoked_closed"
    REVOKED_REFUSED = "revoked_refused"
    SUSPENDED_CLOSED = "suspended_closed"
    RESUMED_ADMITTED = "resumed_admitted"
    RENEWAL = "renewal"


class Count(StrEnum):
    """What is counted."""

    ADMISSIONS = "admissions"
    REFUSALS = "refusals"
    UNREACHED = "unreached"
    LOST_CONNECTIONS = "lost_connections"
    LOST_RECEIVERS = "lost_receivers"
    RECONNECTIONS = "reconnections"
    PUBLISHED = "published"
    RECEIVED = "received"
    LOST = "lost"
    REFUSED_MESSAGES = "refused_messages"
    UNACKNOWLEDGED = "unacknowledged"
    REPEATED = "repeated"
    ALTERED = "altered"
    DUPLICATED = "duplicated"
    OUT_OF_ORDER = "out_of_order"
    IN_FLIGHT = "in_flight"
    HELD_BACK = "held_back"
    MISSED = "missed"
    SKIPPED = "skipped"
    UNEXPECTED = "unexpected"
    COMMANDS = "commands"
    UNANSWERED_COMMANDS = "unanswered_commands"
    REVOKED = "revoked"
    FAILED_REVOCATIONS = "failed_revocations"
    STAYED_IN = "stayed_in"
    READMITTED = "readmitted"
    SESSIONS_RESUMED = "sessions_resumed"
    SESSIONS_LOST = "sessions_lost"
    TAKEOVERS = "takeovers"
    COPIES_ADMITTED = "copies_admitted"
    COPIES_REFUSED = "copies_refused"
    STALLS = "stalls"
    SLEEPS = "sleeps"
    PRESENCE_CHANGES = "presence_changes"
    STALE_PRESENCE = "stale_presence"
    SUSPENDED = "suspended"
    RESUMED = "resumed"
    RENEWED = "renewed"
    FAILED_RENEWALS = "failed_renewals"
    FALSE_ADMISSIONS = "false_admissions"
    FALSE_REFUSALS = "false_refusals"


DESCRIPTIONS: dict[Duration, str] = {
    Duration.TCP: "TCP connection",
    Duration.TLS: "TLS handshake, the client's half",
    Duration.UPGRADE: "upgrade to WebSocket",
    Duration.CONNACK: "CONNECT to CONNACK",
    Duration.ADMITTED: "due to connect, to admitted",
    Duration.OUTAGE: "wanted in, or cut off, to admitted",
    Duration.SUBACK: "SUBSCRIBE to SUBACK",
    Duration.PUBACK: "PUBLISH to PUBACK",
    Duration.END_TO_END: "device to backend",
    Duration.PROBE_END_TO_END: "probe device to backend",
    Duration.COMMAND: "command to answer",
    Duration.REVOKED_CLOSED: "revocation call to session closed",
    Duration.REVOKED_REFUSED: "revoked device's attempt to its refusal",
    Duration.SUSPENDED_CLOSED: "suspension call to session closed",
    Duration.RESUMED_ADMITTED: "resumption call to admitted again",
    Duration.RENEWAL: "renewal to new session",
}

NEEDS: dict[Count, tuple[Count, ...]] = {
    Count.UNREACHED: (Count.ADMISSIONS, Count.REFUSALS),
    Count.LOST_CONNECTIONS: (Count.ADMISSIONS,),
    Count.LOST: (Count.PUBLISHED,),
    Count.REFUSED_MESSAGES: (Count.PUBLISHED,),
    Count.MISSED: (Count.PUBLISHED,),
    Count.UNACKNOWLEDGED: (Count.PUBLISHED,),
    Count.ALTERED: (Count.RECEIVED, Count.COMMANDS),
    Count.DUPLICATED: (Count.RECEIVED,),
    Count.OUT_OF_ORDER: (Count.RECEIVED,),
    Count.UNEXPECTED: (Count.RECEIVED, Count.PRESENCE_CHANGES, Count.COMMANDS),
    Count.UNANSWERED_COMMANDS: (Count.COMMANDS,),
    Count.FAILED_REVOCATIONS: (Count.REVOKED, Count.SUSPENDED),
    Count.STAYED_IN: (Count.REVOKED, Count.SUSPENDED),
    Count.READMITTED: (Count.REVOKED, Count.SUSPENDED),
    Count.SESSIONS_LOST: (Count.SESSIONS_RESUMED,),
    Count.STALE_PRESENCE: (Count.PRESENCE_CHANGES,),
    Count.FAILED_RENEWALS: (Count.RENEWED,),
}
"""What must have happened, one of them at least, before a 0 of such a count says anything."""

SECURITY: tuple[Count, ...] = (Count.FALSE_ADMISSIONS, Count.FALSE_REFUSALS)
"""Counts that must be zero in every run, whatever the scenario says."""
