"""The stages of a qualification: how the stand misbehaves in each, and how the device is judged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from http import HTTPStatus

from broker.mqtt.codes import ReasonCode
from broker.mqtt.properties import Properties
from device_sim.attack.verdict import Verdict
from device_sim.qualify import judging, limit_judging, renewal_judging, subscription_judging
from device_sim.qualify.attempt import Attempt
from device_sim.qualify.conduct import Conduct, Step
from device_sim.qualify.enrolment_stand import Arrival, Asked
from device_sim.qualify.judging import SENDS_NOTHING, Line
from device_sim.qualify.papers import ServerPaper, ServerStaple
from device_sim.trouble.trouble import NONE, Trouble

_ATTEMPTS = 6
_RETRY_AFTER = 2
_SMALL = 40
"""Less than a PUBLISH to the device's own topic takes."""
_RARE = (
    ReasonCode.USE_ANOTHER_SERVER,
    ReasonCode.CONNECTION_RATE_EXCEEDED,
    ReasonCode.BANNED,
    ReasonCode.SERVER_MOVED,
    ReasonCode.CLIENT_IDENTIFIER_NOT_VALID,
    ReasonCode.QUOTA_EXCEEDED,
    ReasonCode.UNSPECIFIED_ERROR,
)
_GOODBYES = (
    ReasonCode.SESSION_TAKEN_OVER,
    ReasonCode.MAXIMUM_CONNECT_TIME,
    ReasonCode.SERVER_SHUTTING_DOWN,
    ReasonCode.ADMINISTRATIVE_ACTION,
    ReasonCode.MESSAGE_RATE_TOO_HIGH,
    ReasonCode.UNSPECIFIED_ERROR,
)


@dataclass(frozen=True, slots=True)
class Witness:
    """What was seen in one stage."""

    attempts: Sequence[Attempt]
    asked: Sequence[Asked]
    arrivals: Sequence[Arrival]
    """Its connections to the enrolment service."""
    status: int | None
    window: float
    crl_given: bool
    ending: str = ""
    """How the device ended by itself, in words; empty: it has not ended."""
    est_given: bool = False
    """Whether it was told where to renew its certificate."""
    crash: str = ""
    """How it crashed; empty: it has not."""
    leak: str = ""
    """In which form its output has a private key; empty: in none."""
    exposed: str = ""
    """A file with a private key that others may read; empty: there is none."""
    leaves: bool | None = None
    """Whether it leaves a broker that serves it well, too; None: not known, without the stage good."""
    filters: frozenset[str] = frozenset()
    """What hardware has subscribed to in an earlier stage."""

    @property
    def ends_when_done(self) -> bool | None:
        """Whether it ends where all is well, too; None: perhaps, but who ends with an error has not done its work."""
        return False if self.leaves is None and self.status else self.leaves

    @property
    def stayed_away(self) -> bool:
        """Whether it has ended without connecting anywhere."""
        return bool(self.ending) and not self.attempts and not self.arrivals


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
    enrolment_staple: ServerStaple = ServerStaple.GOOD
    enrolment_status: HTTPStatus = HTTPStatus.OK
    retry_after: int = 0
    other_key: bool = False
    """Whether the certificate that the enrolment service gives is for a key that the device does not have."""

    @property
    def staples_wrongly(self) -> bool:
        """Whether the staple is what is wrong with the server, or with the enrolment service."""
        return {self.conduct.staple, self.enrolment_staple} != {ServerStaple.GOOD}

    def enough(self, attempts: Sequence[Attempt], arrivals: Sequence[Arrival]) -> bool:
        """Whether more time would reveal nothing new."""
        if self.enrolment_staple is not ServerStaple.GOOD:
            hello = arrivals[0].hello if arrivals else None
            return any(each.sent_data for each in arrivals) or (hello is not None and not hello.asks_for_staple)
        if self.staples_wrongly and attempts and attempts[0].asks_for_staple is False:
            return True
        return self.failing and len([each for each in attempts if each.ended is not None]) >= _ATTEMPTS


def _unverifiable(seen: Witness) -> list[Line]:
    lines = judging.verifies(seen.attempts)
    # A device that accepts the server has no reason to reconnect.
    return [*lines, *_again(seen)] if lines[0].verdict is not Verdict.FAIL else lines


def _revoked(seen: Witness) -> list[Line]:
    if not seen.crl_given:
        why = "it was not given the CRL; give its command {crl}"
        return [judging.skipped(SENDS_NOTHING, "refuses the server and sends it nothing", why)]
    return judging.verifies(seen.attempts)


def _stapled(seen: Witness) -> list[Line]:
    return judging.checks_staple(seen.attempts)


def _stapled_by_service(seen: Witness) -> list[Line]:
    return renewal_judging.checks_service_staple(seen.arrivals, given=seen.est_given)


def _again(seen: Witness) -> list[Line]:
    return judging.comes_back(seen.attempts, seen.status, seen.window)


def _patient(seen: Witness) -> list[Line]:
    return [*judging.gives_up(seen.attempts, seen.window), *_again(seen)]


def _version_kept(seen: Witness) -> list[Line]:
    return [*judging.keeps_version(seen.attempts), *_again(seen)]


