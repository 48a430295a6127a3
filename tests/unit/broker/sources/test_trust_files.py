"""Anchors in files: whole, or refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from broker.sources.trust_files import read_anchors
from provisioning.pki.tls import TlsConfigurationError
from tests.support.pki import pem_of, shared_pki

FIRST, SECOND = (pem_of(held.certificate) for held in (shared_pki().root, shared_pki().issuing))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, len(SECOND.rstrip()) - 1))
def test_a_file_that_is_being_written_is_not_a_smaller_one(tmp_path: Path, cut: int) -> None:
    file = tmp_path / "anchors.pem"
    file.write_bytes(FIRST + SECOND[:cut])
    if cut < len(b"-----BEGIN CERTIFICATE-----"):  # Nothing of it says yet that there is to be one.
        assert len(read_anchors([file])) == 1
        return
    with pytest.raises(TlsConfigurationError, match=r"anchors\.pem holds no certificate, .* or one that is cut off"):
        read_anchors([file])


def test_a_whole_file_is_read_with_what_else_it_holds(tmp_path: Path) -> None:
    file = tmp_path / "anchors.pem"
    file.write_bytes(
        b"# ours\n" + FIRST + b"\n" + SECOND + b"-----BEGIN DH PARAMETERS-----\nAA==\n-----END DH PARAMETERS-----\n"
    )
    assert len(read_anchors([file])) == 2
