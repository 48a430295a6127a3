"""Manufacturers' lists at URLs: fetched in time, judged as any other, and by one process."""

from __future__ import annotations

import asyncio
import gzip
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest
from cryptography import x509
from structlog.testing import capture_logs

from provisioning.doctor.doctor_manufacturers import manufacturer_findings
from provisioning.enrolment import manufacturer_fetch
from provisioning.enrolment.manufacturer_fetch import ManufacturerFetcher, check_list_url
from provisioning.enrolment.manufacturer_lists import ManufacturerListService
from provisioning.enrolment.manufacturers import ManufacturerChange, ManufacturerService
from provisioning.errors import Code, Refused
from provisioning.store import audit, manufacturer_list_urls
from provisioning.store.database import Database
from provisioning.store.manufacturer_list_urls import StoredUrl
from tests.support.crl import crl, scope
from tests.support.fleet import Fleet
from tests.support.manufacturer import Manufacturer
from tests.support.panic import panic
from tests.support.requests import NOON
from tests.support.ways import HOUR, enrol, give_list, group, nothing, refusal, register
from tests.support.web import WebServer

DAY = timedelta(days=1)
LIST = "/devices.crl"


def listed(acme: Manufacturer, *revoked: int, **facts: Any) -> bytes:
    given: dict[str, Any] = {"now": NOON, "age": timedelta(), "life": DAY} | facts
    return crl(acme.held, dict.fromkeys(revoked, None), **given)


@pytest.fixture
async def acme(fleet: Fleet) -> Manufacturer:
    """A manufacturer that is registered."""
    await group(fleet, "manufacturer")
    registered = Manufacturer(begin=NOON - DAY)
    await register(fleet, registered)
    return registered


@pytest.fixture
def web() -> Iterator[WebServer]:
    """Where the list is."""
    with WebServer() as server:
        yield server


@pytest.fixture
async def fetcher(fleet: Fleet) -> AsyncIterator[ManufacturerFetcher]:
    """Fetches every hour."""
    made = fetcher_of(fleet)
    yield made
    await made.close()


def fetcher_of(fleet: Fleet, database: Database | None = None) -> ManufacturerFetcher:
    return ManufacturerFetcher(database or fleet.database, fleet.clock, 3600, 2000, "provisioning")


async def fetch_at(fleet: Fleet, *urls: str) -> None:
    service = ManufacturerService(fleet.database, fleet.clock, nothing)
    await service.change("acme", ManufacturerChange(list_urls=urls), by="anna")


async def known(fleet: Fleet) -> StoredUrl:
    (url,) = await fleet.database.read(manufacturer_list_urls.in_force)
    return url


async def test_a_list_is_fetched_at_once_and_again_before_it_ends(
    fleet: Fleet, acme: Manufacturer, web: WebServer, fetcher: ManufacturerFetcher
) -> None:
    idevid = acme.idevid("SN17")[0]
    assert await fetcher.fetch_due() == 0
    web.pages[LIST] = listed(acme, idevid.serial_number)
    await fetch_at(fleet, web.url + LIST)
    assert (await fetcher.fetch_due(), await fetcher.fetch_due(), web.requests[LIST]) == (1, 0, 1)
    assert await refusal(fleet, "SN17", certificate=idevid) is Code.MANUFACTURER_REVOKED
    (entry,) = await fleet.database.read(lambda connection: audit.about(connection, "list taken", 9))
    assert (entry.actor, f'"url": "{web.url}{LIST}"' in entry.details) == ("provisioning", True)
    url = await known(fleet)
    assert (url.fetched_at, url.problem) == (NOON, "")
    assert 0.8 * HOUR <= url.due_at - NOON <= HOUR
    fleet.clock.advance(HOUR)
    assert (await fetcher.fetch_due(), web.not_modified) == (1, 1)
    web.pages[LIST] = listed(acme, number=2, now=fleet.clock(), life=timedelta(minutes=20))
    fleet.clock.advance(HOUR - timedelta(minutes=50))
    assert await fetcher.fetch_due() == 0
    await fetch_at(fleet, web.url + LIST)  # At once, though it was known.
    assert await fetcher.fetch_due() == 1
    left = (await known(fleet)).due_at - fleet.clock()
    assert timedelta(minutes=4) <= left <= timedelta(minutes=5), "half of what is left of its life"
    await enrol(fleet, "SN17", certificate=idevid)
    assert fetcher.outcomes == {("acme", "new"): 2, ("acme", "unchanged"): 1}


