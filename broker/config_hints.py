"""What to write instead of a setting that there is not: mosquitto's names, and names that are nearly right."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from typing import Final

_LIMIT: Final = "it is a limit; write it below [limits]"
_ALWAYS: Final = "remove it: "

MOSQUITTO: Final[Mapping[str, str]] = {
    "acl_file": "the topic policy is policy_file, in TOML; fleet-broker policy show prints the default one",
    "allow_anonymous": _ALWAYS + "nobody gets in without a certificate",
    "allow_zero_length_clientid": _ALWAYS + "an empty client identifier becomes the certificate's name",
    "autosave_interval": _ALWAYS + "what is acknowledged is on disk already",
    "bind_address": "write host",
    "capath": "write cafile, with one file of all anchors, or a directory as anchors of a [[trust]] table",
    "ciphers": _ALWAYS + "TLS 1.3 chooses among its own few; allow_tls12 allows older clients",
    "connection": "bridges are not offered; a bridge connects as a client, see any_client_id",
    "include_dir": "there is one file; give each broker its own",
    "listener": "write a [[listener]] table with port = 8883, or port = 8883 alone",
    "log_dest": _ALWAYS + "the log goes to standard error",
    "log_type": "write log_level",
    "max_connections": _LIMIT,
    "max_inflight_bytes": _LIMIT,
    "max_inflight_messages": "write max_inflight below [limits]",
    "memory_limit": "what is held is bounded below [limits]: max_queued_bytes, max_backlog, max_retained_bytes",
    "message_size_limit": "write max_packet_size below [limits]",
    "password_file": _ALWAYS + "the certificate authenticates, there are no passwords",
    "per_listener_settings": _ALWAYS + "a [[listener]] table holds what is one listener's own",
    "persistence_file": "write state_dir; the file in it is broker.db",
    "persistence_location": "write state_dir",
    "persistent_client_expiration": "write max_session_expiry below [limits], in seconds",
    "pid_file": _ALWAYS + "the broker stays in the foreground",
    "plugin": "amqtt's plugins are named below [plugins], see docs/plugins.md",
    "protocol": "write it in a [[listener]] table: mqtts or wss",
    "psk_file": _ALWAYS + "the certificate authenticates, there are no pre-shared keys",
    "require_certificate": _ALWAYS + "a client certificate is always required",
    "set_tcp_nodelay": _ALWAYS + "it is always on",
    "socket_domain": "write host, an IPv4 or IPv6 address",
    "sys_interval": _ALWAYS + "$SYS is published every ten seconds",
    "tls_version": "TLS 1.3 is the default; allow_tls12 accepts 1.2 too",
    "use_identity_as_username": _ALWAYS + "a client always is who its certificate names",
    "use_subject_as_username": _ALWAYS + "a client always is who its certificate names",
    "use_username_as_clientid": _ALWAYS + "a device's client identifier is its certificate's name",
    "user": _ALWAYS + "start the broker as the user that it shall run as",
    "websockets_origin": "write websocket_origins, a list; without it no web page may connect",
    "websockets_log_level": "write log_level",
}
"""mosquitto's settings that have another name here, or none, and what to do."""


def hint(key: str, known: Collection[str], limits: Collection[str]) -> str:
    """Return what to write instead of *key*, of which there is no setting: "; …", or nothing if nobody can tell.

    *known* are the settings at the place where it stands, *limits* those below ``[limits]``.
    """
    if key in limits and key not in known:
        return f"; {_LIMIT}"
    if key in MOSQUITTO:
        return f"; {MOSQUITTO[key]}"
    near = difflib.get_close_matches(key, [*known, *(limits if limits != known else ())], n=1)
    if near:
        place = " below [limits]" if near[0] not in known else ""
        return f"; is {near[0]}{place} meant?"
    return "; see docs/reference/settings-of-the-broker.md"
