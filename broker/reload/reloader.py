"""Replacing parts of a running broker: by SIGHUP, when a file changes, or through the admin API.

Rules
-----
1. A part that is unusable is refused with the reason; the old one stays, and so do all others.
2. One reload at a time, and beside it one dry run: whoever may only ask holds up no change. None of it blocks the event
   loop for long: files are read in a thread.
3. Settings are read from the same places as at the start: flags, environment, file.
4. A dry run does the same and stops before anything changes.
5. A bug of ours in reading a part only affects that part: it is refused, and the broker continues with the old one.
6. CRL files are looked at every few seconds, and are no part. But who asks for a reload of trust may just have revoked
   somebody: they are looked at then as well, before the answer.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import structlog

from broker.admission.policy_file import PolicyError
from broker.engine.history import Witness
from broker.reload.file_watch import FileWatch
from broker.reload.parts import Candidate, Reloadable, Unchanged
from broker.reload.report import Outcome, Part, PartReport, ReloadReport
from broker.settings.config import BrokerConfig
from broker.settings.config_file import ConfigError
from broker.timing.beat import left_until
from provisioning.pki.panic import without_panic
from provisioning.pki.tls import TlsConfigurationError
from provisioning.program.out_of_memory import told

log = structlog.get_logger("broker")

ALL = frozenset(Part)
_UNUSABLE = (PolicyError, TlsConfigurationError, OSError)


_PUT_RIGHT = "the files are again as they are in use"
_CODES = {
    Outcome.RELOADED: "RELOADED",
    Outcome.UNCHANGED: "RELOAD_UNCHANGED",
    Outcome.REFUSED: "RELOAD_REFUSED",
}
_LOOK_SECONDS = 1.0
_DEFECT = "it cannot be read because of a defect; the broker's log has the traceback"


class Reloader:
    """All replaceable parts, and how to replace them."""

    def __init__(
        self,
        parts: Sequence[Reloadable],
        config: BrokerConfig,
        settings: Callable[[], BrokerConfig],
        reloads: Counter[str],
        settings_file: Path | None,
        witness: Witness | None,
        look: Callable[[], Awaitable[object]] | None = None,
    ) -> None:
        """Begin with *config*; *settings* reads it again, from *settings_file* among others, or raises `ConfigError`.

        It is called in a thread, perhaps in two at a time.

        *reloads* counts ``part.outcome``; *witness* is told what was replaced or refused; *look* reads the CRL files
        that are new.
        """
        self._witness = witness
        self._settings_file = settings_file
        self._parts = parts
        self._config = config
        self._settings = settings
        self._reloads = reloads
        self._look = look
        self._one = asyncio.Lock()
        self._one_dry = asyncio.Lock()
        self._refused: set[Part] = set()
        """The parts refused in the last attempt."""
        self._begun: set[asyncio.Task[ReloadReport]] = set()

    def files(self) -> list[Path]:
        """Return the files whose change triggers a reload."""
        own = [self._settings_file] if self._settings_file is not None else []
        return own + [path for each in self._parts for path in each.files(self._config)]

    async def reload(self, parts: Collection[Part] = ALL, *, quiet: bool = False) -> ReloadReport:
        """Replace those of *parts* that have changed. *quiet*: do not log unchanged parts."""
        async with self._one:
            report = await self._go(parts, {}, dry_run=False)
            before = self._note_refusals(report)
        reports = tuple(_put_right(each) if each.part in before else each for each in report.parts)
        report = replace(report, parts=reports)
        for each in report.parts:
            self._reloads[f"{each.part}.{each.outcome}"] += 1
            facts: dict[str, Any] = {"part": each.part.value, "detail": each.detail}
            if each.effects is not None:
                facts |= {
                    "disconnected": each.effects.disconnected,
                    "of": each.effects.connected,
                    "subscriptions_ended": each.effects.subscriptions_ended,
                    "wills_dropped": each.effects.wills_dropped,
                }
            if self._witness is not None and (each.outcome is not Outcome.UNCHANGED or each.part in before):
                self._witness.told("reload", code=_CODES[each.outcome], **facts)
            if each.outcome is Outcome.REFUSED:
                log.error("reload refused, the old settings stay in use", code="RELOAD_REFUSED", **facts)
            elif each.outcome is Outcome.RELOADED:
                log.info("reloaded", code="RELOADED", **facts)
            elif each.detail or not quiet:
                log.info("nothing has changed", code="RELOAD_UNCHANGED", **facts)
        if self._look is not None and Part.TRUST in parts and not quiet:
            await self._look()
        return report

    def begin(self, parts: Collection[Part]) -> asyncio.Task[ReloadReport]:
        """Reload *parts*, quietly, for whoever may not wait for as long as it takes; a defect is logged."""
        task = told(asyncio.create_task(self.reload(parts, quiet=True)))
        self._begun.add(task)
        task.add_done_callback(self._done)
        return task

    def call_off(self) -> None:
        """End what was begun so: the broker stops."""
        for task in self._begun:
            task.cancel()

    def _done(self, task: asyncio.Task[ReloadReport]) -> None:
        self._begun.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("reload failed", code="INTERNAL_ERROR", exc_info=task.exception())

    def _note_refusals(self, report: ReloadReport) -> frozenset[Part]:
        """Record the refusals in *report*; return the previous ones."""
        before = frozenset(self._refused)
        self._refused.difference_update(each.part for each in report.parts)
        self._refused.update(each.part for each in report.parts if each.outcome is Outcome.REFUSED)
        return before

    async def dry_run(self, parts: Collection[Part], candidates: Mapping[Part, Candidate]) -> ReloadReport:
        """Return what `reload` would do if *candidates* were in the files of their parts."""
        async with self._one_dry:
            return await self._go(parts, candidates, dry_run=True)

    async def _go(
        self, parts: Collection[Part], candidates: Mapping[Part, Candidate], *, dry_run: bool
    ) -> ReloadReport:
        config, unusable = self._config, ""
        try:
            config = await asyncio.to_thread(without_panic, self._settings)  # With very many bundles it takes a while.
        except ConfigError as error:
            unusable = str(error)
        except Exception:
            log.exception("reload failed", code="INTERNAL_ERROR", part="settings")
            unusable = _DEFECT
        reports = []
        for each in self._parts:
            if each.part not in parts:
                continue
            if unusable and each.part is Part.LIMITS:
                reports.append(PartReport(each.part, Outcome.REFUSED, unusable))
                continue
            reports.append(await self._one_part(each, config, candidates.get(each.part), dry_run=dry_run))
        if not dry_run:
            self._config = config
        return ReloadReport(tuple(reports), dry_run)

    async def _one_part(
        self, each: Reloadable, config: BrokerConfig, candidate: Candidate | None, *, dry_run: bool
    ) -> PartReport:
        try:
            loaded = await asyncio.to_thread(without_panic, each.load, config, candidate)
        except _UNUSABLE as error:
            return PartReport(each.part, Outcome.REFUSED, str(error))
        except Exception:  # The file may contain anything: failing to explain what is wrong must not end the broker.
            log.exception("reload failed", code="INTERNAL_ERROR", part=each.part.value)
            return PartReport(each.part, Outcome.REFUSED, _DEFECT)
        if isinstance(loaded, Unchanged):
            return PartReport(each.part, Outcome.UNCHANGED, loaded.detail)
        detail, effects = await (each.preview(loaded) if dry_run else each.apply(loaded))
        return PartReport(each.part, Outcome.RELOADED, detail, effects)


def _put_right(each: PartReport) -> PartReport:
    """Return *each*, of a previously refused part, saying so if the file again contains what is in use."""
    if each.outcome is not Outcome.UNCHANGED:
        return each
    return replace(each, detail="; ".join(filter(None, (_PUT_RIGHT, each.detail))))


async def keep_current(reloader: Reloader, hangup: asyncio.Event, watch: FileWatch | None) -> None:
    """Reload whenever *hangup* is set, and, with a *watch*, when a file has changed. Runs until cancelled.

    The *watch* checked the files before they were read, so a change during the broker's start counts.
    """
    if watch is not None:
        watch.begin(reloader.files())
    loop = asyncio.get_running_loop()
    while True:
        try:
            async with asyncio.timeout(left_until(loop.time(), _LOOK_SECONDS)):
                await hangup.wait()
        except TimeoutError:
            # In a thread: on a disk that answers no more even a look lasts, and revocations are heard meanwhile.
            if watch is not None and await asyncio.to_thread(lambda: watch.changed(reloader.files())):
                await reloader.reload(quiet=True)
        else:
            hangup.clear()
            await reloader.reload()
