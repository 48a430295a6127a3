"""The feed's reader gives the same events however the bytes arrive."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisioning.client.feed_reader import (
    Authorities,
    Current,
    EventReader,
    FeedLost,
    IssuingAuthority,
    ReleaseEvent,
    RevocationEvent,
)
from provisioning.pki.revocation import Revocation
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.revocation.feed_event import event_of
from provisioning.store.revocations import EventKind, RevocationRecord
from tests.support.year_0 import SAID

REVOKED_AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def revoked(sequence: int) -> bytes:
    data = {
        "sequence": sequence,
        "issuer_key_id": "00ff",
        "serial": f"{sequence:x}",
        "reason": "keyCompromise",
        "revoked_at": "2026-01-02T03:04:05Z",
        "recorded_at": f"2026-01-02T03:04:05.{sequence:03}Z",
        "device": f"meter-{sequence}",
    }
    return f"id: {sequence}\nevent: revoked\ndata: {json.dumps(data)}\n\n".encode()


def other_facts(**other: object) -> bytes:
    """Return the event 5 with *other* facts."""
    facts = json.loads(revoked(5).partition(b"data: ")[2]) | {"mark": "ab"} | other
    return f"id: 5\nevent: revoked\ndata: {json.dumps(facts)}\n\n".encode()


def current(sequence: int) -> bytes:
    return f'event: current\ndata: {{"sequence": {sequence}}}\n\n'.encode()


def released(sequence: int) -> bytes:
    data = {
        "sequence": sequence,
        "issuer_key_id": "00ff",
        "serial": f"{sequence:x}",
        "released_at": "2026-01-02T03:04:05Z",
        "device": f"meter-{sequence}",
    }
    return f"id: {sequence}\nevent: released\ndata: {json.dumps(data)}\n\n".encode()


_HEX = st.text("0123456789abcdef", min_size=1, max_size=40)
_MOMENTS = st.datetimes(datetime(1971, 1, 1), datetime(2999, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001


@given(
    sequence=st.integers(1, 2**62),
    kind=st.sampled_from(EventKind),
    issuer=_HEX,
    serial=_HEX,
    reason=st.sampled_from(RevocationReason),
    occurred_at=_MOMENTS,
    device=st.text(min_size=1, max_size=64),
    since=st.none() | _MOMENTS,
)
def test_the_service_writes_an_event_as_the_library_would(
    sequence: int,
    kind: EventKind,
    issuer: str,
    serial: str,
    reason: RevocationReason,
    occurred_at: datetime,
    device: str,
    since: datetime | None,
) -> None:
    """Its text is put together for a thousand events at once; here is the slow twin."""
    event = event_of(RevocationRecord(sequence, kind, issuer, serial, reason, occurred_at, device, since))
    at = f"{occurred_at:%Y-%m-%dT%H:%M:%SZ}"
    data: dict[str, object] = {"sequence": sequence, "issuer_key_id": issuer, "serial": serial}
    if kind is EventKind.REVOKED:
        exactly = occurred_at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        data |= {"reason": reason.value, "revoked_at": at, "recorded_at": exactly}
        data |= {} if since is None else {"invalidity_date": f"{since:%Y-%m-%dT%H:%M:%SZ}"}
    else:
        data |= {"released_at": at}
    data |= {"device": device, "mark": event.mark}
    assert event.frame == f"id: {sequence}\nevent: {kind.value}\ndata: {json.dumps(data)}\n\n".encode()
    facts = f"{kind} {issuer} {serial} {reason} {occurred_at.isoformat()}"
    assert event.mark == hashlib.sha256(facts.encode()).hexdigest()[:16]


@given(
    sequence=st.integers(1, 10**18),
    issuer=st.binary(min_size=1, max_size=20).map(bytes.hex),
    serial=_HEX,
    reason=st.sampled_from(RevocationReason),
    occurred_at=_MOMENTS,
    device=st.text(min_size=1, max_size=64) | st.from_regex(r"[a-z0-9 .:_-]{1,64}", fullmatch=True),
    since=st.none() | _MOMENTS,
    place=st.integers(0, 400),
    other=st.binary(max_size=3),
)
def test_what_is_read_by_its_layout_is_what_its_json_says(
    sequence: int,
    issuer: str,
    serial: str,
    reason: RevocationReason,
    occurred_at: datetime,
    device: str,
    since: datetime | None,
    place: int,
    other: bytes,
) -> None:
    """Revocations as the service writes them are not read as JSON; the slow twin reads any, and refuses the same."""
    record = RevocationRecord(sequence, EventKind.REVOKED, issuer, serial, reason, occurred_at, device, since)
    frame = event_of(record).frame
    damaged = frame[:place] + other + frame[place + len(other) :]
    for written in (frame, damaged):
        block = written.removesuffix(b"\n\n")
        if b"\n\n" not in block:
            quickly = _outcome(EventReader(sequence - 1)._event, block)
            assert quickly == _outcome(EventReader(sequence - 1)._any_event, block)


def _outcome(read: Callable[[Any], object], block: bytes) -> object:
    """Return what *read* makes of *block*, with the event's mark, or that it refuses it."""
    try:
        event = read(block if read.__name__ == "_event" else block.decode())
    except (FeedLost, ValueError, KeyError, TypeError) as error:
        return "a gap" if "went from" in str(error) else "cannot be read"
    return event, getattr(event, "mark", None)


