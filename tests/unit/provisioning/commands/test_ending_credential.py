from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from provisioning.commands import service_command
from provisioning.commands.ending_credential import told_of_end
from provisioning.pki.tls import CredentialFiles
from tests.support.pki import shared_pki


def test_an_operator_is_told_in_the_last_tenth_of_a_certificate_s_life(tmp_path: Path) -> None:
    path = tmp_path / "operator.crt"
    certificate = shared_pki().service("anna").certificate
    path.write_bytes(certificate.public_bytes(Encoding.PEM))
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    tenth, moment = (end - begin) / 10, timedelta(seconds=1)
    told = told_of_end(path, end - tenth + moment)
    assert told is not None
    assert told.startswith(f"{path} expires on {end:%Y-%m-%d %H:%M} UTC: ")
    assert "token create --role operator" in told
    assert told_of_end(path, end - moment) == told
    assert told_of_end(path, end - tenth - moment) is None
    assert told_of_end(path, end) is None, "the service says so, and refuses it"
    path.write_text("no certificate")
    assert told_of_end(path, end - moment) is None


def test_a_command_warns_of_both_files_that_it_uses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    key = tmp_path / "operator.key"
    key.write_bytes(b"")
    key.chmod(0o644)
    monkeypatch.setattr("provisioning.commands.ending_credential.told_of_end", lambda path, _now: f"{path} expires")
    service_command.warn_of_credential(CredentialFiles(tmp_path / "operator.crt", key))
    said = capsys.readouterr().err
    assert f"warning: {key} has mode 0644" in said
    assert f"warning: {tmp_path}/operator.crt expires" in " ".join(said.split())
