"""The audit log on disk: whatever somebody without the key does to it is found, and what a crash does is mended."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import resource
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from broker.audit.files import AuditFiles, opened_files, rotated
from broker.audit.head import AuditError, head_of, read_head
from broker.audit.verification import verify
from provisioning.directory.audit_chain import AuditHead
from tests.support.planted import Planted

KEY = bytes(range(32))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit" / "audit.jsonl"


def opened(path: Path, *, most_bytes: int = 1 << 20, most_files: int = 4, key: bytes = KEY) -> AuditFiles:
    files = AuditFiles(path, key, most_bytes, most_files)
    files.open()
    return files


def write(path: Path, *codes: str, **how: int) -> AuditHead:
    files = opened(path, **how)  # type: ignore[arg-type]
    for code in codes:
        files.append([(1_700_000_000.5, {"event": "refused", "code": code, "detail": 'a "quoted" é\n'})])
    files.close()
    return files.head


def lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True)


def test_the_head_goes_into_no_file_that_somebody_has_put_there(path: Path) -> None:
    write(path, "REVOKED")
    planted = Planted.at(head_of(path).with_name(f"{head_of(path).name}.draft"), linked=False)
    write(path, "EXPIRED")
    assert planted.read() == b""
    assert head_of(path).stat().st_mode & 0o777 == 0o600


def test_entries_are_numbered_private_and_verified(path: Path) -> None:
    head = write(path, "REVOKED", "EXPIRED")
    found = [json.loads(line) for line in lines(path)]
    assert [each["number"] for each in found] == [1, 2, 3]
    assert found[1] | {"mac": ""} == {
        "number": 2,
        "at": "2023-11-14T22:13:20.500000+00:00",
        "event": "refused",
        "code": "REVOKED",
        "detail": 'a "quoted" é\n',
        "mac": "",
    }
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(head_of(path).stat().st_mode) == 0o600
    verdict = verify(path, KEY, head)
    assert (verdict.first, verdict.head, verdict.findings) == (1, head, [])


def test_a_log_goes_on_where_it_ended(path: Path) -> None:
    write(path, "A")
    head = write(path, "B")
    assert verify(path, KEY, head).findings == []
    assert head.number == 3


@pytest.mark.parametrize(
    ("tamper", "finding"),
    [
        (lambda some: [*some[:2], some[2].replace(b"THREE", b"THREX"), *some[3:]], "entry 3 was changed"),
        (lambda some: [*some[:2], *some[3:]], "entries 3 to 3 are missing"),
        (lambda some: [*some[:2], some[3], some[2], *some[4:]], "entries 3 to 3 are missing"),
        (lambda some: [*some[:3], some[2], *some[3:]], "entry 3 again"),
        (lambda some: some[:-1], "entries 5 to 5 are missing at the end"),
        (lambda some: [*some[:3], b"{}\n", *some[3:]], "after entry 3: not a line of an audit log"),
        (lambda some: [*some[:3], b"no json\n", *some[3:]], "after entry 3:"),
        (lambda some: some[1:], "entry 2 was changed"),
    ],
)
def test_every_change_is_found(path: Path, tamper: Callable[[list[bytes]], list[bytes]], finding: str) -> None:
    write(path, "TWO", "THREE", "FOUR", "FIVE")
    path.write_bytes(b"".join(tamper(lines(path))))
    assert any(finding in each for each in verify(path, KEY).findings), verify(path, KEY).findings


def test_another_key_and_a_forged_or_missing_head_are_found(path: Path) -> None:
    head = write(path, "TWO")
    assert any("not written with this key" in each for each in verify(path, b"x" * 32).findings)
    head_of(path).write_text(f"{AuditHead(1, head.mac)}:{'00' * 32}\n")
    assert verify(path, KEY).findings == [f"{head_of(path)} was changed, or was written with another key"]
    head_of(path).unlink()
    assert verify(path, KEY).findings == ["the head is missing"]


def test_an_older_copy_put_back_is_found_by_a_head_that_was_noted(path: Path) -> None:
    write(path, "TWO")
    old = path.read_bytes(), head_of(path).read_bytes()
    noted = write(path, "THREE")
    path.write_bytes(old[0])
    head_of(path).write_bytes(old[1])
    assert verify(path, KEY).findings == []
    assert "does not contain the head" in verify(path, KEY, noted).findings[0]
    write(path, "ANOTHER", "FOUR")
    assert verify(path, KEY).findings == []
    (found,) = verify(path, KEY, noted).findings
    assert "does not contain the head" in found, "another entry of that number is not it"


def test_a_head_that_was_noted_is_found_in_the_log_that_went_on(path: Path) -> None:
    noted = [write(path, "TWO"), write(path, "THREE"), write(path, "FOUR", "FIVE")]
    assert [verify(path, KEY, each).findings for each in noted] == [[], [], []]


def test_of_very_many_findings_the_first_are_shown(path: Path) -> None:
    write(path, *(f"CODE_{number}" for number in range(200)))
    path.write_bytes(path.read_bytes().replace(b"CODE_", b"EDOC_"))
    findings = verify(path, KEY).findings
    assert (len(findings), findings[-1]) == (102, "and more")


def test_a_torn_entry_is_cut_off_and_that_is_an_entry(path: Path) -> None:
    write(path, "TWO", "THREE")
    with path.open("ab") as file:
        file.write(b'{"number":4,"at":"20')
    assert verify(path, KEY).findings == []  # It may be being written.
    write(path)
    last = json.loads(lines(path)[-1])
    assert (last["number"], last["code"]) == (4, "AUDIT_DAMAGED")
    assert last["detail"] == "20 bytes of an unfinished entry were cut off"
    assert verify(path, KEY).findings == []


@pytest.mark.parametrize("left", [2, 0])
def test_a_log_that_was_cut_goes_on_and_the_gap_stays_to_be_seen(path: Path, left: int) -> None:
    write(path, "TWO", "THREE", "FOUR")
    kept = lines(path)[:left]
    path.write_bytes(b"".join(kept))
    if not left:
        path.unlink()
    write(path, "LATER")
    assert json.loads(lines(path)[left + 1])["detail"] == f"entries {left + 1} to 4 are missing at the end"
    findings = verify(path, KEY).findings
    found = f"audit.jsonl: entry 6: when the broker opened the file, entries {left + 1} to 4 are missing at the end"
    assert findings == ([f"audit.jsonl: entries {left + 1} to 4 are missing"] if left else []) + [found]
    assert verify(path, KEY).first == (1 if left else 5)


@pytest.mark.parametrize("left", [3, 1])
def test_a_log_that_was_cut_and_lost_its_head_does_not_go_on_as_if_it_were_whole(path: Path, left: int) -> None:
    """Without the head the numbers fit together again: nothing but the broker's own entry tells."""
    write(path, "TWO", "THREE", "FOUR")
    path.write_bytes(b"".join(lines(path)[:left]))
    head_of(path).unlink()
    write(path, "LATER")
    write(path, "LATER STILL")
    found = json.loads(lines(path)[left])
    assert (found["event"], found["code"]) == ("found", "AUDIT_DAMAGED")
    missed = f"the head is missing, and maybe entries that followed entry {left}"
    assert found["detail"] == missed
    assert verify(path, KEY).findings == [f"audit.jsonl: entry {left + 1}: when the broker opened the file, {missed}"]


