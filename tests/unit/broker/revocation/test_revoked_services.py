"""Whose word the broker does not take, from its start on: what is kept of the feed, and what of that can be wrong."""

from __future__ import annotations

import asyncio
import stat
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from broker.admission.path_ends import VerifiedPath
from broker.revocation import revoked_services
from broker.revocation.revoked_services import FILE_NAME, RevokedServices
from provisioning.pki.identity import AUTHORITY_PREFIX, PROVISIONING
from provisioning.pki.keys import replace_private
from provisioning.pki.revocation import Revocation, certificate_key
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.pki.tls import TlsConfigurationError
from tests.support.pki import Held, Pki

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def revoked(held: Held, reason: RevocationReason = RevocationReason.KEY_COMPROMISE) -> Revocation:
    return Revocation(*certificate_key(held.certificate), reason, NOON)


@pytest.fixture(scope="module")
def pki() -> Pki:
    return Pki()


@pytest.fixture
def servers(pki: Pki) -> list[Held]:
    """Three certificates of the service."""
    return [pki.service(PROVISIONING) for _ in range(3)]


def path_of(held: Held, pki: Pki) -> VerifiedPath:
    """Return what OpenSSL verifies of a server that has *held*."""
    return VerifiedPath([held.der, pki.issuing.der, pki.root.der])


@pytest.mark.parametrize("device", [PROVISIONING, f"{AUTHORITY_PREFIX}issuing-ca"])
async def test_what_the_feed_says_of_the_service_and_of_a_ca_is_known_to_the_next_broker(
    tmp_path: Path, pki: Pki, servers: list[Held], device: str
) -> None:
    server, other, _ = servers
    kept = RevokedServices(tmp_path)
    path = path_of(server, pki)
    assert kept.find(path) is None
    await kept.note(revoked(server), device)
    for each in (kept, RevokedServices(tmp_path)):
        assert "is revoked (keyCompromise; kept in " in str(each.find(path))
        assert each.find(path_of(other, pki)) is None, "another certificate of the service"
    assert stat.S_IMODE((tmp_path / FILE_NAME).stat().st_mode) == 0o600
    assert [each.name for each in tmp_path.glob("*")] == [FILE_NAME]  # noqa: ASYNC240 - a test's own


async def test_a_ca_is_looked_for_above_who_is_not_revoked_himself(
    tmp_path: Path, pki: Pki, servers: list[Held]
) -> None:
    await RevokedServices(tmp_path).note(revoked(pki.issuing), f"{AUTHORITY_PREFIX}issuing-ca")
    assert RevokedServices(tmp_path).find(path_of(servers[0], pki)) is not None


async def test_of_others_nothing_is_kept_and_nothing_of_what_may_be_taken_back(
    tmp_path: Path, servers: list[Held]
) -> None:
    kept = RevokedServices(tmp_path)
    for device in ("meter-1", "backend", "ca", "provisioning-2"):
        await kept.note(revoked(servers[0]), device)
    await kept.note(revoked(servers[0], RevocationReason.CERTIFICATE_HOLD), PROVISIONING)
    assert len(kept) == 0
    assert not (tmp_path / FILE_NAME).exists()


async def test_what_the_feed_says_anew_at_each_start_is_not_written_again(tmp_path: Path, servers: list[Held]) -> None:
    await RevokedServices(tmp_path).note(revoked(servers[0]), PROVISIONING)
    (tmp_path / FILE_NAME).chmod(0o400)
    await RevokedServices(tmp_path).note(revoked(servers[0]), PROVISIONING)
    assert stat.S_IMODE((tmp_path / FILE_NAME).stat().st_mode) == 0o400


async def test_of_more_than_the_bound_the_newest_are_kept(
    tmp_path: Path, pki: Pki, servers: list[Held], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(revoked_services, "MOST", 2)
    kept = RevokedServices(tmp_path)
    for server in servers:
        await kept.note(revoked(server), PROVISIONING)
    again = RevokedServices(tmp_path)
    assert [again.find(path_of(server, pki)) is not None for server in servers] == [False, True, True]


async def test_what_cannot_be_written_is_told_and_holds_until_the_end(
    tmp_path: Path, pki: Pki, servers: list[Held]
) -> None:
    kept = RevokedServices(tmp_path / "nowhere")
    with capture_logs() as said:
        await kept.note(revoked(servers[0]), PROVISIONING)
    assert [each["code"] for each in said] == ["REVOKED_SERVICE_NOT_KEPT"]
    assert kept.find(path_of(servers[0], pki)) is not None


async def test_a_disk_that_hangs_keeps_the_feed_waiting_for_a_moment_only(
    tmp_path: Path, pki: Pki, servers: list[Held], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = servers
    kept = RevokedServices(tmp_path)
    monkeypatch.setattr(revoked_services, "_PATIENCE", 0.01)
    held = threading.Event()
    replace = replace_private

    begun: list[None] = []

    def hang(path: Path, content: bytes) -> None:
        begun.append(None)
        held.wait()
        replace(path, content)

    monkeypatch.setattr(revoked_services, "replace_private", hang)
    with capture_logs() as said:
        await kept.note(revoked(first), PROVISIONING)
        await kept.note(revoked(second), PROVISIONING)
    held.set()
    assert [each["detail"] for each in said] == ["the disk has not answered"] * 2
    assert len(begun) == 1, "no second thread hangs beside the first"
    assert all(kept.find(path_of(each, pki)) is not None for each in (first, second))
    assert kept._writing is not None
    await asyncio.wait([kept._writing])
    monkeypatch.setattr(revoked_services, "_PATIENCE", 60)
    await kept.note(revoked(third), PROVISIONING)
    assert len(RevokedServices(tmp_path)) == 3


@pytest.mark.parametrize(
    "content",
    [b"", b"[", b"{}x", b"[1]", b'[{"issuer_key_id": "00"}]', b"7", b"null", b"\xff",
     b"{}", b'""', b"[" * 200_000,
     b'[{"issuer_key_id": "zz", "serial": "1", "reason": "keyCompromise", "revoked_at": "2026-03-01T12:00:00+00:00"}]',
     b'[{"issuer_key_id": "00", "serial": "1", "reason": "for fun", "revoked_at": "2026-03-01T12:00:00+00:00"}]',
     b'[{"issuer_key_id": "00", "serial": "1", "reason": "keyCompromise", "revoked_at": "yesterday"}]'],
)  # fmt: skip
def test_a_file_that_is_not_as_it_was_kept_ends_the_start(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE_NAME).write_bytes(content)
    with pytest.raises(TlsConfigurationError, match="was changed or is damaged"):
        RevokedServices(tmp_path)
