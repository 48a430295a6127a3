"""Reads mosquitto.conf, with the files that it includes: which line is about which listener, which about the broker.

Theory
------
mosquitto reads line by line: ``listener`` begins a listener, and the options of listeners that follow are its own, also
behind a ``connection`` or a ``plugin``. Before the first one they are the *default listener's*, which ``port`` and
``bind_address`` also begin. With per_listener_settings, what says which clients may connect is a listener's too.

Rules
-----
1. As src/conf.c of mosquitto 2.0 and 2.1 does it. What these two do differently is impossible.
2. Every line is somewhere: in a listener, in `Conf`, or in the findings. Of a line that is repeated the last counts.

Does not handle: what an option means (`broker.mosquitto.conversion`).
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from broker.mosquitto.findings import Findings
from broker.mosquitto.line import BLANKS, Line, decimal
from broker.settings.mosquitto_options import OPTIONS, Place, option
from provisioning.program.given_file import SETTINGS_BYTES, text_of, unread
from provisioning.program.given_toml import NotToml, toml_of
from provisioning.program.near_names import nearest

_BLANK: Final = " \t\r"
_DEFAULT_PORT: Final = 1883
_MOST_PORT: Final = 65_535
_BEGIN_A_PLUGIN: Final = frozenset({"auth_plugin", "global_plugin", "plugin", "plugin_load", "plugin_use"})
_BEGIN_THE_DEFAULT: Final = frozenset({"bind_address", "port"})
BEGIN: Final = _BEGIN_THE_DEFAULT | {"listener"}
"""What begins a listener; any other option of one begins the default listener, if none has begun."""
_ALSO: Final = {"maximum_qos": "max_qos", "retained_persistence": "persistence"}
"""mosquitto's own second names."""
_REPEATED: Final = frozenset({"log_dest", "log_type"})


class UnreadableConf(Exception):
    """A file of the configuration cannot be read; the text names it."""


@dataclass(slots=True)
class Listener:
    """One listener."""

    begun: Line
    port: int = _DEFAULT_PORT
    address: str = ""
    said: dict[str, Line] = field(default_factory=dict)
    """Its own options."""
    origins: list[Line] = field(default_factory=list)

    @property
    def title(self) -> str:
        """What messages call it."""
        return f"listener {self.port}{f' {self.address}' if self.address else ''} ({self.begun.where})"

    def value(self, key: str) -> str:
        """Return the value of its option *key*; empty if it has none."""
        return self.said[key].value if key in self.said else ""


@dataclass(slots=True)
class Conf:
    """A configuration, sorted."""

    listeners: list[Listener] = field(default_factory=list)
    said: dict[str, Line] = field(default_factory=dict)
    """The options of the whole broker."""
    repeated: list[Line] = field(default_factory=list)
    """Those of which each counts."""
    bridges: list[list[Line]] = field(default_factory=list)
    plugins: list[list[Line]] = field(default_factory=list)
    per_listener: bool = False


def read_conf(path: Path, findings: Findings) -> Conf:
    """Return the configuration in the file *path*. Raises `UnreadableConf`."""
    lines = _lines_of(path, findings)
    conf = Conf()
    switches = [line for line in lines if line.key == "per_listener_settings"]
    conf.per_listener = any(findings.value(line, Line.is_true, otherwise=False) for line in switches)
    sorting = _Sorting(conf, findings)
    for line in lines:
        sorting.take(line)
    return conf


def _lines_of(path: Path, findings: Findings) -> list[Line]:
    """Return the lines of *path*, and those of included files in the place of their include_dir."""
    lines: list[Line] = []
    for line in _lines(path):
        if line.key == "include_dir" and line.value:
            for each in _included(replace(line, order=len(lines)), findings):
                lines.append(replace(each, order=len(lines)))
                if each.key == "include_dir":
                    findings.impossible(lines.pop(), "an included file may include no others")
        else:
            lines.append(replace(line, order=len(lines)))
    return lines


def _included(line: Line, findings: Findings) -> list[Line]:
    """Return the lines of the files that *line* includes, in mosquitto's order."""
    try:
        found = sorted(Path(line.value).iterdir(), key=lambda each: [(char.upper(), char) for char in each.name])
        files = [each for each in found if each.name.endswith(".conf") and each.name != ".conf"]
        return [each for file in files for each in _lines(file, str(file))]
    except OSError as error:
        why = f"{line.value} cannot be read: {error.strerror}; convert in the folder where mosquitto runs, as its user"
    except UnreadableConf as error:
        why = str(error)
    findings.impossible(line, why)
    return []


