r"""Client of the revocation feed: every revocation, once, in order, as soon as it is committed.

Theory
------
The service streams Server-Sent Events: first every revocation after the subscriber's sequence number, then
``current`` (nothing is missing up to here), then each new revocation as it is committed, with ``current`` again as a
heartbeat. Sequence numbers have no gaps, so a subscriber can tell a lost event from a quiet hour.

Rules
-----
1. `follow_together` yields sequence numbers without a gap or raises `FeedLost`; it never skips what it cannot read.
2. Silence longer than three heartbeats is `FeedLost`: a dead peer looks like a quiet one. So is a stream whose
   heartbeats are later and later: somebody holds it back (`provisioning.client.feed_delay`).
3. One connection, one call: when to reconnect, and from which number, is the caller's decision. The server's
   certificate is judged in the handshake only, so a caller that never reconnects believes it for ever.
4. No answer of a server is read, not even a refusal, before the caller has said whether to trust the server: the caller
   may know that its certificate is revoked.
"""

from __future__ import annotations

import base64
import functools
import json
import re
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from time import monotonic

import httpx

from provisioning.client.answer_body import problem_of, text_of
from provisioning.client.connection import explain, open_pool
from provisioning.client.feed_delay import FeedDelay
from provisioning.client.whole_answer import read_whole
from provisioning.pki.revocation import CertificateKey, Revocation
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.pki.tls import Credential, verified_path
from provisioning.quick_values import quickly_made

HEARTBEAT = 5.0
_PATH = "/v1/revocations/feed"
SILENT_HEARTBEATS = 3
"""After this many missing ones the connection is given up."""
_USUAL = re.compile(
    r"id: [1-9][0-9]{0,17}\nevent: revoked\ndata: "
    r'{"sequence": ([1-9][0-9]{0,17}), "issuer_key_id": "([0-9a-f]+)", "serial": "([0-9a-f]+)", '
    r'"reason": "([A-Za-z]+)", "revoked_at": "([0-9TZ:.-]+)", "recorded_at": "([0-9TZ:.-]+)", '
    r'(?:"invalidity_date": "[0-9TZ:-]+", )?'
    r'"device": "([ !#-\[\]-~]*)", "mark": "([0-9a-f]+)"}'
)
"""A revocation as the service writes it, where the name needs no escapes: read for a third of what its JSON takes.

A thousand may come at once, and sessions stay open until theirs has been read.
"""
# What is revoked together has one issuer, one time and one reason.
_issuer_of = functools.lru_cache(16)(bytes.fromhex)
_moment_of = functools.lru_cache(16)(datetime.fromisoformat)
_reason_of = functools.lru_cache(16)(RevocationReason)
_LONGEST_EVENT = 1024 * 1024
"""The event about the CAs has the certificate of each, about 1 KB."""


class FeedLost(Exception):
    """The feed ended, fell silent, was refused or became unreadable; connect again with the last number you have."""


class FeedRefused(FeedLost):
    """The service does not let this client follow; the text says why."""

    def __init__(self, reason: str, code: str) -> None:
        """*code* is the service's error code, empty if it gave none."""
        super().__init__(reason)
        self.code = code


class FeedAhead(Exception):
    """The service has fewer revocations than the follower, or different ones: an older database was restored.

    Start again from 0.
    """


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


@dataclass(frozen=True, slots=True)
class ReleaseEvent:
    """The end of a certificateHold: the certificate named *key* is good again."""

    sequence: int
    key: CertificateKey
    device: str
    mark: str | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Current:
    """Everything up to *sequence* has been received; also the heartbeat."""

    sequence: int
    elapsed: float | None = field(default=None, compare=False)
    """How many seconds the stream had lasted, by the service's clock; None: a service from before 0238."""


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


FeedEvent = RevocationEvent | ReleaseEvent | Current

Refuse = Callable[[Sequence[bytes]], str | None]
"""Returns why a server with this certificate path (DER, its own first) is not trusted, or None."""


async def follow_together(
    base_url: str,
    anchors: Path | str,
    credential: Credential,
    after: int,
    *,
    mark: str | None = None,
    heartbeat: float = HEARTBEAT,
    refuse: Refuse = lambda _path: None,
    hear: Callable[[Sequence[IssuingAuthority]], None] = lambda _issuing: None,
    clock: Callable[[], float] = monotonic,
) -> AsyncGenerator[list[FeedEvent], None]:
    """Yield the events after the sequence number *after*, those that have arrived together at once, for ever.

    *mark* is that of the event *after*: if a restored store has another event there, this raises `FeedAhead`.
    *heartbeat* is the service's interval in seconds; a server for which *refuse* gives a reason is not read.
    *hear* is called with the fleet's issuing CAs after the first `Current`, and again when they have changed.
    *clock* is monotonic.

    Raises `FeedLost` or `FeedAhead`. Close the iterator (`contextlib.aclosing`) if you stop before that.
    """
    silence = heartbeat * SILENT_HEARTBEATS
    pool = open_pool(base_url, anchors, credential, timeout=silence, connections=1)
    place = {"after": str(after)} | ({} if mark is None else {"mark": mark})
    headers = {"Accept": "text/event-stream", "Cache-Control": "no-store"}
    try:
        async with (
            pool,
            pool.stream("GET", _PATH, params=place, headers=headers) as response,
        ):
            _believe(base_url, response, refuse)
            await _check(base_url, response, after)
            reader, delay = EventReader(after), FeedDelay(silence, heartbeat)
            waited, ready = 0.0, clock()
            async for chunk in response.aiter_raw():
                now, behind = clock(), 0.0
                waited += now - ready
                for arrived in reader.together(chunk):
                    if isinstance(arrived, Authorities):
                        hear(arrived.issuing)
                        continue
                    yield arrived
                    last = arrived[-1]
                    if isinstance(last, Current) and last.elapsed is not None:
                        behind = delay.of(last.elapsed, now, waited)
                if behind:
                    raise FeedLost(f"the revocation feed of {base_url} is held back: {behind:.1f} s behind")
                ready = clock()
    except httpx.ReadTimeout as error:
        raise FeedLost(f"the revocation feed of {base_url} has been silent for {silence:g} s") from error
    except httpx.HTTPError as error:
        raise FeedLost(explain(base_url, error)) from error
    raise FeedLost(f"{base_url} ended the revocation feed")


