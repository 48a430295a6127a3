"""What each listener of mosquitto.conf admits, and how the broker's settings say the same.

Theory
------
A listener is converted if it admits only clients with a certificate, and names each client by it
(use_identity_as_username): that is what this broker does. Where mosquitto names a client by its word in CONNECT, the
topics that it may use go by that word, so there is nothing that would be the same.

Rules
-----
1. What a listener refuses is never admitted: an option that restricts clients and has no counterpart is impossible.
   Only an empty client identifier is always accepted: it becomes the name in the certificate.
2. mosquitto heeds allow_anonymous, password_file and psk_file where no certificate names the client, so here they have
   no effect: src/handle_connect.c of 2.0 and 2.1.
3. The broker has one certificate, one list of CAs and one policy for all of its listeners (`Shared`). If two listeners
   differ in them, each needs a broker of its own: a client of one CA could otherwise use the other's listener.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from broker.mosquitto.conf import BEGIN, Listener
from broker.mosquitto.findings import Findings
from broker.mosquitto.line import InvalidValue, Line
from broker.mosquitto.setting import Setting
from broker.settings.mosquitto_options import OPTIONS, Fate
from broker.settings.origins import origin_of

_SHARED: Final = ("certfile", "keyfile", "cafile", "capath", "crlfile", "use_username_as_clientid", "acl_file")
_TLS_VERSIONS: Final = {"tlsv1.3": False, "tlsv1.2": True, "tlsv1.1": True}
"""Whether TLS 1.2 is accepted."""
_PROTOCOLS: Final = {"mqtt": "mqtts", "websockets": "wss"}
_EVERY: Final = {"": "::", "ipv4": "0.0.0.0", "ipv6": "::"}
_VERSIONS: Final = frozenset({"3", "4", "5"})
_MOST_QOS: Final = 2
_ENDS_TLS: Final = (
    "mosquitto takes a PROXY header only where the proxy ends TLS, and believes what that says of the client's "
    "certificate; here each client has TLS with the broker, through the proxy: have the proxy pass TLS through "
    "(docs/load-balancer.md), give this listener certfile, keyfile, cafile, require_certificate "
    "and use_identity_as_username, remove this line, convert again, and write proxy_protocol_from: the proxy's networks"
)
_NO_EFFECT: Final = "it has no effect where the certificate names the client (use_identity_as_username)"


@dataclass(frozen=True, slots=True)
class Shared:
    """What all listeners have alike; empty: not said."""

    said: Mapping[str, Line]
    allow_tls12: bool

    def value(self, key: str) -> str:
        """Return the value of the option *key*."""
        return self.said[key].value if key in self.said else ""


def judge(listener: Listener, others: Sequence[Listener], findings: Findings) -> bool:
    """Return whether each client of *listener* is named by its certificate.

    Take note of what is impossible in it, and of what is left out; *others* are in the same file.
    """
    ports = sorted({each.port for each in others if "certfile" in each.said and each.port})
    apart = f"; or convert the others alone: {' '.join(f'--listener {port}' for port in ports)}" if ports else ""
    if listener.port == 0:
        findings.impossible(listener.begun, f"it is a Unix socket, and clients connect by TCP: remove it{apart}")
        return False
    if "enable_proxy_protocol" in listener.said:
        findings.impossible(listener.said["enable_proxy_protocol"], f"{_ENDS_TLS}{apart}")
        return False
    if "psk_hint" in listener.said:
        findings.impossible(listener.said["psk_hint"], f"{OPTIONS['psk_hint'].text}{apart}")
        return False
    if "certfile" not in listener.said and "keyfile" not in listener.said:
        if listener.begun.key not in BEGIN:
            findings.impossible(
                listener.begun,
                f"above the first listener it is about mosquitto's own at port {listener.port}, without TLS, "
                "which most such lines open: move it below the listener that is meant",
            )
            return False
        findings.impossible(
            listener.begun,
            f"port {listener.port} is without TLS, and the broker speaks nothing else: give it certfile, keyfile, "
            f"cafile, require_certificate and use_identity_as_username, or remove it{apart}",
        )
        return False
    named = _is_true(listener, "use_identity_as_username", findings)
    _judge_clients(listener, findings, named=named, apart=apart)
    for key, line in listener.said.items():
        _judge_line(listener, key, line, findings, named=named)
    return named


def _judge_clients(listener: Listener, findings: Findings, *, named: bool, apart: str) -> None:
    """Take note of clients without certificates, or without a name in them."""
    said, begun = listener.said, listener.begun
    missing = [key for key in ("certfile", "keyfile") if key not in said]
    if missing:
        findings.impossible(begun, f"{missing[0]} is missing: certfile and keyfile belong together")
    if not {"cafile", "capath"} & said.keys():
        findings.impossible(begun, "cafile is missing: no CA of clients is named")
    if not _is_true(listener, "require_certificate", findings):
        findings.impossible(
            said.get("require_certificate", begun),
            "without require_certificate true it admits clients without a certificate, and the broker admits none: set "
            f"it when all clients have one{apart}",
        )
    if not named:
        subject = _is_true(listener, "use_subject_as_username", findings)
        findings.impossible(
            said["use_subject_as_username"] if subject else begun,
            "a client's name would be its whole subject, and here it is one topic level: set use_identity_as_username "
            "instead, which takes the Common Name, let the ACL file name clients by that, and convert again; or write "
            'a [[trust.identity]] with source = "subject" and a pattern by hand (docs/trust-bundles.md)'
            if subject
            else "without use_identity_as_username true a client's name, by which the ACL file goes, is what it says "
            "of itself in CONNECT; here it is the Common Name in its certificate: set it, let the ACL file name "
            f"clients by that, and convert again{apart}",
        )


def _judge_line(listener: Listener, key: str, line: Line, findings: Findings, *, named: bool) -> None:
    known = OPTIONS[key]
    if known.fate is Fate.LEFT_OUT:
        findings.left_out(line, known.text)
    elif known.fate is Fate.IMPOSSIBLE:
        findings.impossible(line, known.text)
    elif key in JUDGED:
        why = findings.value(line, JUDGED[key], otherwise="")
        if why:
            findings.left_out(line, why)
    elif key in FOR_STRANGERS:
        judge_strangers(line, findings, named=named)
    elif key == "bind_interface":
        if listener.address:
            findings.left_out(line, f"{listener.address} is the address")
        else:
            findings.impossible(line, f"write that interface's address: listener {listener.port} ADDRESS")
    elif key == "require_certificate":
        findings.left_out(line, "a client certificate is always required")
    elif key == "use_subject_as_username" and named:
        findings.left_out(line, "use_identity_as_username comes first")


def judge_strangers(line: Line, findings: Findings, *, named: bool) -> None:
    """Take note of an option about clients that no certificate names; *named*: at its listeners, one names each."""
    admits = line.key in {"allow_anonymous", "listener_allow_anonymous"}
    if named or (admits and not findings.value(line, Line.is_true, otherwise=False)):
        findings.left_out(line, _NO_EFFECT)
    else:
        findings.impossible(line, OPTIONS[line.key].text)


def _is_true(listener: Listener, key: str, findings: Findings) -> bool:
    return key in listener.said and findings.value(listener.said[key], Line.is_true, otherwise=False)


def _qos(line: Line) -> str:
    if line.whole() != _MOST_QOS:
        raise InvalidValue(f"{line.first}: no QoS can be refused; without the option every client may use 0, 1 and 2")
    return "every client may use QoS 0, 1 and 2"


def _versions(line: Line) -> str:
    given = set(re.split(r"[, \t]+", line.value))
    if not given >= _VERSIONS:
        raise InvalidValue(f"{line.value}: none of 3.1, 3.1.1 and 5.0 can be refused; remove it")
    return "every listener speaks MQTT 3.1, 3.1.1 and 5.0"


def _date_checks(line: Line) -> str:
    if line.is_true():
        raise InvalidValue("an expired certificate is refused; renew those that have expired, and remove it")
    return "an expired certificate is refused"


def _key_form(line: Line) -> str:
    if line.first == "engine":
        raise InvalidValue(OPTIONS["tls_engine"].text)
    return "keyfile is a file in PEM"


def _tls_version(line: Line) -> str:
    if line.first not in _TLS_VERSIONS:
        raise InvalidValue(f"{line.first!r} is none of {', '.join(_TLS_VERSIONS)}")
    return "TLS 1.1 is refused" if line.first == "tlsv1.1" else ""


def _protocol(line: Line) -> str:
    if line.first not in _PROTOCOLS:
        raise InvalidValue(f"{line.first!r}: a listener speaks mqtt or websockets; remove it")
    return ""


def _domain(line: Line) -> str:
    if line.first not in _EVERY:
        raise InvalidValue(f"{line.first!r} is neither ipv4 nor ipv6")
    return ""


JUDGED: Final[Mapping[str, Callable[[Line], str]]] = {
    "accept_protocol_versions": _versions,
    "disable_client_cert_date_checks": _date_checks,
    "max_qos": _qos,
    "protocol": _protocol,
    "socket_domain": _domain,
    "tls_keyform": _key_form,
    "tls_version": _tls_version,
}
"""Why a value is left out; empty if it becomes a setting."""
FOR_STRANGERS: Final = frozenset({"allow_anonymous", "listener_allow_anonymous", "password_file", "psk_file"})


def shared(listeners: Sequence[Listener], findings: Findings) -> Shared:
    """Return what *listeners* have alike; take note of where they differ."""
    with_tls = [each for each in listeners if "certfile" in each.said]  # The others are impossible anyway.
    if not with_tls:
        return Shared({}, allow_tls12=False)
    first = with_tls[0]
    for other in with_tls[1:]:
        differ = [key for key in _SHARED if other.value(key) != first.value(key)]
        differ += ["tls_version"] if _tls12(other) != _tls12(first) else []
        for key in differ:
            findings.impossible(
                other.said.get(key, other.begun),
                f"{other.value(key) or 'not set'} here, and {first.value(key) or 'not set'} for {first.title}: a "
                f"broker has one {key} for all its listeners. Make a broker for each: convert with --listener "
                f"{first.port}, then with --listener {other.port}",
            )
    return Shared({key: first.said[key] for key in _SHARED if key in first.said}, _tls12(first))


def _tls12(listener: Listener) -> bool:
    return _TLS_VERSIONS.get(listener.value("tls_version"), True)


def doors(listeners: Sequence[Listener], findings: Findings) -> tuple[list[Setting], list[list[Setting]]]:
    """Return where the broker listens: the short form for one listener, or a ``[[listener]]`` table for each."""
    made = [_table(each, findings) for each in listeners]
    if len(made) == 1 and all(each.key in {"port", "host"} for each in made[0]):
        return made[0], []
    return [], made


def _table(listener: Listener, findings: Findings) -> list[Setting]:
    said = listener.said
    of = [listener.begun, *(said[key] for key in ("port", "bind_address", "socket_domain") if key in said)]
    host = listener.address or _EVERY.get(listener.value("socket_domain"), "::")
    settings = [Setting("port", listener.port, _where(of))]
    if listener.address:
        settings.append(Setting("host", host))
    elif "socket_domain" not in said:
        settings.append(Setting("host", host, "every address, as mosquitto; 0.0.0.0 on a machine without IPv6"))
    else:
        settings.append(Setting("host", host, f"{said['socket_domain'].where}: every IPv4 address"))
        if host == _EVERY["ipv6"]:
            findings.impossible(said["socket_domain"], "every address would include those of IPv4: name one of IPv6")
    protocol = _PROTOCOLS.get(listener.value("protocol"), "mqtts")
    if protocol == "mqtts":
        if "protocol" in said:
            findings.left_out(said["protocol"], "MQTT over TLS is what a listener speaks if nothing else is said")
        for line in listener.origins:
            findings.left_out(line, "it is about web pages, and this is no listener for WebSockets")
        return settings
    settings.append(Setting("protocol", protocol, said["protocol"].where))
    origins = [findings.value(line, _origin, otherwise="") for line in listener.origins]
    if origins:
        settings.append(Setting("websocket_origins", origins, _where(listener.origins)))
    else:
        settings.append(
            Setting(
                "websocket_origins",
                [],
                why="mosquitto admits a browser with any page, the broker with those from the origins named here: "
                "https://HOST:PORT each. Clients that are no browsers need none.",
            )
        )
    return settings


def _where(lines: Sequence[Line]) -> str:
    return ", ".join(dict.fromkeys(line.where for line in lines))


def _origin(line: Line) -> str:
    try:
        return origin_of(line.value)
    except ValueError as error:
        raise InvalidValue(str(error)) from None
