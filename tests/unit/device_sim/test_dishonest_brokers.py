"""The judge itself is judged: a broker that does one thing wrong once must not get a PASS, whatever it is."""

from __future__ import annotations

import os
import re
import signal
import sys
from pathlib import Path
from typing import cast

import pytest

from device_sim.credentials.fleet_directory import FleetDirectory, Origin
from device_sim.fleet import backend
from device_sim.fleet.streaming import Streaming
from device_sim.interruption import Interruption, run
from device_sim.link.driver import Driver
from device_sim.report import ExitCode
from device_sim.results.document import document_of, remarks
from device_sim.run import part, runner, stages
from device_sim.run.manner import ONE_PROCESS, Manner
from device_sim.run.reckoning import Reckoning
from device_sim.run.result import RunResult
from device_sim.run.runner import Run
from device_sim.run.target import Target
from device_sim.scenario.metrics import Count, Duration
from device_sim.scenario.model import parse
from provisioning.client.operator import OperatorClient
from provisioning.pki.role import Role
from tests.support.authority import Authority
from tests.support.dishonest_broker import Lie, dishonest
from tests.support.programs import REPOSITORY, forking_python
from tests.support.scenarios import ON_ANY_MACHINE

SCENARIO = (
    ON_ANY_MACHINE
    + """
name = "judged"
devices = 3
[[groups]]
name = "meters"
telemetry = { every = "40ms" }
presence = {}
backoff = { base = "20ms", cap = "50ms" }
[[stages]]
ramp = { rate = 100 }
[[stages]]
command = { rate = 100, deadline = "500ms" }
[[stages]]
hold = "200ms"
[[stages]]
revoke = { select = "30%", rate = 100, deadline = "250ms" }
[thresholds]
lost = ["== 0"]
altered = ["== 0"]
duplicated = ["== 0"]
out_of_order = ["== 0"]
unexpected = ["== 0"]
unanswered_commands = ["== 0"]
unreached = ["== 0"]
stale_presence = ["== 0"]
revoked_closed = ["max < 60000"]
"""
)

UNANSWERED, KEPT_IN = {Lie.ALTERS_A_COMMAND, Lie.ALTERS_AN_ANSWER}, {Lie.KEEPS_IN}
KEPT_OUT = {Lie.RESUMES, Lie.DIES}
NOTHING_IS_MISSING = {
    Lie.NOTHING, Lie.DOUBLES, Lie.OVERTAKES, Lie.SCRIBBLES, Lie.DOUBLES_A_COMMAND, Lie.DOUBLES_AN_ANSWER, Lie.LETS_IN,
    Lie.CUTS_AND_LETS_IN, Lie.BLAMES_AND_LETS_IN, Lie.KEEPS_ITS_SESSION,
}  # fmt: skip
"""Where all that is waited for comes, however slow the machine: only in vain is nobody to wait for long."""


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture(autouse=True)
def _forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the workers forked: of a start of theirs nearly all is imports."""
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setattr(sys, "executable", forking_python("device_sim", environment=os.environ))


async def judged(
    authority: Authority,
    directory: Path,
    lie: Lie,
    text: str = SCENARIO,
    manner: Manner = ONE_PROCESS,
    interruption: Interruption | None = None,
) -> RunResult:
    # Who waits for what comes waits as long as this machine takes.
    text = text if lie in UNANSWERED else text.replace('deadline = "500ms"', 'deadline = "60s"')
    text = text if lie in KEPT_IN else text.replace('deadline = "250ms"', 'deadline = "60s"')
    # Who comes again in vain need not do so all the time.
    text = text if lie not in KEPT_OUT else text.replace('base = "20ms", cap = "50ms"', 'base = "1s", cap = "2s"')
    scenario = parse(text, "judged.toml")
    fleet = FleetDirectory.create(directory / "fleet", Origin(), authority.pem, "backend")
    with fleet.changing():
        fleet.keep(authority.issue("backend", role=Role.SERVICE, group=None))
        for number in range(1, scenario.devices + 1):
            fleet.keep(authority.issue(f"meter-{number}"))
    async with dishonest(authority, lie) as (broker, endpoint):
        broker.mark = manner.mark
        operator = cast("OperatorClient", broker)
        played = Run(scenario, Target(endpoint, fleet, operator=operator), manner)
        result = await played.play(interruption or Interruption())
    assert all(process.lag.count and process.standstill for process in result.processes), "each watches itself"
    assert all(process.memory_before_mb > 1 for process in result.processes if process.devices)
    return result


@pytest.fixture(autouse=True)
def impatient(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let neither the drain nor a ramp wait long for what will never come."""
    parameters = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    comes = parameters.get("lie") in NOTHING_IS_MISSING
    for module in (part, runner):
        monkeypatch.setattr(module, "_DRAIN_DEADLINE", 60.0 if comes else 0.3)
    monkeypatch.setattr(backend, "_LOOK", 0.01)
    monkeypatch.setattr(stages, "_SETTLE", 60.0 if comes else 5.0)


