"""The tests' CAs have keys with few rounds; the program's own keys have as many as it says."""

from __future__ import annotations

from pathlib import Path

import pytest
from asn1crypto import keys, pem

from tests.support import programs
from tests.support.few_rounds import FEW, SHIPPED
from tests.support.prepared_fleet import settings_environment


@pytest.mark.parametrize(("afresh", "expected"), [(True, SHIPPED), (False, FEW)], ids=["afresh", "forked"])
def test_only_a_process_that_is_forked_encrypts_with_few(tmp_path: Path, *, afresh: bool, expected: int) -> None:
    done = programs.run(
        "provisioning", ["init", "--dir", tmp_path / "fleet"], settings_environment({}), timeout=60, afresh=afresh
    )
    assert done.returncode == 0, done.stderr
    for name in ("root-ca", "issuing-ca"):
        _, _, der = pem.unarmor((tmp_path / "fleet" / f"{name}.key").read_bytes())
        encrypted = keys.EncryptedPrivateKeyInfo.load(der)
        assert encrypted["encryption_algorithm"].kdf_iterations == expected, name
