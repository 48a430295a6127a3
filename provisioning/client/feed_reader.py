"""The revocation feed as a client reads it: bytes in, events out, each of the right types or the feed is lost.

Rules
-----
1. Sequence numbers come without a gap, or `FeedLost` is raised: nothing is skipped that cannot be read.
2. Whatever is wrong with an event is found here: later it would fail where a client is admitted, or where the feed is
   asked for again.
3. No event takes more memory than its kind may need.
"""

from __future__ import annotations

import base64
import functools
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from provisioning.pki.revocation import CertificateKey, Revocation
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.quick_values import quickly_made

_USUAL = re.compile(
    r"id: [1-9][0-9]{0,17}\nevent: revoked\ndata: "
    r'{"sequence": ([1-9][0-9]{0,17}), "issuer_key_id": "([0-9a-f]+)", "serial": "([0-9a-f]+)", '
    r'"reason": "([A-Za-z]+)", "revoked_at": "([0-9TZ:.-]+)", "recorded_at": "([0-9TZ:.-]+)", '
    r'(?:"invalidity_date": "[0-9TZ:-]+", )?'
    r'"device": "([ !#-\[\]-~]*)", "mark": "([0-9a-f]{1,64})"}'
)
"""A revocation as the service writes it, where the name needs no escapes: read for a third of what its JSON takes.

A thousand may come at once, and sessions stay open until theirs has been read.
"""
# What is revoked together has one issuer, one time and one reason.
_issuer_of = functools.lru_cache(16)(bytes.fromhex)
_reason_of = functools.lru_cache(16)(RevocationReason)
_LONGEST_EVENT = 1024 * 1024
"""The event about the CAs has the certificate of each, about 1 KB."""
_LONGEST_OF_ONE = 4096
"""Any other is about one certificate, and ends in log lines and in the audit log."""
_KINDS_OF_ONE = frozenset({"revoked", "released", "current"})
_LONGEST_MARK = 64
"""The service takes no longer one."""


class FeedLost(Exception):
    """The feed ended, fell silent, was refused or became unreadable; connect again with the last number you have."""


@quickly_made
@dataclass(frozen=True, slots=True)
class RevocationEvent:
    """One revocation and its place in the feed."""

    sequence: int
    revocation: Revocation
    device: str
    recorded_at: datetime
    """When the service recorded it: *revoked_at*, not truncated to the second."""
    mark: str | None = field(default=None, compare=False)
    """For `follow_together`: distinguishes it from another event with its number; None if the service sends none."""
    authority_key: bytes | None = field(default=None, compare=False)
    """Of an issuing CA: the identifier of its own key."""


@dataclass(frozen=True, slots=True)
class ReleaseEvent:
    """The end of a certificateHold: the certificate named *key* is good again."""

    sequence: int
    key: CertificateKey
    device: str
    mark: str | None = field(default=None, compare=False)
    released_at: datetime | None = field(default=None, compare=False)
    """To the second; None if the service does not say."""


@dataclass(frozen=True, slots=True)
class Current:
    """Everything up to *sequence* has been received; also the heartbeat."""

    sequence: int
    elapsed: float | None = field(default=None, compare=False)
    """How many seconds the stream had lasted, by the service's clock; None: a service from before 0238."""
    now: datetime | None = field(default=None, compare=False)
    """The time of day, by the service's clock; None: a service from before 0279."""


@dataclass(frozen=True, slots=True)
class IssuingAuthority:
    """One of the fleet's issuing CAs, as the service reports it: to compare with the trust anchors, never as one."""

    name: str
    line: str
    state: str
    """announced, active or retiring."""
    certificate: bytes
    """DER."""


@dataclass(frozen=True, slots=True)
class Authorities:
    """All current issuing CAs; a service from before 0032 does not send them."""

    issuing: tuple[IssuingAuthority, ...]
    revoked: tuple[tuple[CertificateKey, bytes], ...] = ()
    """Of those that are revoked the certificates, each with the identifier of the CA's own key."""


FeedEvent = RevocationEvent | ReleaseEvent | Current


