"""No file of code grows past 500 lines: before that it has a second noun, which gets a file of its own."""

from __future__ import annotations

from tests.support.provisioning import REPOSITORY

MOST = 500
FOLDERS = ("provisioning", "broker", "device_sim", "tests", "benchmarks", "deploy")


def test_no_file_is_longer() -> None:
    files = [path for folder in FOLDERS for path in (REPOSITORY / folder).rglob("*.py")]
    assert len(files) > len(FOLDERS)
    lengths = {path: path.read_bytes().count(b"\n") for path in files}
    assert {str(path): length for path, length in lengths.items() if length > MOST} == {}
