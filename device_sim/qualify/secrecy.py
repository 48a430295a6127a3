"""What a device's program leaves behind: its key in its output or in a file that others may read, and how it crashed.

Rules
-----
1. What is looked for in the output is the key itself, in PEM, base64 or hexadecimal, not words about keys.
2. A program has crashed if a signal of the processor ended it, or if it ended with an error and its output has what a
   runtime prints about an error that nobody handled.
3. Only the beginning and the end of a long output are read.
"""

from __future__ import annotations

import base64
import signal
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec

from provisioning.pki.keys import PrivateKey, load_key

_READ: Final = 4 * 1024 * 1024
_MARK: Final = b"PRIVATE KEY-----"
_LINE: Final = 32
"""Bytes of base64 that no output has by chance."""
_FAULTS: Final = frozenset(
    {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGTRAP}
)
_UNHANDLED: Final = (
    b"Traceback (most recent call last)",
    b"panicked at",
    b"panic: ",
    b"terminate called",
    b"Segmentation fault",
    b"AddressSanitizer",
    b"Exception in thread",
    b"Unhandled exception",
    b"Guru Meditation",
)


def read_output(log: Path) -> bytes:
    """Return what the device has printed, without the middle if that is very long."""
    if not log.exists():
        return b""
    with log.open("rb") as file:
        begin = file.read(_READ)
        size = log.stat().st_size
        if size > _READ:
            file.seek(max(_READ, size - _READ))
            begin += b"\n" + file.read(_READ)
    return begin


def leaked(output: bytes, key_file: Path) -> str:
    """Return in which form *output* has a private key, that in *key_file* or any in PEM; empty: in none."""
    if _MARK in output:
        return "PEM"
    try:
        secrets = _forms(key_file)
    except (OSError, ValueError):
        return ""
    squeezed = b"".join(output.replace(b":", b" ").split())  # OpenSSL prints colons between the bytes.
    return next((form for form, secret in secrets if secret in squeezed or secret in output), "")


def _forms(key_file: Path) -> list[tuple[str, bytes]]:
    body = b"".join(line for line in key_file.read_bytes().splitlines() if b"-----" not in line)
    found = [("base64", body[at : at + _LINE]) for at in range(_LINE, len(body) - _LINE, _LINE)]
    scalar = _scalar(load_key(key_file))
    if scalar:
        found += [("hexadecimal", scalar.hex().encode()), ("hexadecimal", scalar.hex().upper().encode())]
        found += [("base64", base64.b64encode(scalar)[:_LINE]), ("bytes", scalar)]
    return found


def _scalar(key: PrivateKey) -> bytes:
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        return b""
    return key.private_numbers().private_value.to_bytes((key.curve.key_size + 7) // 8, "big")


def exposed(directory: Path) -> str:
    """Return the name of a file below *directory* with a private key that others may read; empty: there is none."""
    for path in sorted(directory.rglob("*")):
        if path.is_file() and path.stat().st_mode & 0o077 and path.stat().st_size <= _READ and path.suffix != ".log":
            try:
                if _MARK in path.read_bytes():
                    return str(path.relative_to(directory))
            except OSError:
                continue
    return ""


def crash(status: int | None, output: bytes) -> str:
    """Return how a program that ended with *status* crashed; empty: it has not."""
    if status is None or status == 0:
        return ""
    if status < 0:
        return f"by {signal.Signals(-status).name}" if -status in _FAULTS else ""
    mark = next((each for each in _UNHANDLED if each in output), None)
    return "" if mark is None else f"with status {status}, having printed {mark.decode().strip()!r}"
