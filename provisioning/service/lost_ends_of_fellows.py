"""What a worker that takes another's place asks its fellows: which revocations the store has lost, as far as they know.

Theory
------
What the store has lost is known to the processes alone that were running (`provisioning.store.lost_ends`). A worker
that ends, for whatever reason, and is started anew would let in what its fellows refuse; and a client comes to any of
them. They have it in memory, so it asks before it makes a list or accepts a connection::

    new worker ── "lost-ends" ─► its fellows        ◄── what each holds, and the newest event that it knows
               ── holds all of it, but not what an event that came afterwards is about

Until all are heard it lets nobody in (`LostEnds.hears_all`): after a few seconds it accepts connections, answers that
it is unavailable, and goes on asking.

Rules
-----
1. A fellow that is in doubt itself, or whose newest event the store does not have, has not compared yet: it is asked
   again. So is one that does not answer.
2. A worker answers while it asks, with what it knows by then: two that are started at once do not wait for each other.
3. At a place without a process (`provisioning.service.living_workers`) nobody knows anything. Whoever is started there
   asks in turn. One that hangs is there: it keeps the new worker from letting anybody in until it is ended.
4. Of several answers all that is held is, except against a name about which one of them knows that it was decided.

Does not handle: processes on other machines; a service all of whose workers were restarted.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import structlog

from provisioning.errors import Refused
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.revocation.feed import RevocationFeed
from provisioning.service.fellow_workers import Answer
from provisioning.store.lost_ends import LostEnd, LostEnds

log = structlog.get_logger(__name__)

QUESTION: Final = "lost-ends"
_TRIES: Final = 10
"""How often they are asked before the worker goes on."""
_PAUSE_SECONDS: Final = 0.5

Ask = Callable[[str], Awaitable[Mapping[int, bytes | None]]]
"""Returns each fellow's answer to a question, None if it did not answer."""


@dataclass(frozen=True, slots=True)
class _Told:
    """A fellow's answer."""

    in_doubt: bool
    """Whether its feed has not compared yet what it knows with the store."""
    newest: int
    mark: str
    held: Sequence[LostEnd]
    decided: Sequence[str]


def told(feed: RevocationFeed, lost_ends: LostEnds) -> bytes:
    """Return this worker's answer."""
    newest, mark = feed.position
    answer = {
        "in_doubt": not lost_ends.is_compared,
        "newest": newest,
        "mark": mark,
        "held": [_written(each) for each in lost_ends.held],
        "decided": lost_ends.decided,
    }
    return json.dumps(answer).encode()


def answers(feed: RevocationFeed, lost_ends: LostEnds) -> Mapping[str, Answer]:
    """Return what its fellows may ask this worker about it."""

    async def lost() -> bytes:
        return told(feed, lost_ends)

    return {QUESTION: lost}


class Hearing:
    """A new worker's asking: `begin`, and `run` for what is not heard by then."""

    def __init__(self, ask: Ask, is_there: Callable[[int], bool], feed: RevocationFeed, lost_ends: LostEnds) -> None:
        """From now on nobody is let in; *is_there* tells whether there is a process at a place."""
        self._ask = ask
        self._is_there = is_there
        self._feed = feed
        self._lost_ends = lost_ends
        self._heard: Final[set[int]] = set()
        self._decided: Final[dict[str, int]] = {}
        """About which names a fellow knows that it was decided, and how many doubts there were before it said so."""
        lost_ends.hears_all = False

    async def begin(self) -> None:
        """Ask for a few seconds; after the feed's start, and before anything is made or anybody let in."""
        silent: Sequence[int] = ()
        for number in range(_TRIES):
            if number:
                await asyncio.sleep(_PAUSE_SECONDS)
            if not (silent := await self._ask_once()):
                break
        else:
            log.warning("other workers do not tell what the database has lost", code="FELLOWS_IN_DOUBT", workers=silent)

    async def run(self) -> None:
        """Go on asking until all are heard."""
        while not self._lost_ends.hears_all:
            await asyncio.sleep(_PAUSE_SECONDS)
            try:
                await self._ask_once()
            except Refused as refusal:  # The store's: the next try may find it.
                log.debug("fellows' answers not compared", detail=refusal.detail)

    async def _ask_once(self) -> Sequence[int]:
        """Hold what those tell who are not heard yet; return who is still to be heard."""
        doubts, silent = self._lost_ends.doubts, []
        for number, answer in (await self._ask(QUESTION)).items():
            if number in self._heard or (answer is None and not self._is_there(number)):
                continue
            said = None if answer is None else _read(answer)
            if said is None or said.in_doubt or not await self._feed.has(said.newest, said.mark):
                silent.append(number)
                continue
            await self._feed.take_over(said.held, said.newest)
            self._decided.update(dict.fromkeys(said.decided, doubts))
            self._heard.add(number)
        for name, when in self._decided.items():
            self._lost_ends.let_go(name, when)
        if not silent:
            self._lost_ends.hears_all = True
            if held := self._lost_ends.held:
                log.info("other workers hold what the database has lost", certificates=len(held))
        return silent


def _written(end: LostEnd) -> Sequence[object]:
    since = None if end.invalidity_date is None else end.invalidity_date.isoformat()
    return (
        end.issuer_key_id,
        end.serial,
        end.device,
        end.reason.value,
        end.ended_at.isoformat(),
        since,
        end.authority_key,
        end.shard_id,
    )


def _read(answer: bytes) -> _Told:
    content: dict[str, Any] = json.loads(answer)
    held = [
        LostEnd(
            issuer,
            serial,
            device,
            RevocationReason(reason),
            datetime.fromisoformat(at),
            None if since is None else datetime.fromisoformat(since),
            authority,
            shard,
        )
        for issuer, serial, device, reason, at, since, authority, shard in content["held"]
    ]
    return _Told(content["in_doubt"], content["newest"], content["mark"], held, content["decided"])
