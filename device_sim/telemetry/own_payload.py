"""A payload that the scenario chooses: a text with placeholders, or bytes as they are.

Theory
------
JSON is full of braces, and never has a bare word between two of them: ``{word}`` is a placeholder, every other brace is
itself. A device's readings are the model's, so a template names them: what it publishes is as plausible, and follows
from the seed as much, as the built-in payloads.

Rules
-----
1. A text's unknown placeholder is an error, which lists the known ones. What is not UTF-8 is sent as it is.
2. No clock: the caller says when the message is sent.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from functools import lru_cache

from device_sim.telemetry.models import Model
from device_sim.telemetry.reading import Value
from provisioning.program.moments import rfc3339_milliseconds
from provisioning.program.near_names import nearest

ALWAYS = ("name", "group", "number", "time", "time_ms")
"""The placeholders of every model; the names of its values come on top."""
_PLACEHOLDER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")


class OwnPayload:
    """A payload of the scenario's own. Raises `ValueError` for a placeholder that is not among *values* or `ALWAYS`."""

    __slots__ = ("_fixed", "_pattern", "_values")

    def __init__(self, content: bytes, values: Iterable[str]) -> None:
        self._fixed: bytes | None = content
        self._pattern = ""
        self._values: tuple[str, ...] = ()
        try:
            text = content.decode()
        except UnicodeDecodeError:
            return
        used, known = dict.fromkeys(_PLACEHOLDER.findall(text)), (*ALWAYS, *values)
        for name in used:
            if name not in known:
                near = nearest(name, known)
                hint = f"did you mean {{{near}}}? " if near else ""
                there = ", ".join(f"{{{each}}}" for each in known)
                raise ValueError(f"{{{name}}}: there is no such placeholder; {hint}this model has {there}")
        if used:
            self._fixed = None
            self._pattern = _PLACEHOLDER.sub(r"%(\1)s", text.replace("%", "%%"))
            self._values = tuple(name for name in used if name not in ALWAYS)

    def filled(self, name: str, group: str, number: int, at: float, values: Mapping[str, Value]) -> bytes:
        """Return the payload of message *number* of a device, sent *at* (seconds since 1970), with its *values*."""
        if self._fixed is not None:
            return self._fixed
        words: dict[str, object] = {value: json.dumps(values[value]) for value in self._values}
        time = rfc3339_milliseconds(datetime.fromtimestamp(at, UTC))
        words.update(name=name, group=group, number=number, time=time, time_ms=int(at * 1000))
        return (self._pattern % words).encode()


@lru_cache(maxsize=64)
def own_payload(content: bytes, model: Model) -> OwnPayload:
    """Return the payload that *content* describes for devices of *model*. Raises `ValueError`."""
    return OwnPayload(content, next(model.readings(0, "")).values)
