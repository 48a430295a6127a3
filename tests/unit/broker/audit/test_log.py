"""The queue before the audit log: nothing waits for it, nobody fills it, and what is lost is said."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from broker.admission.refusal import Refused
from broker.audit import log as audit_log
from broker.audit.files import AuditFiles
from broker.audit.log import AuditLog
from broker.audit.verification import verify
from broker.engine.history import Event, Happened
from provisioning.pki.identity import Identity
from provisioning.pki.role import Role
from tests.support.broker_process import wait_until

KEY = bytes(32)
METER = Identity("fleet.internal", Role.DEVICE, "meter-1", "north")


class FailingFiles(AuditFiles):
    """Files on a disk that is full while `full` is set, or that meet another `error` then."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, KEY, 1 << 20, 4)
        self.full = threading.Event()
        self.error: Exception = OSError(28, "No space left on device")
        self.entries: list[Mapping[str, Any]] = []

    def append(self, entries: Iterable[tuple[float, Mapping[str, Any]]]) -> int:
        if self.full.is_set():
            raise self.error
        some = list(entries)
        written = super().append(some)
        self.entries += [facts for _, facts in some]
        return written


class Scene:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.files = FailingFiles(path)
        self.files.open()
        self.outcomes: Counter[str] = Counter()
        self.states: list[Refused | None] = []
        self.log = AuditLog(self.files, self.outcomes, self._call, self.states.append)
        self.log.start(broker="b")

    def _call(self, callback: Callable[..., object], *arguments: object) -> None:
        callback(*arguments)

    def refuse(self, times: int = 1, identity: Identity | None = METER, address: str = "192.0.2.1:5") -> None:
        for _ in range(times):
            self.log.saw(Event(Happened.REFUSED, "REVOKED", "why", address, identity, "ab", "", 0.0))

    def end(self) -> list[Mapping[str, Any]]:
        self.log.close()
        assert not self.log._thread.is_alive(), "nobody has to wait for its end"
        assert self.files._descriptor == -1, "another broker may have the file now"
        assert verify(self.path, KEY).findings == []
        return self.files.entries


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path / "audit.jsonl")


def test_what_happens_is_written_in_order_with_the_words_of_the_history(scene: Scene) -> None:
    scene.refuse()
    scene.log.told("reload", code="RELOADED", part="trust", disconnected=0)
    started, refused, reload, stopped = scene.end()
    assert (started["event"], stopped["event"]) == ("started", "stopped")
    assert refused["identity"] == "spiffe://fleet.internal/device/north/meter-1"
    assert (refused["code"], refused["detail"], refused["serial"]) == ("REVOKED", "why", "ab")
    assert reload == {"event": "reload", "code": "RELOADED", "part": "trust", "disconnected": 0}
    assert scene.outcomes == {"written": 4}


