"""The build's identity: the same for the same sources, another for others, and what coreutils find."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from provisioning.program import build
from provisioning.program.build import UNKNOWN, build_identity, identity_of, read_ahead
from provisioning.program.runtime import what_runs
from provisioning.program.version import version_and_build

BY_HAND = next(
    part for part in (build.__doc__ or "").split("\n\n") if part.lstrip().startswith("find ")
)  # The very command that the module offers.


def sources(root: Path, text: str = "x = 1\n") -> Path:
    for name in ("broker/a.py", "broker/deep/b.py", "device_sim/run.toml", "provisioning/page.css"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_it_is_what_the_documented_command_finds() -> None:
    root = Path(build.__file__).parents[2]
    found = subprocess.run(["sh", "-c", BY_HAND], cwd=root, capture_output=True, text=True, check=True).stdout
    assert found.strip() == build_identity()


def test_the_same_sources_are_the_same_build_wherever_they_lie_and_whatever_is_beside_them(tmp_path: Path) -> None:
    here, there = sources(tmp_path / "here"), sources(tmp_path / "elsewhere" / "site-packages")
    (there / "broker" / "__pycache__").mkdir()
    (there / "broker" / "__pycache__" / "a.cpython-313.pyc").write_bytes(b"\0")
    (there / "broker" / "a.cpython-313-x86_64-linux-gnu.so").write_bytes(b"\x7fELF")
    (there / "broker" / ".#a.py").symlink_to("somebody@host.123:456")  # Emacs, while a.py is edited.
    (there / "broker" / "._a.py").write_bytes(b"\0")  # An archive made on macOS.
    (there / "broker" / ".ipynb_checkpoints").mkdir()
    (there / "broker" / ".ipynb_checkpoints" / "a.py").write_text("")
    (there / "another_package").mkdir()
    (there / "another_package" / "c.py").write_text("")
    assert identity_of(here) == identity_of(there)
    for root in (here, there):
        found = subprocess.run(["sh", "-c", BY_HAND], cwd=root, capture_output=True, text=True, check=True).stdout
        assert found.strip() == identity_of(here)


def test_a_name_that_is_no_text_is_part_of_it(tmp_path: Path) -> None:
    root, before = sources(tmp_path), identity_of(tmp_path)
    (root / "broker" / os.fsdecode(b"caf\xe9.py")).write_text("")
    found = subprocess.run(["sh", "-c", BY_HAND], cwd=root, capture_output=True, text=True, check=True).stdout
    assert identity_of(root) == found.strip() != before


@pytest.mark.parametrize("name", ["broker/a.py", "broker/deep/b.py", "device_sim/run.toml", "provisioning/page.css"])
def test_a_changed_a_renamed_and_a_lost_file_are_another_build(tmp_path: Path, name: str) -> None:
    root = sources(tmp_path)
    seen = [identity_of(root)]
    (root / name).write_text("x = 2\n")
    seen.append(identity_of(root))
    (root / name).rename((root / name).with_name(f"z{(root / name).suffix}"))
    seen.append(identity_of(root))
    (root / name).with_name(f"z{(root / name).suffix}").unlink()
    seen.append(identity_of(root))
    assert len(set(seen)) == 4
    assert all(len(each) == 12 for each in seen)


def test_without_sources_it_is_unknown(tmp_path: Path) -> None:
    assert identity_of(tmp_path) == UNKNOWN
    for each in sources(tmp_path).rglob("*.py"):
        each.rename(each.with_suffix(".pyc"))
    assert identity_of(tmp_path) == UNKNOWN, "byte code alone, beside what is read"
    (sources(tmp_path) / "broker" / "gone.py").symlink_to(tmp_path / "nowhere")
    assert identity_of(tmp_path) == UNKNOWN


def test_who_comes_while_it_is_read_ahead_waits_for_that(monkeypatch: pytest.MonkeyPatch) -> None:
    read = []

    def counted(root: Path) -> str:
        read.append(root)
        return identity_of(root)

    build._of_this_process.cache_clear()
    monkeypatch.setattr(build, "identity_of", counted)
    read_ahead()
    assert build_identity() == identity_of(read[0])
    assert len(read) == 1


def test_a_metric_tells_version_build_and_what_it_runs_on() -> None:
    facts = what_runs()
    assert facts.keys() == {"version", "build", "python", "openssl"}
    assert version_and_build() == f"{facts['version']} build {build_identity()}"
