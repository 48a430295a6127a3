"""When a stage has seen enough, and what it makes of what was seen."""

from __future__ import annotations

from dataclasses import replace
from http import HTTPStatus
from pathlib import Path

import pytest

from broker.mqtt.codes import QoS
from broker.mqtt.connect import Connect
from broker.mqtt.packets import Publish
from device_sim.attack.verdict import Verdict
from device_sim.qualify.attempt import Attempt
from device_sim.qualify.client_hello import ClientHello
from device_sim.qualify.device import Hardware, Program
from device_sim.qualify.enrolment_stand import Arrival, Asked
from device_sim.qualify.papers import Papers
from device_sim.qualify.run import Bench, _judged, _values
from device_sim.qualify.stages import STAGES, Stage, Witness

ASKS, ASKS_NOT = ClientHello(0x0304, asks_for_staple=True), ClientHello(0x0304, asks_for_staple=False)
LEAKED = Attempt(0.0, tls=0.1, ended=1.0, packets=[(0.2, Connect("d"))])
SEEN = Witness([LEAKED], [], [], None, 20.0, crl_given=True)


def stage(name: str) -> Stage:
    return next(each for each in STAGES if each.name == name)


def verdicts(name: str, seen: Witness) -> dict[str, Verdict]:
    return {line.name: line.verdict for line in stage(name).judge(seen)}


@pytest.mark.parametrize(
    ("arrivals", "enough"),
    [
        ([], False),
        ([Arrival()], False),
        ([Arrival(ASKS)], False),  # It may ask no more the next time.
        ([Arrival(ASKS), Arrival(ASKS_NOT)], False),
        ([Arrival(ASKS_NOT)], True),
        ([Arrival(ASKS), Arrival(ASKS_NOT, sent_data=True)], True),
    ],
)
def test_of_a_service_s_staple_enough_is_seen_when_it_was_not_asked_for_or_believed(
    arrivals: list[Arrival], enough: bool
) -> None:
    assert stage("renew-staple-revoked").enough([], arrivals) is enough
    assert not stage("renew-other-ca").enough([], arrivals)


@pytest.mark.parametrize(
    ("asks", "number", "enough"),
    [(False, 1, True), (None, 1, False), (True, 1, False), (True, 5, False), (True, 6, True)],
)
def test_of_a_broker_s_staple_when_it_was_not_asked_for_or_refused_often(
    asks: bool | None, number: int, enough: bool
) -> None:
    attempts = [Attempt(float(at), ended=at + 0.5, asks_for_staple=asks) for at in range(number)]
    assert stage("staple-missing").enough(attempts, []) is enough
    assert stage("staple-missing").enough([*attempts[1:], Attempt(9.0, asks_for_staple=asks)], []) is (asks is False)


def test_a_stage_in_which_a_device_may_succeed_is_never_over_before_its_time() -> None:
    many = [Attempt(float(at), ended=at + 0.5) for at in range(20)]
    assert {each.name for each in STAGES if each.enough(many, [])} == {each.name for each in STAGES if each.failing}
    assert not stage("good").enough(many, [])


def test_what_was_sent_to_an_impostor_fails_whoever_could_tell() -> None:
    believed = {name: verdicts(name, SEEN)["sends-nothing"] for name in ("server-expired", "server-revoked")}
    assert set(believed.values()) == {Verdict.FAIL}
    assert verdicts("server-revoked", replace(SEEN, crl_given=False)) == {"sends-nothing": Verdict.SKIP}
    asked = replace(SEEN, attempts=[replace(LEAKED, asks_for_staple=True)])
    assert verdicts("staple-revoked", asked) == {"sends-nothing": Verdict.FAIL}
    service = replace(SEEN, attempts=[], arrivals=[Arrival(ASKS, sent_data=True)], est_given=True)
    for name in ("renew-other-ca", "renew-staple-revoked", "renew-staple-missing"):
        assert verdicts(name, service) == {"sends-nothing": Verdict.FAIL}


def test_those_with_a_wrong_staple_are_those_that_ignores_staples_leaves_out() -> None:
    assert {each.name for each in STAGES if each.staples_wrongly} == {
        each.name for each in STAGES if "staple-" in each.name
    }


@pytest.mark.parametrize(
    ("fault", "line"),
    [({"leak": "PEM"}, "keeps-secret"), ({"exposed": "device.key"}, "key-file"), ({"crash": "by SIGSEGV"}, "survives")],
)
def test_what_is_wrong_with_the_program_fails_it(fault: dict[str, str], line: str) -> None:
    served = Attempt(0.0, tls=0.1, tls_version="TLSv1.3", certificate=True, answered=0.2, packets=[(0.1, Connect("d"))])
    good = replace(SEEN, attempts=[served])
    assert verdicts("good", good)[line] is Verdict.PASS
    assert verdicts("good", replace(good, **fault))[line] is Verdict.FAIL  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["drop-tcp", "no-puback", "renew", "server-revoked", "good"])
