"""mosquitto's limits as those below ``[limits]``.

Rules
-----
1. A limit is never above mosquitto's, except where the broker's own range begins higher, which is said beside it.
2. mosquitto's "no limit" is left out, and the broker's default applies: all that a peer can increase is bounded.
3. What mosquitto.conf does not say is not set either; where the defaults differ, both are shown. So are the limits that
   mosquitto does not have, and a client may notice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from pydantic import TypeAdapter, ValidationError

from broker.mosquitto.conf import Conf, Listener
from broker.mosquitto.findings import Findings
from broker.mosquitto.line import InvalidValue, Line, decimal
from broker.mosquitto.setting import Setting
from broker.settings.limits import Limits

_LIMITS: Final = TypeAdapter(Limits)
_DEFAULTS: Final = Limits()
_NONE: Final = 0
_MOST_INFLIGHT: Final = 65_535
_LONGEST_KEEPALIVE: Final = 65_535
_SHORTEST_KEEPALIVE: Final = 10
_FOR_EVER: Final = 0xFFFFFFFF
_SECONDS_OF: Final = {"s": 1, "h": 3600, "d": 86_400, "w": 7 * 86_400, "m": 30 * 86_400, "y": 365 * 86_400}
_UNLIMITED: Final = -1

THEIR_DEFAULTS: Final[Mapping[str, str]] = {
    "max_packet_size": "2000000 in 2.1, none in 2.0",
    "max_connections": "none",
    "max_inflight": "20",
    "max_inflight_bytes": "none",
    "max_queued_messages": "1000",
    "max_queued_bytes": "none",
    "max_keepalive": "none",
    "max_session_expiry": "none",
    "max_topic_alias": "10",
    "max_topic_levels": "200",
    "max_subscriptions": "none",
    "max_instances": "none",
    "max_connects_per_identity": "none",
    "max_retained": "none",
    "max_retained_of_device": "none",
}
"""mosquitto's defaults, where the broker's are others."""


def limits(conf: Conf, listeners: Sequence[Listener], findings: Findings) -> list[Setting]:
    """Return the limits that *conf* sets, for these *listeners* of it."""
    made: list[Setting] = []
    for key, read in LIMITS.items():
        if (line := conf.said.get(key)) is not None:
            made += _one(line, *read, findings)
    made += _packet_size(conf, findings)
    made += _connections(conf, listeners, findings)
    made += _aliases(listeners, findings)
    return made


def defaults(made: Sequence[Setting]) -> list[str]:
    """Return the limits that are not among those *made*, with both defaults, as lines of comment."""
    given = {each.key for each in made}
    return [
        f"# {name} = {getattr(_DEFAULTS, name)}  # mosquitto: {theirs}"
        for name, theirs in THEIR_DEFAULTS.items()
        if name not in given
    ]


def _one(line: Line, name: str, read: Callable[[Line], int | None], findings: Findings) -> list[Setting]:
    """Return the limit *name* with the value that *read* makes of *line*, if it makes one."""
    try:
        value = _checked(name, read(line))
    except InvalidValue as error:
        findings.impossible(line, str(error))
        return []
    if value is None:
        findings.left_out(line, f"no limit, but what is held is bounded: {name} is {getattr(_DEFAULTS, name)}")
        return []
    told = "" if value == _told(line) else f": {line.value}"
    return [Setting(name, value, f"{line.where}{told}")]


def _told(line: Line) -> int | None:
    try:
        return line.whole()
    except InvalidValue:
        return None


def _checked(name: str, value: int | None) -> int | None:
    if value is None:
        return None
    try:
        _LIMITS.validate_python({name: value})
    except ValidationError as error:
        message = error.errors()[0]["msg"]
        raise InvalidValue(f"{value}: {message[:1].lower()}{message[1:]} ({name})") from None
    return value


def _or_none(line: Line) -> int | None:
    """Return the number, or None: mosquitto takes zero, and anything below it, for no limit."""
    number = line.whole()
    return number if number > _NONE else None


def _inflight(line: Line) -> int | None:
    return _or_none(line) or _MOST_INFLIGHT


def _keepalive(line: Line) -> int | None:
    return max(_or_none(line) or _LONGEST_KEEPALIVE, _SHORTEST_KEEPALIVE)


def _expiry(line: Line) -> int | None:
    number, unit = decimal(line.first[:-1]), line.first[-1]
    if not number or unit not in _SECONDS_OF:
        raise InvalidValue(f"{line.first!r} is no time: a number and h, d, w, m or y")
    return min(number * _SECONDS_OF[unit], _FOR_EVER)


LIMITS: Final[Mapping[str, tuple[str, Callable[[Line], int | None]]]] = {
    "max_inflight_messages": ("max_inflight", _inflight),
    "max_inflight_bytes": ("max_inflight_bytes", _or_none),
    "max_queued_messages": ("max_queued_messages", _or_none),
    "max_queued_bytes": ("max_queued_bytes", _or_none),
    "max_keepalive": ("max_keepalive", _keepalive),
    "persistent_client_expiration": ("max_session_expiry", _expiry),
}
"""Options of the whole broker: the limit that each becomes, and how its value is read; None: no limit."""


def _packet_size(conf: Conf, findings: Findings) -> list[Setting]:
    """Return the smaller of the sizes of packets and of messages: a packet is a little larger than its message."""
    sizes: list[Setting] = []
    for key in ("max_packet_size", "message_size_limit"):
        line = conf.said.get(key)
        made = _one(line, "max_packet_size", _or_none, findings) if line is not None else []
        if made and line is not None and key == "message_size_limit":
            findings.left_out(
                line,
                "max_packet_size counts the topic too, and ends the connection; mosquitto drops the message",
            )
        sizes += made
    return sorted(sizes, key=lambda each: int(str(each.value)))[:1]


def _connections(conf: Conf, listeners: Sequence[Listener], findings: Findings) -> list[Setting]:
    """Return how many connections there may be in all: the sum of the listeners', or less."""
    own = [each.said["max_connections"] for each in listeners if "max_connections" in each.said]
    numbers = [findings.value(line, _connections_of, otherwise=_UNLIMITED) for line in own]
    made: list[Setting] = []
    if len(own) == len(listeners) and _UNLIMITED not in numbers:
        made.append(Setting("max_connections", sum(numbers), ", ".join(line.where for line in own)))
    for line, number in zip(own, numbers, strict=True):
        if number == _UNLIMITED:
            findings.left_out(line, f"no limit, but there are at most {_DEFAULTS.max_connections}")
        elif len(listeners) > 1:
            findings.left_out(line, "max_connections is for all listeners together")
    if (whole := conf.said.get("global_max_connections")) is not None:
        made += _one(whole, "max_connections", _or_none, findings)
    return sorted(made, key=lambda each: int(str(each.value)))[:1]


def _connections_of(line: Line) -> int:
    return _or_none(line) or _UNLIMITED


def _aliases(listeners: Sequence[Listener], findings: Findings) -> list[Setting]:
    """Return the smallest number of aliases: there is one for all listeners, and for both ways."""
    keys = ("max_topic_alias", "max_topic_alias_broker")
    lines = [each.said[key] for each in listeners for key in keys if key in each.said]
    made = [
        (each, line)
        for line in lines
        for each in _one(line, "max_topic_alias", lambda each: max(each.whole(), 0), findings)
    ]
    if not made:
        return []
    smallest, applies = min(made, key=lambda each: int(str(each[0].value)))
    for _, line in made:
        if line is not applies:
            findings.left_out(line, "max_topic_alias is for all listeners and both ways: the smallest applies")
    return [smallest]
