"""A line of the audit log: how it is written, and what it says. What the lines are together: `broker.audit.files`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from provisioning.directory.audit_chain import link

MAC: Final = b',"mac":"'
"""What precedes a line's code; everything before it is authenticated by that."""
TAIL: Final = 128 * 1024
"""More than two lines: a field has at most 2,000 characters."""
FIRST: Final = b'{"number":'
"""How every entry begins."""
_ENCODER: Final = json.JSONEncoder(separators=(",", ":"), default=str)
LACK: Final = "lack"
"""The field of an entry according to which others were missing when the broker opened the file, or began it."""
OLDEST: Final = "oldest"
"""The field of a `file` entry that says which entry is the first of the log, whose file the broker has kept."""


def encoded(key: bytes, previous: bytes, number: int, at: float, facts: Mapping[str, Any]) -> tuple[bytes, bytes]:
    """Return a line, and its code."""
    moment = datetime.fromtimestamp(at, UTC).isoformat(timespec="microseconds")
    own = {"number": number, "at": moment}
    said = {name: value for name, value in facts.items() if value not in ("", None) and name not in own}
    content = _ENCODER.encode(own | said).encode()
    mac = link(key, previous, content)
    return content[:-1] + MAC + mac.hex().encode() + b'"}\n', mac


def decoded(line: bytes) -> tuple[bytes, bytes, dict[str, Any]]:
    """Return the part of *line* that its code authenticates, the code, and the facts. Raises ValueError."""
    content, mark, rest = line.rstrip(b"\n").rpartition(MAC)
    try:
        facts = json.loads(line)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not mark or not isinstance(facts, dict) or not isinstance(facts.get("number"), int):
        raise ValueError("not a line of an audit log")
    return content + b"}", bytes.fromhex(rest[:-2].decode()), facts


def lacking(detail: str) -> dict[str, Any]:
    """Return the facts of an entry that others are missing, as *detail* says."""
    return {"detail": detail, LACK: True}


def missing_before(first: int, oldest: int) -> str:
    """Return the words for a log that begins with entry *first*, and is to begin with *oldest*."""
    return f"entries {oldest} to {first - 1} are missing at the beginning"
