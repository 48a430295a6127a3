"""Every option of mosquitto.conf, 2.0 and 2.1, and what becomes of it here: the one table of them.

Theory
------
`broker.settings.config_hints` quotes it for an option that somebody writes into the broker's own settings, and
`broker.mosquitto` converts a whole file by it. An option is *converted*, *left out* because it has no meaning here, or
*impossible*: without it the broker would do something else than the file says. The names are those in mosquitto's
src/conf.c, which knows a few more than its manual page. docs/coming-from-mosquitto.md has a row for each.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final


class Fate(Enum):
    """What becomes of an option."""

    CONVERTED = auto()
    """By its value: it becomes a setting, or it is left out, or it is impossible."""
    LEFT_OUT = auto()
    IMPOSSIBLE = auto()


class Place(Enum):
    """What an option is about."""

    BROKER = auto()
    LISTENER = auto()
    CLIENTS = auto()
    """Those of the listener above it with per_listener_settings, and those of all listeners without."""
    BRIDGE = auto()
    PLUGIN = auto()


@dataclass(frozen=True, slots=True)
class Option:
    """One option."""

    fate: Fate
    text: str
    """Why it is left out; otherwise, what to write instead. Empty: the same, as TOML has it."""
    place: Place = Place.BROKER

    @property
    def advice(self) -> str:
        """What to do with it in the broker's own settings."""
        return f"remove it: {self.text}" if self.fate is Fate.LEFT_OUT else self.text


def _converted(text: str = "", place: Place = Place.BROKER) -> Option:
    return Option(Fate.CONVERTED, text, place)


def _left_out(why: str, place: Place = Place.BROKER) -> Option:
    return Option(Fate.LEFT_OUT, why, place)


def _impossible(text: str, place: Place = Place.BROKER) -> Option:
    return Option(Fate.IMPOSSIBLE, text, place)


_LISTENER: Final = Place.LISTENER
_CLIENTS: Final = Place.CLIENTS

LIMIT: Final = "it is a limit; write it below [limits]"
_NAMED: Final = "write a [[trust]] table for your CA: it says where a certificate has its client's name"
_FEW_SUITES: Final = "TLS 1.3 chooses among its own few"
_PERSISTED: Final = "what is acknowledged is on disk already"
_STANDARD_ERROR: Final = "the log goes to standard error"
_TIMED: Final = "each line of the log has its time"
_EMPTY_ID: Final = "an empty client identifier becomes the certificate's name"
_OWN_ID: Final = "a device's client identifier is its certificate's name"
_NO_PASSWORDS: Final = "remove it: the certificate authenticates, there are no passwords"
_NO_PSK: Final = "remove it: the certificate authenticates, there are no pre-shared keys"
_NO_ENGINE: Final = "a key in a token is provisioning's, for its CA; the broker's is keyfile"
_PASSES_TLS: Final = (
    "write proxy_protocol_from, the networks of the proxies, and have them pass TLS through: what they say of a "
    "client's certificate is not believed"
)
_PLUGIN: Final = "mosquitto's plugins cannot be loaded; amqtt's plugins are named below [plugins], see docs/plugins.md"
_BRIDGE: Final = "configure a bridge in mosquitto's own file; it connects as a client: docs/coming-from-mosquitto.md"
_ANONYMOUS: Final = "remove it: no client is admitted without a certificate"
_WEBSOCKET_BOUND: Final = "it has a bound of its own"

_OF_BRIDGES: Final = (
    "address", "addresses", "bridge_alpn", "bridge_attempt_unsubscribe", "bridge_bind_address", "bridge_cafile",
    "bridge_capath", "bridge_certfile", "bridge_ciphers", "bridge_ciphers_tls1.3", "bridge_identity", "bridge_insecure",
    "bridge_keyfile", "bridge_max_packet_size", "bridge_max_topic_alias", "bridge_outgoing_retain",
    "bridge_protocol_version", "bridge_psk", "bridge_receive_maximum", "bridge_reload_type", "bridge_require_ocsp",
    "bridge_session_expiry_interval", "bridge_tcp_keepalive", "bridge_tcp_user_timeout", "bridge_tls_use_os_certs",
    "bridge_tls_version", "cleansession", "clientid", "connection", "idle_timeout", "keepalive_interval",
    "local_cleansession", "local_clientid", "local_password", "local_username", "notification_topic", "notifications",
    "notifications_local_only", "password", "remote_clientid", "remote_password", "remote_username", "restart_timeout",
    "round_robin", "start_type", "threshold", "topic", "try_private", "username",
)  # fmt: skip
_OF_BRIDGES_BEGIN: Final = ("bridge_", "local_")
_OF_PLUGINS_BEGIN: Final = ("plugin_opt_", "auth_opt_")

