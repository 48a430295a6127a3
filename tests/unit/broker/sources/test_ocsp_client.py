"""What is remembered of a responder's answers, and what becomes of those whom it has called revoked."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509

from broker.admission.bundle import OcspTerms, TrustBundle
from broker.admission.freshness import Freshness
from broker.admission.status import RevocationStatus
from broker.metrics import Metrics
from broker.settings.trust_settings import REQUIRE
from broker.sources import ocsp_client
from broker.sources.ocsp_client import OcspClient, urls_of
from broker.sources.ocsp_http import OcspUnreachable
from provisioning.pki.ocsp import Answer
from provisioning.pki.revocation import Revocation, RevocationIndex
from provisioning.pki.revocation_reason import RevocationReason
from tests.support.pki import shared_device, shared_pki
from tests.support.responder import Responder, delegate
from tests.support.web import WebServer

PKI = shared_pki()
HELD = shared_device("meter-1")
SERIAL = HELD.certificate.serial_number
KEY = HELD.revocation.key
HOLD, FINAL = x509.ReasonFlags.certificate_hold, x509.ReasonFlags.key_compromise


class Scene:
    """A client, and the responder that it asks."""

    def __init__(self, web: WebServer) -> None:
        self.url = f"{web.url}/ocsp"
        self.web = web
        self.responder = web.pages["/ocsp"] = Responder(PKI.issuing, delegate(PKI), [HELD])
        self.index = RevocationIndex()
        self.status = RevocationStatus(self.index, Freshness(300.0))
        self.now = 0.0
        self.told: list[tuple[str, str]] = []
        self.revoked = 0
        self.client = OcspClient(self.status, Metrics(), self._tell, self._on_revoked, 60.0, lambda: self.now)
        self.status.on_release = self.client.released
        bundle = TrustBundle("ours", [PKI.issuing.certificate], ocsp=OcspTerms(REQUIRE, self.url))
        (self.issuer,) = bundle.anchors

    def _tell(self, what: str, **facts: Any) -> None:
        self.told.append((what, facts["code"]))

    def _on_revoked(self) -> None:
        self.revoked += 1

    async def ask(self) -> Answer | None:
        return await self.client.ask(HELD.certificate, self.issuer)

    def released(self) -> None:
        """Let nobody be revoked from a second later on: an answer of the same time would not tell which is newer."""
        self.responder.revoked.clear()
        self.responder.age -= timedelta(seconds=1)

    @property
    def reason(self) -> RevocationReason | None:
        found = self.index.find(KEY)
        return None if found is None else found.reason


@pytest.fixture
def scene() -> Iterator[Scene]:
    with WebServer() as web:
        yield Scene(web)


async def test_who_is_revoked_is_so_until_he_is_called_good_and_not_until_nobody_knows_him(scene: Scene) -> None:
    scene.responder.revoked[SERIAL] = HOLD
    assert await scene.ask() is not None
    hold = (RevocationReason.CERTIFICATE_HOLD, ["ours"])
    assert (scene.reason, scene.client.holding) == hold
    scene.responder.unknown = True
    scene.responder.age -= timedelta(seconds=1)
    answer = await scene.ask()
    assert answer is not None
    assert not answer.known
    assert (scene.reason, scene.client.holding) == hold, "a responder that has lost its memory releases nobody"
    scene.responder.unknown = False
    scene.released()
    assert await scene.ask() is not None
    assert (scene.reason, scene.client.holding) == (None, [])
    assert scene.told == [("revoked", "REVOKED"), ("released", "RELEASED")]
    assert scene.revoked == 1
    await scene.client.close()


async def test_a_hold_becomes_final_and_is_told_again(scene: Scene) -> None:
    for flag, reason in (
        (HOLD, RevocationReason.CERTIFICATE_HOLD),
        (HOLD, RevocationReason.CERTIFICATE_HOLD),
        (FINAL, RevocationReason.KEY_COMPROMISE),
        (FINAL, RevocationReason.KEY_COMPROMISE),
    ):
        scene.responder.revoked[SERIAL] = flag
        assert await scene.ask() is not None
        assert scene.reason is reason
    assert scene.told == [("revoked", "REVOKED")] * 2
    assert scene.revoked == 2
    assert scene.client.holding == []
    await scene.client.close()


async def test_whose_suspension_the_feed_ends_is_asked_about_again_at_once(scene: Scene) -> None:
    async def asks_again() -> bool:
        before = scene.web.requests["/ocsp"]
        await scene.client.ask_about_holds("ours")
        return scene.web.requests["/ocsp"] > before

    def suspended() -> None:
        scene.responder.revoked[SERIAL] = HOLD
        scene.index.add(Revocation(*KEY, RevocationReason.CERTIFICATE_HOLD, datetime.now(UTC)))

    suspended()
    await scene.ask()
    assert not await asks_again(), "the answer is a moment old"
    scene.released()
    assert not scene.status.release((b"another", SERIAL))
    assert not await asks_again()
    assert scene.status.release(KEY)
    assert await asks_again()
    assert scene.index.find(KEY) is None
    suspended()
    asking = asyncio.create_task(scene.ask())
    await asyncio.sleep(0)
    assert scene.status.release(KEY), "while the question is under way"
    await asking
    assert scene.index.find(KEY) is not None
    scene.released()
    assert await asks_again()
    assert scene.reason is None
    assert not await asks_again(), "nobody is suspended any more"
    await scene.client.close()


async def test_who_has_expired_on_hold_is_not_asked_about_for_ever_nor_has_the_place_of_another(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody releases such a certificate: with the years they would be all that is asked about."""
    monkeypatch.setattr(ocsp_client, "_MOST_ON_HOLD", 1)
    other = PKI.device("meter-2", not_after=HELD.certificate.not_valid_after_utc + timedelta(days=1))
    scene.responder.certificates.append(other)
    scene.responder.signer = PKI.issuing  # Its delegate has ended by then.
    for each in (HELD, other):
        scene.responder.revoked[each.certificate.serial_number] = HOLD

    async def asks_again_about() -> int:
        before = scene.web.requests["/ocsp"]
        scene.now += 60.0
        await scene.client.ask_about_holds("ours")
        return scene.web.requests["/ocsp"] - before

    await scene.ask()
    assert [await asks_again_about() for _ in range(3)] == [1, 1, 1], "the only place stays the one's who has it"
    ended = HELD.certificate.not_valid_after_utc + timedelta(seconds=1)
    scene.responder.age -= ended - datetime.now(UTC)
    assert scene.status.proven.hear_service(ended, 0.0, ended)
    assert await asks_again_about() == 0
    assert scene.reason is RevocationReason.CERTIFICATE_HOLD, "it is not released"
    assert await scene.client.ask(other.certificate, scene.issuer) is not None
    scene.released()
    assert await asks_again_about() == 1
    assert scene.index.find(other.revocation.key) is None, "whoever can still be released is"
    await scene.client.close()


