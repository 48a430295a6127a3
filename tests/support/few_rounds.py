"""The keys of the tests' CAs are encrypted with as few rounds as an earlier version used.

A guess at a passphrase is to cost a tenth of a second (docs/decisions/0254-rounds-of-an-encrypted-key.md), and so does
each start, each command of a ceremony and each founding: in the tests more than everything else that these do. What the
program itself writes is tested where it is called by `as_shipped`, and where its process is started afresh.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from provisioning.pki import key_encryption

SHIPPED = key_encryption.ROUNDS
FEW = 2_048


def encrypt_with_few() -> None:
    """Do so from now on, in this process and in those that are forked from it."""
    key_encryption.ROUNDS = FEW


@contextlib.contextmanager
def as_shipped() -> Iterator[None]:
    """Encrypt with as many rounds as the program does."""
    key_encryption.ROUNDS = SHIPPED
    try:
        yield
    finally:
        encrypt_with_few()
