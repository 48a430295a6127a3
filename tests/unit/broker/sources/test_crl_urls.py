"""Lists at URLs are asked for in time, whatever their servers say, and read again when they may have become usable."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta, tzinfo
from itertools import pairwise
from typing import Any, Self

import pytest
from cryptography import x509

from broker.admission.bundle import ListTerms, TrustBundle
from broker.admission.trust import Trust
from broker.settings.trust_settings import StatusPolicy
from broker.sources import crl_intake, crl_urls
from broker.sources.crl_intake import CrlIntake
from broker.sources.crl_urls import CrlUrls
from provisioning.pki.crl import CrlProblem
from provisioning.pki.revocation import Revocation
from provisioning.pki.revocation_reason import RevocationReason
from tests.support.crl import crl
from tests.support.pki import Held, shared_device, shared_pki
from tests.support.web import WebServer
from tests.support.wire import MemoryBroker

PKI = shared_pki()
DAY = 86_400.0
NOW = timedelta(0)
HOLD = RevocationReason.CERTIFICATE_HOLD


def trust_in(*anchors: Held, generation: int = 1) -> Trust:
    terms = ListTerms(StatusPolicy(0.0), from_certificates=True)
    return Trust([TrustBundle("", [each.certificate for each in anchors], lists=terms)], generation)


class Following:
    """A broker that follows one URL, by a clock of the test; lists are dated by the real one."""

    def __init__(self, web: WebServer, refresh: float) -> None:
        self.web, self.now = web, 0.0
        self.broker = MemoryBroker()
        self.broker.engine.admission.believe(trust_in(PKI.issuing))
        self.urls = CrlUrls(CrlIntake(self.broker.engine, lambda: self.now), refresh, lambda: self.now)
        self.urls.configure([("", f"{web.url}/ca.crl")])

    @property
    def requests(self) -> int:
        return self.web.requests["/ca.crl"]

    @property
    def held(self) -> list[int]:
        return [each.number for each in self.broker.engine.admission.status.lists.held]

    def alarms(self, code: CrlProblem) -> int:
        return int(self.broker.metrics.revocation_alarms[code])

    async def at(self, now: float) -> int:
        """Return how many requests the URL has had by *now*, when what is due has been fetched."""
        self.now = now
        await self.urls.fetch_due()
        return self.requests

    async def waits(self, times: int) -> list[float]:
        """Fetch so many times more; return how long the URL was left alone before each, in seconds."""
        begun = [self.now]
        while len(begun) <= times:
            before = self.requests
            if await self.at(self.now + 0.5) > before:
                begun.append(self.now)
        return [later - earlier for earlier, later in pairwise(begun)]


@pytest.fixture
def web() -> Iterator[WebServer]:
    with WebServer() as opened:
        yield opened


@pytest.fixture
async def daily(web: WebServer) -> AsyncIterator[Following]:
    following = Following(web, DAY)
    yield following
    await following.urls.close()


async def test_a_list_that_is_unchanged_is_asked_for_again_before_it_ends(daily: Following) -> None:
    """Its next issue may appear a moment after it was asked for, and long before it is due by the settings."""
    daily.web.pages["/ca.crl"] = crl(PKI.issuing, age=NOW, life=timedelta(minutes=20))
    assert await daily.at(0) == 1
    assert await daily.at(500) == 1, "half of its life is not over"
    assert await daily.at(601) == 2
    assert daily.web.not_modified == 1
    assert await daily.at(1202) == 3, "by its own end still"
    daily.web.pages["/ca.crl"] = crl(PKI.issuing, number=2, age=NOW, life=timedelta(days=30))
    assert await daily.at(1803) == 4
    assert daily.held == [2]
    assert await daily.at(1803 + DAY - 1) == 4
    assert await daily.at(1803 + DAY) == 5, "but as often as the settings want"


async def test_a_list_with_a_suspension_that_the_feed_has_ended_is_asked_for_again_soon(daily: Following) -> None:
    """It kept the device out for a quarter of an hour, or however rarely lists are fetched."""
    held, status = shared_device("meter-1"), daily.broker.engine.admission.status
    reasons = {held.certificate.serial_number: x509.ReasonFlags.certificate_hold}
    daily.web.pages["/ca.crl"] = crl(PKI.issuing, reasons, age=NOW, life=timedelta(days=30))
    hold = replace(held.revocation, reason=HOLD)
    assert await daily.at(0) == 1
    status.on_release = daily.urls.released
    status.index.add(replace(hold, serial=7))
    assert status.release((hold.issuer_key_id, 7))
    assert await daily.at(100) == 1, "it is on no list"
    status.index.add(hold)
    assert status.release(hold.key)
    assert await daily.at(102) == 1
    daily.web.pages["/ca.crl"] = crl(PKI.issuing, number=2, age=NOW, life=timedelta(days=30))
    assert await daily.at(103) == 2
    assert status.index.find(hold.key) is None
    assert await daily.at(200) == 2


async def test_a_suspension_that_ends_before_the_list_is_there_for_another_is_looked_for_too(daily: Following) -> None:
    """Of two that ended a second or two apart the later one kept its device out: the CA had not made that list yet."""
    held, status = shared_device("meter-1"), daily.broker.engine.admission.status
    first, second = (replace(held.revocation, serial=each, reason=HOLD) for each in (7, 8))
    reasons = {each.serial: x509.ReasonFlags.certificate_hold for each in (first, second)}
    status.on_release = daily.urls.released

    def release(hold: Revocation) -> None:
        status.index.add(hold)
        assert status.release(hold.key)

    def publish(number: int, *listed: Revocation) -> None:
        now = {each.serial: reasons[each.serial] for each in listed}
        daily.web.pages["/ca.crl"] = crl(PKI.issuing, now, number=number, age=NOW, life=timedelta(days=30))

    publish(1, first, second)
    assert await daily.at(0) == 1
    daily.now = 100
    release(first)
    daily.now = 102.5
    publish(2, second)
    release(second)
    assert await daily.at(103) == 2
    publish(3)
    assert await daily.at(105) == 2
    assert await daily.at(105.5) == 3
    assert [status.index.find(each.key) for each in (first, second)] == [None, None]
    assert await daily.at(200) == 3


async def test_only_a_list_that_was_sent_is_left_alone_for_its_size(
    daily: Following, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unchanged, it costs nothing to ask; its next issue was read only long after its end."""
    monkeypatch.setattr(crl_urls, "_BYTES_A_SECOND", 20)
    daily.web.pages["/ca.crl"] = content = crl(PKI.issuing, age=NOW, life=timedelta(seconds=14))
    await daily.at(0)
    sent, *unchanged = await daily.waits(3)
    assert sent >= len(content) / 20 > 8
    assert max(unchanged) <= 7
    assert daily.web.not_modified == 3


