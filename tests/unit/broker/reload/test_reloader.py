"""One reload of several parts: what becomes of each, what is said of it, and what makes the broker reload at all."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from broker.reload import reloader as reloading
from broker.reload.file_watch import FileWatch
from broker.reload.parts import Candidate, ReloadedPolicy, Unchanged, files_of
from broker.reload.reloader import Reloader, keep_current
from broker.reload.report import SHOWN, Affected, Effects, Outcome, Part, PartReport, ReloadReport
from broker.settings.config import BrokerConfig
from broker.settings.config_file import ConfigError
from provisioning.pki.identity import identity_of
from provisioning.pki.tls import TlsConfigurationError
from tests.support.panic import a_panic
from tests.support.pki import shared_device
from tests.support.wire import MemoryBroker


class Always:
    """A part that is new at each look, or whose `load` has a defect."""

    def __init__(self, part: Part, error: BaseException | None = None) -> None:
        self._part, self._error, self.applied = part, error, 0

    @property
    def part(self) -> Part:
        return self._part

    def files(self, _config: BrokerConfig) -> Sequence[Path]:
        return []

    def load(self, _config: BrokerConfig, _candidate: Candidate | None) -> Any:
        if self._error is not None:
            raise self._error
        return "new"

    async def preview(self, loaded: Any) -> tuple[str, Effects | None]:
        return loaded, None

    async def apply(self, loaded: Any) -> tuple[str, Effects | None]:
        self.applied += 1
        return loaded, None


def config(tmp_path: Path) -> BrokerConfig:
    return BrokerConfig(cafile=tmp_path, certfile=tmp_path, keyfile=tmp_path, unsafe_no_revocation=True)


@pytest.mark.parametrize("defect", [KeyError("a defect"), a_panic()], ids=["ours", "the library's"])
async def test_a_defect_costs_its_part_and_neither_the_others_nor_the_broker(
    tmp_path: Path, defect: BaseException
) -> None:
    settings = config(tmp_path)
    before, broken, after = Always(Part.CERTIFICATE), Always(Part.TRUST, defect), Always(Part.POLICY)
    reloader = Reloader([before, broken, after], settings, lambda: settings, Counter(), None, None)
    with capture_logs() as said:
        report = await reloader.reload()
    assert [each.outcome for each in report.parts] == [Outcome.RELOADED, Outcome.REFUSED, Outcome.RELOADED]
    assert "the broker's log has the traceback" in report.parts[1].detail
    assert (before.applied, broken.applied, after.applied) == (1, 0, 1)
    assert [each["part"] for each in said if each.get("code") == "INTERNAL_ERROR"] == ["trust"]


@pytest.mark.parametrize("raised", [RuntimeError("a defect"), a_panic()], ids=["ours", "the library's"])
async def test_settings_that_cannot_be_read_for_a_defect_leave_everything_as_it_is(
    tmp_path: Path, raised: BaseException
) -> None:
    def defect() -> BrokerConfig:
        raise raised

    policy, limits = Always(Part.POLICY), Always(Part.LIMITS)
    reloader = Reloader([policy, limits], config(tmp_path), defect, Counter(), None, None)
    with capture_logs() as said:
        report = await reloader.reload()
    assert [each.outcome for each in report.parts] == [Outcome.RELOADED, Outcome.REFUSED]
    assert limits.applied == 0
    assert [each["part"] for each in said if each.get("code") == "INTERNAL_ERROR"] == ["settings"]


async def test_settings_are_read_while_devices_are_served(tmp_path: Path) -> None:
    settings, served = config(tmp_path), threading.Event()

    def read() -> BrokerConfig:
        assert served.wait(10)
        return settings

    limits = Always(Part.LIMITS)
    asyncio.get_running_loop().call_soon(served.set)
    report = await Reloader([limits], settings, read, Counter(), None, None).reload()
    assert report.parts[0].outcome is Outcome.RELOADED


class Hanging(Always):
    """A part that is never applied."""

    begun = False

    async def apply(self, loaded: Any) -> tuple[str, Effects | None]:
        self.begun = True
        await asyncio.Event().wait()
        return await super().apply(loaded)


class Scripted:
    """A part whose file, settings aside, holds what the test says: an error, `Unchanged`, or what is new."""

    def __init__(self, part: Part, path: Path | None = None) -> None:
        self.part = part
        self.path = path
        self.holds: object = Unchanged()
        self.effects: Effects | None = None
        self.asked: list[tuple[BrokerConfig, Candidate | None]] = []
        self.looked_into: list[BrokerConfig] = []
        self.done: list[str] = []

    def files(self, config: BrokerConfig) -> Sequence[Path]:
        self.looked_into.append(config)
        return [] if self.path is None else [self.path]

    def load(self, config: BrokerConfig, candidate: Candidate | None) -> object:
        self.asked.append((config, candidate))
        if isinstance(self.holds, Exception):
            raise self.holds
        return self.holds

    async def preview(self, loaded: Any) -> tuple[str, Effects | None]:
        self.done.append("previewed")
        return loaded, self.effects

    async def apply(self, loaded: Any) -> tuple[str, Effects | None]:
        self.done.append("applied")
        return loaded, self.effects


class Told:
    """A witness: what the audit log would take down."""

    def __init__(self) -> None:
        self.facts: list[dict[str, object]] = []

    def saw(self, event: object) -> None: ...

    def told(self, event: str, **facts: object) -> None:
        self.facts.append({"event": event, **facts})


class Defective(Told):
    """A witness with a defect."""

    def told(self, event: str, **_facts: object) -> None:
        raise RuntimeError(f"a defect of what is told of {event}")


async def test_a_defect_in_a_reload_that_nobody_waits_for_is_told(tmp_path: Path) -> None:
    settings = config(tmp_path)
    reloader = Reloader([Always(Part.CERTIFICATE)], settings, lambda: settings, Counter(), None, Defective())
    with capture_logs() as said:
        await asyncio.wait([reloader.begin({Part.CERTIFICATE})])
        await asyncio.sleep(0)
    (defect,) = [each for each in said if each.get("code") == "INTERNAL_ERROR"]
    assert "a defect of what is told of reload" in repr(defect["exc_info"])


async def test_a_reload_that_nobody_waits_for_ends_with_the_broker(tmp_path: Path) -> None:
    settings, part = config(tmp_path), Hanging(Part.CERTIFICATE)
    reloader = Reloader([part], settings, lambda: settings, Counter(), None, None)
    task = reloader.begin({Part.CERTIFICATE})
    while not part.begun:
        await asyncio.sleep(0.001)
    reloader.call_off()
    await asyncio.wait([task])
    assert task.cancelled()


def test_the_files_whose_change_counts_are_those_of_the_parts_and_of_the_settings(tmp_path: Path) -> None:
    settings, policy, own = config(tmp_path), tmp_path / "policy.toml", tmp_path / "broker.toml"
    parts = [Scripted(Part.POLICY, policy), Scripted(Part.LIMITS)]
    assert Reloader(parts, settings, lambda: settings, Counter(), own, None).files() == [own, policy]
    assert Reloader(parts, settings, lambda: settings, Counter(), None, None).files() == [policy]


async def test_a_dry_run_asks_what_is_asked_for_and_keeps_nothing(tmp_path: Path) -> None:
    before, now = config(tmp_path), config(tmp_path / "now")
    trust, policy, limits = Scripted(Part.TRUST), Scripted(Part.POLICY), Scripted(Part.LIMITS)
    policy.holds, policy.effects = "another", Effects(5, 1)
    witness, reloads = Told(), Counter[str]()
    reloader = Reloader([trust, policy, limits], before, lambda: now, reloads, None, witness)
    report = await reloader.dry_run({Part.TRUST, Part.POLICY}, {Part.POLICY: "proposed"})
    assert report.dry_run
    assert [(each.part, each.outcome) for each in report.parts] == [
        (Part.TRUST, Outcome.UNCHANGED),
        (Part.POLICY, Outcome.RELOADED),
    ]
    assert (trust.asked, policy.asked, limits.asked) == ([(now, None)], [(now, "proposed")], [])
    assert policy.done == ["previewed"]
    assert (witness.facts, reloads) == ([], {})
    reloader.files()
    assert policy.looked_into == [before], "the settings of before count still"
    await reloader.reload([Part.POLICY])
    reloader.files()
    assert policy.looked_into[1:] == [now]
    assert policy.done == ["previewed", "applied"]
    assert limits.asked == []


async def test_a_dry_run_that_takes_long_holds_up_no_change(tmp_path: Path) -> None:
    """Any operator may ask for one; what is taken from a device must be taken at once."""

    class Long(Always):
        began, may_end = asyncio.Event(), asyncio.Event()

        async def preview(self, loaded: Any) -> tuple[str, Effects | None]:
            self.began.set()
            await self.may_end.wait()
            return loaded, None

    part, settings = Long(Part.POLICY), config(tmp_path)
    reloader = Reloader([part], settings, lambda: settings, Counter(), None, None)
    dry = [asyncio.create_task(reloader.dry_run({Part.POLICY}, {})) for _ in range(2)]
    await part.began.wait()
    async with asyncio.timeout(30):
        await reloader.reload()
    assert (part.applied, [each.done() for each in dry]) == (1, [False, False])
    part.may_end.set()
    assert [(await each).dry_run for each in dry] == [True, True]


async def test_what_was_replaced_or_refused_is_counted_logged_and_taken_down_and_what_did_not_change_is_not(
    tmp_path: Path,
) -> None:
    trust, policy, limits = Scripted(Part.TRUST), Scripted(Part.POLICY), Scripted(Part.LIMITS)
    trust.holds, policy.holds = TlsConfigurationError("no anchors"), "2 sections"
    policy.effects = Effects(40, 3, 4, 1, (Affected("m", "spiffe://d/device/g/m", "why"),))
    limits.holds = Unchanged("restart needed for: port")
    witness, reloads = Told(), Counter[str]()
    settings = config(tmp_path)
    reloader = Reloader([trust, policy, limits], settings, lambda: settings, reloads, None, witness)
    with capture_logs() as said:
        report = await reloader.reload()
    effects = {"disconnected": 3, "of": 40, "subscriptions_ended": 4, "wills_dropped": 1}
    refused = {"code": "RELOAD_REFUSED", "part": "trust", "detail": "no anchors"}
    reloaded = {"code": "RELOADED", "part": "policy", "detail": "2 sections", **effects}
    unchanged = {"code": "RELOAD_UNCHANGED", "part": "limits", "detail": "restart needed for: port"}
    assert report.refused
    assert witness.facts == [{"event": "reload", **refused}, {"event": "reload", **reloaded}]
    assert reloads == {"trust.refused": 1, "policy.reloaded": 1, "limits.unchanged": 1}
    assert [{key: each[key] for key in each if key not in ("event", "log_level")} for each in said] == [
        refused,
        reloaded,
        unchanged,
    ]
    assert [each["log_level"] for each in said] == ["error", "info", "info"]


@pytest.mark.parametrize(("detail", "quiet", "said"), [("", True, 0), ("", False, 1), ("wait", True, 1)])
async def test_that_nothing_has_changed_is_said_to_who_asks_and_to_others_only_if_there_is_more_to_say(
    tmp_path: Path, detail: str, quiet: bool, said: int
) -> None:
    settings, limits = config(tmp_path), Scripted(Part.LIMITS)
    limits.holds = Unchanged(detail)
    reloader = Reloader([limits], settings, lambda: settings, Counter(), None, None)
    with capture_logs() as logs:
        await reloader.reload(quiet=quiet)
    assert [each["code"] for each in logs] == ["RELOAD_UNCHANGED"] * said


async def test_what_was_refused_is_put_right_by_what_is_in_use_or_by_what_is_new(tmp_path: Path) -> None:
    settings, policy, trust = config(tmp_path), Scripted(Part.POLICY), Scripted(Part.TRUST)
    witness, reloads = Told(), Counter[str]()
    reloader = Reloader([policy, trust], settings, lambda: settings, reloads, None, witness)
    back = "the files are again as they are in use"
    details: list[str] = []
    for holds in (OSError("no such file"), Unchanged(), Unchanged(), OSError("no such file"), "new", Unchanged("more")):
        policy.holds = holds
        report = await reloader.reload()
        details.append(report.parts[0].detail)
        assert report.parts[1].detail == ""
    assert details == ["no such file", back, "", "no such file", "new", "more"]
    assert [each["code"] for each in witness.facts] == [
        "RELOAD_REFUSED",
        "RELOAD_UNCHANGED",
        "RELOAD_REFUSED",
        "RELOADED",
    ]
    assert reloads == {"policy.refused": 2, "policy.unchanged": 3, "policy.reloaded": 1, "trust.unchanged": 6}
    policy.holds = OSError("no such file")
    await reloader.reload()
    await reloader.reload([Part.TRUST])
    policy.holds = Unchanged("more")
    report = await reloader.reload()
    assert report.parts[0].detail == f"{back}; more", "to look at another part puts nothing right"


async def test_settings_that_cannot_be_used_cost_the_limits_alone_and_the_old_ones_count_for_the_others(
    tmp_path: Path,
) -> None:
    def unusable() -> BrokerConfig:
        raise ConfigError("limits.max_inflight: too small")

    settings, policy, limits = config(tmp_path), Scripted(Part.POLICY), Scripted(Part.LIMITS)
    trust = Scripted(Part.TRUST)
    reloader = Reloader([limits, policy, trust], settings, unusable, Counter(), None, None)
    report = await reloader.reload([Part.LIMITS, Part.POLICY])
    assert [(each.part, each.outcome, each.detail) for each in report.parts] == [
        (Part.LIMITS, Outcome.REFUSED, "limits.max_inflight: too small"),
        (Part.POLICY, Outcome.UNCHANGED, ""),
    ]
    assert (limits.asked, policy.asked, trust.asked) == ([], [(settings, None)], [])


class Reloads(Reloader):
    """Tells when it has reloaded, and how it was asked to."""

    asked: asyncio.Queue[bool]

    async def reload(self, *arguments: Any, **options: Any) -> Any:
        report = await super().reload(*arguments, **options)
        self.asked.put_nowait(options.get("quiet", False))
        return report


@pytest.mark.parametrize("watch_files", [True, False])
async def test_a_hangup_reloads_once_and_a_changed_file_where_files_are_watched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, watch_files: bool
) -> None:
    monkeypatch.setattr(reloading, "_LOOK_SECONDS", 0.01)
    settings, file = config(tmp_path), tmp_path / "policy.toml"
    file.write_text("old")
    reloader = Reloads([Scripted(Part.POLICY, file)], settings, lambda: settings, Counter(), None, None)
    reloader.asked, hangup = asyncio.Queue(), asyncio.Event()
    watching = asyncio.create_task(keep_current(reloader, hangup, FileWatch([]) if watch_files else None))
    hangup.set()
    assert await asyncio.wait_for(reloader.asked.get(), 30) is False
    assert not hangup.is_set()
    file.write_text("new, and longer")
    if watch_files:
        assert await asyncio.wait_for(reloader.asked.get(), 30) is True
    passed = asyncio.Event()
    asyncio.get_running_loop().call_later(20 * reloading._LOOK_SECONDS, passed.set)
    await passed.wait()
    assert reloader.asked.empty()
    hangup.set()
    assert await asyncio.wait_for(reloader.asked.get(), 30) is False, "to be told so does not depend on files"
    assert reloader.asked.empty()
    watching.cancel()
    with suppress(asyncio.CancelledError):
        await watching


async def test_what_was_changed_while_the_broker_was_starting_counts(
    tmp_path: Path, broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between what is read first and the first look there may be an enrolment, plugins, a store: many seconds."""
    monkeypatch.setattr(reloading, "_LOOK_SECONDS", 0.01)
    file = tmp_path / "policy.toml"
    file.write_text('[role.device]\npublish.allow = ["old"]\n')
    settings = config(tmp_path).model_copy(update={"policy_file": file})
    watch = FileWatch(files_of(settings, tmp_path / "broker.toml"))
    part = ReloadedPolicy(broker.engine, file.read_text(), lambda: broker.now)
    file.write_text('[role.device]\npublish.allow = ["new", "newer"]\n')
    reloader = Reloads([part], settings, lambda: settings, Counter(), None, None)
    reloader.asked = asyncio.Queue()
    watching = asyncio.create_task(keep_current(reloader, asyncio.Event(), watch))
    assert await asyncio.wait_for(reloader.asked.get(), 30) is True
    meter = identity_of(shared_device("meter-1").certificate)
    assert broker.engine.admission.permissions(meter, "meter-1").may_publish("new")
    watching.cancel()
    with suppress(asyncio.CancelledError):
        await watching


