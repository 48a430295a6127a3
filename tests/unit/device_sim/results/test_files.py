"""The files of a report: what becomes of the others where one cannot be written."""

from __future__ import annotations

from pathlib import Path

from device_sim.results.document import read
from device_sim.results.files import write_all
from tests.support.documents import imagined


def test_a_file_that_cannot_be_written_keeps_no_other_back(tmp_path: Path) -> None:
    """On a full disk the report was whole, and `fleet-sim report` showed the run as cut off."""
    (tmp_path / "progress.jsonl").write_text("{}")
    (full := tmp_path / "report.html").symlink_to("/dev/full")
    files, errors = write_all(imagined(), tmp_path)
    assert [path.name for path in files] == ["report.json", "timeline.csv", "junit.xml"]
    assert [error.filename for error in errors] == [str(full)]
    assert read(tmp_path)["verdict"] == imagined()["verdict"]
    assert not (tmp_path / "progress.jsonl").exists()
