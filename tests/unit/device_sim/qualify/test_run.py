"""What the run makes of its stages: which it takes a device through, how long it waits there, and what it tells."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from cryptography import x509

from broker.mqtt.codes import QoS
from broker.mqtt.connect import Connect
from broker.mqtt.packets import Disconnect, Publish, Subscribe, SubscriptionRequest
from device_sim.attack.raw_client import RawClient
from device_sim.attack.verdict import Layer, Outcome, Seen, Verdict
from device_sim.link.tls_dial import Endpoint
from device_sim.qualify import judging, run
from device_sim.qualify.attempt import Attempt
from device_sim.qualify.conduct import Conduct
from device_sim.qualify.device import BadCommand, Hardware, Program
from device_sim.qualify.judging import Line, skipped
from device_sim.qualify.papers import Papers, ServerPaper, ServerStaple
from device_sim.qualify.run import Bench, qualify
from device_sim.qualify.stages import Stage, Witness, pick
from device_sim.qualify.starvation import NOTHING
from device_sim.trouble.trouble import Trouble
from provisioning.pki.tls import CredentialFiles, client_context
from tests.support.machine import Busy, Quiet

PASS, WARN, FAIL, SKIP, INVALID = Verdict.PASS, Verdict.WARN, Verdict.FAIL, Verdict.SKIP, Verdict.INVALID
PAPERS = Papers("meter-1", ["localhost", "127.0.0.1"])
PATIENCE = 30.0
TOPIC = "fleet/qualified/meter-1/telemetry"

Acts = Callable[[Mapping[str, str]], Awaitable[object]]


@dataclass
class Acting:
    """A device in this process; it has ended with *status* when its *acts* are over, unless that is None."""

    acts: Acts
    status_then: int | None = None
    said: bytes = b""
    knows: tuple[str, ...] = ()
    filled: list[Mapping[str, str]] = field(default_factory=list)

    def mentions(self, placeholder: str) -> bool:
        return placeholder in self.knows

    @asynccontextmanager
    async def present(self, values: Mapping[str, str], log: Path) -> AsyncIterator[Any]:
        self.filled.append(values)
        log.write_bytes(self.said)  # noqa: ASYNC240 - a test's own
        presence = SimpleNamespace(status=None, gone=False, session=None)

        async def story() -> None:
            await self.acts(values)
            if self.status_then is not None:
                presence.status, presence.gone = self.status_then, True

        acting = asyncio.create_task(story())
        try:
            yield presence
        finally:
            acting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await acting


async def sleeps(_values: Mapping[str, str]) -> None:
    await asyncio.sleep(3600)


async def nothing(_values: Mapping[str, str]) -> None:
    """End at once."""


async def connected(values: Mapping[str, str]) -> RawClient:
    context = client_context(Path(values["cafile"]), CredentialFiles(Path(values["cert"]), Path(values["key"])))
    client = await RawClient.dial(Endpoint("127.0.0.1", int(values["port"]), "localhost"), context)
    try:
        assert (await client.connect(Connect("meter-1", keep_alive=60))).got_in
    except BaseException:
        client.close()
        raise
    return client


async def says_goodbye(values: Mapping[str, str]) -> None:
    """Connect, publish, and leave."""
    client = await connected(values)
    try:
        await client.send(Publish(TOPIC, b"42", QoS.AT_MOST_ONCE).encode(client.version))
        await client.send(Disconnect().encode(client.version))
    finally:
        client.close()


async def stays(values: Mapping[str, str]) -> None:
    client = await connected(values)
    try:
        await sleeps(values)
    finally:
        client.close()


def bench(directory: Path, device: object, window: float = 0.5, **fields: Any) -> Bench:
    fields.setdefault("watching", Quiet)
    return Bench(PAPERS, cast("Any", device), directory, "127.0.0.1", 0, window, **fields)


def stage(name: str, *lines: Line, seen: list[Witness] | None = None, **fields: Any) -> Stage:
    def judge(witness: Witness) -> list[Line]:
        if seen is not None:
            seen.append(witness)
        return list(lines) or [Line("does", "does it", PASS, "it did")]

    return Stage(name, f"the {name}", judge, **fields)


@pytest.fixture
def _seen_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stage ends when the device has been served, and has left if it is one that leaves: no window is too short."""

    def enough(stage: Stage, attempts: Sequence[Attempt], _arrivals: object) -> bool:
        last = Disconnect if "leaves" in stage.description else Connect
        return any(isinstance(packet, last) for each in attempts if each.answered for _, packet in each.packets)

    monkeypatch.setattr(Stage, "enough", enough)


