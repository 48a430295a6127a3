"""Asks a group's webhook: a POST with what is known, with a time limit, and only an explicit yes is a yes.

Wire
----
::

    POST <webhook_url>   {"group", "device", "key_sha256", "evidence": [...], "enrolled_before": bool}
    200                  {"allow": true}  or  {"allow": false, "reason": "…"}

Rules
-----
1. Fail closed: no answer in time, another status, or an answer that is not exactly this, admits nobody.
2. https with the trust anchors that are configured, or http to this machine; `check_url` refuses anything else.
3. No redirect is followed, no proxy used, no cookie kept. Each question has a connection of its own: on one that is
   kept, what a webhook sends behind an answer, at once or late, would be the answer to the next question.
   An answer is read up to 16 KB and 1,024 chunks, and up to 32 KB with its head and everything before and behind it,
   a little at a time (`provisioning.client.bounded_head`): a read full of one-octet chunks, or of informational
   responses, is parsed in one turn of the event loop.
4. The only time limit is the group's. It also runs while a question waits for its turn.
5. The number of concurrent questions to each webhook is limited: one that hangs does not affect other groups' devices.
   Of these, a token, or a certificate with a name, has one at a time, and a claim that a batch shares half: who sends
   the same request a thousand times does not affect the group's other devices either.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AsyncExitStack
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakValueDictionary

import structlog

from provisioning.client.address import NoAddress, check_address, given_url
from provisioning.client.network_words import network_words
from provisioning.enrolment.attempt import Question, Verdict
from provisioning.errors import Code, Refused
from provisioning.pki.tls import client_context
from provisioning.program.loopback import is_loopback_address

if TYPE_CHECKING:
    import httpx

_MAXIMUM_ANSWER: Final = 16 * 1024
_MOST_PIECES: Final = 1024
_LONGEST_REASON: Final = 300
_TOGETHER: Final = 32
"""Concurrent questions to one webhook."""
_OF_A_BATCH: Final = _TOGETHER // 2
"""Of these, for those who present the same certificate."""

_NEITHER: Final = 'did not answer 200 with {"allow": true} or {"allow": false}'

log = structlog.get_logger(__name__)


class _NoAnswer(Exception):
    """What the webhook said is no answer; the text says why."""


def check_url(url: str) -> str:
    """Return *url* if a webhook may be there; raise ValueError with the reason otherwise."""
    parts, host = given_url(url, "webhook_url")
    if parts.username is not None or parts.fragment:
        raise ValueError("webhook_url must have no user and no fragment: secrets do not belong there")
    if parts.scheme == "https" or (parts.scheme == "http" and is_loopback_address(host)):
        return url
    raise ValueError("webhook_url must begin with https://, or with http:// and be on this machine (127.0.0.1, ::1)")


class Webhooks:
    """Asks webhooks, while `run` runs."""

    def __init__(self, anchors: Path) -> None:
        """*anchors* are the only trust anchors for https webhooks."""
        self._context = client_context(anchors, allow_tls12=True)  # So that errors in them show at the start.
        self._pool: httpx.AsyncClient | None = None
        self._asking: Final[Counter[httpx.AsyncClient]] = Counter()
        """How many questions each pool is asking, the current one and earlier ones."""
        self._turns: Final[WeakValueDictionary[Hashable, asyncio.Semaphore]] = WeakValueDictionary()
        """By URL, and by what was shown there: for as long as a question is asked, or waits."""
        self._left = asyncio.Event()
        """Set when an earlier pool may have finished its last question."""

    def reading(self, anchors: Path) -> Callable[[], None]:
        """Read *anchors*, and return the function that puts them into force; raise `TlsConfigurationError`."""
        context = client_context(anchors, allow_tls12=True)

        def use() -> None:
            self._context = context
            self._pool = None  # Questions under way are finished, and then its connections are closed.
            self._left.set()

        return use

    async def ask(self, question: Question) -> Verdict:
        """Return the webhook's answer; raise `Refused` if there is no valid one."""
        import httpx  # Late, as in `_post`: most services have no webhook, and start without it.

        document = {
            "group": question.group,
            "device": question.device,
            "key_sha256": question.key_sha256,
            "evidence": list(question.evidence),
            "enrolled_before": question.enrolled_before,
        }
        try:
            check_address(question.url)
            async with asyncio.timeout(question.timeout.total_seconds()), AsyncExitStack() as places:
                for whose, most in _places(question):
                    turns = self._turns.setdefault(whose, asyncio.Semaphore(most))
                    await places.enter_async_context(turns)
                answer = await self._post(question.url, document)
        except TimeoutError as error:
            _tell(question, f"no answer within {question.timeout.total_seconds():g} s")
            raise _failed(question, f"did not answer within {question.timeout.total_seconds():g} s") from error
        except (httpx.HTTPError, NoAddress) as error:
            _tell(question, network_words(error))
            raise _failed(question, "cannot be reached") from error
        except _NoAnswer as error:
            _tell(question, str(error))
            raise _failed(question, _NEITHER) from error
        match answer:
            case {"allow": True}:
                return Verdict(question, allowed=True)
            case {"allow": False, **rest}:
                reason = rest.get("reason", "")
                shown = _shown(reason) if isinstance(reason, str) else ""
                return Verdict(question, allowed=False, reason=shown)
            case _:
                _tell(question, 'its answer is JSON, but no object in which "allow" is true or false')
                raise _failed(question, _NEITHER)

    async def run(self) -> None:
        """Close earlier pools when their questions are answered, until cancelled, then all."""
        try:
            while True:
                await self._left.wait()
                self._left.clear()
                others = [pool for pool in self._asking if pool is not self._pool]
                await self._close([pool for pool in others if not self._asking[pool]])
        finally:
            await self._close(list(self._asking))

    async def _close(self, pools: Sequence[httpx.AsyncClient]) -> None:
        for pool in pools:
            del self._asking[pool]
            await pool.aclose()

    async def _post(self, url: str, document: dict[str, Any]) -> Any:
        from provisioning.client.bounded_head import BoundedTransport, bounded_client

        if self._pool is None:
            transport = BoundedTransport(self._context, connections=None)
            self._pool = bounded_client(transport, None)  # The question has a time limit, the library's may be shorter.
        pool = self._pool
        self._asking[pool] += 1
        try:
            content = await _content(pool, url, document)
        finally:
            self._asking[pool] -= 1
            if pool is not self._pool:
                self._left.set()
        try:
            return json.loads(content, object_pairs_hook=_unambiguous)
        except (ValueError, RecursionError) as error:
            raise _NoAnswer("its answer is no JSON that can be read, or says one name twice") from error


