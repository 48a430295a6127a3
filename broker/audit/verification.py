"""Verifies that an audit log is unchanged: every line, every number, where it begins, and that it reaches its head.

What the broker itself missed when it started is reported too: since then the numbers, and the head, fit together again.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from broker.audit.files import rotated
from broker.audit.head import AuditError, read_head
from broker.audit.lines import LACK, OLDEST, decoded, missing_before
from provisioning.directory.audit_chain import BEGINNING, AuditHead, link
from provisioning.program.given_file import lines_of

_MOST_FINDINGS = 100


@dataclass(slots=True)
class Verdict:
    """The result."""

    first: int = 0
    """The number of the first entry present; earlier ones were deleted with their files."""
    head: AuditHead = field(default_factory=lambda: AuditHead(0, BEGINNING))
    findings: list[str] = field(default_factory=list)


def verify(path: Path, key: bytes, noted: AuditHead | None = None) -> Verdict:
    """Verify the log at *path*; *noted* is a head that an earlier run printed. Raises `AuditError`, `OSError`."""
    while True:
        before = rotated(path)
        verdict = _verify(path, key, noted)
        if rotated(path) == before:  # Otherwise the broker has begun another file meanwhile.
            return verdict


def lines(path: Path) -> Iterator[tuple[Path, bytes]]:
    """Yield every whole line of the log at *path*, the oldest first, with its file."""
    for each in [*rotated(path), path]:
        with each.open("rb") as file:
            for line in lines_of(file, str(each)):
                if line.endswith(b"\n"):  # Otherwise it is being written.
                    yield each, line


def _verify(path: Path, key: bytes, noted: AuditHead | None) -> Verdict:
    walk = _Walk(key, noted)
    head: AuditHead | None = None
    try:
        head = read_head(path, key)
    except AuditError as error:
        walk.say(str(error))
    else:
        if head is None:
            walk.say("the head is missing")
    for file, line in lines(path):
        if len(walk.verdict.findings) > _MOST_FINDINGS:
            walk.say("and more")
            return walk.verdict
        walk.see(file.name, line)
    last = walk.verdict.head.number
    if walk.oldest and walk.verdict.first > walk.oldest:
        walk.say(missing_before(walk.verdict.first, walk.oldest))
    if head is not None and head.number > last:
        walk.say(f"entries {last + 1} to {head.number} are missing at the end")
    if not walk.noted_found:
        walk.say(f"the log does not contain the head {noted}: an older copy was put back, or another log in its place")
    return walk.verdict


class _Walk:
    """A pass over the lines."""

    def __init__(self, key: bytes, noted: AuditHead | None) -> None:
        self._key = key
        self._noted = noted
        self.noted_found = noted is None or noted.number == 0
        self.oldest = 0
        """With which entry the log begins, according to the last entry that says so."""
        self.verdict = Verdict()
        self.say = self.verdict.findings.append

    def see(self, file: str, line: bytes) -> None:
        """Check *line* of *file* against the previous line."""
        verdict = self.verdict
        before = verdict.head
        try:
            content, mac, facts = decoded(line)
        except ValueError as error:
            self.say(f"{file}: after entry {before.number}: {error}")
            return
        number, previous = facts["number"], before.mac
        if not verdict.first:
            verdict.first = number
            previous = _continued(facts)
        elif number != before.number + 1:
            missing = f"entries {before.number + 1} to {number - 1} are missing"
            self.say(f"{file}: {missing if number > before.number else f'entry {number} again'}")
            if facts.get("event") == "file":
                previous = _continued(facts)
        if not hmac.compare_digest(mac, link(self._key, previous, content)):
            self.say(f"{file}: entry {number} was changed, moved, or not written with this key")
        else:
            if facts.get("event") == "file":
                self.oldest = facts.get(OLDEST, 0)
            if facts.get("event") in {"file", "found"} and facts.get(LACK):
                self.say(f"{file}: entry {number}: when the broker opened the file, {facts.get('detail')}")
        if self._noted is not None and number == self._noted.number:
            self.noted_found = hmac.compare_digest(mac, self._noted.mac)
        verdict.head = AuditHead(number, mac)


def _continued(facts: dict[str, Any]) -> bytes:
    try:
        return bytes.fromhex(facts["previous"])
    except (KeyError, ValueError, TypeError):
        return BEGINNING
