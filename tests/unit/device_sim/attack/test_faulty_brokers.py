"""The attack against brokers with one fault each: it is found, in the right case, and a just broker is not accused."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path

import pytest

from device_sim.attack import run, scene
from device_sim.attack import target as attack_target
from device_sim.attack.capabilities import CrlFile, Feature
from device_sim.attack.case import Case
from device_sim.attack.catalogue import CATALOGUE, pick
from device_sim.attack.issuer import Paper
from device_sim.attack.run import ALIVE, STAYS
from device_sim.attack.target import SigningRegistrar
from device_sim.attack.verdict import Judgement, Layer, Outcome, Seen, Verdict
from provisioning.client.operator import ServiceUnavailable
from provisioning.pki.identity import Identity
from tests.support.faulty_broker import Fault, faulty

TRIED = (
    "1-good,34-reserved-flags,34-qos3,34-bad-utf8,34-second-connect,34-connack,34-empty-subscribe,34-publish-first,"
    "34-other-protocol,35-other-topic-qos0,35-other-topic-qos1,37-retained,40-packet-id-0,41-freezes"
)


@pytest.fixture(autouse=True)
def _short_of_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever else this machine does, it is the broker that is judged."""
    monkeypatch.setattr(run, "MOST_WAITING", 10.0)


async def tried(directory: Path, fault: Fault, only: str = TRIED) -> dict[str, Outcome]:
    async with faulty(directory, fault) as target:
        found = await run.run(target, pick(CATALOGUE, [only]), lambda _: None)
    return {outcome.name: outcome for outcome in found}


def failed(outcomes: dict[str, Outcome]) -> dict[str, str]:
    return {name: each.judgement.why for name, each in outcomes.items() if each.verdict is Verdict.FAIL}


async def test_a_just_broker_passes_every_case(tmp_path: Path) -> None:
    found = await tried(tmp_path, Fault.NONE)
    assert {name: each.judgement for name, each in found.items() if each.verdict is not Verdict.PASS} == {}
    assert list(found)[-2:] == [ALIVE, STAYS]


async def test_a_broker_that_a_bad_packet_has_killed_has_not_refused_it(tmp_path: Path) -> None:
    """It was started again at once: the next good device gets in, and a connection that ends was what is right."""
    found = await tried(tmp_path, Fault.DIES, "1-good,34-publish-first,35-other-topic-qos1")
    words = failed(found)
    assert words.keys() == {"34-publish-first", STAYS}
    assert words["34-publish-first"].startswith("a good device, connected all the time, was put out meanwhile: ")
    told = found[STAYS].seen
    assert told is not None
    assert told.reason.startswith("34-publish-first: ")


@pytest.mark.parametrize("fault", [Fault.REFUSES_SOME, Fault.CUTS_SOME])
async def test_a_good_device_that_is_refused_now_and_then_is_a_failure_and_no_skip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Fault
) -> None:
    monkeypatch.setattr(run, "MOST_WAITING", -1.0)  # Whatever else there is to do: who cuts off at once is not slow.
    found = await tried(tmp_path, fault)
    words = [why for why in failed(found).values() if why.startswith("a good device is not let in: ")]
    assert len(words) >= 3
    assert not [name for name, each in found.items() if each.verdict is Verdict.SKIP]
    said = "CONNACK 0x97" if fault is Fault.REFUSES_SOME else "closed"
    assert all(said in why for why in words)


async def test_what_is_forbidden_and_comes_late_has_come(tmp_path: Path) -> None:
    found = await tried(tmp_path, Fault.DELIVERS_LATE, "35-other-topic-qos0")
    assert failed(found) == {"35-other-topic-qos0": "delivered after all, later than what was sent later"}


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        (Fault.ALTERS, "the attack succeeded: it was delivered"),
        (Fault.ALTERS_LATE, "delivered after all, later than what was sent later"),
    ],
)
async def test_what_is_forbidden_and_comes_altered_has_come(tmp_path: Path, fault: Fault, why: str) -> None:
    """The policy let it through; that it is not as it was sent is a second fault, and no excuse."""
    cases = ("35-other-topic-qos0", "35-other-topic-qos1", "35-similar-name", "20-other-user-name")
    assert failed(await tried(tmp_path, fault, ",".join(cases))) == dict.fromkeys(cases, why)


async def test_what_is_forbidden_and_retained_altered_has_come(tmp_path: Path) -> None:
    found = await tried(tmp_path, Fault.RETAINS_ALTERED, "35-other-topic-qos1,37-retained")
    assert failed(found) == {"37-retained": "the attack succeeded: it was delivered"}
    seen = found["37-retained"].seen
    assert seen is not None
    assert seen.reason == "retained, for whoever subscribes next, and altered"


