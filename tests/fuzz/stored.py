"""What is on disk, and somebody may have changed: the broker's database and audit log, the service's audit log.

An input for a database is a list of changes, four bytes each: table and column, row, kind of value, value.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import sqlite3
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from broker.audit.head import head_of
from broker.audit.lines import encoded
from broker.audit.verification import verify
from broker.mqtt.codes import ProtocolVersion, QoS
from broker.mqtt.packets import Puback, Publish, Pubrec, Subscribe
from broker.store.database_files import StoreError
from broker.store.soundness import look
from provisioning.directory.audit_chain import BEGINNING, AuditHead, seal
from provisioning.errors import ConfigurationError
from provisioning.store.audit import Action, append
from provisioning.store.audit_findings import UNREADABLE, check_key, findings, latest
from provisioning.store.database import Database
from provisioning.store.tables import audit_entries, audit_head
from tests.fuzz.new_store import new_store
from tests.fuzz.target import Disagreement, Target
from tests.support.batches import TABLES
from tests.support.pki import shared_device
from tests.support.stored import StoredBroker
from tests.support.wire import KEPT, V5, V311, request, will

_PLACE: Final = tempfile.TemporaryDirectory()
"""Removed when the process ends."""
_KEY: Final = b"k" * 32
_INTEGERS: Final = (-1, 0, 1, 2, 3, 5, 255, 256, 65535, 65536, 268435455, 2**31, 2**32 - 1, 2**32, 2**63 - 1, -(2**63))
_REALS: Final = (0.0, -1.0, 1e300, -1e300, float("inf"), 1e15, 1.7e9, 253402300800.0, 1e-5)
_TEXTS: Final = (
    *("", "a", "/", "#", "+", "a/#/b", "$share", "$share//x", "$share/g/", "$share/g/#", "$SYS/#", "fleet/#", "a\0b"),
    *("spiffe://a/device/g/m", "spiffe://fleet.internal/device/meters/meter-9", "ab:1f", "zz:1f", "ab:", ":", "ab:-5"),
    *("ab:1_f", "AB:0x1f", "ab:1f,cd:2", "x" * 70000, "é", "2026-01-01", "9999-12-31 23:59:59.999999", "{}", "[1]"),
)
_BLOBS: Final = (
    *(b"", b"\0", b"a", b"#", b"a/#", b"\xff", b"fleet/x", b"x" * 66000, b"\x02\0\0\0\1", b"\x0b\x07", b"\x0b\x80"),
    *(b"\x26\0\1a\0\1b", b"\x23\0\1", b"\x01\1", b"\x03\0\1\xff", b"\x0b\xff\xff\xff\x7f", b"\x08\0\1#", b"0" * 32),
)
_VALUES: Final[tuple[tuple[Any, ...], ...]] = (_INTEGERS, _REALS, _TEXTS, _BLOBS, (None,))
_AUDIT: Final = (audit_entries.name, audit_head.name)
_NOON: Final = datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)
_ANY_KIND: Final = 128
_LOG_LINES: Final = 4


def _change(database: sqlite3.Connection, tables: tuple[str, ...], changes: bytes) -> list[str]:
    """Change what *changes* says; return what that was."""
    done = []
    columns = [
        (table, name, kind) for table in tables for _, name, kind, *_ in database.execute(f"PRAGMA table_info({table})")
    ]
    for begin in range(0, min(len(changes), 12) - 3, 4):
        where, row, kind, value = changes[begin : begin + 4]
        table, column, declared = columns[where % len(columns)]
        keys = [name for _, name, *_, place in database.execute(f"PRAGMA table_info({table})") if place]
        rows = database.execute(f"SELECT {', '.join(keys)} FROM {table}").fetchall()
        if not rows:
            continue
        usual = {"INTEGER": 0, "REAL": 1, "TEXT": 2, "BLOB": 3}.get(declared, 2)
        values = _VALUES[usual if kind < _ANY_KIND else kind % len(_VALUES)]
        new, chosen = values[value % len(values)], rows[row % len(rows)]
        changed = f"UPDATE {table} SET {column} = ? WHERE {' AND '.join(f'{key} IS ?' for key in keys)}"
        with contextlib.suppress(sqlite3.IntegrityError):  # What the database itself refuses is not in it.
            database.execute(changed, (new, *chosen))
            done.append(f"{table}.{column} = {new!r:.60} where {keys} are {chosen}")
    return done


@contextlib.contextmanager
def _changing(path: Path) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute("PRAGMA foreign_keys=OFF")
        yield database


@functools.cache
def _broker_files() -> dict[str, bytes]:
    """Return the files of a broker with one of everything, when it has ended."""
    with tempfile.TemporaryDirectory() as directory:
        broker = StoredBroker(Path(directory))
        backend = broker.service("backend", **KEPT)
        backend.subscribe(request("fleet/#", 2), request("$share/g/fleet/#", 1), identifier=7)
        gone = will("fleet/meters/meter-1/gone", qos=1, retain=True, will_delay_interval=5)
        meter = broker.device("meter-1", **KEPT, will=gone)
        meter.subscribe("fleet/meters/meter-1/cmd/#", qos=2)
        meter.publish("fleet/meters/meter-1/state", b"r", qos=1, retain=True)
        meter.publish("fleet/meters/meter-1/t", b"x", qos=2)
        other = broker.device("meter-2", version=V311, clean_start=False)
        backend.vanish()
        meter.publish("fleet/meters/meter-1/t", b"y", qos=2)
        meter.send(Publish("fleet/meters/meter-1/t", b"half", QoS.EXACTLY_ONCE, packet_id=99))
        other.vanish()
        broker.settle()
        broker.store.close()
        return {file.name: file.read_bytes() for file in Path(directory).iterdir()}


def _broker_rows(data: bytes) -> None:
    """A changed database is refused, by the check and by the start, or served: to all who come back."""
    with tempfile.TemporaryDirectory(dir=_PLACE.name) as directory:
        for name, content in _broker_files().items():
            Path(directory, name).write_bytes(content)
        path = Path(directory, "broker.db")
        with _changing(path) as database:
            database.execute("PRAGMA ignore_check_constraints=ON")
            done = _change(database, TABLES, data)
        try:
            look(path)
        except StoreError as error:
            refused = str(error)
        else:
            refused = ""
        try:
            broker = StoredBroker(Path(directory), now=2000.0)
        except StoreError as error:
            str(error).encode()
            return
        with contextlib.closing(broker.store):
            if refused:
                raise Disagreement(f"the check refuses ({refused}) what is served: {done}")
            _serve(broker)


def _serve(broker: StoredBroker) -> None:
    broker.advance(8)
    devices: tuple[tuple[str, ProtocolVersion, Any], ...]
    devices = ("meter-1", V5, KEPT), ("meter-2", V311, {"clean_start": False})
    for name, version, fields in devices:
        meter = broker.open(shared_device(name), version=version)
        meter.connect(client_id=name, expect=None, **fields)
        meter.received()
        if not meter.closed:
            # Not to wait for its acknowledgement: by a changed subscription it may be sent to the sender, before that.
            meter.send(Publish(f"fleet/meters/{name}/t", b"q", QoS.AT_LEAST_ONCE, packet_id=1))
    backend = broker.service("backend", expect=None, **KEPT)
    for packet in backend.received():
        if isinstance(packet, Publish) and packet.packet_id:
            backend.send((Puback if packet.qos == 1 else Pubrec)(packet.packet_id))
    if not backend.closed:
        backend.send(Subscribe(7, (request("#", 2),)))
    broker.advance(700)


def _log() -> tuple[list[bytes], AuditHead]:
    lines, code = [], BEGINNING
    for number in range(1, _LOG_LINES + 1):
        begins = {"event": "file", "previous": BEGINNING.hex(), "oldest": 1}
        facts = begins if number == 1 else {"event": "refused", "detail": 'é"\\' * number}
        line, code = encoded(_KEY, code, number, 1e9 + number, facts)
        lines.append(line)
    return lines, AuditHead(_LOG_LINES, code)


_LINES, _HEAD = _log()
_SEALED: Final = f"{_HEAD}:{seal(_KEY, _HEAD).hex()}".encode()


def _content(log: bytes) -> list[bytes]:
    return [line.rpartition(b',"mac":"')[0] for line in log.splitlines()]


def _broker_log(data: bytes) -> None:
    """No log but the one that was written passes; and none is an exception."""
    path = Path(_PLACE.name, "audit.log")
    path.write_bytes(data)
    head_of(path).write_bytes(_SEALED)
    verdict = verify(path, _KEY, _HEAD)
    "".join(verdict.findings).encode()
    whole = data[: data.rfind(b"\n") + 1]  # The last line may be half written: it is no entry.
    if not verdict.findings and _content(whole) != _content(b"".join(_LINES)):
        raise Disagreement("it was changed, and passes")


def _broker_head(data: bytes) -> None:
    """No head but the one that was written passes, in whatever way its numbers are written."""
    path = Path(_PLACE.name, "head.log")
    path.write_bytes(b"".join(_LINES))
    head_of(path).write_bytes(data)
    verdict = verify(path, _KEY, None)
    if not verdict.findings and b"".join(data.split()).lower().lstrip(b"+0_") != _SEALED:
        raise Disagreement("it was changed, and passes")


@functools.cache
def _service_file() -> bytes:
    """Return a store of the service with entries in its audit log."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "fleet.db")
        path.write_bytes(new_store(_KEY))
        asyncio.run(_append(path))
        return path.read_bytes()


