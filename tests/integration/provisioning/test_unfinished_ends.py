"""``kill -9`` while thousands of certificates of a device, a key or a CA are revoked: the next start goes on there."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import httpx

from provisioning.client.feed_reader import RevocationEvent
from tests.support import programs
from tests.support.broker_process import wait_until
from tests.support.ca_life import ca, ca_attempt, roll_over, states
from tests.support.copied_certificates import copy_certificate, serial_of_copy
from tests.support.curl import Curl
from tests.support.enrolled import enrol
from tests.support.feed_events import follow
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
    events: list[RevocationEvent] = []
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


LEFT_OF_CA = (
    "SELECT count(*) FROM certificates "
    "WHERE issuer_key_id = (SELECT key_id FROM authorities WHERE name = 'issuing-ca') "
    "AND id NOT IN (SELECT certificate_id FROM revocations)"
)


def killed_while_a_ca_ends(service: ProvisioningService) -> None:
    """Kill the command that revokes a CA of many certificates between two portions."""
    enrol(service, "meter-1")
    roll_over(service, "issuing-2")
    copy_certificate(service, "meter-1", MANY)
    with (service.dir / "revoke.log").open("wb") as log:
        command = programs.start(
            "provisioning", ["ca", "revoke", "issuing-ca", "--yes", "--dir", str(service.dir)], service.environment, log
        )
        wait_until(lambda: len(service.stored("SELECT 1 FROM revocations")) > 1, "the first portion is done")
        command.send_signal(signal.SIGKILL)
        command.wait(timeout=30)
        assert command.stdout is not None
        command.stdout.close()
    ((left,),) = service.stored(LEFT_OF_CA)
    assert service.stored("SELECT 1 FROM unfinished_authority_ends"), "killed in between"
    assert 0 < left < MANY
    assert states(service)["issuing-ca"] == "revoked"


def nothing_is_left_of_the_ca(service: ProvisioningService) -> None:
    assert service.stored(LEFT_OF_CA) == [(0,)]
    ((events, certificates, last),) = service.stored(
        "SELECT count(*), count(DISTINCT certificate_id), max(sequence) FROM revocation_events"
    )
    assert events == certificates == last > MANY, "each once, and without a gap"
    assert service.command("audit", "verify", "--dir", str(service.dir)).returncode == 0


def is_revoked_whole(service: ProvisioningService) -> Callable[[], bool]:
    return lambda: not service.stored("SELECT 1 FROM unfinished_authority_ends")


def test_what_a_killed_command_has_left_of_a_ca_is_done_by_the_service_or_the_command_asked_again(
    tmp_path: Path,
) -> None:
    service = ProvisioningService.copied(tmp_path / "fleet", {"feed_heartbeat_seconds": 0.2})
    with service:
        killed_while_a_ca_ends(service)
        shutil.copytree(service.dir, tmp_path / "again", ignore=shutil.ignore_patterns("fleet.db*"))
        service.kill()
    for path in service.dir.glob("fleet.db*"):
        shutil.copy(path, tmp_path / "again")
    with service:
        wait_until(is_revoked_whole(service), "the end is finished")
        nothing_is_left_of_the_ca(service)

    again = ProvisioningService(tmp_path / "again")
    said = ca(again, "revoke", "issuing-ca", "--yes")
    assert "issuing-ca is already revoked; the rest of its certificates follows now." in said
    nothing_is_left_of_the_ca(again)
    done = ca_attempt(again, "revoke", "issuing-ca", "--yes")
    assert (done.returncode, "issuing-ca is revoked already" in done.stderr) == (1, True)


def test_what_a_killed_command_has_left_of_a_ca_is_done_by_a_service_that_runs(
    postgresql: PostgresqlServer, tmp_path: Path
) -> None:
    with (
        ProvisioningService.copied_on(postgresql, tmp_path / "fleet", {"feed_heartbeat_seconds": 0.2}) as service,
        service,
    ):
        killed_while_a_ca_ends(service)
        wait_until(is_revoked_whole(service), "the end is finished", 90, 0.2)  # It looks twice a minute.
        nothing_is_left_of_the_ca(service)
