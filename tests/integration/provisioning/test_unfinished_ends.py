"""``kill -9`` while thousands of certificates of a device, or a key, are revoked: the next start goes on from there."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from pathlib import Path

import httpx

from provisioning.client.feed import RevocationEvent, follow
from tests.support.broker_process import wait_until
from tests.support.copied_certificates import copy_certificate, serial_of_copy
from tests.support.curl import Curl
from tests.support.enrolled import enrol
from tests.support.openssl import OpensslDevice
from tests.support.postgresql import PostgresqlServer
from tests.support.provisioning import ProvisioningService

MANY = 4_000


async def test_what_a_killed_process_has_left_is_done_by_the_next(tmp_path: Path) -> None:
    device = OpensslDevice(tmp_path, "meter-1")
    service = ProvisioningService.copied(tmp_path / "fleet", {"feed_heartbeat_seconds": 0.2})
    with service:
        token = service.token(device="meter-1", group="north")
        answer = Curl(service.https, service.bundle).est("simpleenroll", device.request(), "--user", f"meter-1:{token}")
        device.take(answer.body)
    copy_certificate(service, "meter-1", MANY)
    with service:

        def revoke() -> None:
            with contextlib.suppress(httpx.HTTPError):  # Of the process that is gone.
                service.revoke(device="meter-1", reason="keyCompromise")

        asked = threading.Thread(target=revoke)
        asked.start()
        wait_until(lambda: service.stored("SELECT 1 FROM unfinished_ends"), "the end is begun")
        service.kill()
        asked.join()
    ((done,),) = service.stored("SELECT count(*) FROM revocations")
    assert service.stored("SELECT 1 FROM unfinished_ends"), "killed in between"
    assert done < MANY

    with service:
        renewal = Curl(service.https, service.bundle).est(
            "simplereenroll", device.encoded(), "--cert", str(device.certificate), "--key", str(device.key)
        )
        assert renewal.status == 403, renewal.body
        wait_until(lambda: not service.stored("SELECT 1 FROM unfinished_ends"), "the end is finished")
        events = []
        following = follow(service.https, service.bundle, service.operator, 0, heartbeat=60)
        async with contextlib.aclosing(following) as feed:
            async for event in feed:
                if not isinstance(event, RevocationEvent):
                    break
                events.append(event)
        assert [each.sequence for each in events] == list(range(1, MANY + 2))
        assert len({each.revocation.key for each in events}) == MANY + 1
        assert service.command("audit", "verify", "--dir", str(service.dir)).returncode == 0


async def events_of(service: ProvisioningService) -> list[RevocationEvent]:
    events = []
    following = follow(service.https, service.bundle, service.operator, 0, heartbeat=60)
    async with contextlib.aclosing(following) as feed:
        async for event in feed:
            if not isinstance(event, RevocationEvent):
                return events
            events.append(event)
    raise AssertionError("the feed has ended")


def killed_while_a_key_ends(service: ProvisioningService) -> None:
    """Kill the service between two portions of a key's many certificates."""
    enrol(service, "meter-1")
    copy_certificate(service, "meter-1", MANY, same_key=True)

    def revoke() -> None:
        with contextlib.suppress(httpx.HTTPError):  # Of the process that is gone.
            service.revoke(serial=serial_of_copy(1), reason="keyCompromise")

    asked = threading.Thread(target=revoke)
    asked.start()
    wait_until(lambda: service.stored("SELECT 1 FROM unfinished_key_ends"), "the end is begun")
    service.kill()
    asked.join()
    ((done,),) = service.stored("SELECT count(*) FROM revocations")
    assert service.stored("SELECT 1 FROM unfinished_key_ends"), "killed in between"
    assert 250 < done < MANY


def is_finished(service: ProvisioningService) -> Callable[[], bool]:
    return lambda: not service.stored("SELECT 1 FROM unfinished_key_ends")


def test_what_a_killed_process_has_left_of_a_key_is_done_by_the_next(tmp_path: Path) -> None:
    service = ProvisioningService.copied(tmp_path / "fleet", {"feed_heartbeat_seconds": 0.2})
    with service:
        killed_while_a_key_ends(service)
    with service:
        wait_until(is_finished(service), "the end is finished")
        events = asyncio.run(events_of(service))
        assert [each.sequence for each in events] == list(range(1, MANY + 2))
        assert len({each.revocation.key for each in events}) == MANY + 1
        assert service.command("audit", "verify", "--dir", str(service.dir)).returncode == 0


def test_what_a_killed_process_has_left_of_a_key_is_done_by_another_that_runs(
    postgresql: PostgresqlServer, tmp_path: Path
) -> None:
    settings = {"feed_heartbeat_seconds": 0.2}
    with (
        ProvisioningService.copied_on(postgresql, tmp_path / "fleet", settings) as first,
        first,
        ProvisioningService(first.dir, {**settings, "database_url": first.database_url}) as second,
    ):
        killed_while_a_key_ends(first)
        wait_until(is_finished(second), "the end is finished", 90, 0.2)  # It looks twice a minute.
        events = asyncio.run(events_of(second))
        assert [each.sequence for each in events] == list(range(1, MANY + 2))
        assert len({each.revocation.key for each in events}) == MANY + 1
