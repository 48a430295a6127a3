"""Commands from the backend to a device, and the device's answers.

Rules
-----
1. A command is published on ``fleet/<group>/<device>/cmd/<action>``; its answer on ``fleet/<group>/<device>/ack``.
2. An answer carries the identifier of its command; a device answers every command that it can parse, including unknown
   ones.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


class UnreadableCommand(ValueError):
    """The payload is no command or no answer; the text says why."""


@dataclass(frozen=True, slots=True)
class Command:
    """One command: *action* is the last topic level, *identifier* ties the answer to it."""

    identifier: str
    action: str
    arguments: Mapping[str, Any]

    def encode(self) -> bytes:
        """Return the payload; the action is in the topic."""
        return json.dumps({"id": self.identifier, "arguments": dict(self.arguments)}, separators=(",", ":")).encode()


@dataclass(frozen=True, slots=True)
class Answer:
    """A device's answer to the command with the same *identifier*."""

    identifier: str
    done: bool
    detail: Any

    def encode(self) -> bytes:
        """Return the payload."""
        return json.dumps(
            {"id": self.identifier, "done": self.done, "detail": self.detail}, separators=(",", ":")
        ).encode()


Action = Callable[[Mapping[str, Any]], Any]
"""Carries out one action: arguments in, detail of the answer out; `ValueError` refuses."""


def decode_command(action: str, payload: bytes) -> Command:
    """Return the command in *payload*; raise `UnreadableCommand` if there is none."""
    fields = _object(payload)
    arguments = fields.get("arguments", {})
    if not isinstance(arguments, dict):
        raise UnreadableCommand("arguments: use a JSON object")
    return Command(_identifier(fields), action, arguments)


def decode_answer(payload: bytes) -> Answer:
    """Return the answer in *payload*; raise `UnreadableCommand` if there is none."""
    fields = _object(payload)
    return Answer(_identifier(fields), fields.get("done") is True, fields.get("detail"))


def execute(command: Command, actions: Mapping[str, Action]) -> Answer:
    """Carry out *command* with the matching one of *actions*."""
    action = actions.get(command.action)
    if action is None:
        return Answer(command.identifier, done=False, detail=f"unknown action {command.action!r}")
    try:
        return Answer(command.identifier, done=True, detail=action(command.arguments))
    except ValueError as error:
        return Answer(command.identifier, done=False, detail=str(error))


def _object(payload: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(payload)
    except (ValueError, RecursionError) as error:  # The latter for one in very many brackets.
        raise UnreadableCommand(f"payload {payload[:80]!r} is no JSON: {error}") from error
    if not isinstance(fields, dict):
        raise UnreadableCommand(f"payload {payload[:80]!r} is no JSON object")
    return fields


def _identifier(fields: Mapping[str, Any]) -> str:
    identifier = fields.get("id")
    if not isinstance(identifier, str):
        raise UnreadableCommand("id: use a string")
    return identifier
