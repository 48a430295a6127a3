"""A file that a command of `fleet-sim` is given, and that is not there: it is named, with what to do."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from device_sim.cli import app
from tests.support.pki import shared_device, shared_pki

_OWN_CA = "--cafile {ca} --ca-cert {ca} --ca-key {key}"


@pytest.mark.parametrize(
    "words",
    [
        "enrol {fleet} --ca-cert nope --ca-key {key}",
        "enrol {fleet} --ca-cert {ca} --ca-key nope",
        "enrol {fleet} --provisioning https://localhost:1 --cafile nope --cert {ca} --key {key}",
        f"attack --broker localhost {_OWN_CA}".replace("{ca} --ca-key", "nope --ca-key"),
        f"attack --broker localhost {_OWN_CA}".replace("{key}", "nope"),
        "bench conn --broker localhost --cacertfile nope --cert {ca} --key {key}",
        "bench conn --broker localhost --cacertfile {ca} --cert {ca} --key nope",
        "bench pub --broker localhost --cacertfile {ca} --cert {ca} --key {key} -t a --payload-file nope",
        "import {fleet} --from nope --cafile {ca} --backend-cert {cert} --backend-key {key}",
        "import {fleet} --from {devices} --cafile nope --backend-cert {ca} --backend-key {key}",
        "import {fleet} --from {devices} --cafile {ca} --backend-cert nope --backend-key {key}",
        "attack-table nope",
        "report nope",
        "run nope.py --fleet {fleet} --broker localhost",
        "run nope.toml --fleet {fleet} --broker localhost",
    ],
)
def test_it_is_named_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str) -> None:
    monkeypatch.chdir(tmp_path)
    devices = tmp_path / "devices"
    devices.mkdir()
    files = shared_device("meter-1").write(devices)
    anchors = shared_pki().write_anchors(tmp_path)
    given = words.format(
        ca=anchors, cert=files.certificate, key=files.key, fleet=tmp_path / "fleet", devices=devices
    ).split()
    done = CliRunner().invoke(app, given)
    told = " ".join(done.stderr.split())
    assert done.exit_code in {1, 2}, done.output
    assert "nope" in told, told
    assert "No such file or directory; " in told, told
    assert "name one that is" in told, told
    assert not (tmp_path / "fleet").exists(), "nothing is made"
