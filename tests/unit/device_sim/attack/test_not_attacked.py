"""What did not happen has not been withstood: no case passes for want of an attack, of an answer, or of a control."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ed448

from broker.mqtt.disconnect import Disconnect
from device_sim.attack import asking, bystander, enrolment_cases, entry, revocation_list, run, scene
from device_sim.attack.attacking import _exit_code, _say_more
from device_sim.attack.capabilities import Capabilities, Feature
from device_sim.attack.case import Case
from device_sim.attack.catalogue import CATALOGUE, pick
from device_sim.attack.issuer import Issuer, Paper
from device_sim.attack.raw_client import RawClient
from device_sim.attack.run import ALIVE, STAYS
from device_sim.attack.scene import Scene
from device_sim.attack.target import Impossible, Registrar, SigningRegistrar, Starved, Target, TurnedAway
from device_sim.attack.verdict import ClosedBy, Judgement, Layer, Outcome, Seen, Verdict
from device_sim.credentials.certification import common_name
from device_sim.link.distance import Distance
from device_sim.link.tls_dial import Endpoint
from device_sim.report import ExitCode
from device_sim.trouble.proxy import Proxy
from device_sim.trouble.trouble import Trouble
from device_sim.view import View
from tests.support import faulty_broker
from tests.support.faulty_broker import Fault, faulty
from tests.support.own_server import own_server

EVERY = frozenset(Feature) - {Feature.TLS12}


@pytest.fixture(autouse=True)
def _short_of_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever else this machine does, it is the broker that is judged."""
    monkeypatch.setattr(run, "MOST_WAITING", 10.0)
    monkeypatch.setattr(scene, "MOST_WAITING", 10.0)


@asynccontextmanager
async def at(directory: Path, fault: Fault) -> AsyncIterator[Scene]:
    """Yield a scene at a broker with this *fault* that is held to everything."""
    async with faulty(directory, fault) as target:
        claims = target.capabilities.model_copy(update={"supports": EVERY})
        here = Scene(replace(target, capabilities=claims))
        try:
            yield here
        finally:
            await here.close()


def case(name: str) -> Case:
    return pick((*CATALOGUE, *revocation_list.chapter.cases), [name])[0]


class _Slowly:
    """A registrar whose revocations take their time."""

    def __init__(self, here: Scene, seconds: float) -> None:
        self._registrar = here.target.registrar
        self._seconds = seconds
        self.certify = self._registrar.certify

    async def revoke(self, paper: Paper) -> None:
        await asyncio.sleep(self._seconds)
        await self._registrar.revoke(paper)


@pytest.mark.parametrize(
    ("patience", "seconds", "verdict", "why"),
    [
        (60.0, 0.0, Verdict.FAIL, "the attack succeeded: the broker let it in"),
        (
            0.2,
            0.2,
            Verdict.SKIP,
            "revoking took so long here that who is not revoked is not let in either: mqtt closed",
        ),
    ],
)
async def test_who_closes_for_slowness_has_not_closed_for_a_revocation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patience: float, seconds: float, verdict: Verdict, why: str
) -> None:
    """rabbitmq, whose tool takes seconds to revoke, had passed, and lets the device in."""
    monkeypatch.setattr(faulty_broker, "TO_CONNECT", patience)
    async with at(tmp_path, Fault.HURRIES) as here:
        here.target.registrar = _Slowly(here, seconds)
        outcome = await run._tried(here, case("5-revoked-before-connect"))
    assert (outcome.verdict, outcome.judgement.why.startswith(why)) == (verdict, True), outcome.judgement


@pytest.mark.parametrize("name", ["34-publish-first", "34-noise"])
@pytest.mark.parametrize("fault", [Fault.NONE, Fault.WAITS_IT_OUT])
async def test_who_closes_whoever_has_said_nothing_has_not_closed_for_what_was_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, fault: Fault
) -> None:
    monkeypatch.setattr(faulty_broker, "TO_CONNECT", 0.3 if name == "34-publish-first" else 60.0)
    async with at(tmp_path, fault) as here:
        outcome = await run._tried(here, case(name))
    if name == "34-noise" or fault is Fault.NONE:  # What is no packet at all ends it with either.
        assert outcome.verdict is Verdict.PASS, outcome.judgement
        return
    assert outcome.verdict is Verdict.WARN, outcome.judgement
    assert outcome.seen is not None
    assert outcome.seen.text == "mqtt closed, like one that says nothing"