async def test_what_a_spy_hears_altered_it_has_heard(tmp_path: Path) -> None:
    found = await tried(tmp_path, Fault.ALTERS_FOR_SPIES, "36-other-device,36-other-commands")
    assert failed(found) == dict.fromkeys(
        ("36-other-device", "36-other-commands"), "the attack succeeded: it was delivered"
    )


@pytest.mark.parametrize("name", ["35-other-topic-qos1", "37-retained"])
async def test_what_an_earlier_run_has_left_there_is_not_what_is_forbidden_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Names are the same in each run at a broker that is given: what it let in then is retained at a victim's topic."""
    monkeypatch.setattr(scene, "SOON", 3.0)
    found = await tried(tmp_path, Fault.RETAINED_BEFORE, name)
    assert failed(found) == {}
    assert found[name].seconds < scene.SOON, "what is retained is looked for in the tester's time"


async def test_who_delivers_nothing_any_more_has_not_withheld_what_is_forbidden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scene.Scene.__init__, "__defaults__", (None, 1.0))
    found = await tried(tmp_path, Fault.GOES_DEAF, "35-other-topic-qos0")
    assert failed(found)["35-other-topic-qos0"].startswith("even 3 allowed messages of a good device")


async def test_who_no_longer_listens_to_an_offender_has_withheld_what_is_forbidden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others are heard. That nothing more of the offender arrives is no harm to a good device."""
    monkeypatch.setattr(scene.Scene.__init__, "__defaults__", (None, 18.0))
    found = await tried(tmp_path, Fault.SHUNS, "35-other-topic-qos0,35-other-topic-qos1,35-delayed")
    assert failed(found) == {}
    seen = found["35-other-topic-qos0"].seen
    assert seen is not None
    assert (seen.text, "no longer listens to it" in seen.reason) == ("mqtt not-delivered", True)
    assert found["35-other-topic-qos0"].verdict is Verdict.PASS


async def test_what_an_offender_says_may_only_be_held_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker that slows an offender down looks like one that shuns it, until what is forbidden arrives."""
    monkeypatch.setattr(scene.Scene.__init__, "__defaults__", (None, 33.0))  # A third of it is longer than that takes.
    found = await tried(tmp_path, Fault.HOLDS_UP, "35-other-topic-qos0")
    assert failed(found) == {"35-other-topic-qos0": "delivered after all, later than what was sent later"}


async def test_a_connection_that_is_closed_for_a_topic_is_told_at_once(tmp_path: Path) -> None:
    """And not when the time is over in which an allowed message would have come."""
    found = (await tried(tmp_path, Fault.CLOSES_FOR_TOPICS, "35-other-topic-qos0"))["35-other-topic-qos0"]
    assert found.verdict is Verdict.WARN, found.judgement
    assert found.seen is not None
    assert found.seen.text == "mqtt closed"


async def test_what_is_no_packet_is_no_refusal(tmp_path: Path) -> None:
    words = failed(await tried(tmp_path, Fault.GRANTS_NOTHING))
    assert words == {"34-empty-subscribe": "no refusal: the peer sent a bad packet: SUBACK without a reason code"}


async def test_who_is_put_out_within_its_keep_alive_is_put_out_wrongly(tmp_path: Path) -> None:
    words = failed(await tried(tmp_path, Fault.IMPATIENT, "41-freezes"))
    assert words.keys() == {"41-freezes"}
    assert "with a keep alive of 1 s" in words["41-freezes"]


async def test_one_thing_is_wrong_with_a_packet(tmp_path: Path) -> None:
    """A broker that overlooks that takes the packet, and is not praised for another fault in it."""
    words = failed(await tried(tmp_path, Fault.IGNORES_FLAGS))
    assert words == {"34-reserved-flags": "still open at the deadline"}


class _Slow(SigningRegistrar):
    """Takes its time to certify."""

    slept = 0.0

    async def certify(self, identity: Identity) -> Paper:
        started = time.monotonic()
        await asyncio.sleep(0.3)
        self.slept += time.monotonic() - started
        return await super().certify(identity)