async def through(on: Bench, *stages: Stage, parallel: int = 4) -> tuple[list[str], list[str], list[Outcome]]:
    """Return the stages that began, the lines in the order in which they were told, and all that was returned."""
    began: list[str] = []
    told: list[str] = []
    outcomes = await qualify(
        on, stages, parallel, lambda each: began.append(each.name), lambda each: told.append(each.name)
    )
    return began, told, outcomes


async def test_a_device_that_is_not_served_well_is_judged_no_further(tmp_path: Path) -> None:
    for verdict in (FAIL, INVALID):
        lines = [Line("connects", "connects", verdict), Line("stays", "stays", PASS)]
        (place := tmp_path / str(verdict)).mkdir()
        on = bench(place, Acting(sleeps), 0.05)
        began, told, outcomes = await through(on, stage("good", *lines), stage("other"))
        assert (began, told) == (["good"], ["good.connects", "good.stays"])
        assert [each.name for each in outcomes] == told


async def test_whatever_else_is_wrong_in_the_good_stage_the_others_follow_and_the_waits_are_judged_last(
    tmp_path: Path,
) -> None:
    good = stage("good", Line("connects", "connects", PASS), Line("stays", "stays", FAIL, "it left", "why"))
    on = bench(tmp_path, Acting(sleeps), 0.05)
    began, told, outcomes = await through(on, good, stage("one"), stage("two"))
    names = ["good.connects", "good.stays", "one.does", "two.does", "reconnect.waits-grow", "reconnect.waits-scatter"]
    assert (began, sorted(told[:4]), told[4:]) == (["good", "one", "two"], names[:4], names[4:])
    assert [each.name for each in outcomes] == names
    left = outcomes[1]
    assert (left.description, left.expected, left.limit) == ("the good: stays", ("stays",), 0.05)
    assert (left.verdict, left.judgement.why, left.seen and left.seen.code) == (FAIL, "why", "it left")
    assert outcomes[0].seen is None


async def test_a_stage_of_another_name_that_fails_to_connect_ends_nothing(tmp_path: Path) -> None:
    on = bench(tmp_path, Acting(sleeps), 0.05)
    began, _, _ = await through(on, stage("bad", Line("connects", "connects", FAIL)), stage("other"))
    assert began == ["bad", "other"]


@pytest.mark.parametrize(("parallel", "most"), [(1, 1), (2, 2), (9, 3)])
async def test_so_many_stages_at_a_time_as_was_said(tmp_path: Path, parallel: int, most: int) -> None:
    here, highest = 0, 0

    async def counts(_values: Mapping[str, str]) -> None:
        nonlocal here, highest
        here += 1
        highest = max(highest, here)
        await asyncio.sleep(0.05)  # All that may begin have begun by then, or this is no machine to be tested on.
        here -= 1

    on = bench(tmp_path, Acting(counts, 0), PATIENCE)
    await through(on, *map(stage, ("one", "two", "three")), parallel=parallel)
    assert highest <= most
    if parallel == 1:
        assert highest == 1


async def test_hardware_is_taken_through_one_stage_at_a_time_and_not_through_what_it_cannot_do(
    tmp_path: Path,
) -> None:
    class Away(Hardware):
        gone = True

    on = replace(bench(tmp_path, Away()), port=0)
    stages = [
        stage("plain"),
        stage("renews", enrols=True),
        stage("troubled", trouble=Trouble(latency=0.1)),
        stage("stapled", conduct=Conduct(ServerPaper.MUST_STAPLE, ServerStaple.REVOKED)),
    ]
    _, told, outcomes = await through(on, *stages)
    assert told[:4] == ["plain.does", "renews.tried", "troubled.tried", "stapled.does"]
    assert [each.verdict for each in outcomes[:4]] == [PASS, SKIP, SKIP, PASS]
    assert [each.judgement.why for each in outcomes[1:3]] == [
        "its certificate would have to be replaced", "it keeps its address: only with --exec",
    ]  # fmt: skip
    assert not (tmp_path / "plain" / "device.crt").exists(), "it has its own"
    told = (await through(replace(on, ignores_staples=True, directory=tmp_path / "plain"), stages[3]))[1]
    assert told[0] == "stapled.tried"