@pytest.mark.parametrize(
    ("lie", "crossed"),
    [
        (Lie.NOTHING, set()),
        (Lie.SWALLOWS, {"lost"}),
        (Lie.DROPS, {"lost"}),
        (Lie.DOUBLES, {"duplicated"}),
        (Lie.OVERTAKES, {"out_of_order"}),
        (Lie.FORGES, {"unexpected", "out_of_order"}),
        (Lie.ALTERS, {"altered", "lost"}),
        (Lie.RENUMBERS, {"altered", "lost"}),
        (Lie.CONFUSES, {"altered", "lost"}),
        (Lie.ALTERS_A_COMMAND, {"altered", "unanswered_commands"}),
        (Lie.ALTERS_AN_ANSWER, {"altered", "unanswered_commands"}),
        (Lie.SCRIBBLES, {"unexpected"}),
        (Lie.DOUBLES_A_COMMAND, {"unexpected"}),
        (Lie.DOUBLES_AN_ANSWER, {"unexpected"}),
        (Lie.TURNS_AWAY, {"false_refusals", "unreached"}),
        (Lie.KEEPS_IN, {"false_admissions", "revoked_closed"}),
        (Lie.LETS_IN, {"false_admissions"}),
        (Lie.CUTS_AND_LETS_IN, {"false_admissions"}),
        (Lie.BLAMES_AND_LETS_IN, {"false_admissions"}),
        (Lie.KEEPS_ITS_SESSION, {"false_admissions"}),
        (Lie.RESUMES, {"unreached"}),
        (Lie.FORGETS, {"stale_presence"}),
    ],
    ids=lambda value: value.value if isinstance(value, Lie) else "",
)
async def test_what_a_broker_does_wrong_once_is_found(
    tmp_path: Path, authority: Authority, lie: Lie, crossed: set[str]
) -> None:
    result = await judged(authority, tmp_path, lie)
    assert {str(one.threshold.metric) for one in result.thresholds if not one.passed} == crossed
    security = any(one.startswith("false_") for one in crossed)
    assert result.exit_code == (ExitCode.SECURITY if security else ExitCode.THRESHOLD if crossed else ExitCode.OK)


@pytest.mark.parametrize(
    ("lie", "blamed"),
    [
        (Lie.NOTHING, set()),
        (Lie.DROPS, {"lost"}),
        (Lie.OVERTAKES, {"out_of_order"}),
        (Lie.ALTERS, {"altered", "lost"}),
        (Lie.ALTERS_A_COMMAND, {"altered"}),
        (Lie.SCRIBBLES, {"unexpected"}),
        # A broker that sends again what is acknowledged late; one that would have acknowledged it in time.
        (Lie.DOUBLES, set()),
        (Lie.DOUBLES_AN_ANSWER, set()),
        (Lie.SWALLOWS, set()),
        (Lie.FORGETS, set()),
    ],
    ids=lambda value: value.value if isinstance(value, Lie) else "",
)
async def test_a_generator_that_was_late_excuses_what_lateness_explains_and_nothing_else(
    tmp_path: Path, authority: Authority, lie: Lie, blamed: set[str]
) -> None:
    late = SCENARIO.replace("lag_p99_ms = 60000", "lag_p99_ms = 0.0001")
    result = await judged(authority, tmp_path, lie, late)
    assert "loop was late" in result.invalid[0]
    assert set(map(str, result.despite_lateness)) == blamed
    assert result.exit_code == (ExitCode.THRESHOLD if blamed else ExitCode.INVALID)