async def test_what_the_tester_does_before_is_not_the_broker_s_time(tmp_path: Path) -> None:
    (case,) = pick(CATALOGUE, ["35-other-topic-qos1"])
    async with faulty(tmp_path, Fault.NONE) as target:
        registrar = _Slow(target.issuer, None)
        one = scene.Scene(replace(target, registrar=registrar))
        try:
            started = time.monotonic()
            outcome = await run._tried(one, case)
            elapsed = time.monotonic() - started
        finally:
            await one.close()
    assert registrar.slept > 0.3
    assert outcome.verdict is Verdict.PASS
    assert outcome.seconds <= elapsed - registrar.slept


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (("sleep", "600"), "`sleep 600` did not end within 0.2 s"),
        (("sh", "-c", "echo no; exit 3"), "ended with status 3: no"),
        (("/no/such/program",), "`/no/such/program` cannot be run: No such file or directory"),
    ],
)
async def test_a_command_of_the_tester_s_that_fails_is_no_fault_of_the_broker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...], words: str
) -> None:
    monkeypatch.setattr(attack_target, "_RELOAD_DEADLINE", 0.2 if command[0] == "sleep" else 60.0)
    (case,) = pick(CATALOGUE, ["5-revoked"])
    async with faulty(tmp_path, Fault.NONE) as target:
        registrar = SigningRegistrar(target.issuer, CrlFile(crl_file=tmp_path / "crl.pem", reload=command))
        one = scene.Scene(replace(target, registrar=registrar))
        outcome = await run._tried(one, case)
    assert outcome.verdict is Verdict.SKIP
    assert outcome.judgement.why.startswith("the broker was not told to read its revocation list: ")
    assert words in outcome.judgement.why


class Unheard:
    """A registrar whose revocations reach nobody."""

    def __init__(self, registrar: SigningRegistrar) -> None:
        self.certify = registrar.certify

    async def revoke(self, paper: Paper) -> None:
        """Do nothing."""


async def test_a_ban_of_who_connects_often_is_no_refusal_of_a_revoked_certificate(tmp_path: Path) -> None:
    """The answer is the same, 0x8a: so who waits for the refusal must not bring the ban about."""
    (case,) = pick(CATALOGUE, ["5-revoked"])
    async with faulty(tmp_path, Fault.BANS_THE_HASTY) as target:
        claimed = target.capabilities.model_copy(update={"supports": frozenset(Feature)})
        registrar = Unheard(SigningRegistrar(target.issuer, None))
        one = scene.Scene(replace(target, capabilities=claimed, registrar=registrar))
        outcome = await run._tried(one, case)
        await one.close()
    assert (outcome.verdict, outcome.judgement.why) == (Verdict.FAIL, "the attack succeeded: the broker let it in")


class _Away(SigningRegistrar):
    """Its service is down."""

    async def certify(self, identity: Identity) -> Paper:
        raise ServiceUnavailable(f"nobody enrols {identity.name}")


async def test_a_service_that_is_down_has_not_let_anybody_pass(tmp_path: Path) -> None:
    (case,) = pick(CATALOGUE, ["35-other-topic-qos1"])
    async with faulty(tmp_path, Fault.NONE) as target:
        one = scene.Scene(replace(target, registrar=_Away(target.issuer, None)))
        outcome = await run._tried(one, case)
    assert outcome.verdict is Verdict.FAIL
    assert outcome.judgement.why.startswith("the enrolment service did not play its part: nobody enrols ")


async def test_a_case_that_does_not_end_has_not_passed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "_FOREVER", 0.0)

    async def endless(_: scene.Scene) -> Seen:
        await asyncio.Event().wait()
        raise AssertionError("it has ended")

    case = Case("99-endless", "never ends", ("mqtt served",), endless, limit=lambda _: 0.1)
    async with faulty(tmp_path, Fault.NONE) as target:
        outcome = await run._tried(scene.Scene(target), case)
    assert (outcome.verdict, "did not come to an end" in outcome.judgement.why) == (Verdict.FAIL, True)


async def test_a_case_that_a_protocol_cannot_say_is_not_tried(tmp_path: Path) -> None:
    (case,) = pick(CATALOGUE, ["40-topic-alias"])
    async with faulty(tmp_path, Fault.NONE) as target:
        claimed = target.capabilities.model_copy(update={"supports": frozenset({Feature.TOPIC_POLICY})})
        outcome = await run._tried(scene.Scene(replace(target, capabilities=claimed)), case)
    assert (outcome.verdict, outcome.judgement.why) == (Verdict.SKIP, "not claimed: mqtt5")


async def test_who_was_kept_out_and_is_let_in_at_the_end_was_not_kept_out(tmp_path: Path) -> None:
    async with faulty(tmp_path, Fault.NONE) as target:
        one = scene.Scene(target)
        paper = await one.device()
        seen = one.is_out(paper, Seen(Layer.MQTT, "CONNACK 0x87"))
        outcome = Outcome("5-revoked", "", ("mqtt CONNACK 0x87",), 3.0, Judgement(Verdict.PASS), seen)
        (spoilt,) = (await run._again(one, {"5-revoked": outcome})).values()
    assert spoilt.verdict is Verdict.FAIL
    assert spoilt.judgement.why == "let in again when all cases had been tried: mqtt CONNACK 0x00"