async def test_what_cannot_be_used_changes_nothing_and_is_said_once(
    fleet: Fleet, acme: Manufacturer, web: WebServer, fetcher: ManufacturerFetcher
) -> None:
    idevid = acme.idevid("SN17")[0]
    web.pages[LIST] = listed(acme, idevid.serial_number, number=5)
    await fetch_at(fleet, web.url + LIST)
    await fetcher.fetch_due()

    async def problem_of(page: bytes | None) -> list[str]:
        if page is None:
            del web.pages[LIST]
        else:
            web.pages[LIST] = page
        fleet.clock.advance(HOUR)
        with capture_logs() as logs:
            await fetcher.fetch_due()
        url = await known(fleet)
        assert url.fetched_at == NOON
        return [each["detail"] for each in logs if each["event"] == "manufacturer's list not fetched"]

    other = Manufacturer(begin=NOON - DAY)
    older = "the list cannot be used: CRL_OLDER: number 4 of 2027-03-01 12:00:00 UTC; number 5 of 2027-03-01 12:00:00"
    assert await problem_of(listed(acme, number=4)) == [f"{older} is in use"]
    assert await problem_of(listed(acme, number=4)) == [], "said before"
    assert "CRL_BAD_SIGNATURE" in (await problem_of(listed(other, number=6)))[0]
    assert "CRL_MALFORMED" in (await problem_of(b"<html>"))[0]
    assert await problem_of(b"0" * 2001) == ["more than 2000 bytes"]
    assert await problem_of(None) == ["HTTP status 404"]
    assert await refusal(fleet, "SN17", certificate=idevid) is Code.MANUFACTURER_REVOKED
    assert (await known(fleet)).failures == 6

    def found(connection: Any) -> list[str]:
        return [each.detail for each in manufacturer_findings(connection, fleet.clock()) if each.verdict == "warning"]

    assert f"acme's CRL at {web.url}{LIST} cannot be fetched: HTTP status 404" in await fleet.database.read(found)
    web.pages[LIST] = listed(acme, number=6, now=fleet.clock())
    fleet.clock.advance(HOUR)
    with capture_logs() as logs:
        await fetcher.fetch_due()
    assert "manufacturer's list fetched again" in [each["event"] for each in logs]
    url = await known(fleet)
    assert (url.problem, url.failures, url.fetched_at) == ("", 0, fleet.clock())


@pytest.mark.usefixtures("acme")
async def test_pauses_after_failures_grow(fleet: Fleet, web: WebServer, fetcher: ManufacturerFetcher) -> None:
    await fetch_at(fleet, web.url + LIST)
    pauses = []
    for _ in range(9):
        assert await fetcher.fetch_due() == 1
        url = await known(fleet)
        pauses.append((url.due_at - fleet.clock()).total_seconds())
        fleet.clock.now = url.due_at
    for pause, most in zip(pauses, (30, 60, 120, 240, 480, 960, 1920, 3600, 3600), strict=True):
        assert 0.8 * most <= pause <= most


async def test_what_a_clock_that_was_ahead_has_put_off_is_due_when_it_is_set_back(
    fleet: Fleet, acme: Manufacturer, web: WebServer, fetcher: ManufacturerFetcher
) -> None:
    web.pages[LIST] = listed(acme, 7, life=9 * DAY)
    fleet.clock.advance(DAY)
    await fetch_at(fleet, web.url + LIST)
    assert await fetcher.fetch_due() == 1
    fleet.clock.advance(timedelta(minutes=-2))  # As the clocks of two machines may differ.
    assert await fetcher.fetch_due() == 0
    fleet.clock.advance(-DAY)
    assert (await fetcher.fetch_due(), await fetcher.fetch_due()) == (1, 0)
    assert (await known(fleet)).due_at <= fleet.clock() + HOUR