async def test_a_tester_that_was_held_up_once_looks_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker that closes at once for what was said had a warning, where that was seen only after a while."""
    dialled, clients, begun, there = Scene.dialled, list[RawClient](), itertools.count(), asyncio.Event()

    async def held_up(here: Scene, paper: Paper) -> RawClient:
        if next(begun) == 1:  # Who is to say something is not connected before who says nothing has been closed.
            await there.wait()
            assert not (await clients[0].end(60.0)).got_in
        client = await dialled(here, paper)
        clients.append(client)
        there.set()
        return client

    monkeypatch.setattr(faulty_broker, "TO_CONNECT", 2.0)
    monkeypatch.setattr(Scene, "dialled", held_up)
    async with at(tmp_path, Fault.HURRIES) as here:
        outcome = await run._tried(here, case("34-noise"))
    assert (outcome.verdict, len(clients)) == (Verdict.PASS, 4), outcome.judgement


@pytest.mark.parametrize(("fault", "verdict"), [(Fault.NONE, Verdict.PASS), (Fault.HEARS_EARLY, Verdict.FAIL)])
async def test_what_is_published_before_connect_reaches_nobody(tmp_path: Path, fault: Fault, verdict: Verdict) -> None:
    """That the connection is closed says nothing of it."""
    async with at(tmp_path, fault) as here:
        assert (await run._tried(here, case("34-publish-first"))).verdict is Verdict.PASS
        outcome = await run._tried(here, case("35-before-connect"))
    assert outcome.verdict is verdict, outcome.judgement
    assert outcome.judgement.why == ("" if verdict is Verdict.PASS else "the attack succeeded: it was delivered")


@pytest.mark.parametrize(
    ("fault", "name", "why"),
    [
        (Fault.SILENT_TO_THIEVES, "19-takes-over", "still open at the deadline"),
        (Fault.SILENT_TO_HEIRS, "37-will", "its CONNECT was not answered, so there may be no will to send"),
        (Fault.TAKES_THE_FIRST_NAME, "24-two-identities", "the attack succeeded: the broker let it in"),
        (Fault.TAKES_THE_FIRST_NAME, "24-other-subject", "the attack succeeded: the broker let it in"),
        (Fault.NONE, "20-auth-method", "the attack succeeded: the broker let it in"),
    ],
)
async def test_who_has_not_answered_has_not_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Fault, name: str, why: str
) -> None:
    if fault in {Fault.SILENT_TO_THIEVES, Fault.SILENT_TO_HEIRS}:
        monkeypatch.setattr(entry, "_ANSWER", 2.0)  # Also what the handshake may take.
        monkeypatch.setattr("device_sim.attack.topic_cases._ANSWER", 0.2)
    async with at(tmp_path, fault) as here:
        outcome = await run._tried(here, case(name))
    assert (outcome.verdict, outcome.judgement.why.startswith(why)) == (Verdict.FAIL, True), outcome.judgement


async def test_a_revoked_device_that_gets_no_messages_must_have_been_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(revocation_list, "_QUIET", 0.1)
    async with at(tmp_path, Fault.SILENT_TO_THIEVES) as here:
        paper = await here.device()
        let_in = await revocation_list._fetched(here, paper, paper.name)
        assert (let_in.text, let_in.got_in) == ("mqtt CONNACK 0x00", True)
        with monkeypatch.context() as soon:
            soon.setattr(revocation_list, "_ANSWER", 0.3)
            with pytest.raises(Starved, match="neither admitted nor refused"):
                await revocation_list._fetched(here, paper, "another")
        await here.target.registrar.revoke(paper)
        refused = await revocation_list._fetched(here, paper, paper.name)
        assert (refused.text, refused.got_in) == ("mqtt not-delivered", False)
    gone = await revocation_list._fetched(here, paper, paper.name)
    assert gone.text == "tcp unanswered"


class Unheard:
    """A registrar whose revocations reach nobody."""

    def __init__(self, registrar: Registrar) -> None:
        self.certify = registrar.certify

    async def revoke(self, paper: Paper) -> None:
        """Do nothing."""


@pytest.mark.parametrize("name", ["5-revoked-takes-over", "11-serial-of-other-issuer", "15-other-certificate", "17"])
async def test_where_no_revocation_has_an_effect_nobody_is_spared_one(tmp_path: Path, name: str) -> None:
    async with at(tmp_path, Fault.NONE) as here:
        here.target.registrar = Unheard(here.target.registrar)
        limits = here.target.capabilities.limits.model_copy(update={"revocation": 0.1})
        here.target.capabilities = here.target.capabilities.model_copy(update={"limits": limits})
        here.target.other_issuer = here.target.issuer
        picked = case(name) if name[0] == "5" else pick(revocation_list.chapter.cases, [name])[0]
        outcome = await run._tried(here, picked)
    assert outcome.verdict is Verdict.SKIP, outcome.judgement
    assert outcome.judgement.why.startswith("who is revoked is not refused here, so nobody can be harmed by it: ")


@asynccontextmanager
async def server(directory: Path, *, ed448_key: bool = False) -> AsyncIterator[Target]:
    """Yield what cuts everybody off without a word behind a handshake; its own key may be one that few know."""
    authority, context = own_server(directory, key=ed448.Ed448PrivateKey.generate() if ed448_key else None)

    async def cut_off(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with await asyncio.start_server(cut_off, "127.0.0.1", 0, ssl=context) as listener:
        endpoint = Endpoint("127.0.0.1", listener.sockets[0].getsockname()[1], "localhost")
        claims = Capabilities(name="curt", supports=frozenset({Feature.MQTT5}))
        yield Target(claims, endpoint, directory / "ca.pem", authority, SigningRegistrar(authority, None))


async def test_who_refuses_our_own_tls_has_not_judged_what_is_wrong_with_it(tmp_path: Path) -> None:
    async with server(tmp_path) as target:
        outcome = await run._tried(Scene(target), case("16-message-too-long"))
    assert outcome.verdict is Verdict.SKIP, outcome.judgement
    assert outcome.judgement.why.startswith("a good device that connects with our own TLS is not let in either: ")


async def test_who_refuses_every_suite_of_ours_has_not_refused_the_weak_ones(tmp_path: Path) -> None:
    async with server(tmp_path, ed448_key=True) as target:
        outcome = await run._tried(Scene(target), case("26-null-cipher"))
    assert outcome.verdict is Verdict.SKIP, outcome.judgement
    assert outcome.judgement.why.startswith("a good suite is refused as well: tls closed")


def _outcome(name: str, verdict: Verdict) -> Outcome:
    return Outcome(name, "", (), 10.0, Judgement(verdict, "said so"))


@pytest.mark.parametrize(
    ("cases", "controls", "code"),
    [
        ([Verdict.SKIP, Verdict.SKIP], Verdict.PASS, ExitCode.ERROR),
        ([Verdict.SKIP, Verdict.PASS], Verdict.PASS, ExitCode.OK),
        ([Verdict.SKIP, Verdict.WARN], Verdict.PASS, ExitCode.OK),
        ([Verdict.SKIP, Verdict.INVALID], Verdict.PASS, ExitCode.INVALID),
        ([Verdict.SKIP], Verdict.FAIL, ExitCode.SECURITY),
    ],
)
def test_a_run_whose_cases_were_all_skipped_has_judged_nothing(
    capsys: pytest.CaptureFixture[str], cases: list[Verdict], controls: Verdict, code: ExitCode
) -> None:
    """That its two controls hold does not make it a pass."""
    outcomes = [_outcome(f"{number}-case", verdict) for number, verdict in enumerate(cases, 1)]
    outcomes += [_outcome(ALIVE, controls), _outcome(STAYS, Verdict.PASS)]
    claims = Capabilities(name="any", supports=frozenset())
    authority = Issuer.founded(common_name("CA"))
    target = Target(claims, Endpoint("127.0.0.1", 1, "x"), Path("none"), authority, SigningRegistrar(authority, None))
    assert _exit_code(target, outcomes, ExitCode.SECURITY) is code
    _say_more(View(), target, [], outcomes)
    assert ("nothing was judged" in capsys.readouterr().err) is (code is ExitCode.ERROR)
    assert (run.worst(outcomes) is Verdict.FAIL) is (code in {ExitCode.ERROR, ExitCode.SECURITY})


def _said(code: str, *, got_in: bool = False) -> Seen:
    return Seen(Layer.HTTP, code, "", ClosedBy.NOBODY, got_in=got_in)


@pytest.mark.parametrize("name", ["44-token-used", "44-replayed-csr", "44-token-race"])
@pytest.mark.parametrize(
    ("first", "raised"), [("unavailable", Starved), ("429 TOO_MANY", TurnedAway), ("401 TOKEN_USED", TurnedAway)]
)
async def test_a_token_that_was_never_used_was_not_used_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, first: str, raised: type[Exception]
) -> None:
    async def token(_scene: Scene, _name: str) -> str:
        return "token"

    async def enrols(*_: object) -> Seen:
        return _said(first)

    monkeypatch.setattr(enrolment_cases, "token_for", token)
    monkeypatch.setattr(enrolment_cases, "enrols", enrols)
    async with faulty(tmp_path) as target:
        with pytest.raises(raised, match="a good device does not get its certificate: http"):
            await case(name).attempt(Scene(target))
    assert asking.UNAVAILABLE == "http unavailable"


async def test_a_good_device_that_is_disconnected_was_not_merely_served_late(tmp_path: Path) -> None:
    """On a machine that others hold slowness is no verdict. DISCONNECT is not slowness."""
    async with at(tmp_path, Fault.IMPATIENT) as here:
        paper = await here.device()
        client = await here.admitted(paper, here.connect(paper.name, keep_alive=1))
        farewell = await client.receive(5.0)
        assert isinstance(farewell, Disconnect)
        client._packets.append(farewell)  # As if it came only now.
        for told in "mqtt DISCONNECT 0x8d", "mqtt closed":
            with pytest.raises(TurnedAway, match=f"an innocent device was not served: {told}"):
                await here.served(client)
        client.close()


@pytest.mark.parametrize(
    ("fault", "verdict", "told"),
    [
        (Fault.HURRIES, Verdict.PASS, "mqtt closed"),
        (Fault.WAITS_IT_OUT, Verdict.WARN, "mqtt closed, like one that says nothing"),
    ],
)
async def test_across_a_long_link_who_closes_at_once_is_told_from_who_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Fault, verdict: Verdict, told: str
) -> None:
    """The silent device had been there since before the other one's handshake: longer than nats-server waits."""
    far = Distance(1.2, 1.2, 1.4, packets=1000)
    monkeypatch.setattr(bystander, "distance_of", lambda _: far)
    monkeypatch.setattr(faulty_broker, "TO_CONNECT", 0.8)
    async with at(tmp_path, fault) as here, Proxy("127.0.0.1", here.target.endpoint.port) as link:
        link.set(Trouble(latency=0.6))
        here.target.endpoint = replace(here.target.endpoint, port=link.port)
        outcome = await run._tried(here, case("34-publish-first"))
    assert outcome.seen is not None
    assert (outcome.verdict, outcome.seen.text) == (verdict, told), outcome.judgement