CA = IssuingAuthority("issuing-2", "default", "announced", b"\x30\x00")


def authorities(**different: object) -> bytes:
    told = {"name": CA.name, "line": CA.line, "state": CA.state, "certificate": "MAA=", "more": 1} | different
    return f"event: authorities\ndata: {json.dumps({'issuing': [told]})}\n\n".encode()


STREAM = (
    b": hello\n\n"
    + current(4)
    + authorities()
    + revoked(5)
    + revoked(6)
    + b"event: news\ndata: {}\n\n"
    + revoked(7)
    + released(8)
    + current(8)
)
EVENTS = [
    Current(4),
    Authorities((CA,)),
    *(
        RevocationEvent(
            number,
            Revocation(b"\x00\xff", number, RevocationReason.KEY_COMPROMISE, REVOKED_AT),
            f"meter-{number}",
            REVOKED_AT + timedelta(milliseconds=number),
        )
        for number in (5, 6, 7)
    ),
    ReleaseEvent(8, (b"\x00\xff", 8), "meter-8"),
    Current(8),
]


@given(st.lists(st.integers(0, len(STREAM)), max_size=12), st.booleans())
def test_the_stream_may_be_cut_anywhere(cuts: list[int], carriage_returns: bool) -> None:
    stream = STREAM.replace(b"\n", b"\r\n") if carriage_returns else STREAM
    reader = EventReader(after=4)
    places = [0, *sorted(cuts), len(stream)]
    events = [event for start, end in itertools.pairwise(places) for event in reader.feed(stream[start:end])]
    assert events == EVENTS


@given(st.lists(st.integers(0, len(STREAM)), max_size=5), st.booleans())
def test_what_arrives_together_is_the_same_in_lists(cuts: list[int], cut_off: bool) -> None:
    """What stands before an event that cannot be read counts; and the CAs keep their place among the others."""
    stream = STREAM + revoked(10) if cut_off else STREAM
    reader = EventReader(after=4)
    places = [0, *sorted(cuts), len(stream)]
    found: list[object] = []
    try:
        for start, end in itertools.pairwise(places):
            for arrived in reader.together(stream[start:end]):
                assert arrived, "no list is empty"
                found += arrived if isinstance(arrived, list) else [arrived]
    except FeedLost:
        assert cut_off
    else:
        assert not cut_off
    assert found == EVENTS


def test_what_one_read_has_brought_is_one_list_on_each_side_of_the_cas() -> None:
    before, cas, *after = EventReader(after=4).together(STREAM)
    assert before == EVENTS[:1]
    assert cas == EVENTS[1]
    assert after == [EVENTS[2:]]


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_byte_by_byte(end: bytes) -> None:
    reader = EventReader(after=4)
    assert [event for byte in STREAM.replace(b"\n", end) for event in reader.feed(bytes([byte]))] == EVENTS


@pytest.mark.parametrize(
    "written",
    [
        revoked(5),
        revoked(5).replace(b"id: 5\n", b""),
        revoked(5).replace(b"id: 5\n", b"id:5\nretry: 7\n"),
        revoked(5).replace(b"id: 5\nevent: revoked\n", b"event: revoked\nid: 5\n"),
        revoked(5).replace(b', "serial"', b',\ndata: "serial"'),
        revoked(5).replace(b"\n\n", b"\nid: 5\n\n"),
        revoked(5).replace(b"data: ", b"data:"),
    ],
)
def test_an_event_is_the_same_however_its_fields_are_laid_out(written: bytes) -> None:
    assert list(EventReader(after=4).feed(written)) == [EVENTS[2]]