async def test_of_several_processes_one_fetches(
    fleet: Fleet, acme: Manufacturer, web: WebServer, fetcher: ManufacturerFetcher, store_url: str
) -> None:
    database = Database(store_url)
    other = fetcher_of(fleet, database)
    try:
        web.pages[LIST] = listed(acme, 7)
        await fetch_at(fleet, web.url + LIST)
        seen = await known(fleet)
        both = await asyncio.gather(fetcher.fetch_due(), other.fetch_due())
        assert (sum(both), web.requests[LIST]) == (1, 1)
        assert not await database.write(lambda connection: manufacturer_list_urls.take(connection, seen, NOON))
    finally:
        await other.close()
        await database.close()


async def test_neither_a_redirect_nor_a_compressed_answer_is_followed(
    fleet: Fleet, acme: Manufacturer, web: WebServer, fetcher: ManufacturerFetcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    web.pages["/elsewhere"] = listed(acme, 7)
    answers = [
        (302, {"Location": f"{web.url}/elsewhere"}, b""),
        (200, {"Content-Encoding": "gzip"}, gzip.compress(b"x")),
    ]

    def serve(handler: BaseHTTPRequestHandler, _body: bytes) -> None:
        status, headers, content = answers[0]
        handler.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(content)

    monkeypatch.setattr(web, "_serve", serve)
    await fetch_at(fleet, web.url + LIST)
    for words in ("HTTP status 302", "the answer is compressed"):
        await fetcher.fetch_due()
        assert words in (await known(fleet)).problem
        answers.pop(0)
        fleet.clock.advance(HOUR)


@pytest.mark.usefixtures("acme")
async def test_who_does_not_answer_is_not_waited_for(
    fleet: Fleet, fetcher: ManufacturerFetcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manufacturer_fetch, "_PATIENCE_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        await fetch_at(fleet, f"http://127.0.0.1:{silent.getsockname()[1]}/x")
        await fetcher.fetch_due()
    assert (await known(fleet)).problem == "no answer within 0.1 s"


async def test_a_defect_that_a_list_has_met_leaves_the_others_and_the_service(
    fleet: Fleet, acme: Manufacturer, web: WebServer, fetcher: ManufacturerFetcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    take = ManufacturerListService.take

    async def defective(self: ManufacturerListService, name: str, content: bytes, **said: Any) -> Any:
        if content == b"odd":
            raise AssertionError("a defect")
        return await take(self, name, content, **said)

    load, odd = x509.load_der_x509_crl, b"PANIC"
    monkeypatch.setattr(x509, "load_der_x509_crl", lambda der: panic() if odd in der else load(der))
    monkeypatch.setattr(ManufacturerListService, "take", defective)
    panics = listed(acme, 7, number=int.from_bytes(odd, "big"))
    web.pages |= {"/odd": b"odd", "/panics": panics, LIST: listed(acme, 7)}
    await fetch_at(fleet, web.url + "/odd", web.url + "/panics", web.url + LIST)
    with capture_logs() as logs:
        assert await fetcher.fetch_due() == 3
    assert [each["url"] for each in logs if each.get("code") == "INTERNAL"] == [web.url + "/odd"]
    urls = {each.url: each for each in await fleet.database.read(manufacturer_list_urls.in_force)}
    assert [urls[web.url + each].failures for each in ("/odd", "/panics", LIST)] == [1, 1, 0]
    assert urls[web.url + "/odd"].problem.startswith("INTERNAL_ERROR")
    assert "the parser gave up" in urls[web.url + "/panics"].problem
    assert fetcher.outcomes == {("acme", "new"): 1, ("acme", "failed"): 2}


async def test_a_list_that_is_the_same_still_is_asked_for_before_it_ends(
    fleet: Fleet, acme: Manufacturer, web: WebServer, fetcher: ManufacturerFetcher
) -> None:
    web.pages[LIST] = listed(acme, life=2 * HOUR)
    await fetch_at(fleet, web.url + LIST)
    await fetcher.fetch_due()
    pauses = []
    for left in (1.5 * HOUR, 0.5 * HOUR, -0.5 * HOUR, -HOUR):
        fleet.clock.now = NOON + 2 * HOUR - left
        await fetch_at(fleet, web.url + LIST)
        await fetcher.fetch_due()
        pauses.append(((await known(fleet)).due_at - fleet.clock()).total_seconds() / 60)
    assert web.not_modified == 4
    for pause, most in zip(pauses, (45, 15, 1, 60), strict=True):
        assert 0.8 * most <= pause <= most


async def test_what_a_server_says_of_its_list_may_be_anything(
    fleet: Fleet, acme: Manufacturer, web: WebServer, fetcher: ManufacturerFetcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def serve(handler: BaseHTTPRequestHandler, _body: bytes) -> None:
        asked.append([handler.headers[name] for name in ("If-None-Match", "If-Modified-Since")])
        handler.send_response(304 if len(asked) > 2 else 200)
        handler.wfile.write(b"".join(handler._headers_buffer))  # type: ignore[attr-defined] # No text of its own.
        handler.wfile.write(b'ETag: "caf\xc3\xa9"\r\nLast-Modified: %s\r\n' % (b"x" * 201))
        handler.wfile.write(b"Content-Length: %d\r\n\r\n" % len(content) + content)
        handler.close_connection = True

    content = listed(acme, 7)
    monkeypatch.setattr(web, "_serve", serve)
    await fetch_at(fleet, web.url + LIST)
    problems = []
    for _ in range(3):
        await fetcher.fetch_due()
        problems.append((await known(fleet)).problem)
        fleet.clock.advance(HOUR)
    assert problems == ["", "", "HTTP status 304"], "who was not asked whether it is the same cannot say so"
    assert asked == [[None, None]] * 3


async def test_a_list_that_was_removed_and_is_there_still_comes_again(
    fleet: Fleet, acme: Manufacturer, web: WebServer, fetcher: ManufacturerFetcher
) -> None:
    web.pages[LIST] = given = listed(acme, 7)
    await fetch_at(fleet, web.url + LIST)
    await fetcher.fetch_due()
    taken = await give_list(fleet, given)
    assert not taken.changed
    await ManufacturerListService(fleet.database, fleet.clock).remove("acme", taken.stored.sha256, by="anna")
    fleet.clock.advance(HOUR)
    await fetcher.fetch_due()
    assert fetcher.outcomes == {("acme", "new"): 2}
    assert not (await give_list(fleet, given)).changed


async def test_parts_have_urls_of_their_own_and_of_who_was_ended_none_is_fetched(
    fleet: Fleet, acme: Manufacturer, web: WebServer, fetcher: ManufacturerFetcher
) -> None:
    paths = [f"/{number}.crl" for number in range(2)]
    for path in paths:
        web.pages[path] = listed(acme, point=scope(web.url + path))
    await fetch_at(fleet, *[web.url + path for path in (*paths, paths[0])])
    service = ManufacturerService(fleet.database, fleet.clock, nothing)
    stored = await service.find("acme")
    assert await fetcher.fetch_due() == 2
    lists, urls = await ManufacturerListService(fleet.database, fleet.clock).of([stored])
    assert {each.scope.names for each in lists[stored.id]} == {frozenset({web.url + path}) for path in paths}
    assert [each.url for each in urls[stored.id]] == [web.url + path for path in paths]
    await service.end("acme", by="admin")
    fleet.clock.advance(2 * HOUR)
    assert await fetcher.fetch_due() == 0


async def test_who_is_slow_does_not_hold_the_others_up(
    fleet: Fleet, acme: Manufacturer, web: WebServer, fetcher: ManufacturerFetcher
) -> None:
    served = threading.Event()

    def slow(_asked: bytes) -> bytes | None:
        return listed(acme, point=scope("http://a/slow")) if served.wait(20) else None

    def fast(_asked: bytes) -> bytes:
        served.set()
        return listed(acme, point=scope("http://a/fast"))

    web.pages |= {"/slow": slow, "/fast": fast}
    await fetch_at(fleet, web.url + "/slow", web.url + "/fast")
    await fetcher.fetch_due()
    assert fetcher.outcomes == {("acme", "new"): 2}


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("https://pki.acme.example/x.crl", "must begin with http://"),
        ("file:///etc/passwd", "no URL"),
        ("ftp://pki.acme.example/x.crl", "must begin with http://"),
        ("http://user:word@pki.acme.example/", "no user and no fragment"),
        ("http://pki.acme.example/#x", "no user and no fragment"),
        ("http://169.254.169.254/latest", "not a manufacturer's server"),
        ("http://[fe80::1]/x.crl", "not a manufacturer's server"),
        ("http://0.0.0.0/x.crl", "not a manufacturer's server"),
        ("http://[::ffff:169.254.169.254]/latest", "not a manufacturer's server"),
        ("http://[64:ff9b::a9fe:a9fe]/latest", "not a manufacturer's server"),
        ("http://[fd00:ec2::254]/latest", "not a manufacturer's server"),
        ("http://[::/x.crl", "no URL"),
        ("http://pki.acme.example:0/", "no URL"),
        ("http://pki.acme.example/\n", "no URL"),
        ("http://pki.acme.example/" + "x" * 500, "no URL"),
        ("", "no URL"),
    ],
)
async def test_where_no_list_can_be_is_refused(fleet: Fleet, url: str, why: str) -> None:
    with pytest.raises(Refused, match=f"INVALID_REQUEST: list_urls: .*{why}"):
        await fetch_at(fleet, url)


@pytest.mark.usefixtures("acme")
@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("http://2852039166/latest", "its name resolves to 169.254.169.254: that is not a manufacturer's server"),
        ("http://0xa9fea9fe/latest", "its name resolves to 169.254.169.254: that is not a manufacturer's server"),
        ("http://-/x.crl", "cannot be fetched: "),
    ],
)
async def test_where_a_name_leads_is_looked_at(
    fleet: Fleet, fetcher: ManufacturerFetcher, url: str, problem: str
) -> None:
    await fetch_at(fleet, url)
    await fetcher.fetch_due()
    assert (await known(fleet)).problem.startswith(problem)