async def test_a_disk_that_does_not_answer_does_not_stop_the_broker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The anchors of a partner were on it, and no revocation of ours was heard until it answered."""
    monkeypatch.setattr(reloading, "_LOOK_SECONDS", 0.01)
    loop, looking, answers = asyncio.get_running_loop(), asyncio.Event(), threading.Event()

    class Hanging(FileWatch):
        def changed(self, paths: Iterable[Path]) -> bool:
            loop.call_soon_threadsafe(looking.set)
            assert answers.wait(20), "the event loop stood still"
            return super().changed(paths)

    settings = config(tmp_path)
    reloader = Reloads([], settings, lambda: settings, Counter(), None, None)
    watching = asyncio.create_task(keep_current(reloader, asyncio.Event(), Hanging([])))
    await looking.wait()
    answers.set()
    looking.clear()
    await looking.wait()
    watching.cancel()
    with suppress(asyncio.CancelledError):
        await watching


async def test_a_hangup_in_the_middle_of_a_reload_is_not_forgotten(tmp_path: Path) -> None:
    """What was read before it may be older than what it is about."""
    hangup = asyncio.Event()

    class HungUp(Scripted):
        async def apply(self, loaded: Any) -> tuple[str, Effects | None]:
            if not self.done:
                hangup.set()
            return await super().apply(loaded)

    settings, part = config(tmp_path), HungUp(Part.POLICY)
    part.holds = "new"
    reloader = Reloads([part], settings, lambda: settings, Counter(), None, None)
    reloader.asked = asyncio.Queue()
    watching = asyncio.create_task(keep_current(reloader, hangup, None))
    hangup.set()
    for _ in range(2):
        assert await asyncio.wait_for(reloader.asked.get(), 30) is False
    watching.cancel()
    with suppress(asyncio.CancelledError):
        await watching


async def test_who_asks_for_a_reload_has_the_crl_files_read_before_the_answer(tmp_path: Path) -> None:
    """By `kill -HUP`, as for mosquitto, whom the new list revokes was let in for up to six seconds more."""
    settings, looks = config(tmp_path), list[None]()

    async def look() -> None:
        looks.append(None)

    reloader = Reloader([Scripted(Part.TRUST)], settings, lambda: settings, Counter(), None, None, look)
    await reloader.reload()
    assert len(looks) == 1
    await reloader.reload({Part.POLICY})
    await reloader.reload(quiet=True)  # A file of ours has changed: nobody waits.
    assert len(looks) == 1


def test_a_report_says_in_words_what_a_reload_did_or_would_do() -> None:
    affected = (Affected("m-1", "spiffe://d/device/g/m-1", "why"), Affected("m\n2", "spiffe://d/device/g/m-2", "no"))
    parts = (
        PartReport(Part.CERTIFICATE, Outcome.UNCHANGED),
        PartReport(Part.TRUST, Outcome.REFUSED, "no anchors"),
        PartReport(Part.POLICY, Outcome.RELOADED, "", Effects(12_480, 3, 1, 2, affected)),
        PartReport(Part.LIMITS, Outcome.RELOADED, "max_inflight", Effects(5, 0, 2, 1)),
    )
    done, dry = ReloadReport(parts), ReloadReport(parts, dry_run=True)
    named = r"m-1 (why); m\n2 (no)"
    assert str(done).splitlines() == [
        "certificate: unchanged",
        "trust: refused: no anchors",
        f"policy: reloaded; disconnected 3 of 12,480 clients, ended 1 subscription, dropped 2 wills: {named}",
        "limits: reloaded: max_inflight; disconnected 0 of 5 clients, ended 2 subscriptions, dropped 1 will",
    ]
    assert str(dry).splitlines() == [
        "certificate: unchanged",
        "trust: would be refused: no anchors",
        f"policy: would be reloaded; would disconnect 3 of 12,480 clients, end 1 subscription, drop 2 wills: {named}",
        "limits: would be reloaded: max_inflight; would disconnect 0 of 5 clients, end 2 subscriptions, drop 1 will",
    ]
    assert [each["text"] for each in dry.as_dict()["parts"]] == str(dry).splitlines()
    assert (done.refused, done.as_dict()["refused"], ReloadReport(parts[2:]).refused) == (True, True, False)
    for more, end in ((0, "; m-1 (why)"), (1, "; m-1 (why); …")):
        effects = Effects(40, SHOWN + more, affected=affected[:1] * SHOWN, more=more)
        assert str(ReloadReport((PartReport(Part.POLICY, Outcome.RELOADED, "", effects),))).endswith(end)
    assert "," not in str(ReloadReport((PartReport(Part.POLICY, Outcome.RELOADED, "", Effects(4)),)))


def test_the_effects_of_two_changes_one_after_the_other_are_those_of_both() -> None:
    first, second = (Affected(name, f"spiffe://d/device/g/{name}", "why") for name in ("first", "second"))
    both = Effects(40, 3, 2, 1, (first,) * 6) + Effects(37, 30, 20, 10, (second,) * 6, 24)
    assert both == Effects(40, 33, 22, 11, (first,) * 6 + (second,) * (SHOWN - 6), 2 + 24)
    assert (Effects(1, affected=(first,) * 6) + Effects(1, affected=(second,) * 4)).more == 0