async def test_a_list_that_has_ended_is_asked_for_with_growing_pauses(daily: Following) -> None:
    daily.web.pages["/ca.crl"] = crl(PKI.issuing, age=timedelta(hours=2))
    assert await daily.at(0) == 1
    assert daily.held == [1], "whom it names is revoked all the same"
    assert await daily.waits(5) == [1, 2, 4, 8, 16]
    daily.web.pages["/ca.crl"] = crl(PKI.issuing, number=2, age=NOW)
    await daily.waits(1)
    assert daily.held == [2]
    assert await daily.at(daily.now + 1000) == daily.requests


async def test_a_url_that_fails_is_told_once_and_its_list_stays(daily: Following) -> None:
    daily.web.pages["/ca.crl"] = crl(PKI.issuing, [shared_device("meter-1")], life=timedelta(days=30))
    await daily.at(0)
    del daily.web.pages["/ca.crl"]
    await daily.at(DAY)
    assert await daily.waits(4) == [1, 2, 4, 8]
    assert (daily.alarms(CrlProblem.CRL_UNREADABLE), daily.held) == (1, [1])
    daily.web.pages["/ca.crl"] = crl(PKI.issuing, number=2, life=timedelta(days=30))
    await daily.waits(1)
    assert daily.held == [2]
    del daily.web.pages["/ca.crl"]
    await daily.at(daily.now + DAY)
    assert daily.alarms(CrlProblem.CRL_UNREADABLE) == 2, "it had answered meanwhile"
    assert await daily.waits(1) == [1]


