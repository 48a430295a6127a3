"""Asks a group's webhook: a POST with what is known, within a time, and only an explicit yes is a yes.

Wire
----
::

    POST <webhook_url>   {"group", "device", "key_sha256", "evidence": [...], "enrolled_before": bool}
    200                  {"allow": true}  or  {"allow": false, "reason": "…"}

Rules
-----
1. Fail closed: no answer in time, another status, or an answer that is not exactly this, lets nobody in.
2. https with the trust anchors that are configured, or http to this machine; `check_url` refuses anything else.
3. No redirect is followed, no proxy used, and an answer is read up to 16 KB and 1,024 pieces: what comes octet by octet
   in one read is taken apart in one turn of the event loop.
4. The one time that counts is the group's. It runs while a question waits for its turn, too.
5. So many are asked at once of each webhook: one that hangs keeps no other group's devices out.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
from collections import Counter
from collections.abc import Callable, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakValueDictionary

import structlog

from provisioning.client.address import NoAddress, check_address, given_url
from provisioning.enrolment.attempt import Question, Verdict
from provisioning.errors import Code, Refused
from provisioning.pki.tls import client_context

if TYPE_CHECKING:
    import httpx

_MAXIMUM_ANSWER: Final = 16 * 1024
_MOST_PIECES: Final = 1024
_LONGEST_REASON: Final = 300
_TOGETHER: Final = 32
"""How many are asked at once of one webhook."""
_KEPT: Final = 32
"""How many connections are kept that nobody is asked by."""

log = structlog.get_logger(__name__)


def check_url(url: str) -> str:
    """Return *url* if a webhook may be there; raise ValueError with a sentence otherwise."""
    parts, host = given_url(url, "webhook_url")
    if parts.username is not None or parts.fragment:
        raise ValueError("webhook_url must have no user and no fragment: secrets do not belong there")
    if parts.scheme == "https" or (parts.scheme == "http" and _is_loopback(host)):
        return url
    raise ValueError("webhook_url must begin with https://, or with http:// and be on this machine (127.0.0.1, ::1)")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False  # A name may point anywhere tomorrow.


class Webhooks:
    """Asks webhooks over kept connections, while `run` runs."""

    def __init__(self, anchors: Path) -> None:
        """*anchors* are trusted to say who an https webhook is, and nobody else."""
        self._context = client_context(anchors, allow_tls12=True)  # What is wrong with them is known at the start.
        self._pool: httpx.AsyncClient | None = None
        self._asking: Final[Counter[httpx.AsyncClient]] = Counter()
        """How many are asked by each pool, that of now and those before it."""
        self._turns: Final[WeakValueDictionary[str, asyncio.Semaphore]] = WeakValueDictionary()
        """By URL: for as long as somebody is asked there, or waits for it."""
        self._left = asyncio.Event()
        """Set when something may have come to its end by a pool that is not that of now."""

    def reading(self, anchors: Path) -> Callable[[], None]:
        """Read *anchors*, and return what makes them those that count; raise `TlsConfigurationError`."""
        context = client_context(anchors, allow_tls12=True)

        def use() -> None:
            self._context = context
            self._pool = None  # Who is asked now is asked to the end, and then its connections are closed.
            self._left.set()

        return use

    async def ask(self, question: Question) -> Verdict:
        """Return what the webhook has said; raise `Refused` if it has said nothing that counts."""
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
            turns = self._turns.setdefault(question.url, asyncio.Semaphore(_TOGETHER))
            async with asyncio.timeout(question.timeout.total_seconds()), turns:
                answer = await self._post(question.url, document)
        except TimeoutError as error:
            raise _failed(question, f"did not answer within {question.timeout.total_seconds():g} s") from error
        except (httpx.HTTPError, NoAddress) as error:
            log.warning("webhook failed", group=question.group, reason=str(error) or type(error).__name__)
            raise _failed(question, "cannot be reached") from error
        match answer:
            case {"allow": True}:
                return Verdict(question, allowed=True)
            case {"allow": False, **rest}:
                reason = rest.get("reason", "")
                shown = _shown(reason) if isinstance(reason, str) else ""
                return Verdict(question, allowed=False, reason=shown)
            case _:
                raise _failed(question, 'did not answer 200 with {"allow": true} or {"allow": false}')

    async def run(self) -> None:
        """Keep the connections until cancelled, then close them."""
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
        import httpx

        if self._pool is None:
            self._pool = httpx.AsyncClient(
                verify=self._context,
                timeout=None,  # noqa: S113 - the question has one; the library's are shorter than some of those.
                limits=httpx.Limits(max_connections=None, max_keepalive_connections=_KEPT),
                trust_env=False,
                follow_redirects=False,
            )
        pool = self._pool
        self._asking[pool] += 1
        try:
            content = await _content(pool, url, document)
        finally:
            self._asking[pool] -= 1
            if pool is not self._pool:
                self._left.set()
        if content is None:
            return None
        try:
            return json.loads(content, object_pairs_hook=_unambiguous)
        except (ValueError, RecursionError):
            return None


async def _content(pool: httpx.AsyncClient, url: str, document: dict[str, Any]) -> bytes | None:
    """Return what is answered, None if it is no answer: not 200, or too long."""
    content, pieces = bytearray(), 0
    # As it is: a compressed answer of 16 KB could be one of 16 MB.
    async with pool.stream("POST", url, json=document, headers={"Accept-Encoding": "identity"}) as response:
        if response.status_code != HTTPStatus.OK:
            return None
        async for chunk in response.aiter_raw():
            content += chunk
            pieces += 1
            if len(content) > _MAXIMUM_ANSWER or pieces > _MOST_PIECES:
                return None
    return bytes(content)


def _unambiguous(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of JSON; raise ValueError where it says two things under one name."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name is there twice")
    return found


def _shown(reason: str) -> str:
    """Return a webhook's *reason* for one line of text; what JSON can say and UTF-8 cannot is left out."""
    text = reason.encode("utf-8", "ignore").decode("utf-8")
    return " ".join("".join(each if each.isprintable() else " " for each in text).split())[:_LONGEST_REASON]


def _failed(question: Question, what: str) -> Refused:
    return Refused(Code.WEBHOOK_FAILED, f"the webhook of group {question.group} {what}: try again later")
