"""What the broker finds in the place of its audit log: nothing is cut off before it has proved to be the log's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from broker.audit.files import AuditFiles
from broker.audit.head import AuditError, head_of
from broker.audit.verification import verify

KEY = bytes(range(32))
LONG = b'{"number":' + b"1" * (1 << 18)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit" / "audit.jsonl"


def opened(path: Path, key: bytes = KEY) -> AuditFiles:
    files = AuditFiles(path, key, 1 << 20, 4)
    files.open()
    return files


def write(path: Path, *codes: str) -> None:
    files = opened(path)
    for code in codes:
        files.append([(1_700_000_000.5, {"event": "refused", "code": code})])
    files.close()


def lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"correct horse battery staple", id="a passphrase"),
        pytest.param(b"[limits]\nmax_keepalive = 60", id="settings without a newline at the end"),
        pytest.param(b'{"alert": "page"}', id="JSON"),
        pytest.param(LONG, id="a long line that begins as an entry does"),
    ],
)
@pytest.mark.parametrize("linked", [False, True])
def test_a_file_that_is_no_audit_log_stays_as_it_is(path: Path, content: bytes, linked: bool) -> None:
    """`audit_log` may name it by mistake, or by a link that somebody else has made."""
    path.parent.mkdir()
    theirs = path.with_name("theirs") if linked else path
    theirs.write_bytes(content)
    if linked:
        path.symlink_to(theirs)
    with pytest.raises(AuditError, match=r"audit_log: .* move the file away"):
        opened(path)
    assert theirs.read_bytes() == content


def test_a_file_in_the_place_of_the_log_stays_as_it_is(path: Path) -> None:
    write(path, "TWO")
    path.write_bytes(b"somebody's notes\nwithout a newline at the end")
    with pytest.raises(AuditError, match="move the file away"):
        opened(path)
    assert path.read_bytes() == b"somebody's notes\nwithout a newline at the end"


@pytest.mark.parametrize(
    "content",
    [b"somebody's notes", b"somebody's notes\n", pytest.param(LONG, id="a long line that begins as an entry does")],
)
def test_a_file_in_the_place_of_one_that_was_about_to_begin_stays_as_it_is(path: Path, content: bytes) -> None:
    """When the broker dies between two files, the head names the last entry of the full one: the next was emptied."""
    write(path, "TWO")
    path.rename(path.with_name("audit-000000000001.jsonl"))
    path.write_bytes(content)
    with pytest.raises(AuditError, match="move the file away"):
        opened(path)
    assert path.read_bytes() == content


@pytest.mark.parametrize("zeros", [b"", bytes(99)])
@pytest.mark.parametrize("left", [0, 1, 9, 10, 60, -1])
def test_an_unfinished_first_entry_of_the_next_file_is_cut_off(path: Path, left: int, zeros: bytes) -> None:
    write(path, "TWO")
    head = head_of(path).read_bytes()
    path.rename(path.with_name("audit-000000000001.jsonl"))
    write(path)
    head_of(path).write_bytes(head)
    path.write_bytes(path.read_bytes()[:left] + zeros)
    write(path, "LATER")
    assert verify(path, KEY).findings == []


def test_with_another_key_not_even_an_unfinished_entry_is_cut_off(path: Path) -> None:
    write(path, "TWO")
    with path.open("ab") as file:
        file.write(b'{"number":3,"at":"20')
    before = path.read_bytes()
    with pytest.raises(AuditError, match="was changed, or was written with another key"):
        opened(path, key=b"x" * 32)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param(b'{"number":2,"previous":7,"mac":"00"}\n', id="a code that is a number"),
        pytest.param(b'{"number":2,"a":' + b"[" * 100_000 + b',"mac":"00"}\n', id="nested without an end"),
    ],
)
def test_an_entry_that_was_changed_into_anything_is_told_of_as_changed(path: Path, changed: bytes) -> None:
    """The start, or the check, ended with a traceback that names neither the file nor a remedy."""
    write(path, "TWO")
    path.write_bytes(lines(path)[0] + changed)
    assert any(found.startswith("audit.jsonl: ") for found in verify(path, KEY).findings)
    with pytest.raises(AuditError, match="was changed, or was written with another key"):
        opened(path)
    assert path.read_bytes().endswith(changed)


@pytest.mark.parametrize("left", [1, 9, 10, 60])
def test_an_unfinished_first_entry_is_cut_off_and_the_log_begins(path: Path, left: int) -> None:
    write(path)
    first = path.read_bytes()
    head_of(path).unlink()
    path.write_bytes(first[:left])
    write(path, "TWO")
    assert [json.loads(line).get("detail") for line in lines(path)][1] == (
        f"{left} bytes of an unfinished entry were cut off"
    )
    assert verify(path, KEY).findings == []


def test_a_head_whose_entry_has_lost_its_newline_is_missed(path: Path) -> None:
    write(path, "TWO", "THREE")
    path.write_bytes(path.read_bytes()[:-1])
    write(path, "LATER")
    assert "entries 3 to 3 are missing at the end" in [json.loads(line).get("detail") for line in lines(path)]