async def tell_known(
    base_url: str,
    anchors: Path | str,
    credential: Credential,
    known: Mapping[str, bool],
    *,
    refuse: Refuse = lambda _path: None,
) -> None:
    """Report to the service which of its issuing CAs, by name, a broker trusts. Raises `FeedLost` if that fails.

    A server for which *refuse* gives a reason counts as not told: it has seen the request, in which nothing is secret.
    """
    pool = open_pool(base_url, anchors, credential, connections=1)
    try:
        async with pool, pool.stream("PUT", f"{_PATH}/authorities", json={"known": dict(known)}) as response:
            _believe(base_url, response, refuse)
            if response.status_code == httpx.codes.NO_CONTENT:
                return
            answer = await read_whole(response)
            reason = f"{base_url} does not take which CAs are known here: {answer.status_code} {text_of(answer)[:300]}"
            raise FeedRefused(reason, str((problem_of(answer) or {}).get("code", "")))
    except httpx.HTTPError as error:
        raise FeedLost(explain(base_url, error)) from error


def _authorities(facts: dict[str, list[dict[str, str]]]) -> Authorities:
    return Authorities(
        tuple(
            IssuingAuthority(
                each["name"], each["line"], each["state"], base64.b64decode(each["certificate"], validate=True)
            )
            for each in facts["issuing"]
        )
    )


def _believe(base_url: str, response: httpx.Response, refuse: Refuse) -> None:
    """Raise `FeedLost` if *refuse* gives a reason not to trust the server that has answered."""
    tls = response.extensions["network_stream"].get_extra_info("ssl_object")
    if (why := refuse(verified_path(tls))) is not None:
        raise FeedLost(f"the server at {base_url} is not believed: {why}")


async def _check(base_url: str, response: httpx.Response, after: int) -> None:
    kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if response.status_code == httpx.codes.OK and kind == "text/event-stream":
        return
    response = await read_whole(response)
    if response.status_code == httpx.codes.CONFLICT:
        raise FeedAhead(f"the revocation feed of {base_url} has not what was read up to {after}; start again from 0")
    reason = f"{base_url} refused the revocation feed: {response.status_code} {text_of(response)[:300]}"
    raise FeedRefused(reason, str((problem_of(response) or {}).get("code", "")))


class EventReader:
    """Bytes of the feed in, events out, in sequence after *after*. Does no I/O.

    Handles: chunks cut anywhere, LF and CRLF, comments, events of unknown type (ignored, so that the service may add
    some). Raises `FeedLost` for a gap, an event that is too long, or one that cannot be read.
    """

    def __init__(self, after: int) -> None:
        self._sequence = after
        self._pending = b""

    def feed(self, chunk: bytes) -> Iterator[FeedEvent | Authorities]:
        """Yield the events that *chunk* completes."""
        *blocks, self._pending = (self._pending + chunk).replace(b"\r\n", b"\n").split(b"\n\n")
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
            usual = _USUAL.fullmatch(written)
            return self._any_event(written) if usual is None else self._usually_revoked(*usual.groups())
        except (ValueError, KeyError, TypeError) as error:
            raise FeedLost(f"an event of the revocation feed cannot be read: {error!r}") from error

    def _any_event(self, written: str) -> FeedEvent | Authorities | None:
        kind, data = "message", ""
        for line in written.split("\n"):
            name, _, value = line.partition(":")
            if name == "event":
                kind = value.removeprefix(" ")
            elif name == "data":
                data += value
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

    def _revoked(self, facts: dict[str, str]) -> RevocationEvent:
        sequence = self._next(int(facts["sequence"]))
        revocation = Revocation(
            _issuer_of(facts["issuer_key_id"]),
            int(facts["serial"], 16),
            _reason_of(facts["reason"]),
            _moment_of(facts["revoked_at"]),
        )
        recorded_at = facts.get("recorded_at")
        moment = revocation.revoked_at if recorded_at is None else _moment_of(recorded_at)
        return RevocationEvent(sequence, revocation, facts["device"], moment, facts.get("mark"))

    def _released(self, facts: dict[str, str]) -> ReleaseEvent:
        sequence = self._next(int(facts["sequence"]))
        key = (bytes.fromhex(facts["issuer_key_id"]), int(facts["serial"], 16))
        return ReleaseEvent(sequence, key, facts["device"], facts.get("mark"))

    def _next(self, sequence: int) -> int:
        if sequence != self._sequence + 1:
            raise FeedLost(f"the revocation feed went from {self._sequence} to {sequence}")
        self._sequence = sequence
        return sequence

    def _current(self, facts: dict[str, str]) -> Current:
        sequence = int(facts["sequence"])
        if sequence != self._sequence:
            raise FeedLost(f"the revocation feed is at {sequence}, but the last event received is {self._sequence}")
        elapsed = facts.get("elapsed")
        return Current(sequence, None if elapsed is None else float(elapsed))
