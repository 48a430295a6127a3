"""Revokes, holds or releases the certificates of a device, key or CA that has very many, a portion at a time.

Theory
------
Whoever has copied a claim certificate can have a name certified thousands of times. Revoking ten thousand takes
seconds, in which nobody else can write. So the device is ended, or suspended, first, which takes one short
transaction and shuts it out of everything here; its certificates follow in portions, newest first, and others write in
between::

    state, unfinished end ─► portion ─ others ─ portion ─ others ─ … ─► the end is finished ─► the operator is answered
     nobody of it gets or renews anything      feed, CRL, OCSP follow each portion

Resuming a device works in reverse: its certificates first, and its state with the last portion.
A compromised key is ended like a device (`provisioning.revocation.end_of_one`), and so is an issuing CA
(`provisioning.revocation.of_authority`).

Rules
-----
1. An end that was begun is finished, even if the request is cancelled: by a task of its own, and by the next start if
   the process dies. No further permission is needed for that.
2. A portion is atomic: certificates, feed events, audit log entry and progress, in one transaction.
3. Two processes may work at once: neither finds what the other has done.
4. The latest decision counts: a suspension replaces an unfinished resumption, and the reverse, and an end replaces
   both. One end is finished before another begins (`provisioning.revocation.service`).
5. From the short transaction on, no certificate of the device is reported as good (`shut_out`).
6. A command that works beside a running service pauses after each portion: processes do not queue for SQLite's lock,
   and one that asks again at once gets it again.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Final

import structlog
from sqlalchemy.engine import Connection

from provisioning.errors import Refused
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.program.shielded import shielded
from provisioning.revocation.affected import facts_before, is_affected_with_its_device
from provisioning.revocation.grounds import Grounds
from provisioning.revocation.holds import entry, hold, release, still_held, to_be_held, to_be_released
from provisioning.revocation.listed_end import Listed, list_left, revoke_portion
from provisioning.revocation.of_authority import date_again, revoked_ahead
from provisioning.revocation.recording import Changed, record
from provisioning.revocation.surely_expired import surely_expired
from provisioning.store import (
    audit,
    certificates_of_device,
    claims,
    devices,
    unfinished_authority_ends,
    unfinished_ends,
    unfinished_key_ends,
)
from provisioning.store.audit import Action
from provisioning.store.database import Database
from provisioning.store.devices import Device, DeviceState
from provisioning.store.unfinished_ends import UnfinishedEnd

log = structlog.get_logger(__name__)

PORTION: Final = 250
"""Certificates per transaction: some 0.1 ms each."""

_ROUND_SECONDS: Final = 30.0
_AT_ONCE: Final = 8

Many = str | Listed
"""What is ended: a device, by its name, a key or a CA."""


class Portions:
    """Finishes ends of devices, keys and CAs; while `run` runs, also those of processes that have died."""

    def __init__(
        self,
        database: Database,
        clock: Callable[[], datetime],
        tell: Callable[[Changed], None],
        shut_out: Callable[[], None] = lambda: None,
        *,
        gives_way: bool = False,
    ) -> None:
        """*tell* is called with what each portion has changed, after its commit.

        *shut_out* is called when a device or a key is shut out, before the first portion: caches of good answers have
        to be cleared. *gives_way* to another process on the store (rule 6).
        """
        self._gives_way = gives_way
        self.shut_out: Final = shut_out
        self._database = database
        self._clock = clock
        self._tell = tell
        self._tasks: Final[dict[Many, asyncio.Task[None]]] = {}

    async def finish(self, which: Many) -> None:
        """Return when the end of *which* is finished; raise `Refused` if the store fails."""
        while (others := self._tasks.get(which)) is not None:
            await self._wait_for(others)  # The other task may have found nothing left before this was decided.
            if self._tasks.get(which) is others:
                del self._tasks[which]
        # Without checking the caller's rights: they were checked when it was decided.
        task = asyncio.create_task(self._work(which), context=contextvars.Context())
        self._tasks[which] = task
        task.add_done_callback(lambda ended: self._forget(which, ended))
        await self._wait_for(task)

    async def finish_all(self, several: Iterable[Many]) -> None:
        """Finish several, a few at a time, which share commits; at the end raise `Refused` if the store failed."""
        waiting = iter(several)

        async def some() -> None:
            for each in waiting:
                await self.finish(each)

        for outcome in await asyncio.gather(*(some() for _ in range(_AT_ONCE)), return_exceptions=True):
            if outcome is not None:
                raise outcome

    async def _wait_for(self, task: asyncio.Task[None]) -> None:
        try:
            await shielded(task)
        except asyncio.CancelledError:
            task.add_done_callback(_note)
            raise

    def _forget(self, which: Many, ended: asyncio.Task[None]) -> None:
        if self._tasks.get(which) is ended:
            del self._tasks[which]

    async def run(self) -> None:
        """Finish what other processes have left, periodically, until cancelled."""
        try:
            while True:
                await self.finish_left()
                await asyncio.sleep(_ROUND_SECONDS)
        finally:
            tasks = tuple(self._tasks.values())
            for task in tasks:
                task.cancel()
            for task in tasks:
                with contextlib.suppress(asyncio.CancelledError, Refused):
                    await task

    async def finish_left(self) -> None:
        """Finish every end that is unfinished now, and those of CAs that a clock that was ahead has finished early."""
        try:
            await self.finish_all(await self._database.read(_left))
            await self._finish_what_was_ahead()
        except Refused as refusal:
            log.warning("ends of devices, keys or CAs not finished", code="END_NOT_FINISHED", detail=refusal.detail)

    async def _finish_what_was_ahead(self) -> None:
        for issuer in await self._database.read(lambda connection: revoked_ahead(connection, self._clock())):
            again = partial(date_again, issuer=issuer, now=self._clock())
            if await self._database.write(again):
                self.shut_out()
                await self.finish(issuer)

    async def _work(self, which: Many) -> None:
        if isinstance(which, str):
            await self._finish_device(which)
        else:
            await self._finish_listed(which)

    async def _finish_device(self, name: str) -> None:
        left = True
        while left:
            revoked, left = await self._database.write(lambda connection: self._device_portion(connection, name))
            if revoked:
                self._tell(revoked)

    async def _finish_listed(self, whose: Listed) -> None:
        left = await self._database.read(lambda connection: list_left(connection, whose, self._clock()))
        loop = asyncio.get_running_loop()
        starts = range(0, max(len(left), 1), PORTION)
        for start in starts:
            begun = loop.time()
            chosen, last = left[start : start + PORTION], start == starts[-1]
            work = partial(self._listed_portion, whose=whose, chosen=chosen, last=last)
            revoked, unfinished = await self._database.write(work)
            if revoked:
                self._tell(revoked)
            if not unfinished:
                return
            if self._gives_way:
                await asyncio.sleep(loop.time() - begun)

    def _listed_portion(
        self, connection: Connection, *, whose: Listed, chosen: Sequence[int], last: bool
    ) -> tuple[Changed, bool]:
        return revoke_portion(connection, whose, chosen, self._clock(), last=last)

    def _device_portion(self, connection: Connection, name: str) -> tuple[Changed, bool]:
        """Revoke the next certificates; return them, and whether there may be more."""
        now = self._clock()
        device = devices.find(connection, name, for_update=True)
        end = None if device is None else unfinished_ends.of_device(connection, device.id)
        if device is None or end is None:
            return [], False
        issued = certificates_of_device.before(connection, device.id, end.before, PORTION)
        left = len(issued) == PORTION
        if end.reason is None:
            changed = _release(connection, device, issued, now, end.ended_by)
            if not left and device.state is DeviceState.SUSPENDED:
                devices.set_state(connection, [device.id], DeviceState.ACTIVE, now)
        elif end.final:
            changed = _revoke(connection, device, issued, now, end)
        else:
            changed = _hold(connection, device, issued, now, end.ended_by)
        if left:
            unfinished_ends.go_on(connection, device.id, issued[-1].id)
        else:
            unfinished_ends.finish(connection, device.id)
        return changed, left


def _left(connection: Connection) -> list[Many]:
    return [  # CAs last: their certificates are refused by the CA's state, and may be many more.
        *unfinished_ends.names(connection),
        *unfinished_key_ends.every(connection),
        *unfinished_authority_ends.every(connection),
    ]


def _revoke(connection: Connection, device: Device, issued: Changed, now: datetime, end: UnfinishedEnd) -> Changed:
    grounds = Grounds(end.reason or RevocationReason.UNSPECIFIED, end.invalidity_date)
    expired = _expired(connection, device, end.ended_at)
    ended = [each for each in issued if is_affected_with_its_device(each, grounds, expired)]
    if ended:
        record(connection, ended, grounds, now, end.ended_by)
        facts = {**grounds.facts, "serials": [each.serial for each in ended], **facts_before(ended)}
        audit.append(connection, now, end.ended_by, Action.REVOKED, device.name, facts)
    return ended


def _expired(connection: Connection, device: Device, now: datetime) -> Mapping[int, datetime]:
    newest = certificates_of_device.newest(connection, device.id)  # While it is shut out, it gets no other.
    return surely_expired([] if newest is None else [newest], now)


def _hold(connection: Connection, device: Device, issued: Changed, now: datetime, by: str) -> Changed:
    fresh = to_be_held(issued, _expired(connection, device, now))
    hold(connection, fresh, now, by)
    if fresh:
        audit.append(connection, now, by, Action.SUSPENDED, device.name, {"serials": [each.serial for each in fresh]})
    return fresh


def _release(connection: Connection, device: Device, issued: Changed, now: datetime, by: str) -> Changed:
    held = to_be_released(issued, claims.trials_of(connection, device.id))
    release(connection, held, now, by)
    if held:
        stay = [each.serial for each in still_held(issued, _expired(connection, device, now))]
        facts = entry([each.serial for each in held], still=stay)
        audit.append(connection, now, by, Action.RESUMED, device.name, facts)
    return held


def _note(task: asyncio.Task[None]) -> None:
    """Log why a background task has failed; the next round continues."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.warning("end of a device, a key or a CA not finished", code="END_NOT_FINISHED", detail=str(error))