def test_who_knocks_again_and_again_gets_some_entries_and_a_number(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.refuse(1000, None)
    scene.refuse(3)
    monkeypatch.setattr(audit_log, "_MINUTE", -1.0)
    scene.refuse(1, None, "192.0.2.2:5")
    entries = scene.end()
    of_stranger = [each for each in entries if each.get("address") == "192.0.2.1:5" and not each["identity"]]
    assert len(of_stranger) == 30
    assert [each for each in entries if each["event"] == "again"] == [
        {"event": "again", "about": "192.0.2.1", "what": "refused", "times": 970}
    ]
    assert sum(bool(each.get("identity")) for each in entries) == 3


def test_after_a_minute_the_number_is_said_and_entries_are_written_again(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.refuse(40)
    scene.refuse(30, None)
    monkeypatch.setattr(audit_log, "_MINUTE", -1.0)
    scene.refuse(1)
    _, *entries, stopped = scene.end()
    assert stopped["event"] == "stopped"
    assert [each["event"] for each in entries] == ["refused"] * 60 + ["again", "refused"]
    assert (entries[60]["about"], entries[60]["times"]) == (str(METER), 10), (
        "of whom nothing was left out nothing is said"
    )


def test_who_is_admitted_often_has_an_entry_each_time(scene: Scene) -> None:
    for _ in range(40):
        scene.log.saw(Event(Happened.ADMITTED, "ADMITTED", "", "192.0.2.1:5", METER, "ab", "meter-1", 0.0))
    assert sum(each["event"] == "admitted" for each in scene.end()) == 40


def test_of_how_many_there_are_counts_is_bounded_and_said(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_log, "_MOST_PACED", 2)
    scene.refuse(40)
    for number in (2, 3):
        scene.refuse(1, None, f"192.0.2.{number}:5")
        assert len(scene.log._paced) <= 2
    again = [each for each in scene.end() if each["event"] == "again"]
    assert [(each["about"], each["times"]) for each in again] == [(str(METER), 10)], "before it is forgotten"


def test_what_is_long_is_cut_and_what_is_a_number_stays_one(scene: Scene) -> None:
    scene.log.told("reload", text="x" * 3000, short=["a"], many=["x" * 10] * 300, number=10**6, share=0.5, whole=True)
    _, told, _ = scene.end()
    assert told["text"] == "x" * 2000
    assert (told["short"], told["number"], told["share"], told["whole"]) == (["a"], 10**6, 0.5, True)
    assert isinstance(told["many"], str)
    assert len(told["many"]) == 2000


def deny(scene: Scene, what: str, times: int = 1, *, at_once: bool = False) -> None:
    for _ in range(1 if at_once else times):
        detail = f"{what} denied: " + ("and more" if at_once else "fleet/elsewhere")
        event = Event(Happened.DENIED, "NOT_AUTHORIZED", detail, "192.0.2.1:5", METER, "ab", "meter-1", 0.0)
        event.times = times if at_once else 1
        scene.log.saw(event)


def test_denials_of_each_kind_add_up(scene: Scene) -> None:
    deny(scene, "publish", 100)
    deny(scene, "subscription", 40)
    deny(scene, "publish", 5000, at_once=True)
    deny(scene, "subscription", 1)
    entries = scene.end()
    for what, times in (("publish", 5100), ("subscription", 41)):
        told = [each for each in entries if str(each.get("detail")).startswith(f"{what} denied")]
        again = [each for each in entries if each["event"] == "again" and each["what"] == f"{what} denied"]
        assert len(told) == 30 + (what == "publish")
        assert sum(each["times"] or 1 for each in told) + sum(each["times"] for each in again) == times
    assert entries[-1]["event"] == "stopped"


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), KeyError("a defect")], ids=["disk", "defect"]
)
def test_a_full_disk_is_told_and_what_waited_is_written_afterwards(
    scene: Scene, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what is a defect of ours: with the policy ``require`` nobody is to be admitted unrecorded."""
    monkeypatch.setattr(audit_log, "_RETRY", 0.05)
    scene.files.error = error
    wait_until(lambda: scene.outcomes["written"] == 1, "the first entry is written")
    scene.files.full.set()
    scene.refuse()
    wait_until(lambda: scene.states, "newcomers are to be refused")
    refusal = scene.states[0]
    assert refusal is not None
    assert str(refusal.code) == "AUDIT_UNAVAILABLE"
    assert refusal.detail == "the broker's audit log must be written, and it cannot be written; try again later"
    scene.files.full.clear()
    wait_until(lambda: scene.states[-1] is None, "it can be written again")
    assert [each["event"] for each in scene.end()] == ["started", "refused", "stopped"]
    assert scene.outcomes["write failed"] >= 1


def test_what_finds_no_place_is_lost_counted_and_said(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    wait_until(lambda: scene.outcomes["written"] == 1, "the first entry is written")
    monkeypatch.setattr(audit_log, "_MOST_WAITING", 5)
    scene.files.full.set()
    for number in range(8):
        scene.log.told("reload", part=number)
    assert scene.outcomes["lost"] == 3
    assert [str(each).count("entries arrive faster") for each in scene.states].count(1) == 1, "it is said once"
    scene.files.full.clear()
    wait_until(lambda: scene.states[-1] is None, "there is room again")
    events = [(each["event"], each.get("times")) for each in scene.end()]
    assert events == [("started", None), *[("reload", None)] * 5, ("lost", 3), ("stopped", None)]
