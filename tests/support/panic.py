"""A private key at which `cryptography`'s parser panics, which is no `Exception`."""

from __future__ import annotations

from typing import NoReturn

from cryptography.hazmat.primitives.serialization import load_pem_private_key

PANIC = """-----BEGIN EC PRIVATE KEY-----
Proc-Type: 4,ENCRYPTED
DEK-Info: AES-256-CBC,2BFFBF2FD2255111B3

LbIN8x+ekhb9lpW/3XoNK7YutKGWGVOwsom450xVVbGO6PygEMvzHAPNSJIQv179ow6trdA=
-----END EC PRIVATE KEY-----
"""
"""Its vector is of nine octets, not of sixteen."""


def panic() -> NoReturn:
    """Panic."""
    load_pem_private_key(PANIC.encode(), b"secret")
    raise AssertionError("the parser took it")


def a_panic() -> BaseException:
    """Return what the parser raises."""
    try:
        panic()
    except BaseException as error:  # noqa: BLE001 - it is no Exception
        return error