def _lines(path: Path, name: str = "") -> list[Line]:
    try:
        text = text_of(path, SETTINGS_BYTES)
    except OSError as error:
        raise UnreadableConf(unread(path, error)) from error
    except UnicodeDecodeError as error:
        raise UnreadableConf(f"{path} is not UTF-8: {error.reason} at byte {error.start}") from error
    if "\0" in text:
        raise UnreadableConf(f"{path} is not text: it contains a NUL")
    if _is_toml(text):
        raise UnreadableConf(f"{path} is TOML, as the broker's own files are, and no mosquitto.conf: name that")
    lines = []
    for number, raw in enumerate(text.split("\n"), 1):
        key, *rest = BLANKS.split(raw.strip(_BLANK), maxsplit=1)
        if key and not key.startswith("#"):
            lines.append(Line(number, key, "".join(rest), name))
    return lines


def _is_toml(text: str) -> bool:
    """Whether *text* says something in TOML: no line of a mosquitto.conf does, except its comments."""
    with contextlib.suppress(NotToml):
        return bool(toml_of(text))
    return False


class _Sorting:
    """Puts each line where it belongs."""

    def __init__(self, conf: Conf, findings: Findings) -> None:
        self._conf, self._findings = conf, findings
        self._default: Listener | None = None
        self._current: dict[str, Listener] = {}
        """Of each file the listener that its next line is about."""

    def take(self, line: Line) -> None:
        """Sort the next *line*."""
        theirs = option(line.key)
        if theirs is None:
            self._findings.impossible(line, _unknown(line.key))
        elif not line.value:
            self._findings.impossible(line, "has no value")
        elif theirs.place is Place.BRIDGE:
            _add_to(self._conf.bridges, line, begins=line.key == "connection")
        elif theirs.place is Place.PLUGIN:
            _add_to(self._conf.plugins, line, begins=line.key in _BEGIN_A_PLUGIN)
        elif theirs.place is Place.LISTENER or (theirs.place is Place.CLIENTS and self._conf.per_listener):
            self._current[line.file] = self._of_listener(line, self._current.get(line.file))
        elif line.key in _REPEATED:
            self._conf.repeated.append(line)
        elif line.key == "per_listener_settings":
            self._findings.left_out(line, "a [[listener]] table holds what is one listener's own")
        else:
            self._keep(self._conf.said, line)

    def _of_listener(self, line: Line, current: Listener | None) -> Listener:
        if line.key == "listener":
            port, *address = line.words
            current = Listener(line, self._port(line, port, least=0), "" if not address else address[0])
            if current.address.startswith("#"):
                current.address = ""
            self._conf.listeners.append(current)
            return current
        if line.key in _BEGIN_THE_DEFAULT and current is not None and current is not self._default:
            self._findings.impossible(
                line,
                "mosquitto 2.0 and 2.1 count the lines below it to different listeners; write a listener line instead",
            )
            return current
        if current is None:
            current = self._the_default(line)
        if line.key == "port":
            current.port = self._port(line, line.first, least=1)
        elif line.key == "bind_address":
            current.address = line.value
        elif line.key == "websockets_origin":
            current.origins.append(line)
            return current
        self._keep(current.said, line)
        return current

    def _the_default(self, line: Line) -> Listener:
        if self._default is None:
            self._default = Listener(line)
            self._conf.listeners.append(self._default)
        return self._default

    def _port(self, line: Line, text: str, least: int) -> int:
        if (port := decimal(text)) is not None and least <= port <= _MOST_PORT:
            return port
        self._findings.impossible(line, f"{text!r} is no port")
        return _DEFAULT_PORT

    def _keep(self, said: dict[str, Line], line: Line) -> None:
        key = _ALSO.get(line.key, line.key)
        if key in said:
            self._findings.left_out(said[key], f"{line.where} says it again, and the last one counts")
        said[key] = line


def _add_to(groups: list[list[Line]], line: Line, *, begins: bool) -> None:
    if begins or not groups:
        groups.append([])
    groups[-1].append(line)


def _unknown(key: str) -> str:
    near = nearest(key, OPTIONS)
    return "mosquitto 2.0 and 2.1 have no such option" + (f"; is {near} meant?" if near else "")
