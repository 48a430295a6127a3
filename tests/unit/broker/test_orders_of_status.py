"""Whatever the order in which CRLs and OCSP answers come, old and new, with all else: what is newest counts.

What must hold: once nothing is under way, whoever is revoked by the newest that has come, list or answer, or by the
feed, has no connection, and nobody was admitted in spite of it; a list that has come never releases whom a later one
revokes; and who is in order is admitted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from cryptography import x509
from structlog.testing import capture_logs

from broker.admission.bundle import ListTerms, OcspTerms, TrustBundle
from broker.admission.trust import Trust
from broker.mqtt.codes import ReasonCode
from broker.revocation import revocation_rounds
from broker.settings.trust_settings import REQUIRE
from broker.sources import crl_files
from broker.sources.asker import StatusAsker
from broker.sources.crl_files import CrlFiles
from broker.sources.crl_intake import CrlIntake
from broker.sources.crl_urls import CrlUrls
from broker.sources.ocsp_client import OcspClient
from provisioning.pki.ocsp import Answer
from provisioning.pki.revocation_reason import RevocationReason
from tests.support.crl import crl
from tests.support.interleavings import LOOP, Choices, every_order, some_orders
from tests.support.pki import shared_device
from tests.support.stepped_scene import NEW, OLD, PKI, Scene, Steps, perhaps_a_stop, released, revoked
from tests.support.turned_loop import TurnedLoop
from tests.support.wire import KEPT, MemoryBroker

pytestmark = pytest.mark.hypothesis
SECOND, THIRD = shared_device("meter-2"), shared_device("meter-3")
HOLD, FINAL = RevocationReason.CERTIFICATE_HOLD, RevocationReason.KEY_COMPROMISE
MINUTE = timedelta(minutes=1)


@pytest.fixture(autouse=True)
def _in_small_steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    async def in_a_thread(call: Callable[..., Any], *arguments: Any) -> Any:
        await asyncio.sleep(0)
        outcome = call(*arguments)
        await asyncio.sleep(0)
        return outcome

    monkeypatch.setattr(asyncio, "to_thread", in_a_thread)
    monkeypatch.setattr(crl_files, "in_own_thread", lambda call, _name: in_a_thread(call))
    monkeypatch.setattr(revocation_rounds, "_SECONDS_A_TURN", -1.0)
    with capture_logs():  # A line takes longer than a step.
        yield


@pytest.fixture
def loop() -> Iterator[TurnedLoop]:
    turned = TurnedLoop(1000.0)
    yield turned
    turned.close()


class Under(Scene):
    """Where what is in the index is put into effect by rounds of the loop, and counts when they are over."""

    def __init__(self, directory: Path, loop: TurnedLoop, bundle: TrustBundle) -> None:
        super().__init__(MemoryBroker(max_connects_per_identity=0), directory)
        self.loop = loop
        self.rounds = 0
        self.engine = self.broker.engine
        self.engine.admission.believe(Trust([bundle]))

    def check(self, after: str) -> None:
        self.rounds += after == LOOP
        self.broker.settle()
        self.is_told = self.is_told or self.loop.is_ready
        super().check(after)
        self.is_told = False

    def settle(self) -> None:
        while self.loop.is_ready:
            self.loop.go_round()
            self.check("all")

    def is_revoked(self, held: Any) -> bool:
        return self.engine.admission.status.index.find(held.revocation.key) is not None


def written(directory: Path) -> dict[str, bytes]:
    """Return a complete list, two deltas that continue it, and the next complete one, written into *directory*."""
    directory.mkdir()
    on_hold, off_hold = x509.ReasonFlags.certificate_hold, x509.ReasonFlags.remove_from_crl
    old, second, third = (each.certificate.serial_number for each in (OLD, SECOND, THIRD))
    final = x509.ReasonFlags.key_compromise
    lists = {
        "first": crl(PKI.issuing, number=1, age=9 * MINUTE),
        "delta2": crl(PKI.issuing, {old: on_hold, second: final}, number=2, base=1, age=8 * MINUTE),
        "delta3": crl(PKI.issuing, {old: off_hold, second: final}, number=3, base=1, age=7 * MINUTE),
        "next": crl(PKI.issuing, {second: final, third: final}, number=4, age=6 * MINUTE),
    }
    (directory / "delta.crl").write_bytes(lists["delta3"])
    return lists


def test_whichever_list_comes_when_and_whoever_gives_up_waiting_the_newest_counts(
    tmp_path: Path, loop: TurnedLoop
) -> None:
    lists = written(tmp_path / "lists")

    def run(choices: Choices) -> None:
        scene = Under(tmp_path, loop, TrustBundle("", [PKI.issuing.certificate], lists=ListTerms(REQUIRE)))
        intake = CrlIntake(scene.engine, lambda: scene.broker.now)
        files = CrlFiles(intake, [tmp_path / "lists"], 60.0)
        first = loop.loop.create_task(intake.take(lists["first"], "first"))
        loop.until(first.done)
        for _ in scene.connects(OLD, **KEPT):
            pass
        neighbours = [scene.broker.device(f"meter-{number}") for number in range(9, 1, -1)]
        was_revoked: set[bytes] = set()

        def looks() -> Steps:
            look = loop.loop.create_task(files.look())
            until = scene.rounds + 11 + choices.among(tuple(f"patient for {each} rounds" for each in range(11, 20)))
            yield lambda: scene.rounds >= until or look.done()
            look.cancel()
            yield look.done

        def takes(name: str) -> Steps:
            taking = loop.loop.create_task(intake.take(lists[name], name))
            yield taking.done
            taking.result()

        def check(after: str) -> None:
            scene.check(after)
            for each in (SECOND, THIRD):
                if scene.is_revoked(each):
                    was_revoked.add(each.der)
                assert scene.is_revoked(each) == (each.der in was_revoked), "released by a list that is older"

        every_order(
            {
                "who looks at the file, and gives up": looks(),
                "one URL": takes("next"),
                "the other URL": takes("delta2"),
                "the device": scene.connects(OLD, **KEPT),
                "the feed": scene.hears([revoked(1, NEW, HOLD), released(2, NEW)]),
                **perhaps_a_stop(scene, choices),
            },
            choices,
            check,
            loop,
        )
        look = loop.loop.create_task(files.look())
        scene.settle()
        look.result()
        assert [scene.is_revoked(each) for each in (OLD, SECOND, THIRD)] == [False, True, True]
        if scene.stop_has_begun:
            return
        *others, third, second = neighbours
        assert [each.closed for each in (*others, third, second)] == [False] * len(others) + [True, True]
        for _ in scene.connects(OLD, **KEPT):
            pass
        scene.check("all")
        assert scene.engine.connected == 1 + len(others)

    some_orders(run, 16, 1_000)


class Responder:
    """Is asked, and answers when the test says so, perhaps with what was true some time ago."""

    def __init__(self, loop: TurnedLoop, choices: Choices) -> None:
        self.began = datetime.now(UTC) - 20 * MINUTE
        self._loop = loop
        self._choices = choices
        self._questions: list[asyncio.Future[tuple[Answer, bytes]]] = []
        self.newest: Answer | None = None

    async def ask(self, *_: Any, **__: Any) -> tuple[Answer, bytes]:
        question = self._loop.loop.create_future()
        self._questions.append(question)
        return cast("tuple[Answer, bytes]", await question)

    async def close(self) -> None:
        pass

    def answers(self, *statuses: RevocationReason | None) -> Steps:
        """Answer as many questions; the certificate's status changes before each answer."""
        for number in range(len(statuses)):
            yield lambda: bool(self._questions)
            late = self._choices.among(tuple(f"{back} behind" for back in range(number + 1)))
            at = self.began + (number - late) * MINUTE
            reason = statuses[number - late]
            answer = Answer(True, reason, None if reason is None else at, at, datetime.now(UTC) + 60 * MINUTE)
            question = self._questions.pop(
                self._choices.among(tuple(str(each) for each in range(len(self._questions))))
            )
            if not question.done():
                if self.newest is None or at >= self.newest.this_update:
                    self.newest = answer
                question.set_result((answer, b""))

    def forget(self) -> None:
        for each in self._questions:
            each.cancel()


