"""What the revocation feed sends: each event as a server-sent event, encoded once for all subscribers."""

from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from json.encoder import encode_basestring_ascii
from typing import Any, Final

from provisioning.program.moments import rfc3339, rfc3339_milliseconds
from provisioning.quick_values import quickly_made
from provisioning.store.revocations import EventKind, RevocationRecord

_MARK_DIGITS: Final = 16


@quickly_made
@dataclass(frozen=True, slots=True)
class FeedEvent:
    """One revocation or release."""

    sequence: int
    issuer_key_id: str
    serial: str
    frame: bytes
    mark: str
    """Distinguishes it from another event with the same number, from another history after a restore."""
    what: str
    """The reason of a revocation; or *released*."""

    @property
    def facts(self) -> dict[str, Any]:
        """What it says: read from the frame, as it is asked for only when the store has lost it."""
        facts: dict[str, Any] = json.loads(self.frame.partition(b"\ndata: ")[2])
        return facts

    @property
    def device(self) -> str:
        """Whose certificate it is about."""
        device: str = self.facts["device"]
        return device


def event_of(record: RevocationRecord) -> FeedEvent:
    """Return *record* with its server-sent event."""
    when, sequence, issuer, serial = _times(record.occurred_at), record.sequence, record.issuer_key_id, record.serial
    kind = record.kind.value
    if record.kind is EventKind.REVOKED:
        what = f'"reason": "{record.reason.value}", "revoked_at": "{when.at}", "recorded_at": "{when.recorded_at}"'
        if record.invalidity_date is not None:
            what += f', "invalidity_date": "{_times(record.invalidity_date).at}"'
    else:
        what = f'"released_at": "{when.at}"'
    facts = f"{kind} {issuer} {serial} {record.reason.value} {when.exactly}"
    mark = hashlib.sha256(facts.encode()).hexdigest()[:_MARK_DIGITS]
    if record.authority_key is not None:
        what += f', "authority_key": "{record.authority_key}"'
    # As the library's encoder writes it, for a tenth of the steps: only the name is not ours.
    data = (
        f'{{"sequence": {sequence}, "issuer_key_id": "{issuer}", "serial": "{serial}", {what}, '
        f'"device": {encode_basestring_ascii(record.device)}, "mark": "{mark}"}}'
    )
    happened = record.reason.value if record.kind is EventKind.REVOKED else kind
    return FeedEvent(
        sequence, issuer, serial, f"id: {sequence}\nevent: {kind}\ndata: {data}\n\n".encode(), mark, happened
    )


@dataclass(frozen=True, slots=True)
class _Times:
    """A time as an event has it."""

    at: str
    recorded_at: str
    exactly: str


@functools.lru_cache(16)
def _times(moment: datetime) -> _Times:
    """Return *moment* as an event has it; cached, because what is revoked together is revoked at one time."""
    moment = moment.astimezone(UTC)
    return _Times(rfc3339(moment), rfc3339_milliseconds(moment), moment.isoformat())


def current_frame(sequence: int, elapsed: float, now: datetime) -> bytes:
    """Return the event that says which sequence number is the newest, *elapsed* seconds after the stream began."""
    facts = f'{{"sequence": {sequence}, "elapsed": {elapsed:.3f}, "now": "{rfc3339_milliseconds(now)}"}}'
    return f"event: current\ndata: {facts}\n\n".encode()
