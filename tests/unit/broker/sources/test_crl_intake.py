"""What is made of the lists in one answer, whoever sent it: used, refused, told, and until when they hold."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest

from broker.admission.bundle import ListTerms, TrustBundle
from broker.admission.trust import Trust
from broker.engine.history import Event
from broker.revocation import revocation_rounds
from broker.settings.trust_settings import StatusPolicy
from broker.sources import crl_intake
from broker.sources.crl_intake import CrlIntake
from provisioning.pki.crl import MOST_LISTS, CrlProblem, parse, split
from tests.support.crl import crl, impostor_of, pem, scope
from tests.support.pki import Held, Pki, shared_device, shared_pki
from tests.support.wire import MemoryBroker
from tests.support.year_0 import FIRST_SECOND, dated_list

PKI = shared_pki()
HOUR = timedelta(hours=1)


class Audited:
    """Takes down what the audit log is told."""

    def __init__(self) -> None:
        self.entries: list[dict[str, Any]] = []
        self.seen = asyncio.Event()
        """Something has happened to a client."""

    def saw(self, _event: Event) -> None:
        self.seen.set()

    def told(self, event: str, **facts: object) -> None:
        self.entries.append({"event": event, **facts})


class Receiving:
    """A broker that trusts *anchors*, and what it did with lists."""

    def __init__(self, *anchors: Held) -> None:
        self.broker = MemoryBroker()
        self.audit = self.broker.engine.history.witness = Audited()
        bundle = TrustBundle("", [each.certificate for each in anchors], lists=ListTerms(StatusPolicy(0.0)))
        self.broker.engine.admission.believe(Trust([bundle]))
        self.intake = CrlIntake(self.broker.engine, lambda: self.broker.now)
        self.take = self.intake.take

    def is_revoked(self, held: Held) -> bool:
        return self.broker.engine.admission.status.index.find(held.revocation.key) is not None

    @property
    def problems(self) -> list[str]:
        return [each["code"] for each in self.audit.entries if each["event"] == "CRL problem"]


def next_update(der: bytes) -> datetime:
    return parse(der).next_update


async def test_of_several_lists_each_counts_and_what_is_wrong_with_one_harms_no_other() -> None:
    first, second = PKI.device("first", issuer=PKI.root), shared_device("meter-1")
    receiving = Receiving(PKI.root, PKI.issuing)
    roots = crl(PKI.root, [first], life=3 * HOUR, freshest="http://a/delta")
    forged = crl(PKI.issuing, [PKI.device("good")], number=9, signed_by=impostor_of(PKI.issuing))
    ours = crl(PKI.issuing, [second], life=2 * HOUR, freshest="http://b/delta")
    taken = await receiving.take(pem(ours, forged, roots), "file")
    assert [receiving.is_revoked(each) for each in (first, second)] == [True, True]
    assert receiving.problems == ["CRL_BAD_SIGNATURE"]
    assert taken.delta_urls == ("http://b/delta", "http://a/delta")
    assert taken.fresh_until == next_update(ours), "the first of them to end"
    assert taken.unmatched, "another CA of that name may be learned, whose signature it is"
    for order in ((ours, roots), (roots, ours)):
        again = await receiving.take(pem(*order), "file")
        assert again.fresh_until == next_update(ours), "also of those that are known"
    assert again.delta_urls == ("http://a/delta", "http://b/delta")
    assert not again.unmatched


async def test_the_event_loop_does_nothing_for_each_byte_of_a_list(monkeypatch: pytest.MonkeyPatch) -> None:
    """The text of a million entries in PEM was decoded on it, for two seconds."""
    where: list[threading.Thread] = []

    def split_somewhere(content: bytes, pause: Callable[[], None]) -> list[bytes]:
        where.append(threading.current_thread())
        return split(content, pause)

    monkeypatch.setattr(crl_intake, "split", split_somewhere)
    receiving, meter = Receiving(PKI.issuing), shared_device("meter-1")
    await receiving.take(pem(crl(PKI.issuing, [meter])), "x")
    assert receiving.is_revoked(meter)
    assert where
    assert threading.main_thread() not in where


async def test_of_two_cas_with_one_name_a_list_is_that_of_the_one_whose_key_signed_it() -> None:
    other = Pki().issuing
    receiving = Receiving(PKI.issuing, other)
    mine = shared_device("meter-1")
    theirs = PKI.device("meter-1", issuer=other)
    await receiving.take(crl(other, [mine, theirs]), "file")
    assert (receiving.problems, receiving.is_revoked(mine), receiving.is_revoked(theirs)) == ([], False, True)
    await receiving.take(crl(PKI.issuing, [mine]), "file")
    assert receiving.is_revoked(mine)


async def test_a_list_ends_the_sessions_of_those_it_names_and_the_audit_log_says_who_they_are() -> None:
    receiving = Receiving(PKI.issuing)
    broker = receiving.broker
    await receiving.take(crl(PKI.issuing), "ca.crl")
    receiving.audit.entries.clear()
    victim, neighbour = broker.device("meter-1"), broker.device("meter-2")
    await receiving.take(crl(PKI.issuing, [shared_device("meter-1")], number=7), "ca.crl")
    broker.settle()
    assert (victim.closed, neighbour.closed) == (True, False)
    used, revoked = receiving.audit.entries
    assert used | {"event": "CRL in use", "crl_number": 7, "entries": 1, "revoked": 1, "sessions_closed": 1} == used
    serial, issuer = shared_device("meter-1").revocation.serial, shared_device("meter-1").revocation.issuer_key_id
    assert revoked == {
        "event": "revoked",
        "code": "REVOKED",
        "source": "ca.crl",
        "issuer": issuer.hex(),
        "serial": f"{serial:x}",
        "reason": "keyCompromise",
        "crl_number": 7,
    }
    assert broker.metrics.revocations == 1


async def test_whom_a_list_revokes_is_put_out_and_recorded_even_if_who_asked_for_the_list_gives_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Who waits for a list gives up after seconds, perhaps in the middle of that; read again, the list is known."""
    monkeypatch.setattr(revocation_rounds, "_SECONDS_A_TURN", -1.0)  # A turn for each client.
    receiving = Receiving(PKI.issuing)
    await receiving.take(crl(PKI.issuing), "ca.crl")
    receiving.audit.entries.clear()
    victims = [receiving.broker.device(f"meter-{number}") for number in range(1, 9)]
    content = crl(PKI.issuing, [shared_device(f"meter-{number}") for number in range(1, 9)], number=2)
    receiving.audit.seen.clear()
    impatient = asyncio.create_task(receiving.take(content, "ca.crl"))
    await receiving.audit.seen.wait()  # One is out.
    assert not all(each.closed for each in victims), "in the middle"
    impatient.cancel()
    await asyncio.gather(impatient, return_exceptions=True)
    await receiving.take(content, "ca.crl")
    await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()})
    assert all(each.closed for each in victims)
    assert [each["event"] for each in receiving.audit.entries] == ["CRL in use", *["revoked"] * 8]