async def test_what_is_left_of_a_failure_to_connect_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Either of the two may fail; the other one is open then, or about to be."""
    dialled, clients, both = Scene.dialled, list[RawClient](), asyncio.Barrier(2)

    async def fails(here: Scene, paper: Paper) -> RawClient:
        async with asyncio.timeout(60):
            if await both.wait() == 0:
                raise Starved("it is not let in")
        clients.append(await dialled(here, paper))
        return clients[-1]

    async with at(tmp_path, Fault.NONE) as here:
        monkeypatch.setattr(Scene, "dialled", fails)
        assert (await run._tried(here, case("34-noise"))).verdict is Verdict.FAIL
        assert all(each.socket.fileno() < 0 for each in clients)


async def test_what_is_given_up_while_it_connects_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As by Ctrl-C, or the end of the time that a case has."""
    begun, ended = asyncio.Event(), asyncio.Event()

    async def dials(_scene: Scene, _paper: Paper) -> RawClient:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        raise AssertionError

    async with at(tmp_path, Fault.NONE) as here:
        monkeypatch.setattr(Scene, "dialled", dials)
        trying = asyncio.create_task(run._tried(here, case("34-noise")))
        await begun.wait()
        trying.cancel()
        with pytest.raises(asyncio.CancelledError):
            await trying
        assert ended.is_set()


async def test_an_attack_begins_when_a_good_device_was_admitted(tmp_path: Path) -> None:
    """Not sooner: until then older reports stay."""
    happened: list[str] = []

    async def tried(target: Target) -> None:
        await run.run(target, [case("1-good")], lambda one: happened.append(one.name), lambda: happened.append("begun"))

    async with faulty(tmp_path) as target:
        with pytest.raises(Impossible):
            await tried(replace(target, endpoint=replace(target.endpoint, port=1)))
        assert happened == []
        await tried(target)
    assert happened == ["begun", "1-good", "0-alive", "0-stays"]
