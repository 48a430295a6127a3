"""A service whose CA keys are in a token: nothing of them is on its disk, and everything works as ever."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.curl import Curl
from tests.support.openssl import OpensslDevice, openssl
from tests.support.provisioning import ProvisioningService
from tests.support.softhsm import PIN, SoftToken

FAST = {"crl_debounce_seconds": 0.05}


@pytest.fixture
def token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SoftToken:
    made = SoftToken.new(tmp_path)
    monkeypatch.setenv("SOFTHSM2_CONF", str(made.configuration))
    return made


@pytest.fixture
def settings(token: SoftToken) -> dict[str, object]:
    return FAST | {"signer": token.uri, "pkcs11_pin": PIN, "passphrase": ""}


def test_the_ca_keys_are_made_in_the_token_and_sign_from_there(
    tmp_path: Path, token: SoftToken, settings: dict[str, object]
) -> None:
    service = ProvisioningService.founded(tmp_path / "fleet", settings)
    assert {path.name for path in service.dir.glob("*-ca.*")} == {
        "root-ca.crt", "root-ca.pkcs11", "issuing-ca.crt", "issuing-ca.pkcs11"
    }  # fmt: skip
    assert PIN not in (service.dir / "issuing-ca.pkcs11").read_text()
    assert PIN not in (service.dir / "provisioning.toml").read_text()
    assert len(token.objects) == 4
    with service:
        device = OpensslDevice(tmp_path, "meter-1")
        answer = Curl(service.https, service.bundle).est(
            "simpleenroll", device.request(), "--user", f"meter-1:{service.token(device='meter-1', group='north')}"
        )
        assert answer.status == 200, answer.text
        device.take(answer.body)
        openssl("verify", "-purpose", "sslclient", "-CAfile", service.bundle, device.certificate)
        for name in ("issuing-ca", "root-ca"):
            crl = Curl(service.http, service.bundle).run(f"/crl/{name}.pem").body
            assert b"BEGIN X509 CRL" in crl
            openssl("crl", "-CAfile", service.bundle, "-noout", data=crl)
    assert service.command("audit", "verify", "--dir", str(service.dir)).returncode == 0


def test_without_the_pin_or_the_token_the_service_says_what_it_needs(
    tmp_path: Path, token: SoftToken, settings: dict[str, object]
) -> None:
    service = ProvisioningService.founded(tmp_path / "fleet", settings)
    del settings["pkcs11_pin"]
    serve = ("serve", "--dir", str(service.dir), "--port", "0", "--http-port", "0")
    done = ProvisioningService(service.dir, settings).command(*serve)
    needs = "the token needs its PIN: give --pkcs11-pin-file FILE or set FLEET_PROVISIONING_PKCS11_PIN"
    assert (done.returncode, done.stderr) == (1, f"fleet-provisioning: {needs}\n")
    (tmp_path / "pin").write_text("9999\n")
    done = ProvisioningService(service.dir, settings).command(*serve, "--pkcs11-pin-file", str(tmp_path / "pin"))
    wrong = "the PIN of token 'fleet' is wrong: correct it, a token locks after a few tries"
    assert (done.returncode, done.stderr) == (1, f"fleet-provisioning: the key of issuing-ca: {wrong}\n")
    # The doctor says the same, and takes what he asks for.
    idle = ProvisioningService(service.dir, settings)
    doctor = idle.command("doctor", "--dir", str(service.dir))
    assert (doctor.returncode, needs in doctor.stdout) == (1, True)
    (tmp_path / "right").write_text(f"{PIN}\n")
    doctor = idle.command("doctor", "--dir", str(service.dir), "--pkcs11-pin-file", str(tmp_path / "right"))
    assert "the keys of issuing-ca, root-ca open" in doctor.stdout
    for path in token.objects:
        path.unlink()
    (tmp_path / "pin").write_text(f"{PIN}\n")
    done = ProvisioningService(service.dir, settings).command(*serve, "--pkcs11-pin-file", str(tmp_path / "pin"))
    assert "there is no key 'issuing-ca.fleet.internal' in token 'fleet'" in done.stderr


def test_an_authority_that_cannot_be_founded_leaves_no_key_in_the_token(
    tmp_path: Path, token: SoftToken, settings: dict[str, object]
) -> None:
    service = ProvisioningService(tmp_path / "fleet", settings)
    done = service.command("init", "--dir", str(service.dir), "--server-name", "not a name")
    assert done.returncode == 1
    assert token.objects == []
    assert not service.dir.exists()
    ProvisioningService.founded(service.dir, settings)
    done = service.command("init", "--dir", str(tmp_path / "second"))
    assert "'root-ca.fleet.internal' in token 'fleet' exists already: it is never overwritten" in done.stderr
    assert len(token.objects) == 4