def test_whatever_a_responder_answers_late_the_newest_answer_and_the_feed_count(
    tmp_path: Path, loop: TurnedLoop
) -> None:
    def run(choices: Choices) -> None:
        terms = OcspTerms(REQUIRE, "http://responder/")
        scene = Under(tmp_path, loop, TrustBundle("", [PKI.issuing.certificate], ocsp=terms))
        engine, responder, news = scene.engine, Responder(loop, choices), asyncio.Event()
        status, clock = engine.admission.status, lambda: scene.broker.now
        client = OcspClient(status, engine.metrics, lambda *_, **__: None, news.set, 0.0, clock)
        client._http = cast("Any", responder)
        status.on_release = client.released
        intake = CrlIntake(engine, clock)
        urls = CrlUrls(intake, 60.0, clock)
        asker = StatusAsker(engine.admission, CrlFiles(intake, [], 60.0), urls, client, clock)
        engine.admission.asker = asker

        async def enforces() -> None:
            while True:
                await news.wait()
                news.clear()
                await intake.enforce()

        enforcing = loop.loop.create_task(enforces())

        def asks_again(times: int) -> Steps:
            for _ in range(times):
                yield
                asking = loop.loop.create_task(asker._round(engine))
                yield asking.done
                asking.result()

        def loses_patience() -> Steps:
            yield
            loop.now += 3.5

        every_order(
            {
                "the device": scene.connects(OLD, **KEPT),
                "its return": scene.connects(OLD, **KEPT),
                "the responder": responder.answers(None, HOLD, None, HOLD, FINAL),
                "the round": asks_again(5),
                "the feed": scene.hears([revoked(1, OLD, HOLD)], [released(2, OLD)]),
                "patience": loses_patience(),
                **perhaps_a_stop(scene, choices),
            },
            choices,
            scene.check,
            loop,
        )
        scene.settle()
        newest = responder.newest
        if newest is None or newest.reason is not None:
            assert engine.connected == 0, "no answer, or a newer one that says revoked"
        else:
            assert not scene.is_revoked(OLD), "good by the newest answer, and released"
        assert all(each is not ReasonCode.SUCCESS or newest is not None for each in scene.answers.values())
        responder.forget()
        enforcing.cancel()
        with loop.inside():
            closing = loop.loop.create_task(asker.close())
        loop.until(closing.done)

    some_orders(run, 16, 1_000)