async def test_hardware_that_subscribes_at_its_start_alone_is_found_in_a_later_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    PAPERS.write(tmp_path)
    files = {"cafile": "ca.crt", "cert": "device.crt", "key": "device.key"}
    own = {name: str(tmp_path / file) for name, file in files.items()}

    class Board(Hardware):
        started = False

        async def acts(self, values: Mapping[str, str]) -> None:
            client = await connected({**values, **own})
            try:
                if not self.started:
                    await client.send(Subscribe(1, (SubscriptionRequest("cmd/#"),)).encode(client.version))
                self.started = True
                await sleeps(values)
            finally:
                client.close()

        @asynccontextmanager
        async def present(self, values: Mapping[str, str], log: Path) -> AsyncIterator[Any]:
            async with Acting(self.acts).present(values, log) as presence:
                yield presence

    def enough(stage: Stage, attempts: Sequence[Attempt], _arrivals: object) -> bool:
        last = Subscribe if stage.name == "one" else Connect
        return any(isinstance(packet, last) for each in attempts if each.answered for _, packet in each.packets)

    monkeypatch.setattr(Stage, "enough", enough)
    _, _, (_, line, *_) = await through(bench(tmp_path, Board(), PATIENCE), stage("one"), *pick(["session-lost"]))
    assert (line.name, line.verdict) == ("session-lost.subscribes-again", FAIL)
    assert line.seen == Seen(Layer.DEVICE, "no more to cmd/#")


async def test_a_device_of_which_it_is_said_that_it_checks_no_staple_is_not_asked(tmp_path: Path) -> None:
    stapled = stage("stapled", conduct=Conduct(ServerPaper.MUST_STAPLE, ServerStaple.REVOKED))
    on = bench(tmp_path, Acting(sleeps), 0.05, ignores_staples=True)
    _, _, (line, plain, *_) = await through(on, stapled, stage("plain"))
    assert (line.name, line.verdict, plain.verdict) == ("stapled.tried", SKIP, PASS)
    assert line.judgement.why.startswith("by --ignores-staples it does not check")


async def test_a_device_that_has_ended_is_not_waited_for_and_what_it_did_is_all_known(tmp_path: Path) -> None:
    seen: list[Witness] = []
    acting = Acting(says_goodbye, 3, b"\nmeasured\x07 42\n\n")
    begun = time.monotonic()
    await through(bench(tmp_path, acting, 60.0), stage("good", seen=seen))
    assert time.monotonic() - begun < 30.0
    (witness,) = seen
    (attempt,) = witness.attempts
    assert [type(packet).__name__ for _, packet in attempt.packets] == ["Connect", "Publish", "Disconnect"]
    assert (witness.status, witness.window, attempt.ended is not None) == (3, 60.0, True)
    assert witness.ending.startswith("it ended with status 3; it said: measured")
    assert "\x07" not in witness.ending
    assert witness.leaves is None, "it is this stage that tells"


@pytest.mark.usefixtures("_seen_at_once")
async def test_a_program_that_runs_when_its_stage_is_over_has_not_ended(tmp_path: Path) -> None:
    seen: list[Witness] = []
    await through(bench(tmp_path, Acting(stays, knows=("crl",)), 60.0), stage("stays", seen=seen))
    (witness,) = seen
    assert (witness.status, witness.ending, witness.attempts[0].ended) == (None, "", None)
    assert (witness.crl_given, witness.est_given) == (True, False)


async def test_the_window_begins_when_the_device_first_comes(tmp_path: Path) -> None:
    """However long it has taken to start: what is seen then is what counts."""

    async def late(values: Mapping[str, str]) -> None:
        await asyncio.sleep(0.6)
        await stays(values)

    seen: list[Witness] = []
    begun = time.monotonic()
    await through(bench(tmp_path, Acting(late), 3.0), stage("late", seen=seen))
    assert len(seen[0].attempts) == 1
    assert time.monotonic() - begun >= 3.6


@pytest.mark.usefixtures("_seen_at_once")
async def test_what_was_waited_before_the_device_came_is_no_excuse_for_what_it_did_then(tmp_path: Path) -> None:
    begun: list[str] = []

    class Noted(Quiet):
        def begin(self) -> None:
            begun.append("begun")
            super().begin()

    comes = bench(tmp_path, Acting(stays), 60.0, watching=Noted)
    await through(comes, stage("comes"))
    assert len(begun) == 2, "also when it was made"
    await through(replace(comes, device=cast("Any", Acting(nothing, 0))), stage("never"))
    assert len(begun) == 3


