"""Files that an operator names are read up to a bound, by all three programs: of a device that has no end, too."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from io import BytesIO, StringIO
from pathlib import Path

import pytest

from provisioning.program.given_file import contents_of, lines_of, rest_of, text_of
from tests.support.provisioning import REPOSITORY

ENDLESS = "/dev/zero"
ENOUGH = 2 << 30
"""Bytes of address space: twice what a command has at its largest, with a bound of 256 MiB."""


def test_a_file_is_read_up_to_its_bound_and_no_further(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x" * 200_000)
    assert contents_of(file, 200_000) == b"x" * 200_000
    assert text_of(file, 200_000) == "x" * 200_000
    with pytest.raises(OSError, match="it has more than 195 KiB, which is the most that is read") as refused:
        contents_of(file, 199_999)
    assert refused.value.filename == str(file)
    with pytest.raises(OSError, match="more than 1 MiB"):
        contents_of(Path(ENDLESS), 1 << 20)
    assert rest_of(BytesIO(b"abc"), 3, "standard input") == b"abc"


def test_an_error_of_a_read_has_the_name_of_the_file() -> None:
    """The kernel gives it none: so fails a disk. Of a process's own memory nothing is at the beginning."""
    memory = Path("/proc/self/mem")
    with pytest.raises(OSError, match="Input/output error: '/proc/self/mem'") as failed:
        contents_of(memory, 10)
    assert failed.value.filename == str(memory)
    with memory.open("rb") as file, pytest.raises(OSError, match="Input/output error: 'the list'"):
        list(lines_of(file, "the list"))


def test_a_line_has_an_end() -> None:
    longest = "x" * ((1 << 20) - 2) + "\n"
    assert list(lines_of(StringIO(f"a\n{longest}b"), "list")) == ["a\n", longest, "b"]
    with Path(ENDLESS).open("rb") as file, pytest.raises(OSError, match="it has a line of more than 1 MiB"):
        next(lines_of(file, ENDLESS))


COMMANDS = [
    ("provisioning", ["revoke", "--devices-file", ENDLESS], "more than 64 MiB"),
    ("provisioning", ["suspend", "--devices-file", "-"], "standard input cannot be read: it has more than 64 MiB"),
    ("provisioning", ["init", "--dir", "fleet", "--passphrase-file", ENDLESS], "more than 64 KiB"),
    ("provisioning", ["init", "--dir", "large"], "large/provisioning.toml cannot be read: it has more than 16 MiB"),
    ("broker", ["run", "--config", ENDLESS], "more than 16 MiB"),
    ("broker", ["run", "--test-config", "--cafile", ENDLESS, "--crlfile", ENDLESS, "--certfile", "a", "--keyfile", "b"],
     f"crlfile: {ENDLESS} cannot be read: it has more than 256 MiB"),
    ("broker", ["audit", "show", "--log", ENDLESS], "a line of more than 1 MiB"),
    ("broker", ["audit", "verify", "--log", "x", "--key", ENDLESS], "more than 64 KiB"),
    ("broker", ["crl", "try", ENDLESS], "more than 256 MiB"),
    ("broker", ["check", ENDLESS], "more than 16 MiB"),
    ("broker", ["reload", "trust", "--dry-run", "--anchors", ENDLESS], "more than 16 MiB"),
    ("device_sim", ["report", ENDLESS], "more than 256 MiB"),
    ("device_sim", ["run", "endless.toml", "--output", "out"], "more than 16 MiB"),
    ("device_sim", ["enrol", "f", "--ca-cert", ENDLESS, "--ca-key", ENDLESS], "more than 16 MiB"),
]  # fmt: skip


@pytest.mark.parametrize(("package", "words", "said"), COMMANDS, ids=lambda each: str(each)[:40])
def test_a_file_without_an_end_is_refused_in_one_line(
    tmp_path: Path, package: str, words: list[str], said: str
) -> None:
    (tmp_path / "endless.toml").symlink_to(ENDLESS)
    (tmp_path / "large").mkdir(mode=0o700)
    with (tmp_path / "large" / "provisioning.toml").open("wb") as file:
        file.truncate(1 << 40)
    with Path(ENDLESS).open("rb") as endless:
        done = subprocess.run(
            [sys.executable, "-m", package, *words],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
            stdin=endless,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (ENOUGH, ENOUGH)),
        )
    assert said in done.stderr
    assert "name the right file" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.returncode in {1, 2}