async def _append(path: Path) -> None:
    database = Database(f"sqlite:///{path}", _KEY)
    for number in range(1, _LOG_LINES + 1):
        await database.write(
            lambda connection, number=number: append(  # type: ignore[misc]
                connection, _NOON, "admin", Action.REVOKED, f"meter-{number}", {"serials": ["1f"], "n": number}
            )
        )
    await database.close()


def _service_log(data: bytes) -> None:
    """A changed row is a finding, whatever is in it, and nothing more: the log is read to its end."""
    path = Path(_PLACE.name, "fleet.db")
    path.write_bytes(_service_file())
    with _changing(path) as database:
        before = _rows(database)
        for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            database.execute(f"DROP TRIGGER {name}")
        done = _change(database, _AUDIT, data)
        is_changed = _rows(database) != before
    said = asyncio.run(_found(path))
    "".join(said).encode()
    if is_changed and not said:
        raise Disagreement(f"it was changed, and passes: {done}")
    if said and not is_changed:
        raise Disagreement(f"nothing was changed: {said}")


def _rows(database: sqlite3.Connection) -> list[Any]:
    return [database.execute(f"SELECT * FROM {table}").fetchall() for table in _AUDIT]


async def _found(path: Path) -> list[str]:
    database = Database(f"sqlite:///{path}", _KEY)
    try:
        with contextlib.suppress(ConfigurationError):
            await database.read(check_key)
        with contextlib.suppress(*UNREADABLE):
            await database.read(latest)
        return await database.read(lambda connection: list(findings(connection)))
    finally:
        await database.close()


TARGETS: Final = (
    Target(
        "broker_rows", _broker_rows, [bytes([each, 0, 0, each]) for each in range(0, 50, 5)], longest=12, seconds=10
    ),
    Target("broker_log", _broker_log, [b"".join(_LINES)], words=[b',"mac":"', b'"}\n', b'{"number":'], longest=2048),
    Target("service_log", _service_log, [bytes([each, each, 0, each]) for each in range(10)], longest=12),
    Target("broker_head", _broker_head, [_SEALED], longest=300),
)