@pytest.mark.parametrize("qos", [0, 1, 2])
async def test_what_is_late_is_no_proof_of_a_message_lost_at_qos_0_or_doubled_at_qos_1(
    tmp_path: Path, authority: Authority, qos: int
) -> None:
    late = SCENARIO.replace("lag_p99_ms = 60000", "lag_p99_ms = 0.0001")
    late = late.partition("[[stages]]\ncommand")[0].replace('"40ms"', f'"40ms", qos = {qos}')
    late += '[[stages]]\nhold = "300ms"\n[thresholds]\nlost = ["== 0"]\nduplicated = ["== 0"]\n'
    found = [set(map(str, (await judged(authority, tmp_path / lie.name, lie, late)).despite_lateness))
             for lie in (Lie.DROPS, Lie.DOUBLES)]  # fmt: skip
    assert found == [{"lost"} if qos else set(), {"duplicated"} if qos != 1 else set()]


@pytest.mark.parametrize("driver", Driver)
async def test_a_session_that_nobody_has_left_is_not_resumed(
    tmp_path: Path, authority: Authority, driver: Driver
) -> None:
    """Its device would wait for commands to which nobody has subscribed."""
    manner = Manner(driver=driver)
    bare = SCENARIO.partition("[[stages]]\ncommand")[0] + '[[stages]]\nhold = "300ms"\n'
    result = await judged(authority, tmp_path, Lie.RESUMES, bare, manner)
    assert result.refusals.keys() == {"mqtt session present"}
    assert result.exit_code == ExitCode.THRESHOLD


async def test_revocations_that_the_service_does_not_do_end_no_run_and_are_told(
    tmp_path: Path, authority: Authority
) -> None:
    result = await judged(authority, tmp_path, Lie.SHUTS_THE_OFFICE)
    crossed = {str(one.threshold.metric) for one in result.thresholds if not one.passed}
    assert crossed == {"failed_revocations", "revoked_closed"}
    assert result.exit_code == ExitCode.THRESHOLD
    (told,) = remarks(document_of(result))
    assert re.fullmatch(r"failed revocation: meter-\d: https://localhost cannot be reached: Connection refused", told)


@pytest.mark.parametrize("driver", Driver)
async def test_who_is_revoked_tries_again_with_its_tls_session_too(
    tmp_path: Path, authority: Authority, driver: Driver
) -> None:
    """A broker that refuses it in a full handshake only would otherwise pass."""
    result = await judged(authority, tmp_path, Lie.NOTHING, manner=Manner(driver=driver))
    assert result.exit_code == ExitCode.OK
    assert result.recorder.counts[Count.REVOKED] == 1
    assert result.recorder.value(Duration.REVOKED_REFUSED, "count", 0.0) == 2


