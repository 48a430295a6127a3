"""`fleet-sim qualify` fails each of 61 faulty devices, for its fault, and passes the same device without one.

The devices are real programs on real connections (`tests.support.devices.flawed`). Each is tried in the stages that are
about its fault alone: several at a time, since they mostly wait.
"""

from __future__ import annotations

import asyncio
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from device_sim.attack.verdict import Outcome, Verdict
from device_sim.qualify.device import Program
from device_sim.qualify.papers import Papers
from device_sim.qualify.run import Bench, qualify
from device_sim.qualify.stages import STAGES, Stage, pick
from tests.support.devices.flawed import AT_SERVICE
from tests.support.machine import Quiet
from tests.support.programs import REPOSITORY, forking_python

WINDOWS = (4.0, 10.0, 20.0, 40.0)
"""Seconds: on a machine busy with other tests a device may need longer to get to its fault."""
AT_ONCE = 14
NAME = "device-under-test"
PLACES = "{host} {port} {cafile} {crl} {cert} {key} {client_id} {topic} {commands} {est_url}"

SERVERS = {
    "any-server": "server-other-ca.sends-nothing",
    "any-name": "server-wrong-name.sends-nothing",
    "any-time": "server-expired.sends-nothing",
    "own-check-not-before": "server-not-yet-valid.sends-nothing",
    "own-check-any-key": "server-self-signed.sends-nothing",
    "own-check-any-purpose": "server-for-clients.sends-nothing",
    "no-crl": "server-revoked.sends-nothing",
    "crl-of-leaf-only": "server-revoked-ca.sends-nothing",
    "anonymous": "server-anonymous.sends-nothing",
    "old-tls": "old-tls.sends-nothing",
    "falls-back": "drop-hello.keeps-version",
    "does-without-tls": "server-expired.sends-nothing",
    "shows-nothing": "good.certificate",
}
STAPLES = {
    "ignores-staple": "staple-revoked.sends-nothing",
    "asks-no-more": "staple-revoked.sends-nothing",
    "staple-may-say-revoked": "staple-revoked.sends-nothing",
    "staple-of-any-time": "staple-expired.sends-nothing",
    "staple-of-any-certificate": "staple-other-certificate.sends-nothing",
    "staple-by-any-key": "staple-other-key.sends-nothing",
    "staple-by-any-certificate": "staple-own-key.sends-nothing",
    "staple-may-be-missing": "staple-missing.sends-nothing",
}
PATIENCE = {
    "no-pause": "drop-connect.comes-back",
    "never-listens": "half-open.notices",
    "impatient": "slow.is-served",
    "crashes-on-rare-reason": "connack-rare.survives",
    "prints-key": "good.keeps-secret",
    "prints-key-in-hexadecimal": "good.keeps-secret",
    "malformed": "good.speaks-mqtt",
}
MESSAGES = {
    "loses-unacknowledged": "no-puback.resends",
    "new-identifier": "no-puback.marks-duplicate",
    "no-dup": "no-puback.marks-duplicate",
    "forgets-assigned-name": "no-puback.resends",
    "subscribes-once": "session-lost.subscribes-again",
    "trusts-session": "no-suback.subscribes-again",
    "publishes-after-pubrec": "no-pubcomp.releases-again",
    "ignores-receive-maximum": "limits.receive-maximum",
    "ignores-keep-alive": "limits.server-keep-alive",
    "one-identifier": "limits.packet-identifiers",
    "sends-again-at-once": "limits.sends-once",
    "ignores-packet-size": "small-packets.maximum-packet-size",
    "aliases-unasked": "good.topic-aliases",
    "keeps-aliases": "aliases.topic-aliases",
}
COMMANDS = {
    "no-puback": "commands.acknowledges",
    "puback-for-qos2": "commands.acknowledges",
    "no-pubcomp": "commands.acknowledges",
    "crashes-on-binary": "commands.survives",
    "leaves-on-empty": "commands.takes-commands",
}
RENEWAL = {
    "never-renews": "renew.renews",
    "keeps-old-certificate": "renew.uses-the-new-one",
    "ignores-retry-after": "renew-503.respects-retry-after",
    "any-service": "renew-other-ca.sends-nothing",
    "any-certificate": "renew-other-key.keeps-the-old-one",
    "key-for-everybody": "renew.key-file",
}
STAPLES_OF_SERVICE = {f"{AT_SERVICE}{flaw}": f"renew-{line}" for flaw, line in STAPLES.items()}
FAILING = SERVERS | STAPLES | PATIENCE | MESSAGES | COMMANDS | RENEWAL | STAPLES_OF_SERVICE
WARNED = {
    "same-pause": "reconnect.waits-grow",
    "gives-up": "connack-busy.comes-back",
    "waits-for-ever": "no-connack.gives-up",
    "hurries": "good.waits-for-connack",
    "renews-without-its-own": "renew.renews-as-itself",
}


