"""Calls that wait for the writer of a PostgreSQL store until all of them do, and their outcomes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import psycopg
from sqlalchemy.engine import Connection

from provisioning.enrolment.attempt import TokenCredential
from provisioning.pki.role import Role
from provisioning.store import audit, audit_findings, devices, postgresql_group
from provisioning.store.audit import Action
from tests.support.fleet import Fleet
from tests.support.requests import csr_der

PATIENCE = 60
Together = Callable[..., Awaitable[list[Any]]]
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


async def all_at_once(fleet: Fleet, *calls: Callable[[], Any], here: bool) -> list[Any]:
    """Make *calls* wait, behind work that needs a lock, until all of them do; return results and exceptions."""
    ran: list[bool] = []

    def first(_connection: Connection) -> None:
        ran.append(threading.current_thread() is threading.main_thread())

    url = fleet.database.url.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(url) as other:
        other.execute(f"SELECT pg_advisory_xact_lock({postgresql_group._WRITERS})".encode())
        holding = asyncio.create_task(fleet.database.write(first, short=here))
        await asyncio.sleep(0)
        running = [asyncio.create_task(call()) for call in calls]
        while fleet.database._writer._waiting + sum(task.done() for task in running) < len(calls) + 1:
            await asyncio.sleep(0)  # There is no event for a longer queue.
    async with asyncio.timeout(PATIENCE):
        _, *outcomes = await asyncio.gather(holding, *running, return_exceptions=True)
    assert ran == [here]
    return outcomes


def work(fleet: Fleet, does: Callable[[Connection], Any], *apart: str) -> Callable[[], Any]:
    return lambda: fleet.database.write(does, lambda: set(apart), short=True)


async def enrolment(
    fleet: Fleet, device: str, token: str = "", csr: bytes | None = None, group: str | None = "north"
) -> Callable[[], Any]:
    credential = TokenCredential(device, token or await fleet.token(device, group))
    request = csr or csr_der(names=[device])
    await reserve(fleet)
    return lambda: fleet.enrolment.enrol(request, credential)


async def reserve(fleet: Fleet) -> None:
    """Ensure that no enrolment waits for numbers."""
    async with fleet.serial_numbers.reservation(fleet.clock()):
        pass


async def log_of(fleet: Fleet) -> list[tuple[str, str]]:
    """Return the audit log's content, after verifying it."""
    findings, entries = await fleet.database.read(
        lambda connection: (list(audit_findings.findings(connection)), audit.entries(connection, 0, 1000))
    )
    assert findings == []
    return [(entry.action, entry.subject) for entry in entries]


def note(connection: Connection, name: str) -> str:
    audit.append(connection, NOW, "test", Action.APPROVED, name, {})
    return name


def add(connection: Connection, name: str) -> str:
    """Add a device and record it in the audit log."""
    devices.add(connection, name, Role.DEVICE, "north", NOW)
    return note(connection, name)
