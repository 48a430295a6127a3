"""The lines of a fleet's index: one fact each, as JSON, about one device (`device_sim.credentials.fleet_directory`).

Rules
-----
1. A line that holds no fact is an error that names the field: whoever has edited the file is told what to mend.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from device_sim.credentials.client_identifier import ALLOWED, may_be_client_id
from provisioning.pki.identity import Identity
from provisioning.pki.role import Role
from provisioning.pki.serial_number import serial_text

ReadT = TypeVar("ReadT")


class InvalidEntry(ValueError):
    """The line holds no fact; the text names the field."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the index."""

    identity: Identity
    serial: int
    not_after: datetime
    revoked: bool = False
    client_id: str | None = None
    """Its MQTT client identifier, if that is not its name."""

    @property
    def line(self) -> bytes:
        """The line, with its end."""
        identity = self.identity
        fields: dict[str, Any] = {
            "name": identity.name,
            "role": str(identity.role),
            "group": identity.group,
            "trust_domain": identity.trust_domain,
            "serial": serial_text(self.serial),
            "not_after": self.not_after.isoformat(),
            "revoked": self.revoked,
        }
        if self.client_id is not None:
            fields["client_id"] = self.client_id
        return json.dumps(fields, separators=(",", ":")).encode() + b"\n"

    @classmethod
    def of(cls, line: bytes) -> Entry:
        """Return the entry in *line*; raise `InvalidEntry`, or an `InvalidIdentity`, if it holds none (rule 1)."""
        fields = _fields(line)
        group = None if fields.get("group") is None else _read(fields, "group", str)
        role, name = _read(fields, "role", Role), _read(fields, "name", str)
        identity = Identity(_read(fields, "trust_domain", str), role, name, group)  # Its errors name the field.
        revoked = fields.get("revoked")
        if not isinstance(revoked, bool):
            raise InvalidEntry("revoked is neither true nor false")
        client_id = None if fields.get("client_id") is None else _read(fields, "client_id", _client_id)
        serial = _read(fields, "serial", lambda text: int(text, 16))
        return cls(identity, serial, _read(fields, "not_after", _moment), revoked, client_id)


def _fields(line: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(line)
    except json.JSONDecodeError as error:
        raise InvalidEntry(f"it is no JSON: {error.msg}, at character {error.pos + 1}") from error
    except RecursionError as error:
        raise InvalidEntry("it is nested too deeply") from error
    if not isinstance(fields, dict):
        raise InvalidEntry("it is no object of JSON")
    return fields


def _read(fields: dict[str, Any], name: str, read: Callable[[str], ReadT]) -> ReadT:
    """Return what *read* makes of the text in the field *name*."""
    text = fields.get(name)
    if not isinstance(text, str):
        wrong = "missing" if text is None else "no text"
        raise InvalidEntry(f"{name} is {wrong}")
    try:
        return read(text)
    except ValueError as error:
        raise InvalidEntry(f"{name}: {error}") from error


def _client_id(text: str) -> str:
    if not may_be_client_id(text):
        raise InvalidEntry(f"{text[:40]!r}, of {len(text):,} characters, cannot be a client identifier: use {ALLOWED}")
    return text


def _moment(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise InvalidEntry(f"{text} has no offset from UTC")
    return moment
