from __future__ import annotations

import asyncio
import contextvars
import json
from collections.abc import Awaitable, Callable, Coroutine
from datetime import timedelta
from types import SimpleNamespace
from typing import Any, TypeVar

import httpx
import pytest
from fastapi import APIRouter, FastAPI, HTTPException, Request
from sqlalchemy import func, insert, select, text
from sqlalchemy.engine import Connection
from starlette.responses import JSONResponse

from provisioning.api.idempotency import HEADER, KEPT, AnswerBook, IdempotentRoute, _checked, repeatable
from provisioning.errors import Code, Refused
from provisioning.store import conditions
from provisioning.store.idempotency import PORTION, begin
from provisioning.store.tables import idempotency_keys
from tests.support.fleet import Fleet
from tests.support.searched import noted, scanned

ResultT = TypeVar("ResultT")
SECRET = b"s" * 32
TOKEN = "fgt_very-secret"
_MANY_MORE = {
    "sqlite": "INSERT INTO idempotency_keys WITH RECURSIVE counted(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM counted "
    "WHERE n < 20000) SELECT randomblob(32), request_digest, begun_at, answer FROM counted, idempotency_keys",
    "postgresql": "INSERT INTO idempotency_keys SELECT sha256(n::text::bytea), request_digest, begun_at, answer "
    "FROM generate_series(1, 20000) AS n, idempotency_keys",
}


async def elsewhere(asked: Coroutine[Any, Any, ResultT]) -> ResultT:
    """Ask as another request does, which has nothing of this one's context."""
    return await asyncio.create_task(asked, context=contextvars.Context())


async def refusal(book: AnswerBook, key: bytes, request: bytes) -> Code:
    with pytest.raises(Refused) as caught:
        await book.begin(key, request)
    return caught.value.code


async def test_the_first_answer_is_given_again_and_a_key_serves_one_request(fleet: Fleet) -> None:
    book = AnswerBook(fleet.database, SECRET, fleet.clock)
    key = book.digest_of("admin", "/v1/tokens", "k")
    assert await book.begin(key, b"r" * 32) is None
    assert await refusal(book, key, b"r" * 32) is Code.IDEMPOTENCY_BUSY
    beside = book.digest_of("admin", "/v1/tokens", "beside")
    assert await book.begin(beside, b"r" * 32) is None
    await book.finish(key, JSONResponse({"token": TOKEN}, 201))
    assert await refusal(book, beside, b"r" * 32) is Code.IDEMPOTENCY_BUSY, "that was no answer to this one"
    answer = await book.begin(key, b"r" * 32)
    assert answer is not None
    assert (answer.status_code, json.loads(bytes(answer.body))) == (201, {"token": TOKEN})
    assert answer.headers["idempotency-replayed"] == "true"
    assert await refusal(book, key, b"x" * 32) is Code.IDEMPOTENCY_MISMATCH
    for other in (("anna", "/v1/tokens", "k"), ("admin", "/v1/revocations", "k"), ("admin", "/v1/tokens", "l")):
        assert await book.begin(book.digest_of(*other), b"r" * 32) is None, "another operator, path or key"
    fleet.clock.advance(KEPT + timedelta(seconds=1))
    assert await book.begin(key, b"x" * 32) is None, "forgotten after a day"


