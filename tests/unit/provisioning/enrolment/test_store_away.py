"""What looks into the store every few seconds says once that it cannot, not each time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Never

import pytest
from structlog.testing import capture_logs

from provisioning.enrolment import enrolment_trust, manufacturer_fetch
from provisioning.enrolment.enrolment_trust import EnrolmentTrust
from provisioning.enrolment.manufacturer_fetch import ManufacturerFetcher
from provisioning.errors import Code, Refused
from provisioning.revocation import recall_watch
from provisioning.revocation.recall_watch import RecallWatch

LOOKS = 5


class Away:
    """A store that cannot be used; *enough* is set when somebody has tried some times."""

    def __init__(self) -> None:
        self.enough = asyncio.Event()
        self._looks = 0

    async def read(self, _work: object) -> Never:
        self._looks += 1
        if self._looks == LOOKS:
            self.enough.set()
        raise Refused(Code.UNAVAILABLE, "the store cannot be used now; try again")


def now() -> datetime:
    return datetime.now(UTC)


MADE: dict[str, Callable[[Any], Any]] = {
    "ENROLMENT_TRUST_STALE": lambda away: EnrolmentTrust(away, now, lambda _anchors: None),
    "MANUFACTURER_LIST_UNFETCHED": lambda away: ManufacturerFetcher(away, now, 60, 1 << 20, "provisioning"),
    "MANUFACTURER_WATCH_FAILED": lambda away: RecallWatch(away, now, None, None, "provisioning"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("code", MADE)
async def test_what_looks_into_a_store_that_is_away_says_so_once(code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (enrolment_trust, manufacturer_fetch, recall_watch):
        monkeypatch.setattr(module, "_ROUND_SECONDS", 0)
    away = Away()
    with capture_logs() as logs:
        looking = asyncio.create_task(MADE[code](away).run())
        await asyncio.wait_for(away.enough.wait(), 30)
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)
    assert [(each["code"], each["times"]) for each in logs] == [(code, 1)]
