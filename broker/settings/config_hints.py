"""What to write instead of an unknown setting: for mosquitto's names, and for near misses.

If a whole mosquitto.conf is given as the settings, every line of it is reported. The page for such users is
docs/coming-from-mosquitto.md (`tests/integration/test_coming_from_mosquitto.py` compares it with the table here).
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from typing import Final

_LIMIT: Final = "it is a limit; write it below [limits]"
_ALWAYS: Final = "remove it: "
_NAMED: Final = "write a [[trust]] table for your CA: it says where a certificate has its client's name"
_BRIDGE: Final = "a bridge stays in a mosquitto's own file, and connects as a client: docs/coming-from-mosquitto.md"
_OF_BRIDGES: Final = frozenset(
    {
        "address",
        "addresses",
        "cleansession",
        "clientid",
        "connection",
        "idle_timeout",
        "keepalive_interval",
        "notification_topic",
        "notifications",
        "notifications_local_only",
        "remote_clientid",
        "remote_password",
        "remote_username",
        "restart_timeout",
        "round_robin",
        "start_type",
        "topic",
        "try_private",
    }
)
_OF_THE_POLICY: Final = frozenset({"denied_publish", "device", "group", "identity", "role"})
_POLICY: Final = "it belongs to the topic policy; write it in policy_file: docs/topic-policy.md"
_OF_BRIDGES_BEGIN: Final = ("bridge_", "local_")

MOSQUITTO: Final[Mapping[str, str]] = {
    "acl_file": "write policy_file = …, a topic policy: fleet-broker policy convert FILE > policy.toml makes it",
    "allow_duplicate_messages": _ALWAYS + "a client gets a message once, however many of its filters match",
    "allow_anonymous": _ALWAYS + "nobody gets in without a certificate",
    "allow_zero_length_clientid": _ALWAYS + "an empty client identifier becomes the certificate's name",
    "autosave_interval": _ALWAYS + "what is acknowledged is on disk already",
    "bind_address": "write host",
    "bind_interface": "write host, an address of that interface",
    "capath": "write cafile, with one file of all anchors, or a directory as anchors of a [[trust]] table",
    "ciphers": _ALWAYS + "TLS 1.3 chooses among its own few; allow_tls12 allows older clients",
    "auth_plugin_deny_special_chars": _ALWAYS + "a name is letters, digits, '.', '_' and '-'",
    "auto_id_prefix": _ALWAYS + "an empty client identifier becomes the certificate's name",
    "autosave_on_changes": _ALWAYS + "what is acknowledged is on disk already",
    "auth_plugin": "amqtt's plugins are named below [plugins], see docs/plugins.md",
    "check_retain_source": _ALWAYS + "a retained message is judged when it is published",
    "ciphers_tls1.3": _ALWAYS + "TLS 1.3 chooses among its own few",
    "clientid_prefixes": _ALWAYS + "a device's client identifier is its certificate's name",
    "connection_messages": "write log_level",
    "dhparamfile": _ALWAYS + "TLS 1.3 chooses among its own few",
    "http_dir": _ALWAYS + "the broker serves no files",
    "include_dir": "there is one file; give each broker its own",
    "listener": "write a [[listener]] table with port = 8883, or port = 8883 alone",
    "log_dest": _ALWAYS + "the log goes to standard error",
    "log_facility": _ALWAYS + "the log goes to standard error",
    "log_timestamp_format": _ALWAYS + "each line of the log has its time",
    "log_timestamp": _ALWAYS + "each line of the log has its time",
    "log_type": "write log_level",
    "max_connections": _LIMIT,
    "max_inflight_bytes": _LIMIT,
    "max_inflight_messages": "write max_inflight below [limits]",
    "max_qos": _ALWAYS + "every client may use QoS 0, 1 and 2",
    "memory_limit": "what is held is bounded below [limits]: max_queued_bytes, max_backlog, max_retained_bytes",
    "message_size_limit": "write max_packet_size below [limits]",
    "mount_point": _ALWAYS + "topics begin with the group where the topic policy says so",
    "password_file": _ALWAYS + "the certificate authenticates, there are no passwords",
    "per_listener_settings": _ALWAYS + "a [[listener]] table holds what is one listener's own",
    "persistence_file": "write state_dir; the file in it is broker.db",
    "persistence_location": "write state_dir",
    "persistent_client_expiration": "write max_session_expiry below [limits], in seconds",
    "pid_file": _ALWAYS + "the broker stays in the foreground",
    "plugin": "amqtt's plugins are named below [plugins], see docs/plugins.md",
    "protocol": "write it in a [[listener]] table: mqtts or wss",
    "psk_file": _ALWAYS + "the certificate authenticates, there are no pre-shared keys",
    "psk_hint": _ALWAYS + "the certificate authenticates, there are no pre-shared keys",
    "queue_qos0_messages": _ALWAYS + "messages at QoS 0 are not kept for a client that is away",
    "require_certificate": _ALWAYS + "a client certificate is always required",
    "retain_expiry_interval": _ALWAYS
    + "a retained message ends with the Message Expiry Interval that it was sent with",
    "retain_available": _ALWAYS + "it is always on; max_retained below [limits] bounds it",
    "set_tcp_nodelay": _ALWAYS + "it is always on",
    "socket_domain": "write host, an IPv4 or IPv6 address",
    "sys_interval": _ALWAYS + "$SYS is published every ten seconds",
    "tls_engine": "a key in a token is provisioning's, for its CA; the broker's is keyfile",
    "tls_engine_kpass_sha1": "a key in a token is provisioning's, for its CA; the broker's is keyfile",
    "tls_keyform": _ALWAYS + "keyfile is a file in PEM",
    "tls_version": "TLS 1.3 is the default; allow_tls12 accepts 1.2 too",
    "upgrade_outgoing_qos": _ALWAYS + "a message goes out at the lower of its own QoS and the subscription's",
    "use_identity_as_username": _NAMED,
    "use_subject_as_username": _NAMED,
    "use_username_as_clientid": _ALWAYS + "a device's client identifier is its certificate's name",
    "user": _ALWAYS + "start the broker as the user that it shall run as",
    "websockets_origin": "write websocket_origins, a list; without it no web page may connect",
    "websockets_headers_size": _ALWAYS + "it has a bound of its own",
    "websockets_log_level": "write log_level",
}
"""mosquitto's settings that have another name here, or none, and what to do."""