async def test_when_the_clock_was_set_all_are_asked_for(daily: Following) -> None:
    daily.web.pages["/ca.crl"] = crl(PKI.issuing, life=timedelta(days=30))
    await daily.at(0)
    assert await daily.at(10) == 1
    daily.urls.clock_set()
    assert await daily.at(10) == 2


class InTwoHours(datetime):
    """What the wall clock says when two more hours are over."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> Self:
        return super().now(tz) + timedelta(hours=2)


async def test_a_list_before_its_time_is_read_again_though_its_url_says_that_it_is_unchanged(
    daily: Following, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = shared_device("meter-1")
    daily.web.pages["/ca.crl"] = crl(PKI.issuing, [held], age=timedelta(hours=-1), life=timedelta(days=3))
    await daily.at(0)
    assert (daily.alarms(CrlProblem.CRL_NOT_YET_VALID), daily.held) == (1, [])
    assert await daily.at(10) == 1
    for module in ("crl_urls", "crl_intake"):
        monkeypatch.setattr(f"broker.sources.{module}.datetime", InTwoHours)
    assert await daily.at(20) == 2
    assert (daily.web.not_modified, daily.held) == (0, [1])
    assert daily.broker.engine.admission.status.index.find(held.revocation.key)
    assert await daily.at(30) == 2


async def test_a_list_of_an_unknown_ca_is_read_when_that_ca_is_known(daily: Following) -> None:
    plant = PKI.authority("Plant CA", PKI.root)
    daily.web.pages["/ca.crl"] = crl(plant)
    await daily.at(0)
    assert (daily.alarms(CrlProblem.CRL_WRONG_ISSUER), daily.held) == (1, [])
    assert await daily.at(100) == 1
    daily.broker.engine.admission.believe(trust_in(PKI.issuing, plant, generation=2))
    assert await daily.at(101) == 2
    assert (daily.web.not_modified, daily.held) == (0, [1]), "it is sent again: it was of no use"
    assert await daily.at(102) == 2


async def test_certificates_cannot_have_anything_but_plain_http_fetched(daily: Following) -> None:
    asked = ["https://crl.example/ca.crl", "ftp://crl.example/ca.crl", "file:///etc/passwd", f"{daily.web.url}/x.crl"]
    assert daily.urls.follow(asked * 2, "") == [f"{daily.web.url}/x.crl"]


async def test_a_url_is_left_when_its_ca_has_expired_and_makes_room(
    daily: Following, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CA that is replaced every few hours names another each time."""
    monkeypatch.setattr(crl_urls, "_MOST_URLS", 1)
    now = datetime.now(UTC)
    ended, later = now - timedelta(seconds=1), now + timedelta(hours=1)
    first, second = (f"{daily.web.url}/{name}.crl" for name in ("first", "second"))
    assert daily.urls.follow([first], "", ended) == [first]
    await daily.at(1)
    assert daily.web.requests["/first.crl"] == 0
    assert daily.urls.follow([second], "", later) == [second]
    await daily.at(2)
    assert daily.web.requests["/second.crl"] == 1
    assert daily.urls.follow([second], "", ended) == [second]
    await daily.at(3)
    assert daily.urls.follow([first], "", later) == [], "another certificate of its CA ends later"
    daily.urls.configure([("", second)])
    await daily.at(4)
    assert daily.urls.follow([first, second], "", ended) == [first, second], "the settings name it, whatever ends"