@pytest.mark.parametrize(("many", "named"), [(20, 20), (21, 0)])
async def test_of_very_many_only_the_number_is_recorded(many: int, named: int) -> None:
    receiving = Receiving(PKI.issuing)
    await receiving.take(crl(PKI.issuing, dict.fromkeys(range(1, many + 1))), "ca.crl")
    assert receiving.audit.entries[0]["revoked"] == many
    assert [each["event"] for each in receiving.audit.entries[1:]] == ["revoked"] * named


async def test_that_a_list_is_late_and_that_it_has_ended_is_said_once_each() -> None:
    receiving = Receiving(PKI.root, PKI.issuing)
    await receiving.take(crl(PKI.issuing, age=50 * HOUR / 60), "late.crl")
    await receiving.take(crl(PKI.root, age=2 * HOUR), "ended.crl")
    for _ in range(2):
        receiving.intake.alarm()
    said = [each for each in receiving.audit.entries if each["event"] == "CRL problem"]
    assert [(each["code"], each["source"]) for each in said] == [
        ("CRL_LATE", "late.crl"),
        ("CRL_EXPIRED", "ended.crl"),
    ]
    assert ["away, and the next CRL is not available" in str(each["detail"]) for each in said] == [True, False]
    alarms = receiving.broker.metrics.revocation_alarms
    assert (alarms[CrlProblem.CRL_LATE], alarms[CrlProblem.CRL_EXPIRED]) == (1, 1)
    receiving.audit.entries.clear()
    many = [crl(PKI.root, age=50 * HOUR / 60, point=scope(f"http://x/{number}")) for number in range(10)]
    await receiving.take(pem(*many), "http://a/")
    assert (receiving.problems, alarms[CrlProblem.CRL_LATE]) == (["CRL_LATE"] * 9, 11), "of many the first eight"
    assert "2 more lists from there need attention" in receiving.audit.entries[-1]["detail"]