@pytest.mark.parametrize(
    ("stream", "reason"),
    [
        (revoked(6), "went from 4 to 6"),
        (revoked(4), "went from 4 to 4"),
        (released(6), "went from 4 to 6"),
        (current(5), "is at 5, but the last event received is 4"),
        (b"event: revoked\ndata: {}\n\n", "cannot be read"),
        (b"id: 5\nevent: revoked\ndata: {}\n\n", "cannot be read"),
        (b"id: 5\nevent: revoked\ndata: {\xff}\n\n", "cannot be read"),
        (b"id: 5\nevent: revoked\ndata: []\n\n", "cannot be read"),
        (b"event: revoked\ndata: [1]\n\n", "cannot be read"),
        (b"event: current\ndata: \xff\n\n", "cannot be read"),
        (b"event: current\n\n", "cannot be read"),
        (authorities(certificate="MA=A"), "cannot be read"),
        (authorities(certificate=7), "cannot be read"),
        (b"event: authorities\ndata: {}\n\n", "cannot be read"),
        (b"x" * 2_000_000, "is longer than"),
        (other_facts(sequence=True), "True is no whole number"),
        (other_facts(sequence=5.5), "5.5 is no whole number"),
        (other_facts(sequence=math.inf), "inf is no whole number"),
        (b'event: current\ndata: {"sequence": 1e999}\n\n', "inf is no whole number"),
        (other_facts(device=7), "7 is no text"),
        (other_facts(device=["meter-5"]), "is no text"),
        (other_facts(device="m" * 5000), "is longer than 4096 characters"),
        (other_facts(serial="1" * 5000), "is longer than 4096 characters"),
        (other_facts(mark=7), "7 is no text"),
        (other_facts(mark="ab" * 33), "its mark is longer than 64 characters"),
        (other_facts(mark="\ud800"), "surrogates not allowed"),
        (authorities(name="\udfff"), "surrogates not allowed"),
        (other_facts(revoked_at="2026-01-02T03:04:05"), "has no time zone"),
        (other_facts(recorded_at="2026-01-02"), "has no time zone"),
        (
            other_facts(revoked_at="9999-12-31T23:59:59-14:00"),
            r"year (10000 is out of range|must be in 1\.\.9999, not 10000)",
        ),
        (
            other_facts(revoked_at="9999-12-31T23:59:59.999999Z"),
            r"year (10000 is out of range|must be in 1\.\.9999, not 10000)",
        ),
        (other_facts(revoked_at="0001-01-01T00:00:00+14:00"), SAID),
        (b'event: current\ndata: {"sequence": 4, "elapsed": ' + b"9" * 400 + b"}\n\n", "cannot be read"),
        (b'event: current\ndata: {"sequence": 4, "elapsed": NaN}\n\n', "nan is no time in seconds"),
        (b'event: current\ndata: {"sequence": 4, "now": "2026-01-02T03:04:05"}\n\n', "has no time zone"),
        (b'event: current\ndata: {"sequence": 4, "now": 1767323045}\n\n', "is no text"),
        (b'event: current\ndata: {"sequence": 4, "now": "noon"}\n\n', "cannot be read"),
        (
            b'event: current\ndata: {"sequence": 4, "now": "9999-12-31T23:59:59-14:00"}\n\n',
            r"year (10000 is out of range|must be in 1\.\.9999, not 10000)",
        ),
        (b"event: authorities\ndata: " + b"[" * 200_000 + b"\n\n", "cannot be read"),
        (b'event: released\ndata: {"sequence": 5, "a": ' + b"[" * 4000 + b"\n\n", "cannot be read"),
        (authorities(name=7), "7 is no text"),
        (authorities(state=["active"]), "is no text"),
    ],
)
def test_what_is_lost_or_unreadable_ends_the_feed(stream: bytes, reason: str) -> None:
    with pytest.raises(FeedLost, match=reason):
        list(EventReader(after=4).feed(stream))


@pytest.mark.parametrize(
    ("said", "heard"),
    [("", None), (', "now": "2026-11-30T12:00:00.500Z"', datetime(2026, 11, 30, 12, 0, 0, 500_000, UTC))],
    ids=["older service", "said"],
)
def test_a_heartbeat_tells_the_time(said: str, heard: datetime | None) -> None:
    (beat,) = EventReader(after=4).feed(f'event: current\ndata: {{"sequence": 4{said}}}\n\n'.encode())
    assert isinstance(beat, Current)
    assert beat.now == heard
