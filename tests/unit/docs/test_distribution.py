"""What a packager gets: an sdist with all that belongs to the sources, and a wheel from it that is the same build."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from provisioning.program.build import identity_of

REPOSITORY = Path(__file__).parents[3]
FOLDERS = ("benchmarks", "broker", "deploy", "device_sim", "docs", "provisioning", "tests")
FILES = ("LICENSE", "MANIFEST.in", "Makefile", "README.md", "pyproject.toml")
UNTRACKED = shutil.ignore_patterns("__pycache__", "*.so", "*.pyc")

pytestmark = pytest.mark.skipif(not (REPOSITORY / "MANIFEST.in").exists(), reason="not the sources")


def built(what: str, source: Path, into: Path) -> Path:
    into.mkdir()
    build = f"import sys; from setuptools.build_meta import {what}; print({what}(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", build, str(into)], cwd=source, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (made,) = into.iterdir()
    return made


def files_in(root: Path) -> set[str]:
    found = (path for folder in FOLDERS for path in (root / folder).rglob("*") if path.is_file())
    return {str(path.relative_to(root)) for path in found}


def test_an_sdist_has_tests_pages_and_units_and_its_wheel_is_the_same_build(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for folder in FOLDERS:
        shutil.copytree(REPOSITORY / folder, source / folder, ignore=UNTRACKED)
    for file in FILES:
        shutil.copy(REPOSITORY / file, source / file)
    with tarfile.open(built("build_sdist", source, tmp_path / "sdist")) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    assert files_in(unpacked) == files_in(source)
    assert all((unpacked / file).read_bytes() == (source / file).read_bytes() for file in FILES)
    with zipfile.ZipFile(built("build_wheel", unpacked, tmp_path / "wheel")) as wheel:
        wheel.extractall(tmp_path / "installed")  # noqa: S202 - made a moment ago, here
    assert {each.name.partition("-")[0] for each in (tmp_path / "installed").iterdir()} == {
        *("broker", "device_sim", "provisioning", "fleetgate")
    }
    assert identity_of(tmp_path / "installed") == identity_of(source)
