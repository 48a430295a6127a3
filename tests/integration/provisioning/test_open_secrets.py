"""Keys that everybody may read are used, and whoever uses them is told which: in commands, ceremonies, at the start."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.provisioning import ProvisioningService


def warning(path: Path) -> str:
    return f"{path} has mode 0644, everybody on this machine may read it: chmod 600 {path}"


@pytest.fixture
def opened(tmp_path: Path) -> ProvisioningService:
    """A service, which does not run, with an operator's and a CA's key that everybody may read."""
    service = ProvisioningService.copied(tmp_path / "fleet")
    for name in ("operator", "issuing-ca"):
        (service.dir / f"{name}.key").chmod(0o644)
    return service


def test_commands_ceremonies_and_the_service_say_which_key_is_open(opened: ProvisioningService) -> None:
    operators, the_cas = opened.dir / "operator.key", opened.dir / "issuing-ca.key"
    with opened as service:
        (said,) = [json.loads(line) for line in service.log.splitlines() if warning(the_cas) in line]
        assert (said["level"], said["event"]) == ("warning", "private file readable for every user")
        listed = service.command("device", "list", "--json", "--dir", str(service.dir))
        assert (listed.returncode, listed.stderr) == (0, f"fleet-provisioning: warning: {warning(operators)}\n")
        json.loads(listed.stdout)
    begun = opened.command("ca", "rollover", "begin", "--json", "--dir", str(opened.dir))
    assert begun.returncode == 0, begun.stderr
    for path in (operators, the_cas):
        assert f"fleet-provisioning: warning: {warning(path)}\n" in begun.stderr
        path.chmod(0o600)
    assert json.loads(begun.stdout)["state"] == "announced"
    with opened as service:
        assert service.log.count("readable for every user") == 2, "of the first start"
        assert service.command("device", "list", "--dir", str(service.dir)).stderr == ""


def test_founding_says_that_the_passphrase_is_open(tmp_path: Path) -> None:
    passphrase = tmp_path / "passphrase"
    passphrase.write_text("a passphrase that is long")
    passphrase.chmod(0o644)
    service = ProvisioningService(tmp_path / "fleet")
    founded = service.command("init", "--dir", str(service.dir), "--passphrase-file", str(passphrase), "--json")
    assert (founded.returncode, founded.stderr) == (0, f"fleet-provisioning: warning: {warning(passphrase)}\n")
    assert json.loads(founded.stdout)["trust_domain"] == "fleet.internal"


def test_founding_and_the_doctor_say_that_the_passphrase_can_be_guessed(tmp_path: Path) -> None:
    passphrase = tmp_path / "passphrase"
    passphrase.write_text("fourteen chars")
    passphrase.chmod(0o600)
    service = ProvisioningService(tmp_path / "fleet", {"port": 0, "http_port": 0})
    opened = ("--dir", str(service.dir), "--passphrase-file", str(passphrase))
    said = service.command("init", *opened)
    assert said.returncode == 0
    short = "the passphrase has fewer than 15 characters: whoever copies a CA's key file can guess it"
    assert said.stderr.startswith(f"fleet-provisioning: warning: {short}: make one with openssl rand -hex 24, ")
    assert "fourteen" not in said.stderr
    examined = service.command("doctor", *opened, "--json")
    keys = [each for each in json.loads(examined.stdout) if each["check"] == "keys"]
    assert (examined.returncode, [each["verdict"] for each in keys]) == (0, ["warning", "ok"])
    assert keys[0]["detail"] == short


def test_founding_and_the_service_say_that_crls_are_not_fetched_over_tls(tmp_path: Path) -> None:
    service = ProvisioningService(tmp_path / "fleet")
    url = ("--public-http-url", "https://ca.example.org")
    founded = service.command("init", "--dir", str(service.dir), *url, "--json")
    said = "public_http_url is https://ca.example.org/: many clients do not fetch CRLs and OCSP answers over TLS"
    assert (founded.returncode, founded.stderr.count("\n")) == (0, 1)
    assert founded.stderr.startswith(f"fleet-provisioning: warning: {said}")
    json.loads(founded.stdout)
    with service:  # It is in the settings now.
        (line,) = [json.loads(each) for each in service.log.splitlines() if said in each]
        assert (line["level"], line["event"]) == ("warning", "setting is probably a mistake")


def test_the_service_logs_from_the_level_that_it_is_given(tmp_path: Path) -> None:
    service = ProvisioningService.copied(tmp_path / "fleet", {"log_level": "error", "public_http_url": "https://x"})
    with service:
        pass
    assert service.log == ""
    quiet = service.command("serve", "--dir", str(service.dir), "--log-level", "loud")
    assert (quiet.returncode, quiet.stdout) == (2, "")
    assert quiet.stderr == ("fleet-provisioning: --log-level: input should be 'debug', 'info', 'warning' or 'error'\n")