@pytest.fixture(autouse=True)
def _forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The devices inherit the environment: in this one they are forked, a hundred and more."""
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))


async def judged(directory: Path, flaw: str, line: str, verdict: Verdict) -> str:
    """Return what was said of the device with *flaw*, if *line* has not got *verdict*; empty: it has."""
    name = line.partition(".")[0]
    stages = [stage for stage in STAGES if stage.name == name] if name != "reconnect" else pick(["drop-*"])
    outcomes: Mapping[str, Outcome] = {}
    for window in WINDOWS:
        outcomes = await tried(_new(directory / f"{flaw}-{window:g}"), flaw, stages, window, len(stages))
        if line in outcomes and outcomes[line].verdict is verdict:
            return ""
    return said(outcomes)


def _new(place: Path) -> Path:
    place.mkdir()
    return place


async def tried(
    place: Path, flaw: str, stages: Sequence[Stage], window: float, parallel: int, *, ignores_staples: bool = False
) -> Mapping[str, Outcome]:
    """Return the outcomes of the device with *flaw* in *stages*, by name."""
    python = forking_python("tests", environment=os.environ)
    command = f"{shlex.quote(python)} -m tests.support.devices.flawed {flaw} {PLACES}"
    papers = Papers(NAME, ["127.0.0.1", "localhost"])
    bench = Bench(papers, Program(command), place, "127.0.0.1", 0, window, Quiet, ignores_staples)
    outcomes = await qualify(bench, stages, parallel, lambda _: None, lambda _: None)
    return {outcome.name: outcome for outcome in outcomes}


def said(outcomes: Mapping[str, Outcome]) -> str:
    """Return what was not as it should be."""
    return "; ".join(
        f"{each.verdict} {each.name}: {each.seen.code if each.seen else '-'} {each.judgement.why}"
        for each in outcomes.values()
        if each.verdict is not Verdict.PASS
    )


@pytest.mark.parametrize(
    "flaws",
    [SERVERS, STAPLES, PATIENCE, MESSAGES, COMMANDS, RENEWAL, STAPLES_OF_SERVICE],
    ids=["servers", "staples", "patience", "messages", "commands", "renewal", "staples-of-service"],
)
async def test_each_faulty_device_fails_for_its_fault(tmp_path: Path, flaws: Mapping[str, str]) -> None:
    found = await asyncio.gather(*(judged(tmp_path, flaw, line, Verdict.FAIL) for flaw, line in flaws.items()))
    assert {flaw: why for flaw, why in zip(flaws, found, strict=True) if why} == {}


async def test_what_will_cause_trouble_one_day_is_a_warning(tmp_path: Path) -> None:
    found = await asyncio.gather(*(judged(tmp_path, flaw, line, Verdict.WARN) for flaw, line in WARNED.items()))
    assert {flaw: why for flaw, why in zip(WARNED, found, strict=True) if why} == {}


@pytest.mark.parametrize(
    ("flaw", "names"),
    [
        ("none", {line.partition(".")[0] for line in FAILING.values()}),
        ("none-named-by-broker", {"no-puback", "limits"}),  # All that a client identifier is used for.
        (f"{AT_SERVICE}none", {line.partition(".")[0] for line in STAPLES_OF_SERVICE.values()}),
    ],
)
async def test_the_same_device_without_a_fault_passes_in_each_of_these_stages(
    tmp_path: Path, flaw: str, names: set[str]
) -> None:
    stages = [stage for stage in STAGES if stage.name in names]
    # Nothing that a faulty device fails by is merely not there.
    only_if_bad = {"connack-rare.survives", "commands.survives", "renew.key-file", "good.topic-aliases"}
    expected = {line for line in FAILING.values() if line.partition(".")[0] in names} - only_if_bad
    outcomes: Mapping[str, Outcome] = {}
    for window in WINDOWS[1:]:
        outcomes = await tried(_new(tmp_path / f"{window:g}"), flaw, stages, window - 3, AT_ONCE)
        passed = {name for name, each in outcomes.items() if each.verdict is Verdict.PASS}
        failed = {name for name, each in outcomes.items() if each.verdict is Verdict.FAIL}
        again = {line.partition(".")[0] for line in (expected - passed) | failed}
        if not again:
            return
        stages = [stage for stage in stages if stage.name in again]  # A busy machine has no time for all of them.
        expected = {line for line in expected if line.partition(".")[0] in again}
    pytest.fail(f"missing: {expected - passed}; {said(outcomes)}")


@pytest.mark.parametrize("stage", ["drop-hello", "no-handshake", "server-revoked"])
async def test_who_does_without_tls_is_found_in_whatever_stage(tmp_path: Path, stage: str) -> None:
    """Whatever a stage is about, and whether its own question can be answered."""
    line = f"{stage}.sends-nothing"
    assert await judged(tmp_path, "does-without-tls", line, Verdict.FAIL) == ""


async def test_a_device_that_sleeps_is_not_taken_for_one_that_a_command_has_put_out(tmp_path: Path) -> None:
    """It leaves a broker that sends it nothing, too."""
    stages = pick(["good,commands"])
    outcomes = await tried(_new(tmp_path / "sleeps"), "sleeps", stages, 4.0, 1)
    assert outcomes["good.stays"].verdict is Verdict.WARN, said(outcomes)
    assert outcomes["commands.takes-commands"].judgement.why == "it leaves a broker that serves it well, too"
    alone = await tried(_new(tmp_path / "sleeps-alone"), "sleeps", pick(["commands"]), 4.0, 1)
    assert alone["commands.takes-commands"].verdict is Verdict.SKIP, said(alone)
    outcomes = await tried(_new(tmp_path / "crashes"), "sleeps-and-crashes-on-binary", stages, 4.0, 1)
    assert outcomes["commands.takes-commands"].verdict is Verdict.FAIL, said(outcomes)


@pytest.mark.parametrize("at", ["", AT_SERVICE])
@pytest.mark.parametrize(
    ("flaw", "ignores_staples", "why"),
    [("none-without-staple", False, "it asks for no staple"), ("ignores-staple", True, "by --ignores-staples")],
)
async def test_a_device_that_does_not_claim_to_check_staples_is_told_and_does_not_fail(
    tmp_path: Path, flaw: str, ignores_staples: bool, why: str, at: str
) -> None:
    stages = pick(["renew-staple-*" if at else "staple-*"])
    outcomes = await tried(tmp_path, f"{at}{flaw}", stages, 20.0, AT_ONCE, ignores_staples=ignores_staples)
    about = [each for name, each in outcomes.items() if name.startswith(("staple-", "renew-staple-"))]
    assert [(each.verdict, each.judgement.why.startswith(why)) for each in about] == [(Verdict.SKIP, True)] * len(
        stages
    )