async def test_whoever_has_the_key_of_a_revoked_responder_calls_nobody_good(scene: Scene) -> None:
    """Its certificate is on a CRL, say, and the CA has another responder now."""
    now = datetime.now(UTC)
    answer = await scene.ask()
    assert answer is not None
    stolen = scene.responder.signer
    assert answer.signer == stolen.revocation.key
    scene.index.add(stolen.revocation)
    assert scene.client.known(KEY, "ours") is None, "nor is what it has signed before"
    assert not scene.client.is_current(KEY, "ours", now)
    assert scene.client.age(KEY, now) is None
    assert await scene.ask() is None
    assert scene.told == [("OCSP lost", "OCSP_FAILED")]
    scene.responder.revoked[SERIAL] = FINAL
    scene.responder.signer = delegate(PKI)
    scene.responder.age += timedelta(minutes=10)  # Not as new as what the thief has said.
    assert await scene.ask() is not None
    assert scene.reason is RevocationReason.KEY_COMPROMISE
    await scene.client.close()


async def test_what_is_known_is_asked_for_again_when_it_is_old_or_of_nobody(scene: Scene) -> None:
    now = datetime.now(UTC)
    assert scene.client.known(KEY, "ours") is None
    assert scene.client.age(KEY, now) is None
    assert not scene.client.is_current(KEY, "ours", now)
    answer = await scene.ask()
    assert answer is not None
    assert scene.client.known(KEY, "ours") == answer
    age = scene.client.age(KEY, answer.fresh_until)
    assert age == (answer.fresh_until - answer.this_update).total_seconds()
    assert scene.client.is_current(KEY, "ours", answer.this_update)
    assert not scene.client.is_current(KEY, "ours", answer.fresh_until), "it has ended"
    scene.now = 60.0
    assert not scene.client.is_current(KEY, "ours", answer.this_update), "after so many seconds, however good it is"
    scene.responder.unknown = True
    await scene.ask()
    assert not scene.client.is_current(KEY, "ours", answer.this_update), "it may have been issued since"
    await scene.client.close()