def _aliases(seen: Witness) -> list[Line]:
    return limit_judging.keeps_aliases(seen.attempts)


def _subscribes_again(why: str) -> Judge:
    return lambda seen: [
        subscription_judging.subscribes_again(seen.attempts, seen.window, why, seen.ending, seen.filters)
    ]


def _good(seen: Witness) -> list[Line]:
    lines = judging.habits(seen.attempts, seen.ending)
    if lines[0].verdict is Verdict.FAIL:
        return lines
    return [*lines, *limit_judging.keeps_aliases(seen.attempts, essential=False), *conduct_of_program(seen, whole=True)]


def conduct_of_program(seen: Witness, *, whole: bool = False) -> list[Line]:
    """Return what is wrong with the device itself, in any stage; *whole*: what is right of the program, too.

    In the good stage that is, where `judging.habits` has judged its MQTT.
    """
    amiss = [judging.sends_nothing_in_clear([*seen.attempts, *seen.arrivals])]
    if not whole:  # Where the rest of it is judged, too, this is judged in any case.
        amiss.append(judging.speaks_mqtt(seen.attempts))
    lines = [
        judging.line_of(
            "keeps-secret", "prints no private key", good=not seen.leak, seen=seen.leak or "none in its output",
            why="whoever reads its log has its identity",
        ),
        judging.line_of(
            "key-file", "lets nobody else read its key", good=not seen.exposed,
            seen=seen.exposed or "none that others may read",
            why="any program on the device has its identity: mode 0600",
        ),
        judging.line_of(
            "survives", "does not crash", good=not seen.crash, seen=seen.crash or "it runs",
            why=f"{seen.ending}: whatever it had to send is lost",
        ),
    ]  # fmt: skip
    return [*(line for line in amiss if line.verdict is not Verdict.PASS),
            *(line for line in lines if whole or line.verdict is not Verdict.PASS)]  # fmt: skip


def _renewal(seen: Witness, retry_after: int) -> list[Line]:
    lines = renewal_judging.renews(seen.asked, retry_after, given=seen.est_given, came=bool(seen.arrivals))
    return [*lines, *renewal_judging.uses_the_new_one(seen.attempts, seen.asked)]


def _renews(retry_after: int) -> Judge:
    return lambda seen: _renewal(seen, retry_after)


def _ends(name: str, description: str, codes: tuple[ReasonCode, ...]) -> Stage:
    return Stage(name, description, _again, Conduct(goodbye=codes), failing=True)


def _bad_server(name: str, description: str, paper: ServerPaper) -> Stage:
    return Stage(name, description, _unverifiable, Conduct(paper), failing=True)


def _bad_staple(name: str, description: str, stapled: ServerStaple) -> Stage:
    return Stage(name, description, _stapled, Conduct(ServerPaper.MUST_STAPLE, stapled), failing=True)


def _bad_service_staple(name: str, description: str, stapled: ServerStaple) -> Stage:
    return Stage(
        name, description, _stapled_by_service, enrols=True, enrolment_paper=ServerPaper.MUST_STAPLE,
        enrolment_staple=stapled,
    )  # fmt: skip


def _drop(name: str, description: str, step: Step) -> Stage:
    return Stage(name, description, _again, Conduct(drop_at=step), failing=True)


def _refusal(name: str, description: str, *codes: ReasonCode) -> Stage:
    return Stage(name, description, _again, Conduct(connack=codes), failing=True)


def _puts_off(name: str, description: str, status: HTTPStatus) -> Stage:
    return Stage(
        name, description, _renews(_RETRY_AFTER), enrols=True, enrolment_status=status, retry_after=_RETRY_AFTER
    )


