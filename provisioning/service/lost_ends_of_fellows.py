"""What a worker that takes another's place asks its fellows: which revocations the store has lost, as far as they know.

Theory
------
What the store has lost is known to the processes alone that were running (`provisioning.store.lost_ends`). A worker
that ends, for whatever reason, and is started anew would let in what its fellows refuse; and a client comes to any of
them. They have it in memory, so it asks before it makes a list or accepts a connection::

    new worker ── "lost-ends" ─► its fellows        ◄── what each holds, and the newest event that it knows
               ── holds all of it, but not what an event that came afterwards is about

Rules
-----
1. A fellow that is in doubt itself, or whose newest event the store does not have, has not compared yet: it is asked
   again, for a while.
2. If none answers, they are being started as well: the worker goes on, and so it does in the end in any case.
3. Of several answers all that is held is, except against a name about which one of them knows that it was decided.

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

from provisioning.pki.revocation_reason import RevocationReason
from provisioning.revocation.feed import RevocationFeed
from provisioning.store.lost_ends import LostEnd, LostEnds

log = structlog.get_logger(__name__)

QUESTION: Final = "lost-ends"
_TRIES: Final = 20
_SILENT_TRIES: Final = 2
_PAUSE_SECONDS: Final = 0.5

Ask = Callable[[str], Awaitable[Mapping[int, bytes | None]]]
"""Returns each fellow's answer to a question, None if it did not answer."""


@dataclass(frozen=True, slots=True)
class _Told:
    """A fellow's answer."""

    in_doubt: bool
    newest: int
    mark: str
    held: Sequence[LostEnd]
    decided: Sequence[str]


def told(feed: RevocationFeed, lost_ends: LostEnds) -> bytes:
    """Return this worker's answer."""
    newest, mark = feed.position
    answer = {
        "in_doubt": lost_ends.in_doubt,
        "newest": newest,
        "mark": mark,
        "held": [_written(each) for each in lost_ends.held],
        "decided": lost_ends.decided,
    }
    return json.dumps(answer).encode()


async def take_over(ask: Ask, feed: RevocationFeed, lost_ends: LostEnds) -> None:
    """Hold what the fellows hold; after the feed's start, and before anything is made or anybody let in."""
    answers = await _compared(ask, feed)
    if not any(each.held for each in answers):
        return
    for each in sorted(answers, key=lambda each: each.newest):
        await feed.take_over(each.held, each.newest)  # What it has read itself lets nothing go that it still holds.
    for name in {name for each in answers for name in each.decided}:
        lost_ends.let_go(name)
    log.info("other workers hold what the database has lost", certificates=len(lost_ends.held))


async def _compared(ask: Ask, feed: RevocationFeed) -> Sequence[_Told]:
    """Return the answers of those who have compared what they know with the store."""
    compared: list[_Told] = []
    for number in range(_TRIES):
        if number:
            await asyncio.sleep(_PAUSE_SECONDS)
        answers = [_read(each) for each in (await ask(QUESTION)).values() if each is not None]
        compared = [each for each in answers if not each.in_doubt and await feed.has(each.newest, each.mark)]
        if len(compared) == len(answers) and (answers or number + 1 >= _SILENT_TRIES):
            break
    else:
        log.warning("other workers do not know yet what the database has lost", code="FELLOWS_IN_DOUBT")
    return compared


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