async def test_what_another_bundle_s_responder_says_spares_nobody_the_question(scene: Scene) -> None:
    """A partner's CA may certify our CA's key, and its responder replay an answer from before the revocation."""
    answers = Responder(PKI.issuing, delegate(PKI), [HELD], nonce=False, age=timedelta(minutes=10))
    scene.web.pages["/theirs"] = answers
    there = OcspTerms(REQUIRE, f"{scene.web.url}/theirs")
    (theirs,) = TrustBundle("theirs", [PKI.issuing.certificate], ocsp=there).anchors
    scene.responder.revoked[SERIAL] = FINAL
    good = await scene.client.ask(HELD.certificate, theirs)
    assert good is not None
    assert good.reason is None
    now = datetime.now(UTC)
    assert scene.client.is_current(KEY, "theirs", now)
    assert not scene.client.is_current(KEY, "ours", now)
    assert scene.client.known(KEY, "ours") is None, "if ours is silent, nobody has answered"
    revoked = await scene.ask()
    assert scene.reason is RevocationReason.KEY_COMPROMISE
    assert await scene.client.ask(HELD.certificate, theirs) == revoked, "theirs is the older one"
    assert scene.reason is RevocationReason.KEY_COMPROMISE
    assert scene.client.known(KEY, "theirs") == revoked
    assert not scene.client.is_current(KEY, "theirs", now)
    await scene.client.close()


async def test_of_two_answers_of_one_time_the_one_that_says_revoked_counts(scene: Scene) -> None:
    """Some responders round it to the hour, and somebody on the way may play back what one has said before."""
    scene.responder.nonce, scene.responder.made = False, datetime.now(UTC)
    for unknown, revoked, reason in (
        (False, False, None),
        (False, True, RevocationReason.CERTIFICATE_HOLD),
        (True, False, RevocationReason.CERTIFICATE_HOLD),
        (False, False, RevocationReason.CERTIFICATE_HOLD),
    ):
        scene.responder.unknown, scene.responder.revoked = unknown, {SERIAL: HOLD} if revoked else {}
        answer = await scene.ask()
        assert answer is not None
        assert (answer.reason, scene.reason) == (reason, reason)
    scene.responder.made += timedelta(seconds=1)
    assert await scene.ask() is not None
    assert scene.reason is None, "that one is later"
    await scene.client.close()


async def test_an_older_answer_of_the_same_responder_changes_nothing(scene: Scene) -> None:
    first = await scene.ask()
    assert first is not None
    scene.now, scene.responder.age = 30.0, timedelta(minutes=10)
    assert await scene.ask() == first
    assert scene.client.is_current(KEY, "ours", first.this_update)
    scene.now = 60.0
    assert not scene.client.is_current(KEY, "ours", first.this_update), "the older one does not count as asked"
    await scene.client.close()


async def test_answers_are_judged_by_what_is_proven_when_the_clock_is_set_back(scene: Scene) -> None:
    """Otherwise each new one is from the future, and the last one before would be the newest."""
    assert await scene.ask() is not None
    truth = datetime.now(UTC) + timedelta(days=1)
    scene.responder.signer = PKI.issuing  # Its delegate has ended by then.
    scene.responder.age -= timedelta(days=1)
    scene.responder.revoked[SERIAL] = FINAL
    assert await scene.ask() is None, "nothing tells which of the two clocks is wrong"
    assert scene.status.proven.hear_service(truth, 0.0, truth)
    answer = await scene.ask()
    assert answer is not None
    assert scene.reason is RevocationReason.KEY_COMPROMISE
    scene.responder.age += timedelta(days=1)
    assert await scene.ask() is None, "it has ended by then"
    await scene.client.close()


async def test_a_good_answer_from_a_time_when_all_clocks_were_ahead_gives_way_to_a_revocation(scene: Scene) -> None:
    now = datetime.now(UTC)
    ahead = now + timedelta(days=1)
    scene.responder.signer = PKI.issuing  # Its delegate has ended by then.
    assert scene.status.proven.hear_service(ahead, 0.0, ahead)
    scene.responder.age -= timedelta(days=1)
    assert await scene.ask() is not None
    assert scene.status.proven.hear_service(now, 0.0, now)
    scene.responder.age += timedelta(days=1)
    scene.responder.revoked[SERIAL] = FINAL
    assert await scene.ask() is not None
    assert scene.reason is RevocationReason.KEY_COMPROMISE
    await scene.client.close()