STAGES: tuple[Stage, ...] = (
    Stage("good", "broker and service are correct", _good, Conduct(ponders=True)),
    _bad_server("server-expired", "the server's certificate has expired", ServerPaper.EXPIRED),
    _bad_server("server-wrong-name", "the server's certificate is for another name", ServerPaper.WRONG_NAME),
    _bad_server("server-other-ca", "the server's certificate is of an untrusted CA", ServerPaper.OTHER_CA),
    _bad_server("server-not-yet-valid", "the server's certificate is valid from tomorrow", ServerPaper.NOT_YET_VALID),
    _bad_server("server-self-signed", "the server's certificate is signed with its own key", ServerPaper.SELF_SIGNED),
    _bad_server("server-for-clients", "the server's certificate is for clients only (Extended Key Usage)",
                ServerPaper.CLIENT_ONLY),
    Stage("server-anonymous", "the server has no certificate (anonymous cipher suites of TLS 1.2)",
          _unverifiable, Conduct(anonymous=True), failing=True),
    Stage("server-revoked", "the server's certificate is revoked", _revoked,
          Conduct(ServerPaper.REVOKED), failing=True),
    Stage("server-revoked-ca", "the CA that certified the server is revoked", _revoked,
          Conduct(ServerPaper.REVOKED_CA), failing=True),
    _bad_staple("staple-revoked", "the server staples that its certificate is revoked", ServerStaple.REVOKED),
    _bad_staple("staple-expired", "the server's staple has expired", ServerStaple.EXPIRED),
    _bad_staple("staple-other-certificate", "the server's staple is about another certificate",
                ServerStaple.OTHER_CERTIFICATE),
    _bad_staple("staple-other-key", "the server's staple is signed in the CA's name, with another key",
                ServerStaple.OTHER_KEY),
    _bad_staple("staple-own-key", "the server has signed its staple itself (no OCSP signing in its certificate)",
                ServerStaple.OWN_KEY),
    _bad_staple("staple-missing", "the server staples nothing, and its certificate says that a staple is due",
                ServerStaple.NONE),
    Stage("old-tls", "the server speaks TLS 1.1 and nothing newer",
          lambda seen: judging.refuses_old_tls(seen.attempts), Conduct(tls11_only=True), failing=True),
    Stage("no-handshake", "the server accepts, and says nothing", _patient, Conduct(silent_at=Step.TCP), failing=True),
    Stage("no-connack", "the broker does not answer CONNECT", _patient, Conduct(silent_at=Step.TLS), failing=True),
    _refusal("connack-not-authorized", "the broker refuses the device", ReasonCode.NOT_AUTHORIZED),
    _refusal("connack-busy", "the broker is too busy", ReasonCode.SERVER_BUSY),
    _refusal("connack-rare", "the broker refuses the device, each time with another rare reason", *_RARE),
    _drop("drop-tcp", "the connection breaks at once", Step.TCP),
    Stage("drop-hello", "the connection breaks behind ClientHello", _version_kept, Conduct(drop_at=Step.HELLO),
          failing=True),
    _drop("drop-tls", "the connection breaks behind the handshake", Step.TLS),
    _drop("drop-connect", "the connection breaks behind CONNECT", Step.CONNECT),
    _drop("drop-connack", "the connection breaks behind CONNACK", Step.CONNACK),
    _drop("drop-request", "the connection breaks at the first SUBSCRIBE or PUBLISH", Step.REQUEST),
    _ends("disconnects", "the broker ends the connection at the first request, each time with another reason",
          _GOODBYES),
    Stage("no-puback", "the first message is not acknowledged, and the connection breaks",
          lambda seen: judging.redelivers(seen.attempts, seen.window, seen.ending), Conduct(first_puback=False)),
    Stage("no-pubcomp", "the connection breaks behind PUBREL",
          lambda seen: limit_judging.releases_again(seen.attempts, seen.window, seen.ending),
          Conduct(first_pubcomp=False)),
    Stage("no-suback", "the first SUBSCRIBE is not answered, and the connection breaks",
          _subscribes_again("nobody has told it that it has subscribed: no command may ever come"),
          Conduct(first_suback=False)),
    Stage("session-lost", "the connection breaks, and the broker has lost the device's session",
          _subscribes_again("CONNACK says that there is no session: no command comes any more"),
          Conduct(forgets=True)),
    Stage("limits", "the broker takes two unacknowledged messages, sets the keep alive, and acknowledges nothing",
          lambda seen: limit_judging.keeps_limits(seen.attempts, seen.window, ended=bool(seen.ending)),
          Conduct(acknowledges=False, server_keep_alive=True, limits=Properties(receive_maximum=2))),
    Stage("small-packets", "the broker takes packets of 40 bytes at most",
          lambda seen: limit_judging.keeps_packets_small(seen.attempts),
          Conduct(limits=Properties(maximum_packet_size=_SMALL))),
    Stage("aliases", "the broker takes two topic aliases, and after a broken connection none", _aliases,
          Conduct(aliases=2)),
    Stage("commands", "the broker sends commands of any content, at each QoS",
          lambda seen: limit_judging.takes_commands(seen.attempts, leaves=seen.leaves), Conduct(commands=True)),
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
          lambda seen: renewal_judging.trusts_no_other_service(seen.arrivals, given=seen.est_given),
          enrols=True, enrolment_paper=ServerPaper.OTHER_CA),
    _bad_service_staple("renew-staple-revoked", "the enrolment service staples that its certificate is revoked",
                        ServerStaple.REVOKED),
    _bad_service_staple("renew-staple-expired", "the enrolment service's staple has expired", ServerStaple.EXPIRED),
    _bad_service_staple("renew-staple-other-certificate", "the enrolment service's staple is about another certificate",
                        ServerStaple.OTHER_CERTIFICATE),
    _bad_service_staple("renew-staple-other-key",
                        "the enrolment service's staple is signed in the CA's name, with another key",
                        ServerStaple.OTHER_KEY),
    _bad_service_staple("renew-staple-own-key", "the enrolment service has signed its staple itself",
                        ServerStaple.OWN_KEY),
    _bad_service_staple("renew-staple-missing",
                        "the enrolment service staples nothing, and its certificate says that a staple is due",
                        ServerStaple.NONE),
    Stage("renew-other-key", "the enrolment service answers with a certificate for another key",
          lambda seen: renewal_judging.keeps_the_old_one(
              seen.attempts, seen.asked, seen.window, seen.ending, given=seen.est_given, leaves=seen.ends_when_done),
          enrols=True, other_key=True),
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
