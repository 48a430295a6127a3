"""A service whose CA keys are in a token: nothing of them is on its disk, and everything works as ever."""

from __future__ import annotations

import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.broker_process import wait_until
from tests.support.curl import Curl
from tests.support.openssl import OpensslDevice, openssl
from tests.support.prepared_fleet import settings_environment
from tests.support.provisioning import ProvisioningService
from tests.support.softhsm import PIN, FaultyModule, SoftToken

FAST = {"crl_debounce_seconds": 0.05}
IMPATIENT = """
from provisioning.service import service_signals
from provisioning.cli import main

service_signals.STOP_SECONDS = 0.5
main()
"""


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
    needs = "the token needs its PIN: give --pkcs11-pin-file FILE or set FLEET_PROVISIONING_PKCS11_PIN_FILE"
    assert (done.returncode, done.stderr) == (1, f"fleet-provisioning: {needs}\n")
    (tmp_path / "pin").touch(0o600)
    (tmp_path / "pin").write_text("9999\n")
    done = ProvisioningService(service.dir, settings).command(*serve, "--pkcs11-pin-file", str(tmp_path / "pin"))
    wrong = "the PIN of token 'fleet' is wrong: correct it; a token locks after a few tries"
    assert (done.returncode, done.stderr) == (1, f"fleet-provisioning: the key of issuing-ca: {wrong}\n")
    # The doctor says the same, and takes what he asks for.
    idle = ProvisioningService(service.dir, settings)
    doctor = idle.command("doctor", "--dir", str(service.dir))
    assert (doctor.returncode, needs in doctor.stdout) == (1, True)
    (tmp_path / "right").write_text(f"{PIN}\n")
    doctor = idle.command("doctor", "--dir", str(service.dir), "--pkcs11-pin-file", str(tmp_path / "right"))
    assert "the keys of issuing-ca, root-ca open" in doctor.stdout, doctor.stdout
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
    assert "'root-ca.fleet.internal' in token 'fleet' exists already and is not overwritten" in done.stderr
    assert len(token.objects) == 4


@pytest.fixture
def faulty(token: SoftToken, monkeypatch: pytest.MonkeyPatch) -> FaultyModule:
    module = FaultyModule(token)
    for name, value in module.environment.items():
        monkeypatch.setenv(name, value)
    return module


def test_a_token_that_hangs_or_errs_keeps_nobody_from_revoking_and_has_nothing_handed_out(
    tmp_path: Path, faulty: FaultyModule, settings: dict[str, object]
) -> None:
    service = ProvisioningService.founded(tmp_path / "fleet", settings | {"signer": faulty.uri})
    with service:
        curl = Curl(service.https, service.bundle)
        bad, good = (OpensslDevice(tmp_path, name) for name in ("bad", "good"))
        given = {each: f"{each.name}:{service.token(device=each.name, group='north')}" for each in (bad, good)}
        assert curl.est("simpleenroll", bad.request(), "--user", given[bad]).status == 200
        faulty.tell("C_Sign", "hang")
        with ThreadPoolExecutor() as others:
            waiting = others.submit(curl.est, "simpleenroll", good.request(), "--user", given[good])
            wait_until(lambda: faulty.asked, "the signature")
            assert [each["device"] for each in service.revoke(device="bad", reason="keyCompromise")] == ["bad"]
            assert (waiting.result().status, waiting.result().text[:11]) == (503, "UNAVAILABLE")
        faulty.tell("C_Sign", "garble")

        def garbled() -> bool:
            answer = curl.est("simpleenroll", good.request(), "--user", given[good])
            assert answer.status == 503, answer.text
            return "check that private and public key of this label belong together" in service.log

        wait_until(garbled, "the token to answer wrongly")
        faulty.mend("C_Sign")
        answer = curl.est("simpleenroll", good.request(), "--user", given[good])
        assert answer.status == 200, "the token is not spent: " + answer.text
        good.take(answer.body)
        openssl("verify", "-CAfile", service.bundle, good.certificate)
        wait_until(lambda: b"Serial Number" in text_of_list(service), "the list that has what was revoked")
    assert "Traceback" not in service.log


def text_of_list(service: ProvisioningService) -> bytes:
    crl = Curl(service.http, service.bundle).run("/crl/issuing-ca.pem").body
    return openssl("crl", "-CAfile", service.bundle, "-noout", "-text", data=crl)


@pytest.mark.parametrize(
    ("function", "says", "words"),
    [
        ("C_Login", "hang", "the token has not answered within 10 s: check that token 'fleet' can be reached"),
        ("C_Login", "0xa4", "the PIN of token 'fleet' is locked, too many wrong ones were tried: unlock it"),
        ("C_Sign", "garble", "UNAVAILABLE: the CA's key in its token cannot be used now; the log says why"),
    ],
)
def test_a_start_says_what_keeps_the_token_from_signing(
    tmp_path: Path, faulty: FaultyModule, settings: dict[str, object], function: str, says: str, words: str
) -> None:
    pin = tmp_path / "secret"
    pin.touch(0o600)
    pin.write_text(f"{PIN}\n")
    service = ProvisioningService.founded(tmp_path / "fleet", settings | {"signer": faulty.uri}, afresh=True)
    faulty.tell(function, says)
    done = subprocess.run(
        [sys.executable, "-m", "provisioning", "serve", "--dir", str(service.dir), "--port", "0", "--http-port", "0"],
        env=settings_environment({**settings, "pkcs11_pin": "", "pkcs11_pin_file": pin}),
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert (done.returncode, words in done.stderr) == (1, True), done.stderr
    assert "Traceback" not in done.stderr


def test_a_stop_has_an_end_though_the_token_hangs_and_what_was_not_answered_has_not_been(
    tmp_path: Path, faulty: FaultyModule, settings: dict[str, object]
) -> None:
    service = ProvisioningService.founded(tmp_path / "fleet", settings | {"signer": faulty.uri})
    serve = [sys.executable, "-c", IMPATIENT, "serve", "--dir", str(service.dir), "--port", "0", "--http-port", "0"]
    serving = subprocess.Popen(
        serve, env=settings_environment(settings), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert serving.stdout is not None
    service.https = serving.stdout.readline().split()[2]
    device = OpensslDevice(tmp_path, "meter-1")
    given = f"meter-1:{service.token(device='meter-1', group='north')}"
    (request := tmp_path / "request").write_bytes(device.request())
    faulty.tell("C_Sign", "hang")
    what = ["--data-binary", f"@{request}", "--header", "Content-Type: application/pkcs10", "--user", given]
    asking = subprocess.Popen(
        Curl(service.https, service.bundle).arguments("/.well-known/est/simpleenroll", *what),
        stdout=subprocess.PIPE,
    )
    wait_until(lambda: faulty.asked, "the signature")
    serving.send_signal(signal.SIGTERM)
    try:
        _, log = serving.communicate(timeout=60)
    finally:
        serving.kill()
    assert serving.returncode == 1
    said = [line for line in log.splitlines() if "stopped without waiting any longer" in line]
    assert (len(said), '"store-writer_0": "' in said[0]) == (1, True), log
    assert asking.communicate()[0] == b"", "no certificate"
    faulty.mend("C_Sign")
    with service:
        answer = Curl(service.https, service.bundle).est("simpleenroll", device.request(), "--user", given)
        assert answer.status == 200, "the token is not spent: " + answer.text