async def test_a_url_is_any_other_s(fleet: Fleet) -> None:
    for url in ("http://127.0.0.1:8080/x.crl", "http://[::1]/x", "http://localhost/", "http://pki.acme.example/a?b=c"):
        assert check_list_url(url) == url
    with pytest.raises(Refused, match="65 URLs, 64 at most"):
        await fetch_at(fleet, *[f"http://pki.acme.example/{number}" for number in range(65)])
    with pytest.raises(Refused, match="MANUFACTURER_UNKNOWN"):
        await fetch_at(fleet)


@pytest.mark.usefixtures("acme")
async def test_a_url_that_two_manufacturers_share_is_taken_from_the_one_that_is_meant(fleet: Fleet) -> None:
    """The other's list would no longer be fetched, and lapse."""
    await register(fleet, Manufacturer("Other", begin=NOON - DAY), name="other")
    service = ManufacturerService(fleet.database, fleet.clock, nothing)
    shared, own = "http://pki.example/all.crl", "http://pki.example/other.crl"
    for name, urls in (("acme", (shared,)), ("other", (shared, own)), ("acme", ())):
        await service.change(name, ManufacturerChange(list_urls=urls), by="anna")
    left = await fleet.database.read(manufacturer_list_urls.in_force)
    assert [(each.manufacturer, each.url) for each in left] == [("other", shared), ("other", own)]
    await service.change("other", ManufacturerChange(list_urls=(own,)), by="anna")
    left = await fleet.database.read(manufacturer_list_urls.in_force)
    assert [(each.manufacturer, each.url) for each in left] == [("other", own)]
