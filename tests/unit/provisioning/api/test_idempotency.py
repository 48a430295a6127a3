from __future__ import annotations

import json
from datetime import timedelta

import pytest
from sqlalchemy import text
from starlette.responses import JSONResponse

from provisioning.api.idempotency import KEPT, AnswerBook, _checked
from provisioning.errors import Code, Refused
from tests.support.fleet import Fleet

SECRET = b"s" * 32
TOKEN = "fgt_very-secret"


async def refusal(book: AnswerBook, key: bytes, request: bytes) -> Code:
    with pytest.raises(Refused) as caught:
        await book.begin(key, request)
    return caught.value.code


async def test_the_first_answer_is_given_again_and_a_key_serves_one_request(fleet: Fleet) -> None:
    book = AnswerBook(fleet.database, SECRET, fleet.clock)
    key = book.digest_of("admin", "/v1/tokens", "k")
    assert await book.begin(key, b"r" * 32) is None
    assert await refusal(book, key, b"r" * 32) is Code.IDEMPOTENCY_BUSY
    await book.finish(key, JSONResponse({"token": TOKEN}, 201))
    answer = await book.begin(key, b"r" * 32)
    assert answer is not None
    assert (answer.status_code, json.loads(bytes(answer.body))) == (201, {"token": TOKEN})
    assert answer.headers["idempotency-replayed"] == "true"
    assert await refusal(book, key, b"x" * 32) is Code.IDEMPOTENCY_MISMATCH
    for other in (("anna", "/v1/tokens", "k"), ("admin", "/v1/revocations", "k"), ("admin", "/v1/tokens", "l")):
        assert await book.begin(book.digest_of(*other), b"r" * 32) is None, "another operator, path or key"
    fleet.clock.advance(KEPT + timedelta(seconds=1))
    assert await book.begin(key, b"x" * 32) is None, "forgotten after a day"


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
    book = AnswerBook(fleet.database, SECRET, fleet.clock)
    key = book.digest_of("admin", "/v1/tokens", "k")
    assert await book.begin(key, b"r" * 32) is None
    fleet.clock.advance(timedelta(seconds=61))
    assert await refusal(book, key, b"x" * 32) is Code.IDEMPOTENCY_MISMATCH
    assert await book.begin(key, b"r" * 32) is None
    assert await refusal(book, key, b"r" * 32) is Code.IDEMPOTENCY_BUSY
    await book.forget(key)
    assert await book.begin(key, b"x" * 32) is None, "who was refused may correct himself"


@pytest.mark.parametrize("key", ["", "a b", "x" * 129, "ü", 'a"b', "\x00"])
def test_what_cannot_be_a_key_is_refused(key: str) -> None:
    with pytest.raises(Refused, match="Idempotency-Key must have 1 to 128"):
        _checked(key)


def test_a_quoted_key_is_the_same_as_a_bare_one() -> None:
    assert _checked('"8e03978e-40d5-43dd"') == _checked("8e03978e-40d5-43dd")
