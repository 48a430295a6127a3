"""The audit log on disk: JSON lines in one file, full files beside it, and a head that names the last entry.

Theory
------
A line is ``{"number":7,"at":"…","event":"refused",…,"mac":"…"}``; its code authenticates everything before ``,"mac"``
and the previous line (`provisioning.directory.audit_chain`). A file begins with a line of event ``file`` that repeats
the code which it continues, so the rest can be verified when the oldest files are gone, and that says with which entry
the log begins: files that the broker has not removed itself are missed. Lines, and the name of the file
that they are in, are on disk before the head moves: a process that dies, or a power failure, may leave lines beyond the
head, but never a head beyond the lines, nor half a head.

Rules
-----
1. One process at a time appends (a lock on the file); lines are never changed.
2. A partial write is undone, and retried later with the same number. A disk that fails may refuse to undo it, too:
   then that comes first, before anything is appended or the file is put aside.
3. A line that a dying process did not finish is cut off, and that is recorded; so is what a power failure has left,
   after the head, of lines that were being written: any part of them may be missing. Nothing is cut off before what
   precedes it has proved to be of this log: `audit_log` may name another file, by mistake or by a link.
4. If the log ends before its head, or was removed, numbering continues after the head, so that the gap stays visible.
   If the head is missing, nobody knows what else is: that is recorded. `broker.audit.verification` reports both for as
   long as the entry is kept.
5. A file that another program has renamed, removed or cut, as logrotate does, is noticed before the next entry:
   another one is begun, and what became of it is recorded. Otherwise entries would go to a file that nobody finds.
6. If the oldest files are gone and the broker has not removed them, that is recorded before a `file` entry, or with it,
   says where the log begins now.

Does not handle: the queue in front of it, and its failures (`broker.audit.log`).
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import hmac
import os
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from broker.audit.head import AuditError, head_of, read_head
from broker.audit.lines import FIRST, MAC, OLDEST, TAIL, decoded, encoded, lacking, missing_before
from provisioning.directory.audit_chain import BEGINNING, AuditHead, link, make_key, read_key, seal
from provisioning.errors import ConfigurationError
from provisioning.pki.keys import opened_anew
from provisioning.program.durable_names import make_folder, sync_content, sync_names

_UNKNOWN: Final = 1 << 62
"""More bytes than any file has."""


def rotated(path: Path) -> list[Path]:
    """Return the full files of the log at *path*, the oldest first."""
    return sorted(path.parent.glob(f"{glob.escape(path.stem)}-{'[0-9]' * 12}{glob.escape(path.suffix)}"))


def oldest_of(path: Path) -> Path:
    """Return the oldest file of the log at *path*."""
    return next(iter(rotated(path)), path)


def first_number(path: Path) -> int:
    """Return the number of the first entry in *path*; 0 if there is none."""
    with path.open("rb") as file, contextlib.suppress(ValueError):
        return int(decoded(file.readline(TAIL))[2]["number"])
    return 0


def opened_files(path: Path, keyfile: Path, most_bytes: int, most_files: int) -> AuditFiles:
    """Return the files of the log at *path*, open; the key is created if missing. Raises `AuditError`."""
    try:
        make_folder(keyfile.parent)
        make_key(keyfile)
        files = AuditFiles(path, read_key(keyfile), most_bytes, most_files)
    except ConfigurationError as error:
        raise AuditError(f"audit_keyfile: {error}") from error
    except OSError as error:
        raise AuditError(f"audit_keyfile: {keyfile} cannot be used: {error.strerror}; name another place") from error
    files.open()
    return files


class AuditFiles:
    """The files of one log, for appending."""

    def __init__(self, path: Path, key: bytes, most_bytes: int, most_files: int) -> None:
        self._path = path
        self._key = key
        self._most_bytes = most_bytes
        self._most_files = most_files
        self._descriptor = -1
        self._size = 0
        self._unfinished = False
        """Whether lines may be left, after `_size` bytes, of a write that failed."""
        self._named = False
        """Whether the head's name is known to be on disk. Which of two heads has it is not: an older one is right."""
        self._oldest = 0
        """The first entry that is to be there, as the last `file` entry says; 0: no entry says it."""
        self.head = AuditHead(0, BEGINNING)

    def open(self) -> None:
        """Continue the log, or begin it. Raises `AuditError`."""
        try:
            make_folder(self._path.parent)
            self._descriptor = self._opened()
            self._continue()
        except OSError as error:
            self.close()
            raise AuditError(
                f"audit_log: {self._path} cannot be written: {error.strerror}; name another place"
            ) from error
        except AuditError:
            self.close()
            raise

    def close(self) -> None:
        """Close the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def append(self, entries: Iterable[tuple[float, Mapping[str, Any]]]) -> int:
        """Append *entries*, each with its wall time; return how many. Raises `OSError` having appended none."""
        self._notice_move()
        self._undo()
        if self._size >= self._most_bytes:
            self._rotate()
        if self._size == 0:
            self._begin_file(self.head)
        number, mac = self.head.number, self.head.mac
        lines = []
        for at, facts in entries:
            number += 1
            line, mac = encoded(self._key, mac, number, at, facts)
            lines.append(line)
        if lines:
            self._write(b"".join(lines), AuditHead(number, mac))
        return len(lines)

    def _notice_move(self) -> None:
        """Begin another file if this one is no longer in its place, or no longer whole."""
        ours = os.fstat(self._descriptor)
        try:
            there = self._path.stat()
        except FileNotFoundError:
            there = None
        if (there is None or there.st_size == 0) and self._is_put_aside(ours):
            return  # By `_rotate`, which could not begin another one.
        in_place = there is not None and os.path.samestat(ours, there)
        if in_place and ours.st_size >= self._size:
            return
        if not in_place:
            moved, self._descriptor = self._descriptor, self._opened()
            os.close(moved)
        last = self.head.number
        try:
            self._continue()
        except AuditError:
            self._size = _UNKNOWN  # So that nothing is appended to what somebody else has put there.
            raise
        what = "cut" if in_place else "renamed or removed"
        detail = f"another program has {what} the file, which went to entry {last}"
        self._tell([{"detail": detail}])

    def _is_put_aside(self, ours: os.stat_result) -> bool:
        return any(os.path.samestat(ours, full.stat()) for full in rotated(self._path)[-1:])

    def _write(self, content: bytes, head: AuditHead) -> None:
        self._unfinished = True
        try:
            left = memoryview(content)
            while left:
                left = left[os.write(self._descriptor, left) :]
            os.fdatasync(self._descriptor)
            self._note(head)
        except OSError:
            with contextlib.suppress(OSError):  # The next attempt begins with it.
                self._undo()
            raise
        self._unfinished = False
        self._size += len(content)
        self.head = head

    def _undo(self) -> None:
        """Take back what a write that failed has left."""
        if self._unfinished:
            os.ftruncate(self._descriptor, self._size)
            self._unfinished = False

    def _note(self, head: AuditHead) -> None:
        target = head_of(self._path)
        draft = target.with_name(f"{target.name}.draft")
        with os.fdopen(opened_anew(draft), "wb") as file:
            file.write(f"{head}:{seal(self._key, head).hex()}\n".encode())
            sync_content(file)
        draft.replace(target)
        if not self._named:
            with contextlib.suppress(OSError):  # The lines must not be taken back now: the next head tries again.
                sync_names(target.parent)
                self._named = True

    def _opened(self) -> int:
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise AuditError(f"audit_log: {self._path} belongs to another broker: give each broker its own") from None
        try:
            sync_names(self._path.parent)
        except OSError:
            os.close(descriptor)
            raise
        return descriptor

    def _continue(self) -> None:
        """Find the end of the log, and continue from there."""
        self._unfinished = False
        self._size = os.fstat(self._descriptor).st_size
        try:
            head = read_head(self._path, self._key)
        except AuditError:
            # If that is not authentic either, the key is wrong, or all of it changed.
            self._last(self._path, self._unfinished_bytes())
            raise
        full = next((end for each in reversed(rotated(self._path)) if (end := self._last(each)) is not None), None)
        torn = 0 if head is None else self._cut_off_unsealed(head, full)
        torn += self._cut_off_unfinished()
        last = self._last(self._path) or full
        found: list[dict[str, Any]] = []
        self._oldest = self._said_oldest()
        missing = self._missing_at_the_beginning()
        if missing is not None:
            found.append(missing)
            self._oldest = first_number(oldest_of(self._path))
        if torn:
            found.append({"detail": f"{torn} bytes of an unfinished entry were cut off"})
        if head is not None and (last is None or last.number < head.number):
            first = 1 if last is None else last.number + 1
            found.append(lacking(f"entries {first} to {head.number} are missing at the end"))
            self._begin_file(head)
        else:
            if head is None and last is not None:  # Dying in between leaves only the very first line without one.
                found.append(lacking(f"the head is missing, and maybe entries that followed entry {last.number}"))
            self.head = last or self.head
            if self._size == 0:
                self._begin_file(self.head)
        if found:
            self._tell(found)

    def _tell(self, found: Iterable[Mapping[str, Any]]) -> None:
        """Append an entry for each damage *found*."""
        now = datetime.now(UTC).timestamp()
        self.append([(now, {"event": "found", "code": "AUDIT_DAMAGED", **each}) for each in found])

    def _begin_file(self, continues: AuditHead, oldest: int = 0, lack: Mapping[str, Any] | None = None) -> None:
        """Begin a file after the entry *continues*; *oldest*, if given, is the first entry from now on."""
        number = continues.number + 1
        oldest = oldest or self._oldest or first_number(oldest_of(self._path)) or number
        facts = {"event": "file", "previous": continues.mac.hex(), OLDEST: oldest, **(lack or {})}
        line, mac = encoded(self._key, continues.mac, number, datetime.now(UTC).timestamp(), facts)
        self._write(line, AuditHead(number, mac))
        self._oldest = oldest

    def _said_oldest(self) -> int:
        """Return with which entry the log begins, according to its last `file` entry; 0 if that says nothing."""
        for each in [self._path, *reversed(rotated(self._path))]:
            with each.open("rb") as file:
                line = file.readline(TAIL)
            if line:
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    content, mac, facts = decoded(line)
                    if hmac.compare_digest(mac, link(self._key, bytes.fromhex(facts["previous"]), content)):
                        return int(facts.get(OLDEST, 0))
                return 0  # `broker.audit.verification` finds what is wrong with it.
        return 0

    def _missing_at_the_beginning(self) -> dict[str, Any] | None:
        """Return what is to be recorded of entries whose files somebody else has removed."""
        first = first_number(oldest_of(self._path))
        return lacking(missing_before(first, self._oldest)) if self._oldest and first > self._oldest else None

    def _unfinished_bytes(self) -> int:
        """Return how long the unfinished line at the end is."""
        tail = os.pread(self._descriptor, TAIL, max(0, self._size - TAIL))
        return len(tail) - (tail.rfind(b"\n") + 1)

    def _cut_off_unfinished(self) -> int:
        """Remove an unfinished line at the end; return its length. Raises `AuditError` if it is none of a log's."""
        torn = self._unfinished_bytes()
        if torn and self._last(self._path, torn) is None:
            self._check_begun()
        self._truncate(self._size - torn)
        return torn

    def _check_begun(self) -> None:
        """Raise `AuditError` if the file, in which no line is whole, cannot be what is left of a first entry."""
        begun = os.pread(self._descriptor, len(FIRST), 0)
        if self._size > TAIL or any(there not in {0, own} for there, own in zip(begun, FIRST, strict=False)):
            raise AuditError(f"audit_log: {self._path} is no audit log: name another file, or move the file away")

    def _truncate(self, size: int) -> None:
        if size < self._size:
            os.ftruncate(self._descriptor, size)
            self._size = size

    def _cut_off_unsealed(self, head: AuditHead, full: AuditHead | None) -> int:
        """Remove what follows *head*, from its first line that is not whole; return its length.

        *full*: the last entry of the last full file. What an older head follows is left for `_last` to judge.
        """
        with self._path.open("rb") as file:
            content = file.read()
        begin = content.rfind(MAC + head.mac.hex().encode())
        place = content.find(b"\n", begin) + 1 if begin >= 0 else 0
        if not place and (begin >= 0 or head != full):
            return 0
        number, mac = head.number, head.mac
        while place < len(content):
            try:
                end = content.index(b"\n", place) + 1
                said, own, facts = decoded(content[place:end])
            except ValueError:
                break
            if facts["number"] != number + 1 or not hmac.compare_digest(own, link(self._key, mac, said)):
                break
            place, number, mac = end, number + 1, own
        if not place:
            self._check_begun()
        self._truncate(place)
        return len(content) - place

    def _last(self, path: Path, torn: int = 0) -> AuditHead | None:
        """Return the last entry of *path*, *torn* bytes before its end; None if there is none.

        Raises `AuditError` if it is not authentic.
        """
        with path.open("rb") as file:
            whole = path.stat().st_size - torn
            file.seek(max(0, whole - TAIL))
            lines = file.read(min(whole, TAIL)).splitlines()[-2:]
        if not lines:
            return None
        try:
            content, mac, facts = decoded(lines[-1])
            previous = bytes.fromhex(facts["previous"]) if len(lines) == 1 else decoded(lines[0])[1]
            if "previous" in facts:
                previous = bytes.fromhex(facts["previous"])
            genuine = hmac.compare_digest(mac, link(self._key, previous, content))
        except (ValueError, KeyError, TypeError):
            genuine = False
        if not genuine:
            raise AuditError(
                f"audit_log: the last entry of {path} was changed, or was written with another key; look at it with "
                "'fleet-broker audit verify', then move the file away"
            )
        return AuditHead(facts["number"], mac)

    def _rotate(self) -> None:
        """Rename the full file, begin another one, and remove the oldest."""
        if not self._is_put_aside(os.fstat(self._descriptor)):  # Otherwise the next could not be begun.
            with self._path.open("rb") as file:
                first = decoded(file.readline())[2]["number"]
            self._path.rename(self._path.with_name(f"{self._path.stem}-{first:012d}{self._path.suffix}"))
        sync_names(self._path.parent)  # Before another has its name: the full one must not be without.
        full, self._descriptor = self._descriptor, self._opened()
        os.close(full)
        self._size = 0
        full_ones, most = rotated(self._path), max(1, self._most_files - 1)
        missing = self._missing_at_the_beginning()
        oldest = first_number(full_ones[-most:][0]) if full_ones else 0  # The last one, too, may have been removed.
        self._begin_file(self.head, oldest, missing and {"code": "AUDIT_DAMAGED", **missing})
        for each in full_ones[:-most]:
            each.unlink()