def test_a_changed_last_entry_or_another_key_is_not_continued(path: Path) -> None:
    write(path, "TWO")
    with pytest.raises(AuditError, match="move the file away"):
        opened(path, key=b"x" * 32)
    path.write_bytes(path.read_bytes().replace(b"TWO", b"TWX"))
    with pytest.raises(AuditError, match=r"the last entry of .* was changed"):
        opened(path)


def test_full_files_are_put_aside_and_the_oldest_removed(path: Path) -> None:
    head = write(path, *(f"CODE_{number}" for number in range(60)), most_bytes=1000, most_files=3)
    assert len(rotated(path)) == 2
    verdict = verify(path, KEY, head)
    assert verdict.findings == []
    assert verdict.first > 1
    assert verdict.head == head
    write(path, "AFTER")
    assert verify(path, KEY).findings == []
    rotated(path)[1].unlink()
    assert "are missing" in verify(path, KEY).findings[0]


def test_any_name_is_that_of_a_log(path: Path) -> None:
    """One that a shell would read as a pattern named no full files: the first one ended the audit log."""
    path = path.with_name("audit[a-b]*.jsonl")
    head = write(path, *MANY, most_bytes=1000, most_files=3)
    assert len(rotated(path)) == 2
    assert verify(path, KEY, head).findings == []


