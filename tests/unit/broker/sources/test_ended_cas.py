"""A CA that is replaced again and again leaves so many lists and no more; what is forgotten is read again if needed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from broker.admission.bundle import ListTerms, TrustBundle
from broker.admission.trust import Trust
from broker.settings.config import BrokerConfig
from broker.settings.trust_settings import StatusPolicy
from broker.sources.revocation_lists import RevocationLists
from provisioning.pki.keys import key_identifier
from tests.support.crl import crl, pem
from tests.support.pki import Held, shared_device, shared_pki
from tests.support.web import WebServer
from tests.support.wire import MemoryBroker

PKI = shared_pki()
REVOKED = shared_device("meter-1")
ROOM = 2
REPLACED = 5
DAY, SECOND = timedelta(days=1), timedelta(seconds=1)


class Mesh:
    """A broker whose only CA is replaced when it has expired, and the lists of all of them."""

    def __init__(self, place: Path, web: WebServer) -> None:
        self.now = 0.0
        self.place, self.web = place, web
        self.engine = MemoryBroker().engine
        self.urls = tuple(f"{web.url}/{number}.crl" for number in range(REPLACED))
        unused = place / "-"
        config = BrokerConfig(cafile=unused, certfile=unused, keyfile=unused, crlfile=(place,), crl_urls=self.urls)
        self.lists = RevocationLists(self.engine, config, lambda: self.now)
        self.cas: list[Held] = []
        self.written: list[bytes] = []

    def trust(self, authority: Held) -> None:
        bundle = TrustBundle("", [authority.certificate], lists=ListTerms(StatusPolicy(0.0)))
        self.engine.admission.believe(Trust([bundle], self.engine.admission.trust_generation + 1))

    def replace_ca(self) -> bytes:
        """Trust another CA, and return its list."""
        number = len(self.cas)
        self.cas.append(PKI.authority(f"Mesh CA {number}", not_after=PKI.now - DAY + number * SECOND))
        self.trust(self.cas[-1])
        self.written.append(crl(self.cas[-1], [REVOKED]))
        return self.written[-1]

    async def look(self) -> None:
        self.now += 100_000.0
        await self.lists.look()
        await self.lists.urls.fetch_due()

    @property
    def revoking(self) -> list[int]:
        """Which CAs' lists are in use."""
        index, serial = self.engine.admission.status.index, REVOKED.certificate.serial_number
        keys = [key_identifier(each.key.public_key()) for each in self.cas]
        return [number for number, key in enumerate(keys) if index.find((key, serial)) is not None]

    def kept(self) -> set[int]:
        """Return how much is held of lists, wherever: the same everywhere."""
        status = self.engine.admission.status
        index = status.index
        return {len(status.lists.held), len(status.proven._lists), index.sizes()["crl"], len(index._lists)}

    async def is_read_again(self) -> bool:
        """Whether the first CA's list is, once it is renewed, with its key, and trusted again."""
        first = self.cas[0]
        self.trust(PKI.authority("Mesh CA 0", key=first.key))
        await self.look()
        return 0 in self.revoking


@pytest.fixture
def web() -> Iterator[WebServer]:
    with WebServer() as opened:
        yield opened


@pytest.fixture
async def mesh(tmp_path: Path, web: WebServer, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Mesh]:
    monkeypatch.setattr("broker.admission.crl_shelf._MOST_ENDED", ROOM)
    opened = Mesh(tmp_path, web)
    yield opened
    await opened.lists.urls.close()


@pytest.mark.parametrize("where", ["a file each", "one file", "a URL each"])
async def test_so_many_lists_of_cas_that_have_expired_are_kept_and_no_more(mesh: Mesh, where: str) -> None:
    for number in range(REPLACED):
        written = mesh.replace_ca()
        if where == "a URL each":
            mesh.web.pages[f"/{number}.crl"] = written
        else:
            content = pem(*mesh.written) if where == "one file" else written
            (mesh.place / ("all.pem" if where == "one file" else f"{number}.crl")).write_bytes(content)
        await mesh.look()
    assert mesh.revoking == [2, 3, 4], "the last is trusted, two are not"
    assert mesh.kept() == {3}
    assert await mesh.is_read_again()


async def test_a_list_whose_ca_is_known_or_has_not_expired_is_never_forgotten(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(REPLACED):
        ends = PKI.now + (DAY if number % 2 else -DAY) + number * SECOND
        mesh.cas.append(PKI.authority(f"Mesh CA {number}", not_after=ends))
        (mesh.place / f"{number}.crl").write_bytes(crl(mesh.cas[-1], [REVOKED]))
    bundle = TrustBundle("", [each.certificate for each in mesh.cas], lists=ListTerms(StatusPolicy(0.0)))
    mesh.engine.admission.believe(Trust([bundle], 2))
    await mesh.look()
    assert mesh.revoking == [0, 1, 2, 3, 4], "all are known"
    (mesh.place / "5.crl").write_bytes(mesh.replace_ca())
    await mesh.look()
    assert mesh.revoking == [1, 2, 3, 4, 5], "of three that have expired and are not known, one is too many"
    monkeypatch.setattr("broker.admission.crl_shelf._MOST_ENDED", 0)
    monkeypatch.setattr("broker.sources.crl_intake._MOST_TOLD", 1)
    (mesh.place / "6.crl").write_bytes(mesh.replace_ca())
    with capture_logs() as logs:
        await mesh.look()
    assert mesh.revoking == [1, 3, 6]
    told = [(each["event"], each.get("lists")) for each in logs if "forgotten" in each["event"]]
    assert told == [("CRL of an expired CA forgotten", None), ("CRLs of expired CAs forgotten", 2)]