async def test_what_is_over_is_forgotten_by_and_by_and_is_over_all_the_same(fleet: Fleet) -> None:
    book = AnswerBook(fleet.database, SECRET, fleet.clock)
    keys = [bytes([number // 256, number % 256]) * 16 for number in range(3 * PORTION)]

    def of_a_busy_day(connection: Connection) -> None:
        for key in keys:
            assert begin(connection, key, b"r" * 32, fleet.clock()) is None

    await fleet.database.write(of_a_busy_day)
    fleet.clock.advance(KEPT + timedelta(seconds=1))
    assert await book.begin(keys[-1], b"x" * 32) is None, "its turn has not come"

    async def left() -> int:
        count = select(func.count()).select_from(idempotency_keys)
        return await fleet.database.read(lambda connection: connection.execute(count).scalar_one())

    assert await left() == 2 * PORTION
    for number in range(3):
        assert await book.begin(book.digest_of("admin", "/v1/tokens", f"{number}"), b"r" * 32) is None
    assert await left() == 1 + 3, "those of now"


async def test_what_is_over_is_looked_up_and_not_searched_for(fleet: Fleet) -> None:
    """Also where very many are: those of a day, of which each caller removes some."""
    book = AnswerBook(fleet.database, SECRET, fleet.clock)
    begun = fleet.clock()

    def of_a_busy_day(connection: Connection) -> None:
        row = {"digest": b"d" * 32, "request_digest": b"r" * 32, "begun_at": begun, "answer": b"a" * 500}
        connection.execute(insert(idempotency_keys), row)
        connection.exec_driver_sql(_MANY_MORE[connection.dialect.name])

    await fleet.database.write(of_a_busy_day)
    await fleet.database.write(lambda connection: connection.exec_driver_sql("ANALYZE"))
    fleet.clock.advance(KEPT + timedelta(seconds=1))
    asked, answer = await noted(book.begin(b"k" * 32, b"r" * 32))
    assert answer is None
    assert await fleet.database.read(lambda connection: scanned(connection, asked)) == set()


async def test_the_database_alone_does_not_give_an_answer_away(fleet: Fleet) -> None:
    book = AnswerBook(fleet.database, SECRET, fleet.clock)
    key = book.digest_of("admin", "/v1/tokens", "guessable")
    await book.begin(key, b"r" * 32)
    await book.finish(key, JSONResponse({"token": TOKEN}, 201))
    rows = await fleet.database.read(
        lambda connection: connection.execute(text("SELECT * FROM idempotency_keys")).all()
    )
    assert TOKEN not in repr(rows)
    thief = AnswerBook(fleet.database, b"g" * 32, fleet.clock)
    assert thief.digest_of("admin", "/v1/tokens", "guessable") != key


async def test_a_request_whose_process_died_is_done_by_the_next_one(fleet: Fleet) -> None:
    died, book = (AnswerBook(fleet.database, SECRET, fleet.clock) for _ in range(2))
    key, beside = (book.digest_of("admin", "/v1/tokens", each) for each in ("k", "l"))
    for each in (key, beside):
        assert await died.begin(each, b"r" * 32) is None
    fleet.clock.advance(timedelta(seconds=61))
    assert await refusal(book, key, b"x" * 32) is Code.IDEMPOTENCY_MISMATCH
    assert await book.begin(key, b"r" * 32) is None
    assert await refusal(book, key, b"r" * 32) is Code.IDEMPOTENCY_BUSY
    assert await book.begin(beside, b"r" * 32) is None, "that one nobody does yet"
    await book.forget(key)
    assert await book.begin(key, b"x" * 32) is None, "who was refused may correct himself"


async def test_who_is_refused_after_another_process_took_over_leaves_that_ones_answer(fleet: Fleet) -> None:
    slow, quick = (AnswerBook(fleet.database, SECRET, fleet.clock) for _ in range(2))
    key = slow.digest_of("admin", "/v1/tokens", "k")
    assert await slow.begin(key, b"r" * 32) is None
    with conditions.of_one_request(), slow.doing(key):
        fleet.clock.advance(timedelta(seconds=61))
        assert await elsewhere(quick.begin(key, b"r" * 32)) is None
        with pytest.raises(Refused, match="IDEMPOTENCY_BUSY: this took so long"):
            await fleet.database.write(lambda connection: connection.execute(text("DELETE FROM idempotency_keys")))
        await elsewhere(quick.finish(key, JSONResponse({"token": TOKEN}, 201)))
        await slow.forget(key)
    answer = await quick.begin(key, b"r" * 32)
    assert answer is not None, "done a third time"
    assert json.loads(bytes(answer.body)) == {"token": TOKEN}


async def test_who_is_done_after_another_process_took_over_leaves_that_ones_answer(fleet: Fleet) -> None:
    """A process that was stopped for a day may even find the key with another request: its answer is not to that."""
    slow, quick = (AnswerBook(fleet.database, SECRET, fleet.clock) for _ in range(2))
    key, days = slow.digest_of("admin", "/v1/tokens", "k"), slow.digest_of("admin", "/v1/tokens", "for a day")
    for each in (key, days):
        assert await slow.begin(each, b"r" * 32) is None
    fleet.clock.advance(timedelta(seconds=61))
    assert await quick.begin(key, b"r" * 32) is None
    await quick.finish(key, JSONResponse({"token": TOKEN}, 201))
    await slow.finish(key, JSONResponse({"token": "another"}, 201))
    answer = await quick.begin(key, b"r" * 32)
    assert answer is not None
    assert json.loads(bytes(answer.body)) == {"token": TOKEN}
    fleet.clock.advance(KEPT)
    assert await quick.begin(days, b"x" * 32) is None
    await slow.finish(days, JSONResponse({"token": "another"}, 201))
    assert await refusal(quick, days, b"x" * 32) is Code.IDEMPOTENCY_BUSY


async def test_a_request_that_was_begun_by_a_clock_that_was_ahead_is_under_way_no_longer(fleet: Fleet) -> None:
    died, book = (AnswerBook(fleet.database, SECRET, fleet.clock) for _ in range(2))
    key = book.digest_of("admin", "/v1/tokens", "k")
    assert await died.begin(key, b"r" * 32) is None
    fleet.clock.advance(timedelta(seconds=-59))
    assert await refusal(book, key, b"r" * 32) is Code.IDEMPOTENCY_BUSY
    fleet.clock.advance(timedelta(seconds=-1))
    assert await book.begin(key, b"r" * 32) is None


async def test_a_request_that_takes_long_is_not_done_a_second_time_meanwhile(fleet: Fleet) -> None:
    book = AnswerBook(fleet.database, SECRET, fleet.clock)
    key = book.digest_of("anna", "/v1/tokens", "k")
    assert await book.begin(key, b"r" * 32) is None
    with conditions.of_one_request(), book.doing(key):
        fleet.clock.advance(timedelta(hours=1))
        assert await elsewhere(refusal(book, key, b"r" * 32)) is Code.IDEMPOTENCY_BUSY
        assert await elsewhere(refusal(book, key, b"s" * 32)) is Code.IDEMPOTENCY_MISMATCH
    assert await book.begin(key, b"r" * 32) is None, "nobody is at it any more"


class Asked:
    """A route that takes keys, *again*: `repeatable`; who calls it is anna, as long as she may."""

    def __init__(self, fleet: Fleet, *, again: bool = False) -> None:
        self.may = True
        self.refuses = self.ends = False
        self.change = "SELECT 1"
        """The statement that is executed."""
        self.meanwhile: Callable[[], Awaitable[None]] | None = None
        self.fails: Exception | None = None
        """Raised after the change."""
        self.done = 0
        router = APIRouter(route_class=IdempotentRoute)

        async def do(*, renumbered: bool = False) -> int:
            return await self._do(renumbered=renumbered)

        router.add_api_route("/things", repeatable(do) if again else do, methods=["POST", "GET"])
        app = FastAPI()
        app.include_router(router)
        app.state.operator_services = self
        self.answers = AnswerBook(fleet.database, SECRET, fleet.clock)
        self._database = fleet.database
        self.client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://ca.example")

    async def _do(self, *, renumbered: bool = False) -> int:
        del renumbered
        await self._database.write(lambda connection: connection.execute(text(self.change)))
        if self.meanwhile is not None:
            await self.meanwhile()
        if self.refuses:
            self.may = not self.ends
            raise HTTPException(400)
        self.done += 1
        if self.fails is not None:
            raise self.fails
        self.may = not self.ends
        return self.done

    async def authorise(self, _request: Request) -> None:
        """Anybody may call; what is kept is for who may."""

    async def authorise_whole(self, _request: Request) -> SimpleNamespace:
        self._check()
        conditions.require(lambda _: self._check())
        return SimpleNamespace(device=SimpleNamespace(name="anna"))

    def _check(self) -> None:
        if not self.may:
            raise HTTPException(403)

    async def post(self, body: str = "x", query: str = "") -> tuple[int, str, bool]:
        answer = await self.client.post(f"/things{query}", content=body, headers={HEADER: "k"})
        return answer.status_code, answer.text, "idempotency-replayed" in answer.headers


async def test_what_is_sent_again_is_not_done_again_and_only_who_may_ask_hears_the_answer(fleet: Fleet) -> None:
    asked = Asked(fleet)
    assert [await asked.post(), await asked.post()] == [(200, "1", False), (200, "1", True)]
    asked.may = False
    assert (await asked.post())[0] == 403
    for method in ("POST", "GET"):
        headers = {HEADER: "k"} if method == "GET" else {}
        answer = await asked.client.request(method, "/things", headers=headers)
        assert answer.status_code == 200, "a key is for what changes something"
    assert asked.done == 3


async def test_what_stands_in_the_query_is_of_the_request(fleet: Fleet) -> None:
    asked = Asked(fleet)
    assert await asked.post(query="?renumbered=true") == (200, "1", False)
    assert await asked.post(query="?renumbered=true") == (200, "1", True)
    for query in ("", "?renumbered=false"):
        with pytest.raises(Refused, match="IDEMPOTENCY_MISMATCH"):
            await asked.post(query=query)
    assert asked.done == 1


LOST = Refused(Code.UNAVAILABLE, "the database was lost before it said whether it was done")
"""As `Database.write` raises it, also where the COMMIT was executed."""


@pytest.mark.parametrize("fails", [LOST, KeyboardInterrupt(), ValueError()], ids=["lost", "killed", "fault"])
async def test_what_has_changed_something_is_not_done_again_though_its_answer_is_lost(
    fleet: Fleet, fails: Exception
) -> None:
    asked = Asked(fleet)
    asked.fails = fails
    with pytest.raises(type(fails)):
        await asked.post()
    asked.fails = None
    with pytest.raises(Refused, match="IDEMPOTENCY_BUSY"):
        await asked.post()
    fleet.clock.advance(timedelta(seconds=61))
    for _ in range(2):
        with pytest.raises(Refused, match="IDEMPOTENCY_UNKNOWN"):
            await asked.post()
        with pytest.raises(Refused, match="IDEMPOTENCY_MISMATCH"):
            await asked.post("y")
    assert asked.done == 1
    fleet.clock.advance(KEPT)
    assert await asked.post("y") == (200, "2", False)


async def test_what_has_changed_nothing_is_done_though_it_was_begun_before(fleet: Fleet) -> None:
    """It failed with its transaction, and with that the record of it."""
    asked = Asked(fleet)
    asked.change = "INSERT INTO no_such_table VALUES (1)"
    with pytest.raises(Refused, match="UNAVAILABLE"):
        await asked.post()
    asked.change = "SELECT 1"
    assert await asked.post() == (200, "1", False)


async def test_what_was_refused_after_a_change_may_be_corrected(fleet: Fleet) -> None:
    asked = Asked(fleet)
    asked.fails = Refused(Code.NAME_TAKEN, "the last portion was refused, and the others undone")
    with pytest.raises(Refused, match="NAME_TAKEN"):
        await asked.post()
    asked.fails = None
    assert await asked.post("y") == (200, "2", False)


async def test_what_only_takes_away_is_done_again_if_its_answer_is_lost(fleet: Fleet) -> None:
    asked = Asked(fleet, again=True)
    asked.fails = LOST
    with pytest.raises(Refused, match="UNAVAILABLE"):
        await asked.post()
    asked.fails = None
    assert [await asked.post(), await asked.post()] == [(200, "2", False), (200, "2", True)]


async def test_who_was_refused_may_correct_himself_under_the_same_key(fleet: Fleet) -> None:
    asked = Asked(fleet)
    asked.refuses = True
    assert (await asked.post())[0] == 400
    asked.refuses = False
    assert await asked.post("y") == (200, "1", False)


async def test_the_key_of_a_refused_request_is_free_though_he_who_asked_may_not_any_more(fleet: Fleet) -> None:
    asked = Asked(fleet)
    asked.refuses = asked.ends = True  # His role ended while it was refused.
    assert (await asked.post())[0] == 400
    asked.refuses, asked.ends, asked.may = False, False, True
    assert await asked.post("y") == (200, "1", False)


async def test_what_was_done_is_answered_though_he_who_asked_may_not_any_more(fleet: Fleet) -> None:
    asked = Asked(fleet)
    asked.ends = True  # He has revoked himself, say.
    assert await asked.post() == (200, "1", False)
    asked.may = True
    assert await asked.post() == (200, "1", True)


@pytest.mark.parametrize("refuses", [False, True])
async def test_what_was_done_or_refused_is_said_though_the_store_fails_afterwards(
    fleet: Fleet, *, refuses: bool
) -> None:
    asked = Asked(fleet)
    asked.refuses = refuses
    asked.change = "ALTER TABLE idempotency_keys RENAME TO away"
    assert (await asked.post())[0] == (400 if refuses else 200), "whoever hears 503 does it again"
    await fleet.database.write(
        lambda connection: connection.execute(text("ALTER TABLE away RENAME TO idempotency_keys"))
    )
    with pytest.raises(Refused, match="IDEMPOTENCY_BUSY"):
        await asked.post()


@pytest.mark.parametrize("refuses", [False, True])
async def test_what_is_under_way_for_long_is_not_begun_again(fleet: Fleet, *, refuses: bool) -> None:
    asked = Asked(fleet)
    asked.refuses = refuses

    async def asked_again() -> None:
        fleet.clock.advance(timedelta(hours=1))
        with pytest.raises(Refused, match="IDEMPOTENCY_BUSY"):
            await asked.post()

    asked.meanwhile = asked_again
    assert (await asked.post())[0] == (400 if refuses else 200)
    asked.meanwhile, asked.refuses = None, False
    assert await asked.post() == (200, "1", not refuses)


@pytest.mark.parametrize("key", ["", "a b", "x" * 129, "ü", 'a"b', "\x00"])
def test_what_cannot_be_a_key_is_refused(key: str) -> None:
    with pytest.raises(Refused, match="Idempotency-Key must have 1 to 128"):
        _checked(key)


def test_a_quoted_key_is_the_same_as_a_bare_one() -> None:
    assert _checked('"8e03978e-40d5-43dd"') == _checked("8e03978e-40d5-43dd")
