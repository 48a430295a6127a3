"""What the doctor says of keys that do not open."""

from __future__ import annotations

from pathlib import Path

import pytest

from provisioning.config import Settings
from provisioning.doctor import doctor


class _Signers:
    """Where the keys are: all of them here."""

    signers: _Signers

    def holds(self, _name: str) -> bool:
        return True


def test_a_passphrase_that_is_missing_is_said_once_and_not_for_each_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = _Signers()
    found.signers = found
    missing = "the CA keys need a passphrase: give --passphrase-file FILE"
    closed = {"issuing-ca": missing, "issuing-2": missing, "issuing-3": "issuing-3.key is damaged"}
    monkeypatch.setattr(doctor, "open_authority", lambda _settings: found)
    monkeypatch.setattr(doctor, "_tried", lambda *_: (closed, []))
    monkeypatch.setattr(doctor, "read_audit_key", lambda _files: None)
    for name in closed:
        (tmp_path / f"{name}.crt").touch()
    (finding,) = doctor._keys(Settings(directory=tmp_path))
    assert finding.detail == f"{missing}; issuing-3.key is damaged"