MANY = [f"CODE_{number}" for number in range(60)]
MISSING = "are missing at the beginning"


def test_files_that_the_broker_has_not_removed_are_missed(path: Path) -> None:
    """What it removes itself it says, in an entry: the oldest entries cannot be cut off in its name."""
    write(path, *MANY, most_bytes=1000, most_files=6)
    full = rotated(path)
    first = verify(path, KEY).first
    assert (len(full), verify(path, KEY).findings) == (5, [])
    for name in full[:2]:
        name.unlink()
    after = int(full[2].stem.rpartition("-")[2])
    assert verify(path, KEY).findings == [f"entries {first} to {after - 1} {MISSING}"]


@pytest.mark.parametrize("restarted", [True, False])
def test_what_is_missing_at_the_beginning_is_recorded_before_rotation_covers_it(path: Path, *, restarted: bool) -> None:
    files = opened(path, most_bytes=1000, most_files=6)
    for code in MANY:
        files.append([(1.0, {"event": "refused", "code": code})])
    gone, full = rotated(path)[0], rotated(path)
    gone.unlink()
    if restarted:
        files.close()
        files = opened(path, most_bytes=1000, most_files=6)
    first = int(gone.stem.rpartition("-")[2])
    while rotated(path)[-1] == full[-1]:
        files.append([(1.0, {"event": "refused"})])
    files.close()
    after = int(full[1].stem.rpartition("-")[2])
    (finding,) = verify(path, KEY, files.head).findings
    assert finding.endswith(f"entries {first} to {after - 1} {MISSING}")
    write(path, "AND ON", most_bytes=1000, most_files=6)
    assert verify(path, KEY).findings == [finding]


def test_fewer_files_than_before_are_the_broker_s_own_doing(path: Path) -> None:
    write(path, *MANY, most_bytes=1000, most_files=6)
    write(path, *MANY[:20], most_bytes=1000, most_files=2)
    assert len(rotated(path)) == 1
    assert verify(path, KEY).findings == []


