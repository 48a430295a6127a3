r"""Client of the revocation feed: every revocation, once, in order, as soon as it is committed.

Theory
------
The service streams Server-Sent Events: first every revocation after the subscriber's sequence number, then
``current`` (nothing is missing up to here), then each new revocation as it is committed, with ``current`` again as a
heartbeat. Sequence numbers have no gaps, so a subscriber can tell a lost event from a quiet hour.

Rules
-----
1. `follow_together` yields sequence numbers without a gap or raises `FeedLost`; it never skips what it cannot read.
2. Silence longer than three heartbeats is `FeedLost`: a dead peer looks like a quiet one. So is a stream that goes on
   for as long without completing an event, and one whose heartbeats are later and later: somebody holds it back
   (`provisioning.client.feed_delay`).
3. One connection, one call: when to reconnect, and from which number, is the caller's decision. The server's
   certificate is judged in the handshake only, so a caller that never reconnects believes it for ever.
4. No answer of a server is read, not even a refusal, before the caller has said whether to trust the server: the caller
   may know that its certificate is revoked. So the head of an answer is bounded, in bytes and in time: informational
   responses without an end would hold up the caller for ever.
5. Whatever the server sends is an event of the right types or `FeedLost`: what is wrong would fail far from here, where
   a client is admitted or the feed asked for again. Nothing is decompressed, and of a refusal only the begin is read.
"""

from __future__ import annotations

import asyncio
import base64
import functools
import json
import math
import re
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import Any

import httpx

from provisioning.client.answer_body import problem_of, text_of
from provisioning.client.bounded_head import body_follows
from provisioning.client.connection import CONNECT_TIMEOUT, DEFAULT_TIMEOUT, explain, open_pool
from provisioning.client.feed_delay import FeedDelay
from provisioning.pki.revocation import CertificateKey, Revocation
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.pki.tls import Credential
from provisioning.pki.verified_path import verified_path
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
_LONGEST_REFUSAL = 16 * 1024
_CHUNKS_A_TURN = 256
"""A read may have ten thousand of one byte."""
_AS_IT_IS = {"Accept-Encoding": "identity"}


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
    headers = {"Accept": "text/event-stream", "Cache-Control": "no-store", **_AS_IT_IS}
    try:
        async with pool, AsyncExitStack() as opened:
            asking = pool.stream("GET", _PATH, params=place, headers=headers)
            response = await _begun(base_url, opened, asking, silence)
            _believe(base_url, response, refuse)
            await _check(base_url, response, after, silence)
            body_follows(response)
            reader, delay = EventReader(after), FeedDelay(silence, heartbeat)
            waited, heard, ready, chunks = 0.0, 0.0, clock(), 0
            async for chunk in response.aiter_raw():
                chunks += 1
                if chunks % _CHUNKS_A_TURN == 0:
                    await asyncio.sleep(0)
                now, behind = clock(), 0.0
                waited += now - ready
                for arrived in reader.together(chunk):
                    heard = waited
                    if isinstance(arrived, Authorities):
                        hear(arrived.issuing)
                        continue
                    yield arrived
                    last = arrived[-1]
                    if isinstance(last, Current) and last.elapsed is not None:
                        behind = delay.of(last.elapsed, now, waited)
                if behind:
                    raise FeedLost(f"the revocation feed of {base_url} is held back: {behind:.1f} s behind")
                if waited - heard > silence:
                    raise FeedLost(f"the revocation feed of {base_url} has sent no event for {silence:g} s")
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
        async with pool, AsyncExitStack() as opened:
            asking = pool.stream("PUT", f"{_PATH}/authorities", json={"known": dict(known)}, headers=_AS_IT_IS)
            response = await _begun(base_url, opened, asking, DEFAULT_TIMEOUT)
            _believe(base_url, response, refuse)
            if response.status_code == httpx.codes.NO_CONTENT:
                return
            raise await _refused(f"{base_url} does not take which CAs are known here", response, DEFAULT_TIMEOUT)
    except httpx.HTTPError as error:
        raise FeedLost(explain(base_url, error)) from error


def _authorities(facts: dict[str, list[dict[str, Any]]]) -> Authorities:
    return Authorities(
        tuple(
            IssuingAuthority(
                _text(each["name"]),
                _text(each["line"]),
                _text(each["state"]),
                base64.b64decode(each["certificate"], validate=True),
            )
            for each in facts["issuing"]
        )
    )


async def _begun(
    base_url: str, opened: AsyncExitStack, asking: AbstractAsyncContextManager[httpx.Response], seconds: float
) -> httpx.Response:
    """Return the answer, of which the head is there, and which is left with *opened*.

    Raises `FeedLost` if that takes *seconds* longer than it may take to connect.
    """
    most = 2 * CONNECT_TIMEOUT + seconds  # TCP and TLS have a limit each.
    try:
        async with asyncio.timeout(most):
            return await opened.enter_async_context(asking)
    except TimeoutError as error:
        raise FeedLost(f"{base_url} has not begun to answer within {most:g} s") from error


def _believe(base_url: str, response: httpx.Response, refuse: Refuse) -> None:
    """Raise `FeedLost` if *refuse* gives a reason not to trust the server that has answered."""
    tls = response.extensions["network_stream"].get_extra_info("ssl_object")
    if (why := refuse(verified_path(tls))) is not None:
        raise FeedLost(f"the server at {base_url} is not believed: {why}")


async def _check(base_url: str, response: httpx.Response, after: int, seconds: float) -> None:
    kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if response.status_code == httpx.codes.OK and kind == "text/event-stream":
        if response.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise FeedLost(f"the revocation feed of {base_url} is compressed, though it was asked for as it is")
        return
    if response.status_code == httpx.codes.CONFLICT:
        raise FeedAhead(f"the revocation feed of {base_url} has not what was read up to {after}; start again from 0")
    raise await _refused(f"{base_url} refused the revocation feed", response, seconds)


async def _refused(what: str, response: httpx.Response, seconds: float) -> FeedRefused:
    """Return the refusal *response*; what has not come in *seconds*, or is too long, is not waited for."""
    body = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for chunk in response.aiter_raw():
                body += chunk
                if len(body) > _LONGEST_REFUSAL:
                    break
    except TimeoutError:
        pass
    read = httpx.Response(response.status_code, content=bytes(body))
    reason = f"{what}: {response.status_code} {text_of(read)[:300]}"
    return FeedRefused(reason, str((problem_of(read) or {}).get("code", "")))


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
        return RevocationEvent(sequence, revocation, _text(facts["device"]), moment, _mark_in(facts))

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
    if type(value) not in {int, float} or not math.isfinite(seconds := float(value)):  # type: ignore[arg-type]
        raise TypeError(f"{value!r:.80} is no time in seconds")
    return seconds