def hint(key: str, known: Collection[str], limits: Collection[str]) -> str:
    """Return what to write instead of *key*, an unknown setting: "; …", or nothing if that cannot be guessed.

    *known* are the settings at its place, *limits* those below ``[limits]``.
    """
    if key in limits and key not in known:
        return f"; {_LIMIT}"
    if key in MOSQUITTO:
        return f"; {MOSQUITTO[key]}"
    if key in _OF_BRIDGES or key.startswith(_OF_BRIDGES_BEGIN):
        return f"; {_BRIDGE}"
    if key in _OF_THE_POLICY:
        return f"; {_POLICY}"
    near = difflib.get_close_matches(key, [*known, *(limits if limits != known else ())], n=1)
    if near:
        place = " below [limits]" if near[0] not in known else ""
        return f"; is {near[0]}{place} meant?"
    return "; see docs/reference/settings-of-the-broker.md"


def of_mosquitto(text: str, known: Collection[str], limits: Collection[str]) -> list[str]:
    """Return a hint for each setting of the mosquitto.conf *text*, one per line; nothing if it is not such a file.

    Every listener has a line, and those of bridges have one together.
    """
    told: dict[str, str] = {}
    bridges: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        key, _, value = line.strip().partition(" ")
        if not key or key.startswith("#"):
            continue
        if not value or value.lstrip().startswith("=") or not key.replace(".", "_").isidentifier():
            return []
        if key in _OF_BRIDGES or key.startswith(_OF_BRIDGES_BEGIN):
            bridges.setdefault(key, number)
            told.setdefault(_BRIDGE, "")  # Its place, until all of them are known.
            continue
        same = f"write {key} = …, as TOML has it" if key in known and key not in MOSQUITTO else ""
        if key == "listener":
            told[f"{key} {number}"] = f"line {number}: {key}: {_listener(value.split())}"
        else:
            told.setdefault(key, f"line {number}: {key}: {same or hint(key, known, limits).removeprefix('; ')}")
    if bridges:
        told[_BRIDGE] = f"line {min(bridges.values())}: {', '.join(bridges)}: {_BRIDGE}"
    named = {key.partition(" ")[0] for key in told}
    return list(told.values()) if named & {*MOSQUITTO, *known} else []


def _listener(values: list[str]) -> str:
    """Return what to write for a listener at a port and, perhaps, an address."""
    port, *address = values
    if address and address[0].startswith("/"):
        return f"{_ALWAYS}clients connect by TCP; the admin API has a Unix socket"
    host = f' and host = "{address[0]}"' if address else ""
    return f"write a [[listener]] table with port = {port}{host}, or {'these' if host else 'that'} alone; it speaks TLS"
