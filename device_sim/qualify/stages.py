"""The stages of a qualification: how the stand misbehaves in each, and how the device is judged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from http import HTTPStatus

from broker.mqtt.codes import ReasonCode
from device_sim.attack.verdict import Verdict
from device_sim.qualify import judging
from device_sim.qualify.attempt import Attempt
from device_sim.qualify.enrolment_stand import Asked
from device_sim.qualify.judging import SENDS_NOTHING, Line
from device_sim.qualify.papers import ServerPaper
from device_sim.qualify.stand import Conduct, Step
from device_sim.trouble.trouble import NONE, Trouble

_ATTEMPTS = 6
_RETRY_AFTER = 2


@dataclass(frozen=True, slots=True)
class Witness:
    """What was seen in one stage."""

    attempts: Sequence[Attempt]
    asked: Sequence[Asked]
    came_to_enrol: bool
    status: int | None
    window: float
    crl_given: bool
    ending: str = ""
    """How the device ended by itself, in words; empty: it has not ended."""

    @property
    def stayed_away(self) -> bool:
        """Whether it has ended without connecting anywhere."""
        return bool(self.ending) and not self.attempts and not self.came_to_enrol


Judge = Callable[[Witness], list[Line]]


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage. *failing* stages are those in which the device cannot succeed: their waits are judged together."""

    name: str
    description: str
    judge: Judge
    conduct: Conduct = field(default_factory=Conduct)
    failing: bool = False
    trouble: Trouble = NONE
    enrols: bool = False
    """The device's certificate is about to expire, and there is an enrolment service."""
    enrolment_paper: ServerPaper = ServerPaper.GOOD
    enrolment_status: HTTPStatus = HTTPStatus.OK
    retry_after: int = 0

    def enough(self, attempts: Sequence[Attempt]) -> bool:
        """Whether more time would reveal nothing new."""
        return self.failing and len([each for each in attempts if each.ended is not None]) >= _ATTEMPTS


def _unverifiable(seen: Witness) -> list[Line]:
    lines = judging.verifies(seen.attempts)
    # A device that accepts the server has no reason to reconnect.
    return [*lines, *_again(seen)] if lines[0].verdict is not Verdict.FAIL else lines


def _revoked_ca(seen: Witness) -> list[Line]:
    if not seen.crl_given:
        why = "it was not given the CRL; give its command {crl}"
        return [judging.skipped(SENDS_NOTHING, "refuses the server and sends it nothing", why)]
    return judging.verifies(seen.attempts, essential=False)


def _again(seen: Witness) -> list[Line]:
    return judging.comes_back(seen.attempts, seen.status, seen.window)


def _patient(seen: Witness) -> list[Line]:
    return [*judging.gives_up(seen.attempts, seen.window), *_again(seen)]


def _renews(retry_after: int) -> Judge:
    return lambda seen: judging.renews(seen.asked, retry_after)


def _bad_server(name: str, description: str, paper: ServerPaper) -> Stage:
    return Stage(name, description, _unverifiable, Conduct(paper), failing=True)


def _drop(name: str, description: str, step: Step) -> Stage:
    return Stage(name, description, _again, Conduct(drop_at=step), failing=True)


def _refusal(name: str, description: str, code: ReasonCode) -> Stage:
    return Stage(name, description, _again, Conduct(connack=code), failing=True)


def _puts_off(name: str, description: str, status: HTTPStatus) -> Stage:
    return Stage(
        name, description, _renews(_RETRY_AFTER), enrols=True, enrolment_status=status, retry_after=_RETRY_AFTER
    )


STAGES: tuple[Stage, ...] = (
    Stage("good", "all is well", lambda seen: judging.habits(seen.attempts, seen.ending)),
    _bad_server("server-expired", "the server's certificate has expired", ServerPaper.EXPIRED),
    _bad_server("server-wrong-name", "the server's certificate is for another name", ServerPaper.WRONG_NAME),
    _bad_server("server-other-ca", "the server's certificate is of an untrusted CA", ServerPaper.OTHER_CA),
    Stage("server-revoked-ca", "the CA that certified the server is revoked", _revoked_ca,
          Conduct(ServerPaper.REVOKED_CA), failing=True),
    Stage("old-tls", "the server speaks TLS 1.1 and nothing newer",
          lambda seen: judging.refuses_old_tls(seen.attempts), Conduct(tls11_only=True), failing=True),
    Stage("no-handshake", "the server accepts, and says nothing", _patient, Conduct(silent_at=Step.TCP), failing=True),
    Stage("no-connack", "the broker does not answer CONNECT", _patient, Conduct(silent_at=Step.TLS), failing=True),
    _refusal("connack-not-authorized", "the broker refuses the device", ReasonCode.NOT_AUTHORIZED),
    _refusal("connack-busy", "the broker is too busy", ReasonCode.SERVER_BUSY),
    _drop("drop-tcp", "the connection breaks at once", Step.TCP),
    _drop("drop-tls", "the connection breaks behind the handshake", Step.TLS),
    _drop("drop-connect", "the connection breaks behind CONNECT", Step.CONNECT),
    _drop("drop-connack", "the connection breaks behind CONNACK", Step.CONNACK),
    _drop("drop-request", "the connection breaks at the first SUBSCRIBE or PUBLISH", Step.REQUEST),
    Stage("no-puback", "the first message is not acknowledged, and the connection breaks",
          lambda seen: judging.redelivers(seen.attempts), Conduct(first_puback=False)),
    Stage("half-open", "the broker is gone behind CONNACK, and did not say so",
          lambda seen: judging.notices_silence(seen.attempts, seen.window), Conduct(silent_at=Step.CONNACK)),
    Stage("slow", "the network is slow, late and cuts everything small",
          lambda seen: judging.serves_slowly(seen.attempts),
          trouble=Trouble(latency=0.3, jitter=0.2, bandwidth=20_000, slice_bytes=100)),
    Stage("renew", "its certificate is about to expire", _renews(0), enrols=True),
    _puts_off("renew-503", "the enrolment service is down for a moment (503, Retry-After)",
              HTTPStatus.SERVICE_UNAVAILABLE),
    _puts_off("renew-202", "the enrolment service wants to think (202, Retry-After)", HTTPStatus.ACCEPTED),
    Stage("renew-other-ca", "the enrolment service has a certificate of an untrusted CA",
          lambda seen: judging.trusts_no_other_service(seen.asked, came=seen.came_to_enrol),
          enrols=True, enrolment_paper=ServerPaper.OTHER_CA),
)  # fmt: skip


class NoSuchStage(Exception):
    """The pattern selects no stage."""


def pick(patterns: Sequence[str]) -> tuple[Stage, ...]:
    """Return the stages whose name matches one of *patterns*, all without a pattern; raise `NoSuchStage`."""
    wanted = [part for pattern in patterns for part in pattern.split(",") if part]
    for pattern in wanted:
        if not any(fnmatchcase(stage.name, pattern) for stage in STAGES):
            raise NoSuchStage(f"--only {pattern}: no such stage; --list shows them all")
    return tuple(stage for stage in STAGES if not wanted or any(fnmatchcase(stage.name, each) for each in wanted))
