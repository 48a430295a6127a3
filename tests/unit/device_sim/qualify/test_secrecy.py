"""What a device's program leaves behind: its key, and how it crashed."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from device_sim.qualify import secrecy
from provisioning.pki.keys import generate_key, key_to_pem


def test_a_key_is_found_in_each_form_and_ordinary_output_is_none(tmp_path: Path) -> None:
    key = generate_key()
    file = tmp_path / "device.key"
    file.write_bytes(key_to_pem(key))
    body = b"".join(line for line in key_to_pem(key).splitlines() if b"-----" not in line)
    value = key.private_numbers().private_value.to_bytes(32, "big")
    assert secrecy.leaked(b"x\n" + key_to_pem(key), file) == "PEM"
    assert secrecy.leaked(b"key=" + body + b"\n", file) == "base64"
    assert secrecy.leaked(b"d=" + value.hex().encode(), file) == "hexadecimal"
    assert secrecy.leaked(b"d=" + value.hex().upper().encode(), file) == "hexadecimal"
    dumped = b"priv:\n    " + value[:15].hex(":").encode() + b":\n    " + value[15:].hex(":").encode() + b"\n"
    assert secrecy.leaked(dumped, file) == "hexadecimal", "as `openssl pkey -text` prints it"
    assert secrecy.leaked(b"loaded the private key; BEGIN CERTIFICATE", file) == ""
    assert secrecy.leaked(key_to_pem(generate_key()).replace(b"PRIVATE KEY", b"KEY"), file) == ""
    assert secrecy.leaked(b"", tmp_path / "none") == ""


def test_a_key_that_others_may_read_is_found(tmp_path: Path) -> None:
    file = tmp_path / "device.key"
    file.write_bytes(key_to_pem(generate_key()))
    file.chmod(0o600)
    (tmp_path / "ca.crt").write_text("-----BEGIN CERTIFICATE-----")
    assert secrecy.exposed(tmp_path) == ""
    file.chmod(0o640)
    assert secrecy.exposed(tmp_path) == "device.key"


@pytest.mark.parametrize(
    ("status", "output", "crashed"),
    [
        (None, b"Traceback (most recent call last)", False),
        (0, b"Traceback (most recent call last)", False),
        (1, b"Traceback (most recent call last):\n  KeyError: 156", True),
        (101, b"thread 'main' panicked at src/main.rs", True),
        (14, b"Error: certificate verify failed", False),
        (-signal.SIGSEGV, b"", True),
        (-signal.SIGPIPE, b"", False),
        (-signal.SIGTERM, b"", False),
    ],
)
def test_a_crash_is_told_from_an_end(status: int | None, output: bytes, crashed: bool) -> None:
    assert bool(secrecy.crash(status, output)) is crashed


def test_of_a_long_output_the_beginning_and_the_end_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secrecy, "_READ", 4)
    log = tmp_path / "device.log"
    assert secrecy.read_output(log) == b""
    log.write_bytes(b"head....tail")
    assert secrecy.read_output(log) == b"head\ntail"
    log.write_bytes(b"head12")
    assert secrecy.read_output(log) == b"head\n12"


def test_a_key_in_lines_or_as_it_is_in_memory_is_found(tmp_path: Path) -> None:
    file = tmp_path / "device.key"
    while True:
        key = generate_key()
        value = key.private_numbers().private_value.to_bytes(32, "big")
        if value != b"".join(value.split()):  # Some of its bytes are spaces or line ends.
            break
    file.write_bytes(key_to_pem(key))
    body = b"".join(line for line in key_to_pem(key).splitlines() if b"-----" not in line)
    lines = b"\n".join(body[at : at + 20] for at in range(0, len(body), 20))
    assert secrecy.leaked(b"dump:\n" + lines, file) == "base64"
    assert secrecy.leaked(b"\x00" + value + b"\x00", file) == "bytes"


def test_the_device_s_output_is_no_file_of_its_own(tmp_path: Path) -> None:
    """What it prints is read as such: `leaked`."""
    log = tmp_path / "device.log"
    log.write_bytes(key_to_pem(generate_key()))
    log.chmod(0o644)
    (tmp_path / "keys").mkdir()
    assert secrecy.exposed(tmp_path) == ""
    (tmp_path / "keys" / "next.pem").write_bytes(key_to_pem(generate_key()))
    (tmp_path / "keys" / "next.pem").chmod(0o604)
    assert secrecy.exposed(tmp_path) == "keys/next.pem"
