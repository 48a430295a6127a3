"""What the doctor makes of files that a command is still writing."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from provisioning.directory.files import AuthorityFiles
from provisioning.doctor import doctor


def test_a_draft_that_is_renamed_while_the_doctor_looks_is_no_trouble(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left, renamed = tmp_path / ".operator.key.1.new", tmp_path / ".server.crt.2.new"
    for path in (left, renamed):
        path.touch()
    glob = Path.glob

    def then_renamed(folder: Path, pattern: str) -> list[Path]:
        found = list(glob(folder, pattern))
        renamed.replace(tmp_path / "server.crt")
        return found

    monkeypatch.setattr(Path, "glob", then_renamed)
    (finding,) = doctor._drafts(AuthorityFiles(tmp_path), datetime(2999, 1, 1, tzinfo=UTC))
    assert finding.remedy == f"rm {left}"