def test_what_is_sent_without_tls_fails_in_any_stage(name: str) -> None:
    """Also where the stage's own question has no answer: to broker and to enrolment service."""
    served = Attempt(0.0, tls=0.1, tls_version="TLSv1.3", certificate=True, answered=0.2, packets=[(0.1, Connect("d"))])
    seen = replace(SEEN, attempts=[served], crl_given=False)
    bench = Bench(Papers("d", []), Hardware(), Path(), "127.0.0.1", 0, 20.0)
    for faulty in (
        replace(seen, attempts=[served, Attempt(1.0, in_clear=True)]),
        replace(seen, arrivals=[Arrival(None, sent_data=True, in_clear=True)]),
    ):
        told = {line.name: line.verdict for line in _judged(stage(name), bench, faulty)}
        assert told["sends-nothing"] is Verdict.FAIL
    assert not any("without TLS" in line.right for line in _judged(stage(name), bench, seen))
    assert len({line.name for line in _judged(stage(name), bench, faulty)}) == len(_judged(stage(name), bench, faulty))


@pytest.mark.parametrize(
    "name", ["good", "drop-tcp", "connack-rare", "no-puback", "commands", "slow", "half-open", "renew"]
)
def test_what_is_no_mqtt_fails_in_any_stage_once(name: str) -> None:
    """A device may send that only when it comes again, or when it is commanded."""
    served = Attempt(0.0, tls=0.1, tls_version="TLSv1.3", certificate=True, answered=0.2, packets=[(0.1, Connect("d"))])
    bad = replace(served, at=1.0, noise="PINGRESP, which only a broker sends")
    program = Program("./device {crl} {est_url}")
    bench = Bench(Papers("d", []), program, Path(), "127.0.0.1", 0, 20.0)
    for attempts, verdicts in (([served, bad], [Verdict.FAIL]), ([served, served], [])):
        told = _judged(stage(name), bench, replace(SEEN, attempts=attempts))
        assert [
            line.verdict for line in told if line.name == "speaks-mqtt" and line.verdict is Verdict.FAIL
        ] == verdicts


@pytest.mark.parametrize(
    ("status", "leaves", "expected"),
    [(0, None, Verdict.SKIP), (1, None, Verdict.FAIL), (1, True, Verdict.SKIP), (0, False, Verdict.FAIL)],
)
def test_whether_a_certificate_is_why_a_device_ended_is_not_known_of_who_may_have_done_its_work(
    status: int, leaves: bool | None, expected: Verdict
) -> None:
    asked = [Asked(1.0, "/.well-known/est/simplereenroll", certificate=True, status=HTTPStatus.OK, serial=7)]
    seen = replace(SEEN, asked=asked, status=status, ending=f"it ended with status {status}", leaves=leaves)
    assert verdicts("renew-other-key", seen) == {"keeps-the-old-one": expected}


@pytest.mark.parametrize(
    ("host", "url"),
    [("::1", "https://[::1]:8443"), ("127.0.0.1", "https://127.0.0.1:8443"), ("broker.lab", "https://broker.lab:8443")],
)
def test_a_device_is_told_where_to_renew_in_a_form_that_is_a_url(host: str, url: str) -> None:
    bench = Bench(Papers("d", [host]), Hardware(), Path(), host, 0, 20.0)
    assert _values(bench, Path(), 8883, 8443)["est_url"] == url
    assert _values(bench, Path(), 8883, None)["est_url"] == ""


ENDED = "it ended with status 3; it said: no route"


@pytest.mark.parametrize(
    ("attempts", "ending", "why", "slow"),
    [
        ([], "", "nothing can be judged without", 0.0),
        ([], ENDED, ENDED, None),  # Who ends before it connects has its reasons, on any machine.
        ([Attempt(0.0)], "", "nothing can be judged without", 0.0),
        ([Attempt(0.0)], ENDED, ENDED, 0.0),
    ],
)
def test_who_was_not_served_says_why_if_it_has_ended(
    attempts: list[Attempt], ending: str, why: str, slow: float | None
) -> None:
    (line,) = stage("good").judge(replace(SEEN, attempts=attempts, ending=ending))
    assert (line.name, line.verdict, line.why, line.by_time) == ("connects", Verdict.FAIL, why, slow)


@pytest.mark.parametrize(("later", "slow"), [([b"b", None], None), ([None, b"b"], None), ([None, None], 0.0)])
def test_who_sends_other_messages_and_not_the_lost_one_is_not_slow(
    later: list[bytes | None], slow: float | None
) -> None:
    attempts = [
        Attempt(
            float(at), tls=float(at), answered=float(at), ended=at + 0.5,
            packets=[(float(at), Connect("d"))]
            + ([(float(at), Publish("t", body, QoS.AT_LEAST_ONCE, packet_id=1))] if body else []),
        )
        for at, body in enumerate([b"lost", *later])
    ]  # fmt: skip
    (line,) = stage("no-puback").judge(replace(SEEN, attempts=attempts))
    assert (line.name, line.verdict, line.by_time) == ("resends", Verdict.FAIL, slow)
