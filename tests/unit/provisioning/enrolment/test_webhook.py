"""What a webhook may answer: whatever it is, it is a yes, a no, or nothing that lets anybody in."""

from __future__ import annotations

import gzip
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from provisioning.enrolment.attempt import Question
from provisioning.enrolment.webhook import Webhooks
from provisioning.errors import Refused
from tests.support.pki import shared_pki
from tests.support.webhook import WebhookServer


@pytest.fixture
async def webhooks(tmp_path: Path) -> AsyncIterator[Webhooks]:
    asking = Webhooks(shared_pki().write_anchors(tmp_path))
    yield asking
    if asking._pool is not None:
        await asking._pool.aclose()


def question(url: str) -> Question:
    return Question(url, timedelta(seconds=5), "north", "meter-1", "00", ("token",), enrolled_before=False)


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 16_000,
        b"9" * 16_000,
        b"\xff\xfe",
        b'{"allow": false, "allow": true}',
        b'{"allow": 1}',
        b'[{"allow": true}]',
        gzip.compress(b'{"allow": true}'),
        b" " * 16_384 + b'{"allow": true}',
    ],
    ids=["deep", "long", "no text", "both", "number", "list", "compressed", "large"],
)
async def test_what_is_no_answer_lets_nobody_in(webhooks: Webhooks, body: bytes) -> None:
    with WebhookServer(body) as server:
        with pytest.raises(Refused, match="WEBHOOK_FAILED"):
            await webhooks.ask(question(server.url))
        server.body = b'{"allow": true, "note": "more is allowed"}'
        assert (await webhooks.ask(question(server.url))).allowed


async def test_a_reason_fits_into_one_line_of_text(webhooks: Webhooks) -> None:
    with WebhookServer(b'{"allow": false, "reason": "not\\ud800 \\u001b[31mthis\\none"}') as server:
        verdict = await webhooks.ask(question(server.url))
    assert (verdict.allowed, verdict.reason) == (False, "not [31mthis one")


@pytest.mark.parametrize(
    "url", ["https://xn--/", "https://a..b/", "https://exa mple/", "https://*/", "https://a:99999/"]
)
async def test_a_host_that_is_no_name_cannot_be_reached(webhooks: Webhooks, url: str) -> None:
    with pytest.raises(Refused, match="WEBHOOK_FAILED"):
        await webhooks.ask(question(url))