OPTIONS: Final[Mapping[str, Option]] = {
    "accept_protocol_versions": _converted("remove it: every listener speaks MQTT 3.1, 3.1.1 and 5.0", _LISTENER),
    "acl_file": _converted(
        "write policy_file = …, a topic policy: fleet-broker policy convert FILE > policy.toml makes it", _CLIENTS
    ),
    "allow_anonymous": _converted(_ANONYMOUS, _CLIENTS),
    "allow_duplicate_messages": _left_out("a client gets a message once, however many of its filters match"),
    "allow_zero_length_clientid": _left_out(_EMPTY_ID, _CLIENTS),
    "auth_plugin": _impossible(_PLUGIN, Place.PLUGIN),
    "auth_plugin_deny_special_chars": _impossible(
        "remove it: a name is letters, digits, '.', '_' and '-'", Place.PLUGIN
    ),
    "auto_id_prefix": _left_out(_EMPTY_ID, _CLIENTS),
    "autosave_interval": _left_out(_PERSISTED),
    "autosave_on_changes": _left_out(_PERSISTED),
    "bind_address": _converted("write host", _LISTENER),
    "bind_interface": _converted("write host, an address of that interface", _LISTENER),
    "cafile": _converted("", _LISTENER),
    "capath": _converted(
        "write cafile, with one file of all anchors, or a directory as anchors of a [[trust]] table", _LISTENER
    ),
    "certfile": _converted("", _LISTENER),
    "check_retain_source": _left_out("a retained message is authorized when it is published"),
    "ciphers": _left_out(
        f"{_FEW_SUITES}, and TLS 1.2, if allow_tls12 is set, among ECDHE with AES-GCM, AES-CCM or ChaCha20", _LISTENER
    ),
    "ciphers_tls1.3": _left_out(_FEW_SUITES, _LISTENER),
    "clientid_prefixes": _converted(f"write a pattern in [[trust.identity]]: {_OWN_ID}"),
    "connection_messages": _left_out("each admission is logged; log_level = 'warning' leaves them out"),
    "crlfile": _converted("", _LISTENER),
    "dhparamfile": _left_out(_FEW_SUITES, _LISTENER),
    "disable_client_cert_date_checks": _converted("remove it: an expired certificate is refused", _LISTENER),
    "enable_control_api": _left_out("there are no $CONTROL topics; fleet-broker's commands ask a running broker"),
    "enable_proxy_protocol": _impossible(_PASSES_TLS, _LISTENER),
    "global_max_clients": _left_out("sessions end: max_session_expiry below [limits]; max_connections bounds the rest"),
    "global_max_connections": _converted("write max_connections below [limits]"),
    "global_plugin": _impossible(_PLUGIN, Place.PLUGIN),
    "http_dir": _left_out("the broker serves no files", _LISTENER),
    "include_dir": _converted("there is one file; give each broker its own"),
    "keyfile": _converted("", _LISTENER),
    "listener": _converted("write a [[listener]] table with port = 8883, or port = 8883 alone", _LISTENER),
    "listener_allow_anonymous": _converted(_ANONYMOUS, _LISTENER),
    "listener_auto_id_prefix": _left_out(_EMPTY_ID, _LISTENER),
    "log_dest": _left_out(_STANDARD_ERROR),
    "log_facility": _left_out(_STANDARD_ERROR),
    "log_timestamp": _left_out(_TIMED),
    "log_timestamp_format": _left_out(_TIMED),
    "log_type": _converted("write log_level"),
    "max_connections": _converted(LIMIT, _LISTENER),
    "max_inflight_bytes": _converted(LIMIT),
    "max_inflight_messages": _converted("write max_inflight below [limits]"),
    "max_keepalive": _converted(LIMIT),
    "max_packet_size": _converted(LIMIT),
    "max_qos": _converted("remove it: every client may use QoS 0, 1 and 2", _LISTENER),
    "max_queued_bytes": _converted(LIMIT),
    "max_queued_messages": _converted(LIMIT),
    "max_topic_alias": _converted(LIMIT, _LISTENER),
    "max_topic_alias_broker": _converted("write max_topic_alias below [limits], which is for both ways", _LISTENER),
    "maximum_qos": _converted("remove it: every client may use QoS 0, 1 and 2", _LISTENER),
    "memory_limit": _left_out(
        "what is held is bounded below [limits]: max_queued_bytes, max_backlog, max_retained_bytes"
    ),
    "message_size_limit": _converted("write max_packet_size below [limits]"),
    "mount_point": _impossible(
        "remove it: topics begin with the group where the topic policy says so, and clients send them whole",
        _LISTENER,
    ),
    "packet_buffer_size": _left_out(_WEBSOCKET_BOUND),
    "password_file": _converted(_NO_PASSWORDS, _CLIENTS),
    "per_listener_settings": _converted("remove it: a [[listener]] table holds what is one listener's own"),
    "persistence": _converted(),
    "persistence_file": _left_out("the file in state_dir is broker.db; mosquitto.db is not read"),
    "persistence_location": _converted("write state_dir"),
    "persistent_client_expiration": _converted("write max_session_expiry below [limits], in seconds"),
    "pid_file": _left_out("the broker stays in the foreground"),
    "plugin": _impossible(_PLUGIN, Place.PLUGIN),
    "plugin_load": _impossible(_PLUGIN, Place.PLUGIN),
    "plugin_use": _impossible(_PLUGIN, Place.PLUGIN),
    "port": _converted("", _LISTENER),
    "protocol": _converted("write it in a [[listener]] table: mqtts or wss", _LISTENER),
    "proxy_protocol_v2_require_tls": _left_out("every client has TLS with the broker", _LISTENER),
    "psk_file": _converted(_NO_PSK, _CLIENTS),
    "psk_hint": _impossible(_NO_PSK, _LISTENER),
    "queue_qos0_messages": _left_out("messages at QoS 0 are not kept for a client that is away"),
    "require_certificate": _converted("remove it: a client certificate is always required", _LISTENER),
    "retain_available": _converted("remove it: it is always on; max_retained below [limits] bounds it"),
    "retain_expiry_interval": _left_out(
        "a retained message ends with the Message Expiry Interval that it was sent with"
    ),
    "retained_persistence": _converted("write persistence"),
    "retry_interval": _left_out("messages are sent again when a client returns, as MQTT specifies"),
    "set_tcp_nodelay": _left_out("it is always on"),
    "socket_domain": _converted("write host, an IPv4 or IPv6 address", _LISTENER),
    "sys_interval": _left_out("$SYS is published every ten seconds"),
    "tls_engine": _impossible(_NO_ENGINE, _LISTENER),
    "tls_engine_kpass_sha1": _impossible(_NO_ENGINE, _LISTENER),
    "tls_keyform": _converted("remove it: keyfile is a file in PEM", _LISTENER),
    "tls_version": _converted("TLS 1.3 is the default; allow_tls12 accepts 1.2 too", _LISTENER),
    "upgrade_outgoing_qos": _left_out("a message goes out at the lower of its own QoS and the subscription's"),
    "use_identity_as_username": _converted(_NAMED, _LISTENER),
    "use_subject_as_username": _converted(_NAMED, _LISTENER),
    "use_username_as_clientid": _converted(f"remove it: {_OWN_ID}", _LISTENER),
    "user": _left_out("start the broker as the user that it is to run as"),
    "websockets_headers_size": _left_out(_WEBSOCKET_BOUND),
    "websockets_log_level": _left_out("log_level is for all listeners"),
    "websockets_origin": _converted("write websocket_origins, a list; without it no web page may connect", _LISTENER),
    **{name: _impossible(_BRIDGE, Place.BRIDGE) for name in _OF_BRIDGES},
}


def option(name: str) -> Option | None:
    """Return mosquitto's option *name*, also a plugin's own, or a later version's of bridges; None: no such."""
    if name.startswith(_OF_PLUGINS_BEGIN):
        return OPTIONS["plugin"]
    if name.startswith(_OF_BRIDGES_BEGIN):
        return OPTIONS["connection"]
    return OPTIONS.get(name)