async def test_a_revocation_from_the_future_gives_way_to_nothing(scene: Scene) -> None:
    """By a clock that is set back all that is known is from the future, and a good answer may be a replayed one."""
    now = datetime.now(UTC)
    ahead = now + timedelta(days=1)
    scene.responder.signer = PKI.issuing  # Its delegate has ended by then.
    assert scene.status.proven.hear_service(ahead, 0.0, ahead)
    scene.responder.age -= timedelta(days=1)
    scene.responder.revoked[SERIAL] = FINAL
    assert await scene.ask() is not None
    assert scene.status.proven.hear_service(now, 0.0, now)
    scene.responder.age += timedelta(days=1)
    del scene.responder.revoked[SERIAL]
    await scene.ask()
    assert scene.reason is RevocationReason.KEY_COMPROMISE
    await scene.client.close()


async def test_what_is_known_grows_old_while_the_machine_sleeps(scene: Scene) -> None:
    answer = await scene.ask()
    assert answer is not None
    scene.client.slept(59.0)
    assert scene.client.is_current(KEY, "ours", answer.this_update)
    scene.now = 1.0
    assert not scene.client.is_current(KEY, "ours", answer.this_update)
    await scene.ask()
    assert scene.client.is_current(KEY, "ours", answer.this_update)
    await scene.client.close()


async def test_a_responder_that_is_not_there_is_said_once_and_left_alone_for_a_while(scene: Scene) -> None:
    del scene.web.pages["/ocsp"]
    for _ in range(3):
        assert await scene.ask() is None
    assert scene.told == [("OCSP lost", "OCSP_FAILED")]
    assert scene.client.failing["ours"] == {scene.url}
    assert scene.client.is_silent(scene.url, "ours")
    scene.now = ocsp_client._SILENCE
    assert not scene.client.is_silent(scene.url, "ours")
    scene.web.requests.clear()
    await asyncio.gather(*(scene.client.ask_at([scene.url], number, scene.issuer) for number in range(24)))
    assert scene.web.requests["/ocsp"] == 16, "who has waited for the first questions does not try, too"
    scene.web.pages["/ocsp"] = scene.responder
    assert await scene.ask() is None, "it was silent a moment ago"
    scene.now *= 2
    assert await scene.ask() is not None
    assert scene.told == [("OCSP lost", "OCSP_FAILED"), ("OCSP answers", "OCSP_CURRENT")]
    assert scene.client.failing["ours"] == set()
    await scene.client.close()


async def test_who_says_nothing_about_a_partner_s_certificate_is_asked_about_ours(scene: Scene) -> None:
    """A partner's certificate named our responder, which cut the connection: for five seconds nobody came in."""
    (theirs,) = TrustBundle(
        "theirs", [PKI.root.certificate], ocsp=OcspTerms(REQUIRE, None, from_certificates=True)
    ).anchors
    known, scene.web.pages["/ocsp"] = scene.web.pages["/ocsp"], lambda _: None
    assert await scene.client.ask_at([scene.url], 7, theirs) is None
    assert scene.client.is_silent(scene.url, "theirs")
    scene.web.pages["/ocsp"] = known
    assert await scene.ask() is not None
    assert (scene.client.failing["ours"], scene.client.failing["theirs"]) == (set(), {scene.url})
    assert scene.told == [("OCSP lost", "OCSP_FAILED")], "and it is theirs: it has answered us"
    await scene.client.close()