def test_of_a_log_of_an_earlier_version_nobody_knows_where_it_began(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as earlier:
        earlier.setattr("broker.audit.files.OLDEST", "unused")
        write(path, *MANY, most_bytes=1000, most_files=6)
    rotated(path)[0].unlink()
    assert verify(path, KEY).findings == []
    write(path, *MANY[:10], most_bytes=1000, most_files=6)
    assert verify(path, KEY).findings == []
    rotated(path)[0].unlink()
    (finding,) = verify(path, KEY).findings
    assert finding.endswith(MISSING)


def test_a_full_file_that_has_no_successor_yet_goes_on_under_its_new_name(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is full may not have room for the name of another file, either."""
    entry = [(1.0, {"event": "refused", "detail": "x" * 300})]
    files = opened(path, most_bytes=1000)
    while path.stat().st_size < 1000:
        files.append(entry)
    real_open = os.open

    def full(name: object, flags: int, mode: int = 0o777) -> int:
        if name == path:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real_open(name, flags, mode)  # type: ignore[arg-type]

    with monkeypatch.context() as disk:
        disk.setattr(os, "open", full)
        for _ in range(2):
            with pytest.raises(OSError, match="No space left on device"):
                files.append(entry)
        assert not path.exists()
    files.append(entry)
    files.close()
    assert len(rotated(path)) == 1
    assert verify(path, KEY, files.head).findings == []


def test_a_log_is_one_process_and_its_place_must_be_writable(path: Path, tmp_path: Path) -> None:
    files = opened(path)
    with pytest.raises(AuditError, match="belongs to another broker: give each broker its own"):
        opened(path)
    files.close()
    with pytest.raises(AuditError, match=r"cannot be written: .*; name another place"):
        opened_files(tmp_path, tmp_path / "audit.key", 1 << 20, 4)
    with pytest.raises(AuditError, match=r"audit_keyfile: .*/y+ cannot be used: File name too long; name another"):
        opened_files(path, tmp_path / ("y" * 300), 1 << 20, 4)
    (tmp_path / "bad.key").write_text("short")
    with pytest.raises(AuditError, match=r"audit_keyfile: .*bad.key does not hold 64 hexadecimal digits"):
        opened_files(path, tmp_path / "bad.key", 1 << 20, 4)


def renamed(path: Path) -> None:
    path.rename(path.with_name("audit.jsonl.1"))


def renamed_and_created(path: Path) -> None:
    renamed(path)
    path.touch(mode=0o600)


def copied_and_cut(path: Path) -> None:
    path.with_name("audit.jsonl.1").write_bytes(path.read_bytes())
    os.truncate(path, 0)


@pytest.mark.parametrize("rotate", [renamed, renamed_and_created, copied_and_cut, Path.unlink])
def test_a_file_that_another_program_takes_away_meanwhile_is_missed(path: Path, rotate: Callable[[Path], None]) -> None:
    """As logrotate does: what comes then is in the file that everybody reads, and after a restart, too."""
    files = opened(path)
    entry = (1_700_000_000.5, {"event": "refused", "code": "REVOKED"})
    files.append([entry] * 3)
    rotate(path)
    assert files.append([entry]) == 1
    assert files.append([entry]) == 1
    found = [json.loads(line) for line in lines(path)]
    assert [each["number"] for each in found] == [5, 6, 7, 8, 9], "after the first four"
    assert [each.get("code") for each in found[1:]] == ["AUDIT_DAMAGED"] * 2 + ["REVOKED"] * 2
    assert "which went to entry 4" in found[2]["detail"]
    files.close()
    again = opened(path)
    again.append([entry])
    again.close()
    assert [json.loads(line)["number"] for line in lines(path)] == [5, 6, 7, 8, 9, 10]
    verdict = verify(path, KEY, again.head)
    assert (verdict.first, verdict.head) == (5, again.head)


def test_what_somebody_else_has_put_in_its_place_is_not_continued(path: Path) -> None:
    files = opened(path)
    entry = (1_700_000_000.5, {"event": "refused", "code": "REVOKED"})
    files.append([entry])
    path.unlink()
    path.write_bytes(b"not ours\n")
    for _ in range(2):
        with pytest.raises(AuditError, match="move the file away"):
            files.append([entry])
    assert path.read_bytes() == b"not ours\n"
    path.unlink()
    assert files.append([entry]) == 1
    files.close()


@contextlib.contextmanager
def no_file_longer_than(most: int) -> Iterator[None]:
    """As on a disk that is full: what fits is written, and the rest fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_what_a_full_disk_took_a_part_of_is_undone_and_written_later_under_the_same_number(path: Path) -> None:
    files = opened(path)
    files.append([(1_700_000_000.0, {"code": "ONE"})])
    whole, head = path.read_bytes(), files.head
    with no_file_longer_than(len(whole) + 20), pytest.raises(OSError, match="File too large"):
        files.append([(1_700_000_000.0, {"code": "TWO"})])
    assert (path.read_bytes(), files.head, read_head(path, KEY)) == (whole, head, head)
    assert verify(path, KEY).head == head
    files.append([(1_700_000_000.0, {"code": "TWO"})])
    files.close()
    assert [json.loads(line)["number"] for line in lines(path)] == [1, 2, 3]
    assert verify(path, KEY, files.head).findings == []


@contextlib.contextmanager
def failing(*calls: str) -> Iterator[None]:
    """As on a disk that is there no more: these calls fail, as the kernel has them fail."""

    def fail(*_arguments: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with pytest.MonkeyPatch.context() as patch:
        for each in calls:
            patch.setattr(os, each, fail)
        yield


@pytest.mark.parametrize("sync", ["fdatasync", "fsync"])  # Of the lines; of the head, and of the folder.
@pytest.mark.parametrize("most_bytes", [1 << 20, 1])
def test_what_a_failing_disk_does_not_let_go_of_is_undone_when_it_works_again(
    path: Path, sync: str, most_bytes: int
) -> None:
    files = opened(path, most_bytes=most_bytes, most_files=20)
    files.append([(1_700_000_000.0, {"code": "ONE"})])
    for _ in range(2):
        with failing(sync, "ftruncate"), pytest.raises(OSError, match="Input/output error"):
            files.append([(1_700_000_000.0, {"code": "TWO", "detail": "of the first attempt"})])
    for code in ("TWO", "THREE"):
        files.append([(1_700_000_000.0, {"code": code})])
    files.close()
    assert verify(path, KEY, files.head).findings == []
    found = [json.loads(line) for each in [*rotated(path), path] for line in each.read_bytes().splitlines()]
    assert [each["code"] for each in found if "code" in each] == ["ONE", "TWO", "THREE"]
    assert write(path, "FOUR").number == files.head.number + 1
    assert verify(path, KEY).findings == []


def test_a_file_that_could_not_be_begun_on_a_full_disk_is_begun_later(path: Path) -> None:
    files = opened(path, most_bytes=1)
    with no_file_longer_than(10), pytest.raises(OSError, match="File too large"):
        files.append([(1_700_000_000.0, {"code": "ONE"})])
    assert path.read_bytes() == b""
    files.append([(1_700_000_000.0, {"code": "ONE"})])
    files.close()
    assert [json.loads(line).get("event") for line in lines(path)] == ["file", None]
    assert verify(path, KEY, files.head).findings == []


def test_a_file_that_a_dying_process_did_not_begin_is_begun_by_the_next_one(path: Path) -> None:
    head = write(path, "ONE", "TWO")
    path.rename(path.with_name(f"audit-{1:012d}.jsonl"))  # As a full file is put aside.
    write(path, "THREE")
    assert [json.loads(line)["number"] for line in lines(path)] == [4, 5]
    assert (verify(path, KEY, head).findings, verify(path, KEY).first) == ([], 1)


def test_a_long_log_goes_on_where_it_ended(path: Path) -> None:
    files = opened(path)
    files.append([(1_700_000_000.0, {"code": "LONG", "detail": "x" * 2000})] * 100)
    files.close()
    write(path, "AFTER")
    assert json.loads(lines(path)[-1])["number"] == 102
    assert verify(path, KEY).findings == []


def test_no_fact_takes_the_place_of_number_or_time(path: Path) -> None:
    files = opened(path)
    files.append([(1_700_000_000.0, {"number": 99, "at": "never", "code": "ONE", "empty": "", "none": None})])
    files.close()
    entry = json.loads(lines(path)[1])
    assert (entry["number"], entry["at"][:4], entry["code"]) == (2, "2023", "ONE")
    assert not {"empty", "none"} & entry.keys()


@pytest.mark.parametrize("content", [b"", b"garbage", b"2:zz", b"two:ab:cd", b"\xff\xfe"])
def test_a_head_that_is_none_is_not_believed(path: Path, content: bytes) -> None:
    write(path, "ONE")
    head_of(path).write_bytes(content)
    (found,) = verify(path, KEY).findings
    assert found.startswith(f"{head_of(path)} ")
    with pytest.raises(AuditError, match=re.escape(str(head_of(path)))):
        opened(path)


@pytest.mark.parametrize("number", ['"3"', "null", "3.0", "[]"])
def test_a_line_without_a_number_is_none_and_found(path: Path, number: str) -> None:
    write(path, "ONE", "TWO")
    path.write_bytes(path.read_bytes().replace(b'"number":3', f'"number":{number}'.encode()))
    assert "audit.jsonl: after entry 2: not a line of an audit log" in verify(path, KEY).findings