async def test_a_list_that_is_too_early_or_too_late_says_when_it_could_be_used() -> None:
    receiving = Receiving(PKI.issuing)
    await receiving.take(crl(PKI.issuing), "file")
    early, late = crl(PKI.issuing, number=2, age=-HOUR), crl(PKI.issuing, number=3, age=2 * HOUR)
    for der, code in ((early, "CRL_NOT_YET_VALID"), (late, "CRL_EXPIRED")):
        taken = await receiving.take(der, "file")
        listed = parse(der)
        assert taken.untimely == ((listed.this_update - timedelta(minutes=5), listed.next_update),)
        assert not taken.unmatched
        assert receiving.problems[-1] == code
    first = dated_list(crl(PKI.issuing, number=4), PKI.issuing.key, FIRST_SECOND, FIRST_SECOND)
    taken = await receiving.take(first, "file")
    assert (receiving.problems[-1], len(taken.untimely)) == ("CRL_EXPIRED", 1), "its CA may sign the first second"
    taken = await receiving.take(crl(PKI.issuing, number=0, age=HOUR / 2), "file")
    assert (receiving.problems[-1], taken.untimely) == ("CRL_OLDER", ()), "no clock makes it newer"


async def test_a_list_whose_number_contradicts_its_date_revokes_and_is_told_as_one_to_look_at() -> None:
    """Of a CA whose data was restored nothing counted that it revoked, until it had got to its old number again."""
    receiving, meter = Receiving(PKI.issuing), shared_device("meter-1")
    await receiving.take(crl(PKI.issuing, number=500, age=HOUR / 2), "file")
    client, again = receiving.broker.device("meter-1"), crl(PKI.issuing, [meter], number=3)
    for _ in range(2):
        await receiving.take(again, "file")
        assert (receiving.is_revoked(meter), client.closed) == (True, True)
    assert receiving.problems == ["CRL_OLDER"] * 2
    assert str(receiving.audit.entries[-1]["detail"]).endswith("restart the broker")


async def test_what_is_no_list_is_said_and_nothing_comes_of_it() -> None:
    receiving = Receiving(PKI.issuing)
    for content in (b"", b"<html>", b"\x30\x03abc"):
        taken = await receiving.take(content, "http://a/")
        assert (taken.unmatched, taken.untimely, taken.fresh_until) == (False, (), None)
    assert receiving.problems == ["CRL_MALFORMED"] * 3


async def test_a_text_of_very_many_lists_is_one_problem_and_of_many_that_are_refused_few_have_a_line() -> None:
    """Whoever answers at a URL sent twenty thousand in a megabyte: each had its line, in the audit log as well."""
    receiving, meter = Receiving(PKI.issuing), shared_device("meter-1")
    nothing = b"-----BEGIN X509 CRL-----\nMAA=\n-----END X509 CRL-----\n"
    await receiving.take(30 * nothing + pem(crl(PKI.issuing, [meter], number=2)), "http://a/")
    assert receiving.is_revoked(meter), "behind them"
    alarms = receiving.broker.metrics.revocation_alarms
    assert (len(receiving.problems), alarms[CrlProblem.CRL_MALFORMED]) == (9, 30), "all are counted"
    (last,) = [each for each in receiving.audit.entries if "more lists" in str(each.get("detail"))]
    assert "22 more lists" in last["detail"]
    receiving.audit.entries.clear()
    await receiving.take((MOST_LISTS + 1) * nothing, "http://a/")
    assert receiving.problems == ["CRL_UNSUPPORTED"]


async def test_who_has_many_lists_lets_others_in_between() -> None:
    """A partner's server kept a list of ours waiting until its own were all read: whom ours revoked was admitted."""
    receiving = Receiving(PKI.root, PKI.issuing)
    theirs = pem(*(crl(PKI.root, {number + 1: None}, point=scope(f"http://x/{number}")) for number in range(40)))
    partner = asyncio.create_task(receiving.take(theirs, "partner"))
    await asyncio.gather(partner, receiving.take(crl(PKI.issuing, [shared_device("meter-1")]), "ours"))
    used = [each for each in receiving.audit.entries if each["event"] == "CRL in use"]
    assert [each["source"] for each in used].index("ours") < 9, "before the last of theirs"
    assert len(used) == 10, "whoever answers at a URL could fill the log, each second anew"
    rest = {"source": "partner", "lists": 32, "entries": 32, "revoked": 32, "released": 0, "sessions_closed": 0}
    assert used[-1] | rest == used[-1]
    assert used[-1]["detail"] == "32 more lists from there are in use"
    assert sum(each["event"] == "revoked" and each["source"] == "partner" for each in receiving.audit.entries) == 20
    assert receiving.broker.metrics.revocations == 41


async def test_of_the_deltas_that_lists_name_a_bounded_number_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crl_intake, "_MOST_DELTAS", 2)
    lists = [crl(PKI.issuing, freshest=f"http://a/{name}", number=number) for number, name in enumerate("aabc")]
    taken = await Receiving(PKI.issuing).take(pem(*lists), "file")
    assert taken.delta_urls == ("http://a/a", "http://a/b")