async def test_a_late_answer_among_others_is_no_silence(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a reconnection storm each was a warning, taken back at the next answer, and others were not asked about."""
    true_ask, asked, hangs = scene.client._http.ask, asyncio.Event(), asyncio.Event()

    async def ask(url: str, serial: int, issuer: x509.Certificate, *, time_at: Any) -> Any:
        if serial != SERIAL:
            asked.set()
            await hangs.wait()
            raise OcspUnreachable("no answer")
        return await true_ask(url, serial, issuer, time_at=time_at)

    monkeypatch.setattr(scene.client._http, "ask", ask)
    late = asyncio.create_task(scene.client.ask_at([scene.url], 1, scene.issuer))
    await asked.wait()
    scene.now = 1.0
    assert await scene.ask() is not None
    scene.now = 2.0
    hangs.set()
    assert await late is None
    assert scene.told == []
    assert not scene.client.is_silent(scene.url, "ours")
    assert await scene.client.ask_at([scene.url], 2, scene.issuer) is None
    assert scene.told == [("OCSP lost", "OCSP_FAILED")], "since this one was asked nobody has had an answer"
    assert scene.client.is_silent(scene.url, "ours")
    await scene.client.close()


async def test_what_a_responder_answers_to_a_partner_is_no_sign_that_it_answers_us(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    true = await scene.client._http.ask(scene.url, SERIAL, scene.issuer.certificate)
    terms = OcspTerms(REQUIRE, from_certificates=True)
    (partner,) = TrustBundle("partner", [PKI.issuing.certificate], ocsp=terms).anchors

    async def ask(_url: str, serial: int, *_: Any, **__: Any) -> Any:
        if serial == SERIAL:
            return true
        scene.now = 1.0
        assert await scene.client.ask_at([scene.url], SERIAL, partner) is not None
        raise OcspUnreachable("no answer")

    monkeypatch.setattr(scene.client._http, "ask", ask)
    assert await scene.client.ask_at([scene.url], 1, scene.issuer) is None
    assert scene.told == [("OCSP lost", "OCSP_FAILED")]
    await scene.client.close()


@pytest.mark.parametrize(("answers", "told"), [(3, True), (300, False)], ids=["one in ten", "a storm"])
async def test_who_lets_an_answer_through_now_and_then_is_told_of_each_minute_and_a_busy_responder_is_not(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, answers: int, told: bool
) -> None:
    """Each late answer had one before it, so nothing was said, and under `advisory` everybody was let in."""
    true = await scene.client._http.ask(scene.url, SERIAL, scene.issuer.certificate)
    hangs = asyncio.Event()

    async def ask(_url: str, serial: int, *_: Any, **__: Any) -> Any:
        if serial == SERIAL:
            return true
        await hangs.wait()
        raise OcspUnreachable("no answer")

    monkeypatch.setattr(scene.client._http, "ask", ask)
    for minute in range(3):
        late = [asyncio.create_task(scene.client.ask_at([scene.url], 1 + each, scene.issuer)) for each in range(10)]
        await asyncio.sleep(0)
        for _ in range(answers):
            scene.now += 30.0 / answers
            assert await scene.ask() is not None
        hangs.set()
        assert await asyncio.gather(*late) == [None] * 10
        hangs.clear()
        scene.now = 100.0 * (1 + minute)
    assert await scene.ask() is not None
    assert scene.told == [("OCSP mostly late", "OCSP_FAILED")] * (3 * told)
    assert not scene.client.is_silent(scene.url, "ours")
    await scene.client.close()


async def test_so_many_failing_responders_are_remembered_and_no_more(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Certificates name them: whoever issues many, each with a URL of its own, would fill the memory."""
    monkeypatch.setattr(ocsp_client, "_MOST_RESPONDERS", 2)
    first, second, third = (f"{scene.web.url}/{number}" for number in range(3))
    for url in (first, second):
        assert await scene.client.ask_at([url], SERIAL, scene.issuer) is None
    assert scene.client.failing["ours"] == {first, second}
    assert await scene.client.ask_at([third], SERIAL, scene.issuer) is None
    assert scene.client.failing["ours"] == {third}
    assert [scene.client.is_silent(url, "ours") for url in (first, second, third)] == [False, False, True]
    await scene.client.close()


async def test_the_answers_that_were_used_last_are_remembered(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ocsp_client, "_MOST_ANSWERS", 2)
    first, second, third = scene.responder.certificates = [shared_device(f"meter-{number}") for number in (1, 2, 3)]
    for held in (first, second, first, third):
        await scene.client.ask(held.certificate, scene.issuer)
    keys = [held.revocation.key for held in (first, second, third)]
    assert [scene.client.known(key, "ours") is not None for key in keys] == [True, False, True]
    assert scene.client.known(keys[0], "ours") is not None
    await scene.client.ask(second.certificate, scene.issuer)
    assert [scene.client.known(key, "ours") is not None for key in keys] == [True, True, False], "a look counts, too"
    await scene.client.close()


def test_whom_to_ask_the_bundle_says_before_the_certificate() -> None:
    anchors = [PKI.issuing.certificate]

    def asked(terms: OcspTerms | None) -> list[str]:
        (issuer,) = TrustBundle("ours", anchors, ocsp=terms).anchors
        return list(urls_of(named, issuer))

    urls = ["ldap://named/", "https://named/", *(f"http://{number}/" for number in range(5))]
    places = [x509.UniformResourceIdentifier(url) for url in urls]
    access = [x509.AccessDescription(x509.oid.AuthorityInformationAccessOID.OCSP, place) for place in places]
    named = PKI.device("meter-1", extensions=[x509.AuthorityInformationAccess(access)]).certificate
    assert asked(None) == []
    assert asked(OcspTerms(REQUIRE, "http://a/")) == ["http://a/"]
    assert asked(OcspTerms(REQUIRE, "http://a/", from_certificates=True)) == ["http://a/"]
    of_certificate = asked(OcspTerms(REQUIRE, None, from_certificates=True))
    assert of_certificate == urls[2:6], "answers are signed: no TLS; and a certificate has room for a thousand"
    assert asked(OcspTerms(REQUIRE, None, from_certificates=False)) == []
