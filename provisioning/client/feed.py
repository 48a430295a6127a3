"""Client of the revocation feed: every revocation, once, in order, as soon as it is committed.

Theory
------
The service streams Server-Sent Events: first every revocation after the subscriber's sequence number, then
``current`` (nothing is missing up to here), then each new revocation as it is committed, with ``current`` again as a
heartbeat. Sequence numbers have no gaps, so a subscriber can tell a lost event from a quiet hour.

Rules
-----
1. What `follow_together` yields has no gap, and is read as `provisioning.client.feed_reader` says.
2. Silence longer than three heartbeats is `FeedSilent`: a dead peer looks like a quiet one. So is a stream that goes on
   for as long without completing an event, and one whose heartbeats are later and later: somebody holds it back
   (`provisioning.client.feed_delay`).
3. One connection, one call: when to reconnect, and from which number, is the caller's decision. The server's
   certificate is judged in the handshake only, so a caller that never reconnects believes it for ever.
4. No answer of a server is read, not even a refusal, before the caller has said whether to trust the server: the caller
   may know that its certificate is revoked. So the head of an answer is bounded, in bytes and in time: informational
   responses without an end would hold up the caller for ever.
5. Nothing is decompressed, and of a refusal only the beginning is read.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path
from time import monotonic

import httpx

from provisioning.client.answer_body import problem_of, text_of
from provisioning.client.bounded_head import body_follows
from provisioning.client.connection import (
    CONNECT_TIMEOUT,
    DEFAULT_TIMEOUT,
    UNKNOWN_CA,
    explain,
    is_of_unknown_authority,
    open_pool,
)
from provisioning.client.feed_delay import FeedDelay
from provisioning.client.feed_reader import Authorities, Current, EventReader, FeedEvent, FeedLost
from provisioning.client.genuine_server import Refuse
from provisioning.pki.tls import Credential
from provisioning.pki.verified_path import verified_path

HEARTBEAT = 5.0
_PATH = "/v1/revocations/feed"
SILENT_HEARTBEATS = 3
"""After this many missing ones the connection is given up."""
_LONGEST_REFUSAL = 16 * 1024
_CHUNKS_A_TURN = 256
"""A read may have ten thousand of one byte."""
_AS_IT_IS = {"Accept-Encoding": "identity"}


class FeedRefused(FeedLost):
    """The service does not let this client follow; the text says why."""

    def __init__(self, reason: str, code: str) -> None:
        """*code* is the service's error code, or `UNKNOWN_CA` if TLS refused the certificate; empty if it gave none."""
        super().__init__(reason)
        self.code = code


class FeedSilent(FeedLost):
    """Nothing has come for too long, or too late: what answers there may hang, and something else there may not."""


class FeedAhead(Exception):
    """The service has fewer revocations than the follower, or different ones: an older database was restored.

    Start again from 0.
    """


async def follow_together(
    base_url: str,
    anchors: Path | str,
    credential: Credential,
    after: int,
    *,
    mark: str | None = None,
    heartbeat: float = HEARTBEAT,
    connect_timeout: float = CONNECT_TIMEOUT,
    refuse: Refuse = lambda _path: None,
    hear: Callable[[Authorities], None] = lambda _authorities: None,
    clock: Callable[[], float] = monotonic,
) -> AsyncGenerator[list[FeedEvent], None]:
    """Yield the events after the sequence number *after*, those that have arrived together at once, for ever.

    *mark* is that of the event *after*: if a restored store has another event there, this raises `FeedAhead`.
    *heartbeat* is the service's interval in seconds, *connect_timeout* bounds the waits for TCP and for TLS. A server
    for which *refuse* gives a reason is not read.
    *hear* is told of the fleet's issuing CAs after the first `Current`, and again when they have changed.
    *clock* is monotonic.

    Raises `FeedLost` or `FeedAhead`. Close the iterator (`contextlib.aclosing`) if you stop before that.
    """
    silence = heartbeat * SILENT_HEARTBEATS
    pool = open_pool(base_url, anchors, credential, timeout=silence, connect_timeout=connect_timeout, connections=1)
    place = {"after": str(after)} | ({} if mark is None else {"mark": mark})
    headers = {"Accept": "text/event-stream", "Cache-Control": "no-store", **_AS_IT_IS}
    try:
        async with pool, AsyncExitStack() as opened:
            asking = pool.stream("GET", _PATH, params=place, headers=headers)
            response = await _begun(base_url, opened, asking, silence)
            _believe(base_url, response, refuse)
            await _check(base_url, response, after, silence)
            body_follows(response)
            reader, punctuality, chunks = EventReader(after), _Punctuality(silence, heartbeat, clock), 0
            async for chunk in response.aiter_raw():
                chunks += 1
                if chunks % _CHUNKS_A_TURN == 0:
                    await asyncio.sleep(0)
                punctuality.arrived()
                for arrived in reader.together(chunk):
                    punctuality.completed()
                    if isinstance(arrived, Authorities):
                        hear(arrived)
                        continue
                    yield arrived
                    punctuality.note(arrived[-1])
                if (fault := punctuality.fault()) is not None:
                    raise FeedSilent(f"the revocation feed of {base_url} {fault}")
    except httpx.ReadTimeout as error:
        raise FeedSilent(f"the revocation feed of {base_url} has been silent for {silence:g} s") from error
    except httpx.HTTPError as error:
        raise _failed(base_url, error) from error
    raise FeedLost(f"{base_url} ended the revocation feed")


def _failed(base_url: str, error: httpx.HTTPError) -> FeedLost:
    why = explain(base_url, error)
    return FeedRefused(why, UNKNOWN_CA) if is_of_unknown_authority(error) else FeedLost(why)


class _Punctuality:
    """Whether a stream completes events, and in time (rule 2); the caller's own time with an event does not count."""

    def __init__(self, silence: float, heartbeat: float, clock: Callable[[], float]) -> None:
        self._silence, self._clock = silence, clock
        self._delay = FeedDelay(silence, heartbeat)
        self._now = self._idle_since = clock()
        self._waited = 0.0
        """Seconds for which the stream was waited for, in all."""
        self._heard = 0.0
        """How many of those there were when an event was completed last."""
        self._behind = 0.0

    def arrived(self) -> None:
        """Note that bytes have come."""
        self._now, self._behind = self._clock(), 0.0
        self._waited += self._now - self._idle_since

    def completed(self) -> None:
        """Note that they have completed an event."""
        self._heard = self._waited

    def note(self, last: FeedEvent) -> None:
        """Note which event was the last of them: if it tells the service's time, that shows how late it is."""
        if isinstance(last, Current) and last.elapsed is not None:
            self._behind = self._delay.of(last.elapsed, self._now, self._waited)

    def fault(self) -> str | None:
        """Return what is wrong with the stream, None if nothing is; from now on its next bytes are waited for."""
        if self._behind:
            return f"is held back: {self._behind:.1f} s behind"
        if self._waited - self._heard > self._silence:
            return f"has sent no event for {self._silence:g} s"
        self._idle_since = self._clock()
        return None


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
        raise _failed(base_url, error) from error


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
