"""Files that name a device or a certificate on each line, as people and spreadsheets write them."""

from __future__ import annotations

import array
import fcntl
import os
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from provisioning.commands.named_lines import read_lines
from provisioning.errors import ConfigurationError
from tests.support.provisioning import REPOSITORY


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("m1\nm2\n", ["m1", "m2"]),
        ("\ufeffm1\r\n\r\n  m2 \nm1", ["m1", "m2"]),
        ('"m1"\nm2,\n', ["m1", "m2"]),
        ("m1\ndevice\n", ["m1", "device"]),  # Only a first line is a header.
    ],
)
def test_a_line_is_a_name(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, names: list[str]) -> None:
    (tmp_path / "names").write_text(text, encoding="utf-8")
    assert read_lines(tmp_path / "names", "device") == names
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("what", "header"), [("device", "name"), ("device", "Device"), ("device", '"NAME"'), ("certificate", "Serial")]
)
def test_a_header_is_said_and_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str, header: str
) -> None:
    (tmp_path / "names").write_text(f"{header}\na1\n")
    assert read_lines(tmp_path / "names", what) == ["a1"]
    said = f"names: the first line, {header.strip(chr(34))}, is a header and no {what}"
    assert said in capsys.readouterr().err


def test_what_heads_one_column_is_a_name_in_another(tmp_path: Path) -> None:
    (tmp_path / "names").write_text("serial\nm2\n")
    assert read_lines(tmp_path / "names", "device") == ["serial", "m2"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "names no device: put one on each line"),
        ("device\n\n", "names no device: put one on each line"),
        ("device,group\nm1,north\n", r"names:1 has 2 cells, device, group: keep one column, with a device on each"),
        ("m1\nm2,north\n", r"names:2 has 2 cells, m2, north"),
        ('m1\n"m2\n', "cannot be read line by line"),
    ],
)
def test_what_names_nobody_for_sure_is_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "names").write_text(text)
    with pytest.raises(ConfigurationError, match=words):
        read_lines(tmp_path / "names", "device")


@pytest.mark.parametrize(
    "words",
    [
        ["suspend", "--devices-file", "-"],
        ["token", "batch", "--devices-file", "-", "--output", "tokens.csv"],
        ["listed", "import", "west", "--file", "/dev/stdin"],
    ],
    ids=lambda words: words[0],
)
def test_who_waits_for_names_from_a_pipe_can_be_interrupted(tmp_path: Path, words: list[str]) -> None:
    reads, writes = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "provisioning", *words],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        stdin=reads,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.write(writes, b"name\n")  # And no end: somebody types, or a slow command fills the pipe.
    try:
        left = array.array("i", [1])
        deadline = time.monotonic() + 60
        while left[0] and process.poll() is None and time.monotonic() < deadline:
            fcntl.ioctl(reads, termios.FIONREAD, left)
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
        os.close(reads)
        os.close(writes)
    assert (process.returncode, said) == (130, "fleet-provisioning: stopped, and nothing was done\n")
    assert not list(tmp_path.iterdir())
