from __future__ import annotations

import pytest
from starlette.responses import PlainTextResponse

from provisioning.api.closed_unread import is_closed_unread, without_text

NAMED = {b"user-agent": b"curl/8"}
SHOWN = {b"authorization": b"Basic eA=="}


@pytest.mark.parametrize(
    ("status", "headers", "closed"),
    [
        (401, {}, True),
        (401, SHOWN, False),
        (401, NAMED, False),
        (202, {}, True),
        (202, SHOWN, True),
        (202, SHOWN | NAMED, False),
        (200, {}, False),
        (400, {}, False),
        (403, {}, False),
        (503, {}, False),
    ],
)
def test_who_names_nothing_closes_a_202_and_a_401_that_asks(
    status: int, headers: dict[bytes, bytes], closed: bool
) -> None:
    assert is_closed_unread(status, headers) is closed


def test_an_answer_without_text_keeps_its_other_fields() -> None:
    asked = without_text(PlainTextResponse("TOKEN_MISSING: …\n", 401, headers={"WWW-Authenticate": "Basic"}))
    assert (asked.status_code, bytes(asked.body)) == (401, b"")
    assert dict(asked.headers) == {"www-authenticate": "Basic", "content-length": "0"}