def _places(question: Question) -> Iterator[tuple[Hashable, int]]:
    """Yield whose places *question* takes, and how many those have: all askers' last, so that none is kept in vain."""
    if question.shown is not None:
        yield ("shown", question.url, question.shown), 1
    if question.batch is not None:
        yield ("batch", question.url, question.batch), _OF_A_BATCH
    yield question.url, _TOGETHER


async def _content(pool: httpx.AsyncClient, url: str, document: dict[str, Any]) -> bytes:
    """Return the answer's content; raise `_NoAnswer` if its status is not 200 or it is too long."""
    content, pieces = bytearray(), 0
    # As it is: a compressed answer of 16 KB could be one of 16 MB.
    headers = {"Accept-Encoding": "identity", "Connection": "close"}
    async with pool.stream("POST", url, json=document, headers=headers) as response:
        if response.status_code != HTTPStatus.OK:
            raise _NoAnswer(f"it answered with status {response.status_code}, not 200")
        async for chunk in response.aiter_raw():
            content += chunk
            pieces += 1
            if len(content) > _MAXIMUM_ANSWER or pieces > _MOST_PIECES:
                raise _NoAnswer(f"its answer is too long: {_MAXIMUM_ANSWER} octets in {_MOST_PIECES} chunks at most")
    return bytes(content)


def _unambiguous(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object; raise ValueError if it has the same name twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name occurs twice")
    return found


def _shown(reason: str) -> str:
    """Return a webhook's *reason* as one line of text, without what JSON can express and UTF-8 cannot."""
    text = reason.encode("utf-8", "ignore").decode("utf-8")
    return " ".join("".join(each if each.isprintable() else " " for each in text).split())[:_LONGEST_REASON]


def _tell(question: Question, what: str) -> None:
    """Tell the operator *what* is wrong with the webhook, which a device is not told; nothing of what it says."""
    log.warning("webhook failed", code="WEBHOOK_FAILED", group=question.group, detail=what)


def _failed(question: Question, what: str) -> Refused:
    return Refused(Code.WEBHOOK_FAILED, f"the webhook of group {question.group} {what}: try again later")
