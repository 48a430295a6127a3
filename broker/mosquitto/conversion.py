"""Makes settings of the broker, and a topic policy, of a mosquitto.conf: for ``fleet-broker config convert``.

Theory
------
``read_conf → judge each listener → settings``. Each option is one of three, as `broker.settings.mosquitto_options` has
it: it becomes a setting, with its line beside it; it is left out, and a comment says why; or it is impossible. One
impossible line and there are no settings, but an error with all such lines, each with its remedy.

Rules
-----
1. No client is admitted that the configuration refuses, and nothing is allowed to one that it denies.
2. Where a client may be refused that the configuration admits, a comment says so.
3. A value is never invented: what the file does not say has the broker's default, and a comment where that differs.

Does not handle: whether the named files exist and fit (``--test-config`` does), but for CAs without a valid one above
them, which only mosquitto does not trust, where all files with CAs can be read here: if not, a comment says so; bridges
and plugins, which are impossible; the messages and sessions in mosquitto.db.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from broker.mosquitto.bounds import defaults, limits
from broker.mosquitto.conf import Conf, Listener, read_conf
from broker.mosquitto.findings import Findings
from broker.mosquitto.line import InvalidValue, Line
from broker.mosquitto.listeners import FOR_STRANGERS, Shared, doors, judge, judge_strangers, shared
from broker.mosquitto.setting import Setting, comment, table
from broker.mosquitto.topic_rules import TopicRules, topic_rules
from broker.settings.mosquitto_options import OPTIONS, Fate
from provisioning.pki.extension import UNUSABLE
from provisioning.pki.identity import InvalidIdentity, check_name
from provisioning.pki.issued_by import is_issued_by
from provisioning.pki.tls import certificates_in
from provisioning.program.given_file import PEM_BYTES, contents_of
from provisioning.program.loopback import is_loopback

_NO_LISTENER: Final = (
    "listener: there is none, and mosquitto's own is without TLS, at port 1883 of this machine: write one with "
    "certfile, keyfile, cafile, require_certificate and use_identity_as_username"
)
_DOMAIN: Final = "fleet.internal"
_GROUP: Final = "devices"
_HASHED: Final = re.compile(r"[0-9a-f]{8}\.[0-9]+")
_LEVELS: Final = {
    "error": "error", "warning": "warning", "notice": "info", "information": "info", "subscribe": "debug",
    "unsubscribe": "debug", "internal": "debug", "debug": "debug", "websockets": "debug", "all": "debug",
}  # fmt: skip
_FROM_MOST: Final = ("debug", "info", "warning", "error")
_STATE: Final = "fleet-broker"
_POLICY: Final = "policy.toml"
_KNOWN_PLUGINS: Final = {
    "mosquitto_acl_file": "write acl_file FILE instead of this plugin",
    "mosquitto_password_file": OPTIONS["password_file"].text,
    "mosquitto_persist_sqlite": "remove it: what is acknowledged is on disk without a plugin",
    "mosquitto_dynamic_security": "remove it, and write an ACL file, or a topic policy, that says what its roles say",
}


class InvalidConf(ValueError):
    """There are no settings that say the same; the text has a line for each reason."""


@dataclass(frozen=True, slots=True)
class Conversion:
    """The settings and the topic policy, both in TOML, and the rules that the policy leaves out."""

    settings: str
    policy: str
    left_out: tuple[str, ...]


def converted(path: Path, ports: Collection[int] = (), output: Path | None = None) -> Conversion:
    """Return what the mosquitto.conf *path* says; of its listeners only those at *ports*, if any are given.

    *output* is where the settings will be, with the policy beside them; None: they are printed, and say how
    the policy is made. Raises `InvalidConf`, and `UnreadableConf`.
    """
    findings = Findings()
    conf = read_conf(path, findings)
    listeners = _chosen(conf, ports, findings)
    named = [judge(each, [other for other in conf.listeners if other is not each], findings) for each in listeners]
    alike = shared(listeners, findings)
    _judge_broker(conf, findings, named=bool(named) and all(named))
    rules = topic_rules(alike.said.get("acl_file", conf.said.get("acl_file")), findings)
    lines = _Settings(conf, listeners, alike, rules, findings).lines(path, ports, output)
    problems = [*([_NO_LISTENER] if not conf.listeners else []), *findings.problems]
    if problems:
        raise InvalidConf("\n".join(f"{path}: {each}" for each in problems))
    return Conversion("\n".join(lines) + "\n", rules.policy, rules.left_out)


def beside(output: Path | None) -> Path:
    """Return where the topic policy is, if the settings are at *output*."""
    return Path(_POLICY) if output is None else output.with_name(_POLICY)


def _chosen(conf: Conf, ports: Collection[int], findings: Findings) -> list[Listener]:
    """Return the listeners at *ports*; all of them, if none are given."""
    known = {each.port for each in conf.listeners}
    strange = sorted({*ports} - known)
    if strange:
        has = ", ".join(str(port) for port in sorted(known)) or "none"
        raise InvalidConf(f"--listener {strange[0]}: no listener has this port; there are {has}")
    if not ports:
        return conf.listeners
    for each in conf.listeners:
        if each.port not in ports:
            findings.left_out(each.begun, "this listener was not asked for (--listener)")
    return [each for each in conf.listeners if each.port in ports]


def _judge_broker(conf: Conf, findings: Findings, *, named: bool) -> None:
    """Take note of the options of the whole broker, the bridges and the plugins."""
    for key, line in conf.said.items():
        if OPTIONS[key].fate is Fate.LEFT_OUT:
            findings.left_out(line, OPTIONS[key].text)
        elif key in FOR_STRANGERS:
            judge_strangers(line, findings, named=named)
        elif key == "retain_available":
            if findings.value(line, Line.is_true, otherwise=True):
                findings.left_out(line, "retained messages are always available")
            else:
                findings.impossible(line, OPTIONS[key].text)
    for line in conf.repeated:
        if line.key != "log_type":
            findings.left_out(line, OPTIONS[line.key].text)
    for lines in conf.bridges:
        findings.impossible(
            lines[0],
            f"{lines[0].value}: a bridge{_also(lines)}. Keep it in a mosquitto of its own, which connects as a client "
            "with a certificate (docs/coming-from-mosquitto.md#bridges), and remove it here",
        )
    for lines in conf.plugins:
        told = next((text for name, text in _KNOWN_PLUGINS.items() if name in lines[0].value), OPTIONS["plugin"].text)
        findings.impossible(lines[0], f"{lines[0].value}{_also(lines)}: {told}")


def _also(lines: Sequence[Line]) -> str:
    """Return which lines belong to the first of *lines*."""
    runs: list[list[Line]] = []
    for each in lines[1:]:
        if runs and (runs[-1][-1].file, runs[-1][-1].number + 1) == (each.file, each.number):
            runs[-1].append(each)
        else:
            runs.append([each])
    told = [run[0].where + (f" to {run[-1].number}" if run[1:] else "") for run in runs]
    return f" (with {', '.join(told)})" if told else ""


def _anchors(alike: Shared, findings: Findings) -> list[str]:
    """Return the files with the clients' CAs.

    Of a directory mosquitto, that is OpenSSL, trusts the files that are named by a hash of their subject.
    """
    found = [alike.value("cafile")] if "cafile" in alike.said else []
    line = alike.said.get("capath")
    if line is None:
        return found
    try:
        files = sorted(each for each in Path(line.value).iterdir() if _HASHED.fullmatch(each.name))
    except OSError as error:
        findings.impossible(line, f"{line.value} cannot be read: {error.strerror}")
        return found
    if not files:
        findings.impossible(line, f"{line.value} has no file that is named by a hash: mosquitto trusts none; remove it")
    return [*found, *(str(each) for each in files)]


def _judge_anchors(files: Sequence[str], line: Line, findings: Findings) -> str:
    """Take note of a CA in *files* that mosquitto, that is OpenSSL, trusts only together with the one above it.

    The broker trusts each by itself, so it would admit clients that mosquitto refuses. Return what is to be said of the
    others: which outlive those above them, and which files cannot be read here. If there are any of these, no CA is
    judged, since the one above it may be in them.
    """
    found: list[_Ca] = []
    unread: list[str] = []
    for each in files:
        try:
            found += map(_read_ca, certificates_in(contents_of(Path(each), PEM_BYTES)))
        except (OSError, *UNUSABLE):
            unread.append(each)
    if unread:
        return (
            f"Not looked at, for it could not be read: {', '.join(unread)}. The broker trusts each CA by itself, "
            "mosquitto an issuing CA only together with its root: see to it that each has its root there."
        )
    until = _trusted_until(found, datetime.now(UTC))
    said: list[str] = []
    for ca, end in until:
        if end is None:
            findings.impossible(
                line,
                f"{ca.name} is trusted by mosquitto only together with the CA above it, {ca.above}, which is not "
                "there, or is not valid now; the broker would trust it by itself: add that, or remove it",
            )
        elif end < ca.ends:
            said.append(
                f"Mosquitto trusts {ca.name} until {end:%Y-%m-%d}, when a CA above it expires, the broker until "
                f"{ca.ends:%Y-%m-%d}: remove it then."
            )
    return " ".join(said)


@dataclass(frozen=True, slots=True)
class _Ca:
    """A certificate, of which everything is read that is asked here."""

    certificate: x509.Certificate
    subject: tuple[x509.Name, bytes]
    """Name and key."""
    name: str
    above: str
    begins: datetime
    ends: datetime


def _read_ca(certificate: x509.Certificate) -> _Ca:
    """Return what is asked of *certificate*. Raises one of `UNUSABLE`."""
    name, key = certificate.subject, certificate.public_key()
    subject = name, key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return _Ca(certificate, subject, name.rfc4514_string(), certificate.issuer.rfc4514_string(), begins, ends)


def _trusted_until(found: Sequence[_Ca], now: datetime) -> list[tuple[_Ca, datetime | None]]:
    """Return until when OpenSSL trusts each that was *found* and has not expired; None: it does not.

    Above it, among all that were found, there has to be a certificate that has signed itself, and all up to that have
    to be valid. What another CA has signed of such a root (a cross-signed copy) is left out if it comes behind that:
    OpenSSL takes the first that has the name and the key and is valid, and with the copy refuses the clients of both.
    """
    trusted: list[tuple[_Ca, datetime]] = []
    left: list[_Ca] = []
    for ca in found:
        if ca.ends <= now:
            continue
        if is_issued_by(ca.certificate, ca.certificate):
            trusted.append((ca, ca.ends))
        elif all(ca.subject != root.subject for root, _ in trusted):
            left.append(ca)
    done: list[tuple[_Ca, datetime | None]] = []
    while trusted:
        above, end = max(trusted, key=lambda each: each[1])  # Of several above one, the last to expire.
        trusted.remove((above, end))
        done.append((above, end))
        if above.begins <= now:
            below = [ca for ca in left if is_issued_by(ca.certificate, above.certificate)]
            trusted += [(ca, min(ca.ends, end)) for ca in below]
            left = [ca for ca in left if ca not in below]
    return [*done, *((ca, None) for ca in left)]


class _Settings:
    """The settings of one conversion."""

    def __init__(
        self, conf: Conf, listeners: Sequence[Listener], alike: Shared, rules: TopicRules, findings: Findings
    ) -> None:
        self._conf, self._listeners, self._alike = conf, listeners, alike
        self._rules, self._findings = rules, findings

    def lines(self, path: Path, ports: Collection[int], output: Path | None) -> list[str]:
        """Return them all, as lines of TOML."""
        whom, said = _anchors(self._alike, self._findings), ""
        if named := self._alike.said.get("cafile") or self._alike.said.get("capath"):
            said = _judge_anchors(whom, named, self._findings)
        made = limits(self._conf, self._listeners, self._findings)
        one, several = doors(self._listeners, self._findings)
        again = "".join(f" --listener {port}" for port in ports)
        lines = comment(
            f"Made of {path} by fleet-broker config convert. What differs from mosquitto in any case: "
            "docs/coming-from-mosquitto.md. A relative path begins where the broker is started, as with mosquitto. "
            f"Test it there:\nfleet-broker run --config {shlex.quote(str(output or 'broker.toml'))} --test-config"
        )
        lines.append("")
        how = f"fleet-broker config convert {shlex.quote(str(path))}{again} --policy" if output is None else ""
        lines += [line for each in [*one, *self._broker(whom, beside(output), how)] for line in each.lines()]
        for door in several:
            lines += table("[[listener]]", door)
        lines += table("[limits]", made)
        if others := defaults(made):
            lines += [*comment("Not in the file, so the broker's defaults apply:"), *others]
        lines += self._trust(whom, said)
        if notes := self._findings.notes:
            lines += ["", "# Left out:"]
            lines += [line for note in notes for line in comment(note, "  ")]
        return lines

    def _broker(self, whom: list[str], policy_file: Path, how: str) -> list[Setting]:
        said = self._alike.said
        settings = [Setting(key, said[key].value, self._where(key)) for key in ("certfile", "keyfile") if key in said]
        settings.append(
            Setting("cafile", whom[0] if whom else "", "for a provisioning service; clients' CAs: anchors, below")
        )
        acl = said.get("acl_file", self._conf.said.get("acl_file"))
        if acl is None:
            why = "There is no acl_file: as with mosquitto, every client may publish and subscribe to everything."
        else:
            why = f"{self._where('acl_file') or acl.where}: acl_file."
        if not self._rules.for_all:
            why += " It has no rules for all clients, so only those that it names are admitted; mosquitto admits the "
            why += "others too, and allows them nothing."
        if how:
            why += f" Make the policy:\n{how} > {_POLICY}"
        settings.append(Setting("policy_file", str(policy_file), why=why))
        settings.append(
            Setting("trust_domain", _DOMAIN, f"a client's identity is spiffe://{_DOMAIN}/device/{_GROUP}/NAME")
        )
        settings += self._reach()
        settings += self._state()
        return settings

    def _reach(self) -> list[Setting]:
        """Return who can reach the broker, and with which TLS."""
        settings = []
        if any(not is_loopback(each.address) for each in self._listeners):
            settings.append(Setting("unsafe_public_listener", True, "a listener is not on loopback, as in mosquitto"))
        where = self._where("tls_version")
        if self._alike.allow_tls12:
            why = where or "mosquitto accepts it; remove it if all clients can use TLS 1.3"
            settings.append(Setting("allow_tls12", True, why))
        else:
            settings.append(Setting("allow_tls12", False, where))
        return settings

    def _state(self) -> list[Setting]:
        """Return what is kept, and what is logged."""
        said, settings = self._conf.said, []
        if (line := said.get("persistence")) is not None:
            kept = self._findings.value(line, Line.is_true, otherwise=False)
            settings.append(Setting("persistence", kept, line.where))
        else:
            settings.append(Setting("persistence", False, "mosquitto's default; true keeps sessions over a restart"))
        if (line := said.get("persistence_location")) is not None:
            place = f"{line.value.rstrip('/')}/{_STATE}"
            settings.append(Setting("state_dir", place, f"{line.where}; only the broker's user may write there"))
        types = [line for line in self._conf.repeated if line.key == "log_type"]
        if types:
            settings.append(Setting("log_level", self._level(types), ", ".join(line.where for line in types)))
        return settings

    def _level(self, types: Sequence[Line]) -> str:
        levels: list[str] = []
        for line in types:
            if line.first == "none":
                levels.clear()
            else:
                levels.append(self._findings.value(line, _level_of, otherwise="error"))
        return min(levels, key=_FROM_MOST.index, default="error")

    def _trust(self, whom: list[str], why: str) -> list[str]:
        said = self._alike.said
        by_name = "use_username_as_clientid" in said and self._findings.value(
            said["use_username_as_clientid"], Line.is_true, otherwise=False
        )
        prefix = self._conf.said.get("clientid_prefixes")
        settings = [Setting("name", "mosquitto"), Setting("anchors", whom, self._where("cafile", "capath"), why)]
        if "crlfile" in said:
            settings.append(Setting("crlfile", [said["crlfile"].value], self._where("crlfile")))
        else:
            settings.append(
                Setting(
                    "unsafe_no_revocation",
                    True,
                    why="There is no crlfile: as with mosquitto, a revoked certificate is admitted. Better: crlfile, "
                    "crl_urls or ocsp_responder.",
                )
            )
        settings += [
            Setting("trust_domain", _DOMAIN),
            Setting("required_eku", [], "mosquitto asks for no purpose either, if a certificate names none"),
        ]
        if by_name:
            why = "use_username_as_clientid: a client may leave the identifier empty, or send its name."
            settings.append(Setting("client_id", "equal", self._where("use_username_as_clientid"), why))
        else:
            why = "A client's identifier is its name, or begins with it and '-', where mosquitto allows any. Name those"
            where = self._where("use_username_as_clientid")
            settings.append(Setting("client_id", "prefix", where, f"{why} that need another in any_client_id."))
            if prefix is None:
                settings.append(Setting("any_client_id", list(self._rules.names), "those with rules of their own"))
        identity = [Setting("source", "common-name", self._where("use_identity_as_username"))]
        if prefix is not None:
            why = (
                "A client identifier begins with its client's name, so it is the name that must begin with the prefix."
            )
            beginning = re.escape(self._findings.value(prefix, _name_of, otherwise=""))
            identity.append(Setting("pattern", f"(?P<name>{beginning}.*)", prefix.where, why))
        identity.append(Setting("group", _GROUP))
        return [*table("[[trust]]", settings), *table("[[trust.identity]]", identity)]

    def _where(self, *keys: str) -> str:
        found = [each.said[key].where for each in self._listeners for key in keys if key in each.said]
        return ", ".join(dict.fromkeys(found))


def _name_of(line: Line) -> str:
    try:
        return check_name("the beginning of a name", line.value)
    except InvalidIdentity as error:
        raise InvalidValue(str(error)) from None


def _level_of(line: Line) -> str:
    if line.first not in _LEVELS:
        raise InvalidValue(f"{line.first!r} is no type of log messages")
    return _LEVELS[line.first]
