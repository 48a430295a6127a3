"""What one client, and all of them together, may demand of the broker: all that a peer can increase is bounded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from broker.settings.setting_types import LONGEST, MOST, Count, CountOrNone, Real, Seconds, Whole, WholeSpan


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds, with the defaults of a broker for many small devices. Sizes in bytes, times in seconds."""

    max_packet_size: Annotated[Whole, Field(ge=256, le=268_435_460)] = 1024 * 1024
    """Largest packet accepted; MQTT 5 clients are told in CONNACK."""
    max_connect_size: Annotated[Whole, Field(ge=1024, le=268_435_460)] = 128 * 1024
    """Largest packet accepted from a client not yet admitted: a CONNECT with the largest possible will fits."""
    max_client_id_length: Annotated[Whole, Field(ge=23, le=65535)] = 1024
    """Characters of a client identifier; a device's is its name, but a service chooses."""
    max_connections: Count = 100_000
    max_unadmitted: Count = 2_000
    """Connections not yet admitted, including handshakes in progress; further ones wait for a place."""
    max_unadmitted_per_address: Count = 1_000
    """Of these, from one address (IPv6: one /64); further ones wait for a place."""
    max_failed_attempts: Count = 50_000
    """Connections from one address that led to nothing, or four times as many from its network; more are closed."""
    failed_attempt_recovery: Annotated[Real, Field(gt=0, le=MOST)] = 100.0
    """How many of these are forgotten per second."""
    max_connection_rate: CountOrNone = 0
    """Connections that one listener accepts per second, 0: no limit; further ones wait to be accepted."""
    max_connects_per_identity: CountOrNone = 100
    """Connections of one identity in ten seconds, 0: no limit; for a service at least as many as its sessions."""
    flapping_count: CountOrNone = 60
    """How often in a minute a client may be admitted and lost without DISCONNECT before it is banned; 0: no ban."""
    ban_seconds: Seconds = 300.0
    quarantine_clones: bool = False
    """Ban a certificate that is used from two addresses alternately; otherwise that is only reported."""
    max_packet_rate: CountOrNone = 0
    """Packets per second from one client, without acknowledgements, 0: no limit; a faster client is read less often."""
    max_byte_rate: CountOrNone = 0
    """The same for bytes."""
    max_loop_lag: Seconds = 0.25
    """Event loop lag in seconds above which newcomers wait to be accepted."""
    handshake_timeout: Seconds = 10.0
    """From accept to the end of the TLS handshake."""
    connect_timeout: Seconds = 5.0
    """From the end of the handshake to a complete CONNECT packet."""
    max_backlog: Count = 4 * 1024 * 1024
    """Unsent bytes to one client; beyond it, QoS 0 messages to it are dropped and its packets are not read."""
    coalesce_microseconds: Annotated[Whole, Field(ge=0, le=5_000)] = 200
    """How long a turn may wait for more, while many clients send one by one; 0: never."""
    doze_milliseconds: Annotated[Whole, Field(ge=0, le=1_000)] = 100
    """How much later clients that only ping may be served, while there are many of them; 0: never later."""
    max_inflight: Annotated[Whole, Field(ge=1, le=65535)] = 1024
    """Unacknowledged QoS 1 messages to one client, unless it asks for fewer."""
    max_inflight_bytes: Count = 16 * 1024 * 1024
    """Bytes of those with 4 KB or more: above it nothing new is sent to the client until it has acknowledged some."""
    max_topic_alias: Annotated[Whole, Field(ge=0, le=65535)] = 32
    """Topic Aliases of one connection, each way."""
    max_queued_messages: Count = 10_000
    max_queued_bytes: Count = 16 * 1024 * 1024
    max_instances: Count = 1000
    """Sessions of one service, kept ones included. A device has one."""
    max_subscriptions: Count = 100
    """Subscriptions of one session."""
    max_subscription_bytes: Count = 1024 * 1024
    """The size of their topic filters in memory: one byte per character, or four in a filter that is not ASCII."""
    max_packet_items: Annotated[Whole, Field(ge=16, le=MOST)] = 1000
    """Topic filters and properties of one packet, or max_subscriptions if that is more; with more it is refused."""
    max_topic_levels: Annotated[Whole, Field(ge=1, le=256)] = 64
    max_retained: Count = 100_000
    max_retained_bytes: Count = 256 * 1024 * 1024
    max_retained_of_device: Count = 10_000
    """How many of these one device may have, so that it cannot use all the room."""
    max_retained_bytes_of_device: Count = 32 * 1024 * 1024
    max_session_expiry: Annotated[WholeSpan, Field(ge=0, le=0xFFFFFFFF)] = 7 * 24 * 3600
    """The longest that a session is kept for a client that is away; 0xFFFFFFFF: for ever, if the client asks for it."""
    max_keepalive: Annotated[WholeSpan, Field(ge=10, le=65535)] = 3600
    """Longest keep alive; an MQTT 5 client that asks for more, or for none, is told this value."""
    max_connection_lifetime: Annotated[WholeSpan, Field(ge=0, le=LONGEST)] = 0
    """Seconds after which a connection is closed, to begin anew with a full or resumed handshake; 0: never."""
    expiry_notice: Annotated[WholeSpan, Field(ge=0, le=LONGEST)] = 3600
    """Seconds before the end of a connected client's certificate at which that is reported."""
    max_cached_routes: Count = 200_000
    max_history: Annotated[Whole, Field(ge=0, le=1_000_000)] = 20_000
    """Events available to `fleet-broker why`: admissions, refusals and ends of connections; 0: none."""
    max_plugin_events: Count = 10_000
    """Events that wait for one plugin; above it publishers are held for a second, then events are dropped."""
    max_plugin_verdicts: Count = 100_000
    """Answers of topic plugins that are cached, for plugin_verdict_seconds."""
    max_allowed_topics: Count = 256
    """Topics that one connection remembers as permitted for publishing."""

    @property
    def rates(self) -> bool:
        """Whether the rate at which a client sends is limited."""
        return self.max_packet_rate > 0 or self.max_byte_rate > 0

    @property
    def packet_items(self) -> int:
        """`max_packet_items`, or more so that one SUBSCRIBE may name all of a session's subscriptions."""
        return max(self.max_packet_items, self.max_subscriptions)
