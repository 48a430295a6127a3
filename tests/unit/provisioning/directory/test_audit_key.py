"""The key of an audit log: made once, for its owner alone, and worth nothing where it is not whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from provisioning.directory.audit_chain import AuditHead, link, make_key, read_key, seal
from provisioning.errors import ConfigurationError


def test_a_key_is_made_once_and_is_its_owners(tmp_path: Path) -> None:
    path = tmp_path / "audit.key"
    make_key(path)
    key = read_key(path)
    assert len(key) == 32
    assert path.stat().st_mode & 0o777 == 0o600
    make_key(path)
    assert read_key(path) == key, "nothing is overwritten"
    make_key(tmp_path / "other.key")
    assert read_key(tmp_path / "other.key") != key


@pytest.mark.parametrize("content", ["", "00" * 31, "00" * 33, "zz" * 32, "\N{SNOWMAN}"])
def test_what_is_no_whole_key_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "audit.key"
    path.write_text(content)
    with pytest.raises(ConfigurationError, match="does not hold 64 hexadecimal digits: restore it from the backup"):
        read_key(path)


def test_what_cannot_be_read_or_made_is_named(tmp_path: Path) -> None:
    nowhere = tmp_path / "none" / "audit.key"
    with pytest.raises(ConfigurationError, match=r"none/audit\.key cannot be read"):
        read_key(nowhere)
    with pytest.raises(ConfigurationError, match=r"none/audit\.key cannot be written"):
        make_key(nowhere)


def test_a_head_is_read_as_it_is_shown_and_every_part_of_a_link_counts() -> None:
    head = AuditHead(17, b"\x01\xff")
    assert AuditHead.parse(str(head)) == head
    for text in ("", "x:01", "17:0", "17:0x"):
        with pytest.raises(ValueError, match=r"invalid literal|non-hexadecimal|even number"):
            AuditHead.parse(text)
    made = {link(b"k", b"p", b"c"), link(b"j", b"p", b"c"), link(b"k", b"q", b"c"), link(b"k", b"p", b"d")}
    assert len(made) == 4
    assert len({seal(b"k", head), seal(b"j", head), seal(b"k", AuditHead(18, head.mac))}) == 3