@pytest.mark.usefixtures("_seen_at_once")
async def test_what_is_enough_ends_a_stage(tmp_path: Path) -> None:
    begun = time.monotonic()
    await through(bench(tmp_path, Acting(stays), 60.0), stage("enough"))
    assert time.monotonic() - begun < 30.0


@pytest.mark.usefixtures("_seen_at_once")
@pytest.mark.parametrize(
    ("acts", "status", "leaves"), [(says_goodbye, None, True), (nothing, 0, True), (stays, None, False)]
)
async def test_what_the_good_stage_shows_of_it_is_known_in_the_others(
    tmp_path: Path, acts: Acts, status: int | None, leaves: bool
) -> None:
    seen: list[Witness] = []
    what = "it leaves" if acts is says_goodbye else "it stays"
    good, other = (replace(each, description=what) for each in (stage("good"), stage("other", seen=seen)))
    await through(bench(tmp_path, Acting(acts, status), 60.0), good, other)
    assert seen[0].leaves is leaves


async def test_what_no_other_stage_shows_is_not_known(tmp_path: Path) -> None:
    seen: list[Witness] = []
    stages = [stage(name, seen=seen) for name in ("first", "other")]
    await through(bench(tmp_path, Acting(says_goodbye), 0.3), *stages, parallel=1)
    assert [each.leaves for each in seen] == [None, None]


async def test_a_device_that_ended_without_a_connection_says_why_where_nothing_could_be_judged(tmp_path: Path) -> None:
    """A stage that judged it says more than that."""
    acting = Acting(nothing, 2, b"no such option")
    skips = stage("skips", skipped("tried", "does it", "it did not come"))
    _, _, (line, judged, *_) = await through(bench(tmp_path, acting), skips, stage("fails", Line("does", "", FAIL)))
    told = "it ended with status 2; it said: no such option"
    assert (line.name, line.verdict, line.judgement.why) == ("skips.tried", SKIP, told)
    assert judged.name == "fails.does"
    came = Acting(says_goodbye, 2)
    (place := tmp_path / "came").mkdir()
    _, _, (line, *_) = await through(bench(place, came), skips)
    assert line.judgement.why == "it did not come"


async def test_what_is_wrong_with_the_program_itself_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = [Line("does", "does it well", FAIL, "no"), Line("key-file", "lets nobody read", FAIL, "all may")]
    monkeypatch.setattr(run, "conduct_of_program", lambda _witness: wrong)
    for first, rights in (
        (Line("does", "does it", PASS), ["does it well", "lets nobody read"]),
        (Line("does", "does it", FAIL), ["does it", "lets nobody read"]),
        (Line("other", "does another", FAIL), ["does another", "does it well", "lets nobody read"]),
    ):
        witness = cast("Any", SimpleNamespace(stayed_away=False))
        lines = run._judged(stage("x", first), bench(tmp_path, Acting(sleeps)), witness)
        assert [each.right for each in lines] == rights


def _contents(path: str) -> bytes:
    return Path(path).read_bytes()


async def test_an_enrolling_device_has_a_certificate_for_two_windows_and_a_service(tmp_path: Path) -> None:
    acting = Acting(sleeps)
    await through(bench(tmp_path, acting, 0.2), stage("renews", enrols=True), stage("plain"), parallel=1)
    renews, plain = acting.filled
    lives = []
    for values in (renews, plain):
        certificate = x509.load_pem_x509_certificate(_contents(values["cert"]))
        lives.append((certificate.not_valid_after_utc - certificate.not_valid_before_utc).total_seconds())
    assert 50 <= lives[0] < 65, "eleven times what is left"
    assert lives[1] > 3600
    assert renews["est_url"].startswith("https://127.0.0.1:")
    assert plain["est_url"] == ""
    assert (renews["topic"], renews["commands"]) == (TOPIC, "fleet/qualified/meter-1/cmd/#")
    assert {name: Path(renews[name]).name for name in ("cafile", "crl", "cert", "key")} == {
        "cafile": "ca.crt", "crl": "crl.pem", "cert": "device.crt", "key": "device.key",
    }  # fmt: skip
    assert Path(renews["dir"]) == tmp_path / "renews"