async def test_nothing_makes_room_where_there_is_enough(daily: Following, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is followed already was counted again, and so was what never would be."""
    monkeypatch.setattr(crl_urls, "_MOST_URLS", 3)
    now = datetime.now(UTC)
    ended, known, new = (f"{daily.web.url}/{name}.crl" for name in ("ended", "known", "new"))
    daily.urls.follow([ended], "", now - timedelta(seconds=1))
    later = now + timedelta(hours=1)
    assert daily.urls.follow([known], "", later) == [known]
    assert daily.urls.follow([known, known, "https://a/x.crl", new], "", later) == [known, new]
    assert daily.urls.untried([ended], ""), "it is there still"


async def test_lists_that_come_at_once_are_taken_apart_one_by_one(
    daily: Following, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each takes memory, and a thread of those that read our own files."""
    busy, most = Counter[str](), Counter[str]()

    def alone(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*given: Any) -> Any:
            busy[name] += 1
            most[name] = max(most[name], busy[name])
            time.sleep(0.01)  # So that others would be seen.
            busy[name] -= 1
            return work(*given)

        return counted

    for name in ("split", "parse"):
        monkeypatch.setattr(crl_intake, name, alone(name, getattr(crl_intake, name)))
    for bundle in ("a", "b"):
        paths = [f"/{bundle}{number}.crl" for number in range(2)]
        daily.web.pages |= dict.fromkeys(paths, crl(PKI.issuing))
        daily.urls.follow([daily.web.url + path for path in paths], bundle)
    await daily.at(1)
    assert most == {"split": 1, "parse": 1}


async def test_a_clock_that_is_ahead_for_a_moment_leaves_no_url(
    daily: Following, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who was connected stayed so, and no list would have said again that it is revoked."""
    daily.web.pages["/named.crl"] = crl(PKI.issuing, life=timedelta(days=30))
    daily.urls.follow([f"{daily.web.url}/named.crl"], "", datetime.now(UTC) + timedelta(hours=1))
    await daily.at(1)
    with monkeypatch.context() as ahead:
        ahead.setattr(crl_urls, "datetime", InTwoHours)
        await daily.at(2 * DAY)
        assert daily.web.requests["/named.crl"] == 1
    await daily.at(2 * DAY + 1)
    assert daily.web.requests["/named.crl"] == 2


async def test_the_url_of_a_delta_stays_as_long_as_that_of_its_base(
    daily: Following, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = datetime.now(UTC)
    base, delta = (f"{daily.web.url}/{name}.crl" for name in ("base", "delta"))
    daily.web.pages["/base.crl"] = crl(PKI.issuing, life=timedelta(days=30), freshest=delta)
    daily.web.pages["/delta.crl"] = crl(PKI.issuing, number=2, base=1, life=timedelta(days=30))

    async def asked(at: float) -> tuple[int, int]:
        await daily.at(at)
        return daily.web.requests["/base.crl"], daily.web.requests["/delta.crl"]

    daily.urls.follow([base], "", now + timedelta(hours=1))
    await asked(1)
    assert await asked(2) == (1, 1)
    daily.urls.follow([base], "", now + timedelta(hours=3))  # Its CA was renewed, with the same key.
    monkeypatch.setattr(crl_urls, "datetime", InTwoHours)
    assert await asked(2 * DAY) == (2, 2)


async def test_a_url_that_the_settings_no_longer_name_is_left_and_its_list_stays(daily: Following) -> None:
    """Also that of a bundle that is gone. Whatever was revoked stays so, as with a file that is gone."""
    daily.web.pages |= {"/ca.crl": crl(PKI.issuing), "/other.crl": crl(PKI.issuing, number=2)}
    await daily.at(0)
    daily.urls.configure([("", f"{daily.web.url}/other.crl")])
    await daily.urls.fetch(f"{daily.web.url}/ca.crl", "")  # As who had begun to wait for it before.
    assert await daily.at(2 * DAY) == 1
    assert (daily.web.requests["/other.crl"], daily.held) == (1, [2])
    assert daily.urls.follow([f"{daily.web.url}/ca.crl"], "") == [f"{daily.web.url}/ca.crl"], "a certificate names it"
    assert await daily.at(2 * DAY + 1) == 2


async def test_a_url_that_the_settings_still_name_is_not_asked_again_because_they_were_read_again(
    daily: Following,
) -> None:
    daily.web.pages["/ca.crl"] = crl(PKI.issuing, life=timedelta(days=30))
    await daily.at(0)
    daily.urls.configure([("", f"{daily.web.url}/ca.crl")])
    assert await daily.at(10) == 1


async def test_who_comes_waits_for_a_url_until_it_was_tried_whatever_came_of_it(daily: Following) -> None:
    daily.web.pages["/good.crl"] = crl(PKI.issuing)
    urls = daily.urls.follow([f"{daily.web.url}/{name}.crl" for name in ("good", "bad")], "")
    for url in urls:
        assert daily.urls.untried([url], "")
        await daily.urls.fetch(url, "")
        await daily.urls.fetch(url, "")
        assert daily.web.requests[url.removeprefix(daily.web.url)] == 1, "it was just tried"
        assert not daily.urls.untried([url], "")
    assert daily.urls.untried(daily.urls.follow([*urls, f"{daily.web.url}/new.crl"], ""), "")
    assert not daily.urls.untried([], "")


async def test_a_delta_that_has_come_before_its_base_counts_when_that_has_come(daily: Following) -> None:
    """It was unchanged when it was asked for again, and so was never used: whom it revokes was admitted."""
    meter, index = shared_device("meter-1"), daily.broker.engine.admission.status.index
    daily.urls.configure([("", f"{daily.web.url}/{each}.crl") for each in ("ca", "delta")])
    daily.web.pages["/ca.crl"] = crl(PKI.issuing, number=3, age=NOW, life=timedelta(hours=1))
    daily.web.pages["/delta.crl"] = crl(PKI.issuing, [meter], number=5, base=4, age=NOW, life=timedelta(hours=10))
    await daily.at(0)
    await daily.at(5)  # Both were read at once, and the other list might have been the base.
    assert daily.alarms(CrlProblem.CRL_NO_BASE) >= 1
    before = daily.web.requests["/delta.crl"]
    await daily.at(10)
    assert daily.web.requests["/delta.crl"] == before, "nothing has come that could be its base"
    daily.web.pages["/ca.crl"] = crl(PKI.issuing, number=4, age=NOW, life=timedelta(hours=1))
    await daily.at(1801)
    assert index.find(meter.revocation.key) is None
    await daily.at(1803)
    assert index.find(meter.revocation.key) is not None
    before = daily.web.requests["/delta.crl"]
    await daily.at(1806)
    assert daily.web.requests["/delta.crl"] == before


class Counted(dict[tuple[str, str], Any]):
    """Counts how often all of it is looked at."""

    looks = 0

    def items(self) -> Any:
        self.looks += 1
        return super().items()


async def test_a_certificate_that_names_a_thousand_urls_is_not_a_thousand_looks_at_all_others(daily: Following) -> None:
    """Each of them cost a look at 256 others, 0.1 s for one certificate, in which nobody was served."""
    daily.urls._followed = followed = Counted(daily.urls._followed)
    assert len(daily.urls.follow([f"http://a/{number}" for number in range(300)], "")) == 256
    before = followed.looks
    assert daily.urls.follow([f"http://b/{number}" for number in range(1000)], "") == []
    assert followed.looks - before <= 3


async def test_a_list_that_ends_at_once_is_fetched_no_more_often_than_it_is_worth(
    daily: Following, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A partner's CA had one of any size fetched, and read, each second, from each of 256 URLs."""
    soon = timedelta(seconds=2)
    daily.web.pages["/ca.crl"] = crl(PKI.issuing, age=NOW, life=soon)
    await daily.at(0)
    assert await daily.waits(1) == [1], "the settings name it"
    monkeypatch.setattr(crl_urls, "_BYTES_A_SECOND", 100)
    daily.web.pages["/ca.crl"] = second = crl(PKI.issuing, number=2, age=NOW, life=soon)
    await daily.waits(1)
    assert (await daily.waits(1))[0] == pytest.approx(len(second) / 100, abs=0.5)
    monkeypatch.undo()
    daily.urls.configure([])
    daily.urls.follow([f"{daily.web.url}/ca.crl"], "")
    for number, wait in ((3, 10), (4, 12.5)):
        daily.web.pages["/ca.crl"] = crl(PKI.issuing, number=number, age=NOW, life=soon)
        await daily.waits(1)
        assert await daily.waits(1) == [wait], "certificates name it"
        monkeypatch.setattr(crl_urls, "_NAMED_A_SECOND", 0.08)
