"""What to write instead of an unknown setting: for mosquitto's names, and for near misses.

If a whole mosquitto.conf is given as the settings, every line of it is reported. The page for such users is
docs/coming-from-mosquitto.md. `fleet-broker config convert` (`broker.mosquitto`) makes settings of such a file.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from broker.settings.mosquitto_options import LIMIT, OPTIONS, Place, option
from provisioning.program.near_names import nearest

_BRIDGE: Final = "connection"
_OF_THE_POLICY: Final = frozenset({"denied_publish", "device", "group", "identity", "role"})
_POLICY: Final = "it belongs to the topic policy; write it in policy_file: docs/topic-policy.md"


def hint(key: str, known: Collection[str], limits: Collection[str]) -> str:
    """Return what to write instead of *key*, an unknown setting: "; …", or nothing if that cannot be guessed.

    *known* are the settings at its place, *limits* those below ``[limits]``.
    """
    if key in limits:
        return f"; {LIMIT}"
    theirs = option(key)
    if theirs is not None and theirs.text:
        return f"; {theirs.advice}"
    if key in _OF_THE_POLICY:
        return f"; {_POLICY}"
    near = nearest(key, [*known, *(limits if limits != known else ())])
    if near:
        place = " below [limits]" if near not in known else ""
        return f"; is {near}{place} meant?"
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
        theirs = option(key)
        if theirs is not None and theirs.place is Place.BRIDGE:
            bridges.setdefault(key, number)
            told.setdefault(_BRIDGE, "")  # Its place, until all of them are known.
            continue
        if key == "listener":
            told[f"{key} {number}"] = f"line {number}: {key}: {_listener(value.split())}"
        else:
            same = f"write {key} = …, as TOML has it" if key in known and (theirs is None or not theirs.text) else ""
            told.setdefault(key, f"line {number}: {key}: {same or hint(key, known, limits).removeprefix('; ')}")
    if bridges:
        told[_BRIDGE] = f"line {min(bridges.values())}: {', '.join(bridges)}: {OPTIONS[_BRIDGE].text}"
    named = {key.partition(" ")[0] for key in told}
    return list(told.values()) if named & {*OPTIONS, *known} else []


def _listener(values: list[str]) -> str:
    """Return what to write for a listener at a port and, perhaps, an address."""
    port, *address = values
    if address and address[0].startswith("/"):
        return "remove it: clients connect by TCP; the admin API has a Unix socket"
    host = f' and host = "{address[0]}"' if address else ""
    return f"write a [[listener]] table with port = {port}{host}, or {'these' if host else 'that'} alone; it speaks TLS"
