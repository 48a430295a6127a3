"""What the inventory shows of a certificate, and the form of an export."""

from __future__ import annotations

import json
import weakref
from collections import Counter
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any, cast

import pytest

from provisioning.api.inventory import _hexadecimal, _items, _json, _json_text, _pages, _sha256
from provisioning.errors import Refused
from provisioning.pki.keys import generate_key
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.program.moments import rfc3339
from provisioning.store import inventory
from provisioning.store.certificates import CertificateState
from provisioning.store.inventory import CertificateSearch
from tests.support.fleet import Fleet, successor_csr
from tests.support.many_certificates import Died, dying_after, make_portions_small, many_for_key, serials_of, stored
from tests.support.ways import HOUR, claim, enrol, group

COMPROMISED, SUPERSEDED = RevocationReason.KEY_COMPROMISE, RevocationReason.SUPERSEDED
DAY = timedelta(days=1)


async def listed(fleet: Fleet) -> list[dict[str, Any]]:
    """Return what is told of each of the device's certificates."""
    found = await stored(fleet)
    return await fleet.database.read(lambda connection: _items(connection, found, fleet.clock()))


async def shown(fleet: Fleet) -> dict[str, tuple[str, str | None, str | None]]:
    """Return the state, the date and the reason of each of the device's certificates, by serial number."""
    return {each["serial"]: (each["state"], each["revoked_at"], each["reason"]) for each in await listed(fleet)}


async def test_a_revocation_is_shown_since_when_it_counts(fleet: Fleet) -> None:
    good, held, revoked = serials_of([await fleet.enrol("meter-1") for _ in range(3)])
    first = rfc3339(fleet.clock())
    await fleet.suspension.suspend_serial(held, by="anna")
    fleet.clock.advance(DAY)
    second = rfc3339(fleet.clock())
    await fleet.revocation.revoke_serial(revoked, SUPERSEDED, by="anna")
    fleet.clock.advance(DAY)
    assert await shown(fleet) == {
        good: ("active", None, None),
        held: ("suspended", first, "certificateHold"),
        revoked: ("revoked", second, "superseded"),
    }


async def test_what_its_key_s_end_has_not_reached_is_shown_as_revoked_since_then(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_portions_small(monkeypatch)
    every = serials_of(await many_for_key(fleet, generate_key(), more=5))
    await fleet.suspension.suspend_serial(every[0], by="anna")
    fleet.clock.advance(DAY)
    since = rfc3339(fleet.clock())
    with dying_after(0), pytest.raises(Died):
        await fleet.revocation.revoke_serial(every[2], COMPROMISED, by="anna")
    fleet.clock.advance(DAY)
    found = await shown(fleet)
    assert {state for state, _, _ in found.values()} == {"revoked"}
    assert {at for _, at, _ in found.values()} == {since}, "also of what was on hold before"
    assert found[every[1]][2] is None, "the reason is recorded with its portion"


async def test_a_trial_is_told_apart_from_what_somebody_has_suspended(fleet: Fleet) -> None:
    await group(fleet, "claim", "token")
    shared, key = await claim(fleet), generate_key()

    async def trials() -> list[tuple[str, str | None]]:
        told = await listed(fleet)
        for search in (None, CertificateSearch(group="line")):  # Two ways to count, and a third to search.
            counts = await fleet.database.read(lambda c: inventory.count(c, fleet.clock(), search))
            assert +Counter({each.value: number for each, number in counts.items()}) == Counter(
                each["state"] for each in told
            )
        for state in CertificateState:
            wanted = CertificateSearch(state=state)
            found, _ = await fleet.database.read(
                lambda c: inventory.page(c, wanted, limit=9, after=None, now=fleet.clock())
            )
            assert [each.serial for each in found] == [each["serial"] for each in told if each["state"] == state]
        return [(each["state"], each["trial"]) for each in told]

    await enrol(fleet, "meter-1", key=key, certificate=shared)
    assert await trials() == [("suspended", "awaited")]
    fleet.clock.advance(2 * HOUR)
    assert await trials() == [("expired", "ended")]
    second = await enrol(fleet, "meter-1", key=key, certificate=shared)
    third = await fleet.reenrol(second, successor_csr(second, key))
    assert await trials() == [("expired", "ended"), ("suspended", "activated"), ("active", None)]
    fleet.clock.advance(2 * HOUR)
    assert await trials() == [("expired", "ended"), ("expired", "activated"), ("active", None)]
    await fleet.suspension.suspend_serial(f"{third.serial_number:x}", by="admin")
    assert (await trials())[2] == ("suspended", None)


@pytest.mark.parametrize("pages", [[], [[{"n": 1}]], [[{"n": 1}, {"n": 2}], [{"n": 3}]]])
async def test_an_export_is_one_json_array_however_many_pages_it_has(pages: list[list[dict[str, Any]]]) -> None:
    async def found() -> AsyncIterator[str]:
        for page in pages:
            yield _json_text(page)

    text = "".join([part async for part in _json(found())])
    assert json.loads(text) == [item for page in pages for item in page]


class Found(list[dict[str, Any]]):
    """A page, to which there can be a weak reference."""


async def test_who_takes_an_export_slowly_has_no_more_of_a_page_in_memory_than_its_text(fleet: Fleet) -> None:
    await fleet.enrol("meter-1")
    page: Found | None = Found(await listed(fleet))
    assert page is not None
    kept, nobody = weakref.ref(page), cast("Any", None)  # There is no other page.
    pages = _pages(nobody, (page, None), nobody, nobody, _json_text)
    page = None
    text = await anext(pages)
    assert kept() is None
    assert json.loads(text)["device"] == "meter-1"
    with pytest.raises(StopAsyncIteration):
        await anext(pages)


def test_a_fingerprint_is_hexadecimal_with_or_without_colons_and_nothing_else() -> None:
    assert _hexadecimal("AB:cd:09") == "abcd09"
    for wrong in ("", ":", "0x12", "abcg", "١٢"):
        with pytest.raises(Refused, match="is not hexadecimal"):
            _hexadecimal(wrong)


def test_a_fingerprint_that_was_cut_or_is_of_sha_1_is_refused_and_not_simply_not_found() -> None:
    assert _sha256("AB:" * 31 + "cd") == "ab" * 31 + "cd"
    for digits in (2, 40, 63):
        with pytest.raises(Refused, match=f": {digits} hexadecimal digits are no SHA-256 fingerprint"):
            _sha256("a" * digits)
