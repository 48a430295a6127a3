"""A fleet on disk: one key and certificate chain per device, and an index that says which devices are complete.

Theory
------
::

    DIR/                0700
      fleet.json        where the certificates came from, and the fleet's service
      ca-bundle.crt     the fleet's trust anchors
      index.jsonl       one fact per line, appended; the last line about a device applies
      devices/NAME.crt  certificate and chain, PEM
      devices/NAME.key  its private key, PEM

A device exists when its line is in the index, and the line is written after its files. Ctrl-C, a full disk or a crash
at any moment leaves complete devices, and files of a few others, which the next enrolment completes or replaces. All is
synced at the end of a change, together, which is much quicker than each alone: if the power fails before, a line may be
there without its files, and that device counts as not enrolled. Any other tool can use the PEM files as they are.

Rules
-----
1. Every file has mode 0600 and is replaced atomically.
2. Only one process at a time makes or changes a fleet (a lock on the index), together with workers that it has started;
   any number may read it. Whoever ends while it makes one leaves nothing that stops the next.
3. Reading needs no certificate parser: ten thousand devices load in a second.
4. A key that is to be used again is on disk before it is shown to anybody
   (docs/decisions/0075-device-key-on-disk-before-the-request.md).
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Self

from device_sim.credentials.credential import HeldCredential
from device_sim.credentials.fleet_index import Entry
from device_sim.credentials.operator_files import expect_operator
from provisioning.pki.keys import PrivateKey, generate_key, key_to_pem, load_key, opened_anew, replace_private
from provisioning.pki.role import Role
from provisioning.pki.tls import CredentialFiles
from provisioning.program.durable_names import make_folder, sync_names

SCHEMA = 1
_SYNCED_TOGETHER = 8
"""A file system with a journal writes it once for all who wait for it: alone, each file would wait for its own turn."""
_HEADER, _INDEX, _ANCHORS, _DEVICES = "fleet.json", "index.jsonl", "ca-bundle.crt", "devices"


class FleetUnusable(Exception):
    """The directory is not a fleet, or cannot be used now; the text says what to do."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a fleet's certificates come from. Without *provisioning_url*, from the user's own CA.

    *imported*: they, and their keys, are copies of files that the user had (`importing`).
    """

    provisioning_url: str | None = None
    operator: CredentialFiles | None = None
    imported: bool = False


class FleetDirectory:
    """An existing fleet directory. Created by `create` or `read`; changed only inside `changing`."""

    def __init__(self, path: Path, origin: Origin, service: str, *, lasting: bool = True) -> None:
        self.path = path
        self._lasting = lasting
        self.origin = origin
        self.service = service
        self.entries: dict[str, Entry] = {}
        self._index: BinaryIO | None = None
        self._unsynced: list[Path] = []

    @classmethod
    def create(cls, path: Path, origin: Origin, anchors: str, service: str, *, lasting: bool = True) -> FleetDirectory:
        """Return a new, empty fleet in *path*, which must not exist or be empty.

        Not *lasting*: it is removed by whoever creates it, and need not outlive a power failure.
        """
        made = FleetUnusable(f"another process has just made a fleet in {path}: run the same command again")
        if cls.exists(path):
            raise made
        if path.exists() and not (path.is_dir() and _may_become_a_fleet(path)):
            raise FleetUnusable(f"{path} exists and is no fleet: name an empty directory, or one that does not exist")
        make_folder(path)
        make_folder(path / _DEVICES)
        fleet = cls(path, origin, service, lasting=lasting)
        with fleet._locked(os.O_CREAT):
            if cls.exists(path):
                raise made
            replace_private(path / _ANCHORS, anchors.encode())
            fleet._write_header()  # Last: it makes the directory a fleet.
        return fleet

    @classmethod
    def exists(cls, path: Path) -> bool:
        """Return whether *path* is a fleet directory."""
        return (path / _HEADER).is_file()

    @classmethod
    def read(cls, path: Path, *, incomplete: bool = False) -> FleetDirectory:
        """Return the fleet in *path*; *incomplete* as for `changing`. Raises `FleetUnusable`."""
        try:
            header = json.loads((path / _HEADER).read_bytes())
            if header["schema"] != SCHEMA:
                raise FleetUnusable(f"{path}: fleet of schema {header['schema']}, this program knows {SCHEMA}")
            operator = header["operator"]
            origin = Origin(
                None if header["provisioning_url"] is None else _text(header, "provisioning_url"),
                None if operator is None else CredentialFiles(*map(Path, operator)),
                imported=header.get("imported") is True,
            )
            fleet = cls(path, origin, _text(header, "service"))
            fleet._read_index()
            if not incomplete:
                fleet._forget_the_incomplete()
        except FileNotFoundError:
            raise FleetUnusable(f"{path} is no fleet: make one with `fleet-sim enrol {path} …`, or `import`") from None
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise FleetUnusable(f"{path}/{_HEADER} is damaged ({error!r}): enrol a new fleet elsewhere") from error
        return fleet

    @property
    def anchors(self) -> Path:
        """The PEM file of the fleet's trust anchors."""
        return self.path / _ANCHORS

    @property
    def devices(self) -> list[str]:
        """The names of the devices that are not revoked, sorted."""
        entries = self.entries.items()
        return sorted(name for name, entry in entries if entry.identity.role is Role.DEVICE and not entry.revoked)

    @property
    def adding(self) -> str:
        """The command that puts further devices, or their new certificates, into it."""
        command, option = ("import", "--from") if self.origin.imported else ("enrol", "--devices")
        return f"`fleet-sim {command} {self.path} {option} …`"

    def expect_operator(self) -> None:
        """Raise `TlsConfigurationError` if a file of its operator's is not where it was."""
        if self.origin.operator is not None:
            where = f"`fleet-sim enrol {self.path} --devices {max(1, len(self.devices))} --cert FILE --key FILE`"
            expect_operator(self.origin.operator, f"put it back, or say where it is now: {where}")

    def move(self, origin: Origin, anchors: str, service: str | None = None) -> None:
        """Take certificates from *origin* from now on, and trust *anchors*: the service or its operator has changed.

        *service*: so has the name of the fleet's own service.
        """
        replace_private(self.anchors, anchors.encode())
        self.origin = origin
        self.service = service or self.service
        self._write_header()

    def _write_header(self) -> None:
        operator = self.origin.operator
        header: dict[str, Any] = {
            "schema": SCHEMA,
            "provisioning_url": self.origin.provisioning_url,
            "operator": None if operator is None else [str(operator.certificate), str(operator.key)],
            "service": self.service,
        }
        if self.origin.imported:
            header["imported"] = True
        replace_private(self.path / _HEADER, json.dumps(header, indent=2).encode())

    def credential(self, name: str) -> HeldCredential:
        """Return the credential of *name*. Raises `FleetUnusable`."""
        entry = self.entries.get(name)
        if entry is None:
            raise FleetUnusable(f"{self.path} has no {name}: add it with {self.adding}")
        try:
            certificate, key = (self._file(name, kind).read_bytes() for kind in ("crt", "key"))
        except OSError as error:
            raise FleetUnusable(f"{error.filename} cannot be read ({error.strerror}): make a new fleet") from error
        return HeldCredential(entry.identity, entry.serial, entry.not_after, certificate, key)

    @contextmanager
    def changing(self, *, incomplete: bool = False) -> Iterator[Self]:
        """Lock the fleet for changes; raise `FleetUnusable` if another process holds it.

        *incomplete*: with the devices of which a file is missing, which can be revoked, and nothing else.
        """
        with self._locked() as index:
            self._read_index()
            if not incomplete:
                self._forget_the_incomplete()
            self._end_last_line(index)
            with self._appending(index):
                yield self

    @contextmanager
    def _locked(self, flags: int = 0) -> Iterator[BinaryIO]:
        """Yield the index, open to append, while no other process may make, change or remove the fleet."""
        try:
            index = os.fdopen(
                os.open(self.path / _INDEX, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | flags, 0o600), "ab"
            )
        except FileNotFoundError:
            raise self._gone() from None
        with index:
            try:
                fcntl.flock(index, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise FleetUnusable(
                    f"{self.path} is in use by another process, which runs or changes it: wait for its end"
                ) from None
            if not os.fstat(index.fileno()).st_nlink:  # Who had the lock before has removed the fleet.
                raise self._gone()
            yield index

    def _gone(self) -> FleetUnusable:
        return FleetUnusable(f"{self.path} has been removed by another process: run the same command again")

    @contextmanager
    def joined(self) -> Iterator[Self]:
        """Change the fleet as part of the process that holds it (`changing`) and waits for our end."""
        # A line is appended in one write, so lines of several processes do not mix.
        with (self.path / _INDEX).open("ab", buffering=0) as index, self._appending(index):
            yield self

    @contextmanager
    def _appending(self, index: BinaryIO) -> Iterator[None]:
        self._index = index
        try:
            yield
        finally:
            self._index = None
            self._sync(index)

    def _sync(self, index: BinaryIO) -> None:
        """Return when all that was changed is on disk."""
        changed, self._unsynced = self._unsynced, []
        if not self._lasting:
            return
        with ThreadPoolExecutor(_SYNCED_TOGETHER) as together:
            list(together.map(_sync_file, changed))
        for folder in {path.parent for path in changed}:
            sync_names(folder)
        os.fsync(index.fileno())

    def _forget_the_incomplete(self) -> None:
        """Forget the devices with an empty or missing file, as a power failure leaves them, or who has moved one."""
        files = set[str]()
        with suppress(FileNotFoundError):
            files = {each.name for each in os.scandir(self.path / _DEVICES) if each.is_file() and each.stat().st_size}
        for name, entry in list(self.entries.items()):
            if not entry.revoked and not {f"{name}.crt", f"{name}.key"} <= files:
                del self.entries[name]

    def begun_key(self, name: str) -> PrivateKey:
        """Return the key with which *name*, still without a certificate, requests one: on disk since its creation."""
        path = self._file(name, "key")
        if path.exists() and path.stat().st_size:
            return load_key(path)
        key = generate_key()
        replace_private(path, key_to_pem(key))
        return key

    def client_id(self, name: str) -> str:
        """Return under which MQTT client identifier *name* connects."""
        entry = self.entries.get(name)
        return name if entry is None or entry.client_id is None else entry.client_id

    def keep(self, held: HeldCredential, client_id: str | None = None) -> None:
        """Add *held*, or replace its party's former credential with it. Without *client_id* it keeps its former one."""
        name = held.identity.name
        if client_id is None and name in self.entries:
            client_id = self.entries[name].client_id
        for kind, content in (("key", held.key_pem), ("crt", held.certificate_pem)):
            path = self._file(name, kind)
            write_whole(path, content)
            self._unsynced.append(path)
        known_as = None if client_id == name else client_id
        self._append(Entry(held.identity, held.serial, held.not_after, client_id=known_as))

    def revoked(self, name: str) -> None:
        """Note that *name* is revoked; later runs leave it out."""
        self._append(replace(self.entries[name], revoked=True))

    def remove(self) -> None:
        """Remove the fleet's files, and the directory if nothing else is in it."""
        (self.path / _HEADER).unlink()
        with suppress(FileNotFoundError):
            shutil.rmtree(self.path / _DEVICES)
        for name in (_ANCHORS, _INDEX):
            (self.path / name).unlink()
        if not any(self.path.iterdir()):
            self.path.rmdir()

    def _file(self, name: str, kind: str) -> Path:
        return self.path / _DEVICES / f"{name}.{kind}"

    def _append(self, entry: Entry) -> None:
        if self._index is None:
            raise RuntimeError("the fleet is changed inside `changing` only")
        with _named(self.path / _INDEX):
            self._index.write(entry.line)
            self._index.flush()
        self.entries[entry.identity.name] = entry

    def _read_index(self) -> None:
        self.entries.clear()
        with (self.path / _INDEX).open("rb") as index:
            for number, line in enumerate(index, 1):
                if not line.endswith(b"\n"):
                    return  # The last write was cut short: that device is not enrolled.
                if b"\0" in line:
                    continue  # A power failure left a hole: nobody was told that these were enrolled.
                try:
                    entry = Entry.of(line)
                except ValueError as error:
                    raise FleetUnusable(
                        f"{self.path}/{_INDEX} line {number} is damaged: {error}; put it right, or remove the line, "
                        f"and add the device again with {self.adding}"
                    ) from error
                self.entries[entry.identity.name] = entry

    def _end_last_line(self, index: BinaryIO) -> None:
        content = (self.path / _INDEX).read_bytes()
        if content and not content.endswith(b"\n"):
            index.truncate(content.rfind(b"\n") + 1)


def _may_become_a_fleet(path: Path) -> bool:
    """Whether *path* is an empty directory, or has only what `create` leaves that was ended before it was done."""
    there, index, devices = {each.name for each in path.iterdir()}, path / _INDEX, path / _DEVICES
    if there <= {_DEVICES}:  # In the order in which it makes them: others may have an own file of trust anchors there.
        begun = True
    else:
        drafts = {Path(name).with_suffix(".draft").name for name in (_ANCHORS, _HEADER)}
        begun = there <= {_DEVICES, _INDEX, _ANCHORS, *drafts} and index.is_file() and not index.stat().st_size
    return begun and (not there or (devices.is_dir() and not any(devices.iterdir())))


def _text(fields: dict[str, Any], name: str) -> str:
    """Return the field *name*; raise `TypeError` if it is no text."""
    if not isinstance(text := fields[name], str):
        raise TypeError(f"{name} is {type(text).__name__}")
    return text


def _sync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Let an `OSError` of a write, which has no name of its own, be one of *path*."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def write_whole(path: Path, content: bytes) -> None:
    """Write *content* to *path* with mode 0600: whole, or not at all, unless the power fails soon after."""
    beside = path.with_name(f".{path.name}.new")
    with _named(path), os.fdopen(opened_anew(beside), "wb") as file:
        file.write(content)
    beside.replace(path)