async def test_a_renewed_device_has_a_moment_and_then_loses_its_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "_TO_INSTALL", 0.05)
    issued, broken = asyncio.Event(), asyncio.Event()
    stand, service = SimpleNamespace(drop_all=broken.set), SimpleNamespace(issued=issued)
    breaking = asyncio.create_task(run._break_when_renewed(cast("Any", service), cast("Any", stand)))
    await asyncio.sleep(0.1)
    assert not broken.is_set()
    begun = time.monotonic()
    issued.set()
    await breaking
    assert time.monotonic() - begun >= 0.05
    assert broken.is_set()


async def test_across_a_slow_network_it_reaches_the_stand_all_the_same_and_is_not_gone_with_its_data(
    tmp_path: Path,
) -> None:
    seen: list[Witness] = []
    slow = stage("slow", seen=seen, trouble=Trouble(latency=0.2))
    begun = time.monotonic()
    await through(bench(tmp_path, Acting(says_goodbye, 0), 4.0), slow)
    assert time.monotonic() - begun >= 4.0, "that it has ended is no reason to look away"
    (attempt,) = seen[0].attempts
    assert [type(packet).__name__ for _, packet in attempt.packets][-1] == "Disconnect"
    assert attempt.packets[0][0] - attempt.at >= 0.2, "CONNECT has come late"


async def test_a_command_that_cannot_be_run_is_told_as_that(tmp_path: Path) -> None:
    with pytest.raises(BadCommand, match="cannot be run"):
        await through(bench(tmp_path, Program("/no/such/program")), stage("one"), stage("two"))


@pytest.mark.parametrize(("failing", "verdict"), [(True, INVALID), (False, SKIP)])
async def test_the_waits_of_failing_stages_are_no_verdict_where_the_machine_was_held_in_those(
    tmp_path: Path, failing: bool, verdict: Verdict
) -> None:
    on = bench(tmp_path, Acting(sleeps), 0.05, watching=Busy)
    _, _, outcomes = await through(on, stage("one", failing=failing))
    assert {each.name: each.verdict for each in outcomes}["reconnect.waits-grow"] is verdict


async def test_the_waits_of_failing_stages_are_judged_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[list[list[float]]] = []

    def waits(sequences: list[list[float]]) -> list[Line]:
        rows.append([list(each) for each in sequences])
        return []

    monkeypatch.setattr(judging, "waits", waits)

    async def witnessed(_bench: Bench, each: Stage) -> tuple[Witness | None, Any]:
        attempts = [Attempt(0.0, ended=1.0), Attempt(3.0, ended=4.0)]
        witness = Witness(attempts, [], [], None, 1.0, crl_given=False) if each.name != "unable" else None
        return witness, NOTHING

    monkeypatch.setattr(run, "_witnessed", witnessed)
    stages = [stage("a", failing=True), stage("b"), stage("unable", failing=True), stage("c", failing=True)]
    await through(bench(tmp_path, Acting(sleeps)), *stages)
    await through(bench(tmp_path, Hardware()), *stages)
    assert rows == [[[2.0], [2.0]], [[2.0, 2.0]]]


async def test_a_wait_ends_when_it_is_enough_or_too_long_and_looks_again_though_nothing_changes() -> None:
    async def never() -> None:
        await asyncio.sleep(3600)

    looks = 0

    def third_time() -> bool:
        nonlocal looks
        looks += 1
        return looks == 3

    begun = time.monotonic()
    await run._until(60.0, lambda: True, never)
    await run._until(60.0, third_time, never)
    assert (looks, time.monotonic() - begun < 30.0) == (3, True)
    begun = time.monotonic()
    await run._until(0.1, lambda: False, never)
    assert 0.1 <= time.monotonic() - begun < 30.0


@pytest.mark.parametrize(
    ("said", "last"),
    [
        (None, ""),
        (b"", ""),
        (b"\n \n", ""),
        (b"one\ntwo\n\n", "two"),
        (b"  two  ", "two"),
        (b"x" * 5000, "x" * 200),
        (b"first " + b"y" * 150, "first " + "y" * 150),
        (b"a\xffb", "a\N{REPLACEMENT CHARACTER}b"),
        (b"early" + b"\n" * 5000, ""),
    ],
)
def test_the_last_words_of_a_device_are_its_last_line(tmp_path: Path, said: bytes | None, last: str) -> None:
    if said is not None:
        (tmp_path / "log").write_bytes(said)
    assert run._last_words(tmp_path / "log") == last