class EventReader:
    """Bytes of the feed in, events out, in sequence after *after*. Does no I/O.

    Handles: chunks cut anywhere, LF and CRLF, comments, events of unknown type (ignored, so that the service may add
    some). Raises `FeedLost` for a gap, an event that is too long, or one that cannot be read.
    """

    def __init__(self, after: int) -> None:
        self._sequence = after
        self._pending = bytearray()

    def feed(self, chunk: bytes) -> Iterator[FeedEvent | Authorities]:
        """Yield the events that *chunk* completes."""
        seen = max(0, len(self._pending) - 2)
        self._pending += chunk
        blocks: list[bytes] = []
        # Otherwise an event that arrives byte by byte would be copied for each.
        if self._pending.find(b"\n\n", seen) >= 0 or self._pending.find(b"\n\r\n", seen) >= 0:
            *blocks, rest = bytes(self._pending).replace(b"\r\n", b"\n").split(b"\n\n")
            self._pending = bytearray(rest)
        if len(self._pending) > _LONGEST_EVENT:
            raise FeedLost(f"an event of the revocation feed is longer than {_LONGEST_EVENT} bytes")
        for block in blocks:
            event = self._event(block)
            if event is not None:
                yield event

    def together(self, chunk: bytes) -> Iterator[list[FeedEvent] | Authorities]:
        """Yield the same, events that follow one upon another in one list."""
        events: list[FeedEvent] = []
        try:
            for event in self.feed(chunk):
                if isinstance(event, Authorities):
                    if events:
                        yield events
                    events = []
                    yield event
                else:
                    events.append(event)
        except FeedLost:
            if events:  # What was read before it counts.
                yield events
            raise
        if events:
            yield events

    def _event(self, block: bytes) -> FeedEvent | Authorities | None:
        try:
            written = block.decode()
            usual = _USUAL.fullmatch(written) if len(written) <= _LONGEST_OF_ONE else None
            return self._any_event(written) if usual is None else self._usually_revoked(*usual.groups())
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise FeedLost(f"an event of the revocation feed cannot be read: {error!r}") from error

    def _any_event(self, written: str) -> FeedEvent | Authorities | None:
        kind, data = "message", ""
        for line in written.split("\n"):
            name, _, value = line.partition(":")
            if name == "event":
                kind = value.removeprefix(" ")
            elif name == "data":
                data += value
        if kind in _KINDS_OF_ONE and len(written) > _LONGEST_OF_ONE:
            raise ValueError(f"it is longer than {_LONGEST_OF_ONE} characters")
        match kind:
            case "revoked":
                return self._revoked(json.loads(data))
            case "released":
                return self._released(json.loads(data))
            case "current":
                return self._current(json.loads(data))
            case "authorities":
                return _authorities(json.loads(data))
            case _:
                return None

    def _usually_revoked(
        self,
        sequence: str,
        issuer: str,
        serial: str,
        reason: str,
        revoked_at: str,
        recorded_at: str,
        device: str,
        mark: str,
    ) -> RevocationEvent:
        """Do what `_revoked` does, its slow twin, with the texts themselves."""
        number = self._next(int(sequence))
        revocation = Revocation(_issuer_of(issuer), int(serial, 16), _reason_of(reason), _moment_of(revoked_at))
        return RevocationEvent(number, revocation, device, _moment_of(recorded_at), mark)

    def _revoked(self, facts: dict[str, Any]) -> RevocationEvent:
        sequence = self._next(_number(facts["sequence"]))
        revocation = Revocation(
            _issuer_of(facts["issuer_key_id"]),
            int(facts["serial"], 16),
            _reason_of(facts["reason"]),
            _moment_of(facts["revoked_at"]),
        )
        recorded_at = facts.get("recorded_at")
        moment = revocation.revoked_at if recorded_at is None else _moment_of(recorded_at)
        key = facts.get("authority_key")
        authority_key = None if key is None else bytes.fromhex(_text(key))
        return RevocationEvent(sequence, revocation, _text(facts["device"]), moment, _mark_in(facts), authority_key)

    def _released(self, facts: dict[str, Any]) -> ReleaseEvent:
        sequence = self._next(_number(facts["sequence"]))
        key = (bytes.fromhex(facts["issuer_key_id"]), int(facts["serial"], 16))
        said = facts.get("released_at")
        released_at = None if said is None else _moment_of(_text(said))
        return ReleaseEvent(sequence, key, _text(facts["device"]), _mark_in(facts), released_at)

    def _next(self, sequence: int) -> int:
        if sequence != self._sequence + 1:
            raise FeedLost(f"the revocation feed went from {self._sequence} to {sequence}")
        self._sequence = sequence
        return sequence

    def _current(self, facts: dict[str, Any]) -> Current:
        sequence = _number(facts["sequence"])
        if sequence != self._sequence:
            raise FeedLost(f"the revocation feed is at {sequence}, but the last event received is {self._sequence}")
        elapsed, now = facts.get("elapsed"), facts.get("now")
        # Not from the cache, where it would displace the times of revocations.
        moment = None if now is None else _moment_of.__wrapped__(_text(now))
        return Current(sequence, None if elapsed is None else _seconds(elapsed), moment)


@functools.lru_cache(16)
def _moment_of(text: str) -> datetime:
    """Return the time *text*, with its zone, which the index can give back from whole seconds."""
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"{text} has no time zone")
    datetime.fromtimestamp(int(moment.timestamp()), UTC)
    return moment


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.80} is no text")
    value.encode()  # ValueError for a lone surrogate, which ends up in no URL and no body.
    return value


def _mark_in(facts: dict[str, Any]) -> str | None:
    mark = facts.get("mark")
    if mark is not None and len(_text(mark)) > _LONGEST_MARK:
        raise ValueError(f"its mark is longer than {_LONGEST_MARK} characters")
    return mark


def _number(value: object) -> int:
    if type(value) is not int:  # A bool is one, too, and a fraction would be cut off.
        raise TypeError(f"{value!r:.80} is no whole number")
    return value


def _seconds(value: object) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(seconds := float(value)):
        return seconds
    raise TypeError(f"{value!r:.80} is no time in seconds")


def _authorities(facts: dict[str, list[dict[str, Any]]]) -> Authorities:
    issuing = (
        IssuingAuthority(
            _text(each["name"]),
            _text(each["line"]),
            _text(each["state"]),
            base64.b64decode(each["certificate"], validate=True),
        )
        for each in facts["issuing"]
    )
    revoked = (
        ((bytes.fromhex(each["issuer_key_id"]), int(each["serial"], 16)), bytes.fromhex(each["authority_key"]))
        for each in facts.get("revoked", ())
    )
    return Authorities(tuple(issuing), tuple(revoked))