async def test_a_fleet_that_can_publish_no_more_ends_the_run(
    tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would have lost nothing from then on."""

    async def fails(_streaming: Streaming) -> None:
        raise ValueError("nothing can be published")

    monkeypatch.setattr(Streaming, "run", fails)
    with pytest.raises(ExceptionGroup) as told:
        await judged(authority, tmp_path, Lie.NOTHING)
    assert told.group_contains(ValueError, match="nothing can be published")


@pytest.mark.parametrize("lie", [Lie.NOTHING, Lie.TELLS_THE_FIRST], ids=lambda lie: lie.value)
async def test_each_receiver_must_know_who_is_there(tmp_path: Path, authority: Authority, lie: Lie) -> None:
    arriving = SCENARIO.partition("[[stages]]\ncommand")[0].replace("devices = 3", "devices = 3\nreceivers = 2")
    result = await judged(authority, tmp_path, lie, arriving + '[thresholds]\nstale_presence = ["== 0"]\n')
    assert result.recorder.counts[Count.STALE_PRESENCE] == (3 if lie is Lie.TELLS_THE_FIRST else 0)
    assert result.exit_code == (ExitCode.THRESHOLD if lie is Lie.TELLS_THE_FIRST else ExitCode.OK)


@pytest.mark.parametrize("lie", [Lie.NOTHING, Lie.DOUBLES_A_COMMAND, Lie.DOUBLES_AN_ANSWER], ids=lambda lie: lie.value)
async def test_what_nobody_asked_for_is_found_by_workers_too(tmp_path: Path, authority: Authority, lie: Lie) -> None:
    """Each of them sends its devices their commands: nobody else can know which answers are due."""
    scenario = SCENARIO.replace("devices = 3", "devices = 4").partition("[[stages]]\nrevoke")[0]
    scenario += '[thresholds]\nunexpected = ["== 0"]\nunanswered_commands = ["== 0"]\n'
    result = await judged(authority, tmp_path, lie, scenario, Manner(workers=2))
    crossed = {str(one.threshold.metric) for one in result.thresholds if not one.passed}
    assert crossed == (set() if lie is Lie.NOTHING else {"unexpected"})
    assert [(process.name, process.devices) for process in result.processes] == [
        ("worker 1", 2), ("worker 2", 2), ("conductor", 0),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("lie", "altered"),
    [(Lie.NOTHING, 0), (Lie.CONFUSES, 2), (Lie.ALTERS_A_COMMAND, 4), (Lie.ALTERS_AN_ANSWER, 4)],
    ids=lambda value: value.value if isinstance(value, Lie) else "",
)
async def test_what_is_altered_is_counted_once_by_workers_too(
    tmp_path: Path, authority: Authority, lie: Lie, altered: int
) -> None:
    scenario = SCENARIO.replace("devices = 3", "devices = 4").partition("[[stages]]\nrevoke")[0]
    scenario += '[thresholds]\naltered = ["== 0"]\nunexpected = ["== 0"]\n'
    result = await judged(authority, tmp_path, lie, scenario, Manner(workers=2))
    assert result.recorder.counts[Count.ALTERED] == altered
    assert {str(one.threshold.metric) for one in result.thresholds if not one.passed} == (
        {"altered"} if altered else set()
    )


@pytest.mark.parametrize("workers", [1, 2])
async def test_what_comes_while_a_run_drains_is_counted(tmp_path: Path, authority: Authority, workers: int) -> None:
    """The devices have finished, and said what they have sent; what a broker does from then on counts as well."""
    scenario = SCENARIO.replace("devices = 3", "devices = 4").partition("[[stages]]\nrevoke")[0]
    scenario += '[thresholds]\naltered = ["== 0"]\nunexpected = ["== 0"]\n'
    result = await judged(authority, tmp_path, Lie.COMES_BACK_TO_IT, scenario, Manner(workers=workers))
    assert (result.recorder.counts[Count.ALTERED], result.recorder.counts[Count.UNEXPECTED]) == (4, 4)


async def test_ctrl_c_while_a_run_drains_ends_no_worker(
    tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    drain = Run._drain

    async def interrupted(played: Run, outcomes: list[part.PartOutcome]) -> None:
        played.stop(signal.SIGINT)
        await drain(played, outcomes)

    monkeypatch.setattr(Run, "_drain", interrupted)
    bare = SCENARIO.partition("[[stages]]\ncommand")[0].replace("devices = 3", "devices = 4")
    result = await judged(authority, tmp_path, Lie.NOTHING, bare, Manner(workers=2))
    assert result.verdict == "INTERRUPTED"
    assert result.recorder.counts[Count.ADMISSIONS] == 4


async def test_an_altered_message_is_shown(tmp_path: Path, authority: Authority) -> None:
    result = await judged(authority, tmp_path, Lie.ALTERS)
    told = [each for each in remarks(document_of(result)) if each.startswith("altered message")]
    assert len(told) == 3
    assert all("backend: fleet/meters/meter-" in each and '"power_w":' in each for each in told)


async def test_who_is_on_the_way_when_the_stages_end_arrives_and_is_there(tmp_path: Path, authority: Authority) -> None:
    """It is admitted, and says that it is there when its subscription is acknowledged."""
    arriving = SCENARIO.partition("[[stages]]\ncommand")[0]
    thresholds = '[thresholds]\nstale_presence = ["== 0"]\nunreached = ["== 0"]\npresence_changes = ["== 3"]\n'
    result = await judged(authority, tmp_path, Lie.DAWDLES, arriving + thresholds)
    assert [str(one.threshold.metric) for one in result.thresholds if not one.passed] == []


async def test_a_broker_that_died_gets_no_pass_from_a_scenario_without_thresholds(
    tmp_path: Path, authority: Authority
) -> None:
    bare = SCENARIO.partition("[[stages]]\ncommand")[0] + '[[stages]]\nhold = "300ms"\n'
    result = await judged(authority, tmp_path, Lie.DIES, bare)
    assert [str(one.threshold.metric) for one in result.thresholds if not one.passed] == ["unreached"]
    assert result.exit_code == ExitCode.THRESHOLD
    assert "the scenario sets no thresholds: only admission was judged" in remarks(document_of(result))


async def test_an_outage_that_lasts_to_the_end_is_none_that_is_not_measured(
    tmp_path: Path, authority: Authority
) -> None:
    """That of a broker that came back late was: one that never did would look better."""
    dies = SCENARIO.partition("[[stages]]\ncommand")[0] + '[[stages]]\nhold = "300ms"\n'
    dies += '[thresholds]\noutage = ["max < 2000"]\nunreached = [">= 0"]\n'
    result = await judged(authority, tmp_path, Lie.DIES, dies)
    assert [str(one.threshold.metric) for one in result.thresholds if not one.passed] == ["outage"]
    assert result.recorder.counts[Count.UNREACHED] == 3 + 1, "three devices and the receiver"


def test_ctrl_c_while_the_devices_leave_does_not_take_the_report_away(
    tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has come too late to end anything early: a run of a day is over, and has its result."""
    absorb = Run._absorb

    def interrupted(played: Run, outcomes: list[part.PartOutcome], strays: list[part.Strays]) -> Reckoning:
        os.kill(os.getpid(), signal.SIGINT)
        return absorb(played, outcomes, strays)

    monkeypatch.setattr(Run, "_absorb", interrupted)
    bare = SCENARIO.partition("[[stages]]\ncommand")[0]
    result = run(lambda interruption: judged(authority, tmp_path, Lie.NOTHING, bare, interruption=interruption))
    assert (result.verdict, result.interrupted) == ("PASS", None)


@pytest.mark.parametrize("probe", [False, True])
async def test_the_latency_of_probes_is_measured_by_itself(tmp_path: Path, authority: Authority, probe: bool) -> None:
    arriving = SCENARIO.partition("[[stages]]\ncommand")[0].replace(
        '"meters"', f'"meters"\nprobe = {str(probe).lower()}'
    )
    result = await judged(authority, tmp_path, Lie.NOTHING, arriving + '[[stages]]\nhold = "200ms"\n')
    assert result.recorder.counts[Count.RECEIVED] > 0
    measured = result.recorder.response.keys() & {Duration.END_TO_END, Duration.PROBE_END_TO_END}
    metric = Duration.PROBE_END_TO_END if probe else Duration.END_TO_END
    assert measured == {metric}
    service, response = result.recorder.service[metric], result.recorder.response[metric]
    assert service.percentile(0) < 1000
    assert 0.01 < service.highest <= response.highest < 60_000, "how late it was sent is added, and is no hour"
