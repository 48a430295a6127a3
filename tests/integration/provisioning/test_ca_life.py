"""The life of the CAs while the service runs: successors, an offline root, a new root."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from cryptography import x509

from tests.support.broker_process import wait_until
from tests.support.ca_life import (
    ca,
    ca_attempt,
    enrol,
    issuer_of,
    named_lists,
    ocsp_status,
    renewed,
    roll_over,
    states,
    told,
    wait_for_state,
)
from tests.support.curl import Curl
from tests.support.openssl import OpensslDevice, openssl
from tests.support.pki import pem_of
from tests.support.postgresql import PostgresqlServer
from tests.support.prepared_fleet import PASSPHRASE
from tests.support.provisioning import ProvisioningService

FAST = {"crl_debounce_seconds": 0.05, "feed_heartbeat_seconds": 0.2}


@pytest.fixture
def service(tmp_path: Path) -> Iterator[ProvisioningService]:
    with ProvisioningService.copied(tmp_path / "fleet", FAST) as running:
        yield running


def check_with_crls(service: ProvisioningService, device: OpensslDevice, *lists: str) -> bytes:
    """Return what openssl says when it verifies the path with the CRLs called *lists*, and GnuTLS does too."""
    crls = b"".join(Curl(service.http).run(f"/crl/{name}.pem").body for name in lists)
    (device.directory / "crls.pem").write_bytes(crls)
    shown = openssl(
        "verify", "-crl_check_all", "-x509_strict", "-CAfile", service.bundle,
        "-CRLfile", device.directory / "crls.pem", device.certificate, check=False,
    )  # fmt: skip
    gnutls = subprocess.run(
        ["certtool", "--verify", "--load-ca-certificate", str(service.bundle), "--load-crl",
         str(device.directory / "crls.pem"), "--infile", str(device.certificate)],
        capture_output=True, check=False, timeout=60,
    )  # fmt: skip
    assert (gnutls.returncode == 0) == shown.endswith(b": OK\n"), gnutls.stdout
    return shown


def test_an_issuing_ca_is_succeeded_step_by_step_while_everything_goes_on(
    service: ProvisioningService, tmp_path: Path
) -> None:
    old = enrol(service, tmp_path, "meter-1")
    assert "is announced" in ca(service, "rollover", "begin", "--witness", "A. Auditor")
    wait_for_state(service, "issuing-2", "announced")
    bundle = x509.load_pem_x509_certificates(service.bundle.read_bytes())
    assert (len(bundle), set(told(service))) == (3, set(bundle))
    assert Curl(service.http).run("/ca/bundle.pem").body == service.bundle.read_bytes()
    first = issuer_of(old)
    assert (first.startswith("Fleetgate issuing CA 2"), renewed(service, old)) == (True, first)  # Not the new one yet.

    done = ca_attempt(service, "rollover", "activate")
    assert (done.returncode, done.stdout, "give relying parties until" in done.stderr) == (1, "", True)
    ca(service, "rollover", "activate", "--without-waiting")
    wait_for_state(service, "issuing-2", "active")
    assert states(service) == {"root-ca": "active", "issuing-ca": "retiring", "issuing-2": "active"}
    new = enrol(service, tmp_path, "meter-2")
    assert issuer_of(new) == "Fleetgate issuing CA 2"
    for device, issuer in ((old, "issuing-ca"), (new, "issuing-2")):
        assert ocsp_status(service, device, issuer) == "good"
        assert check_with_crls(service, device, "root-ca", issuer).endswith(b": OK\n")
    service.revoke(device="meter-1", reason="keyCompromise")
    assert ocsp_status(service, old, "issuing-ca") == "revoked"

    done = ca_attempt(service, "rollover", "retire")
    assert (done.returncode, "certificates of issuing-ca are good until" in done.stderr) == (1, True)
    before = states(service)
    service.stop()
    assert states(service.start()) == before
    assert issuer_of(enrol(service, tmp_path, "meter-3")) == "Fleetgate issuing CA 2"
    # What the service shows is under the new CA, and verifies for whoever knows the root alone.
    shown = openssl("s_client", "-connect", service.https.removeprefix("https://"), "-verify_return_error",
                    "-CAfile", service.dir / "root-ca.crt", data=b"")  # fmt: skip
    assert b"i:O=fleet.internal, CN=Fleetgate issuing CA 2" in shown
    assert service.command("audit", "verify", "--dir", str(service.dir)).returncode == 0


@pytest.fixture
def vault(service: ProvisioningService, tmp_path: Path) -> Path:
    """Where the root's key is: not with the service."""
    directory = tmp_path / "vault"
    directory.mkdir()
    shutil.copy(service.dir / "root-ca.crt", directory)
    shutil.move(service.dir / "root-ca.key", directory)
    return directory


@pytest.mark.parametrize("signed_by", ["root sign", "openssl"])
def test_the_root_signs_elsewhere(service: ProvisioningService, vault: Path, tmp_path: Path, signed_by: str) -> None:
    done = ca_attempt(service, "rollover", "begin")
    assert "the key of root-ca is not here: bring it here, or use ca export-csr, root sign and ca import" in done.stderr
    csr, certificate = tmp_path / "issuing.csr", tmp_path / "issuing.crt"
    ca(service, "export-csr", "--output", str(csr))
    openssl("req", "-verify", "-in", csr, "-noout")
    for output, why in (
        (csr, "exists already"),
        (tmp_path / "none" / "a.csr", f"make the directory {tmp_path}/none or"),
    ):
        assert why in ca_attempt(service, "export-csr", "--another", "--output", str(output)).stderr
    if signed_by == "root sign":
        reached = "--public-http-url", service.http
        ca(service, "root", "sign", str(csr), "--output", str(certificate), *reached, directory=vault)
        transcript = tmp_path / "issuing.crt.transcript.txt"
        assert f"CRL      {service.http}/crl/root-ca.crl" in transcript.read_text()
        for there, missing in ((certificate, transcript), (transcript, certificate)):
            missing.rename(tmp_path / "aside")
            done = ca_attempt(service, "root", "sign", str(csr), "--output", str(certificate), directory=vault)
            assert (done.returncode, done.stdout) == (1, ""), "it has signed nothing"
            assert f"{there} exists already: choose another --output" in done.stderr
            (tmp_path / "aside").rename(missing)
    else:
        (tmp_path / "extensions").write_text(f"crlDistributionPoints=URI:{service.http}/crl/root-ca.crl\n")
        openssl("x509", "-req", "-in", csr, "-CA", vault / "root-ca.crt", "-CAkey", vault / "root-ca.key", "-passin",
                f"pass:{PASSPHRASE}", "-days", "365", "-copy_extensions", "copyall", "-extfile",
                tmp_path / "extensions", "-out", certificate)  # fmt: skip
    ca(service, "import", str(certificate))
    assert states(service)["issuing-2"] == "announced"
    ca(service, "rollover", "activate", "--without-waiting")
    wait_for_state(service, "issuing-2", "active")
    device = enrol(service, tmp_path, "meter-1")
    openssl("verify", "-x509_strict", "-crl_check_all", "-CRLfile", named_lists(certificate), "-CRLfile",
            named_lists(device.certificate), "-CAfile", vault / "root-ca.crt", "-untrusted", certificate,
            device.certificate)  # fmt: skip


def test_another_root_signs_and_is_announced_with_what_it_signed(service: ProvisioningService, tmp_path: Path) -> None:
    openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-384", "-nodes", "-subj", "/CN=Group root",
            "-keyout", tmp_path / "r.key", "-out", tmp_path / "r.crt", "-days", "3650")  # fmt: skip
    csr, certificate = tmp_path / "issuing.csr", tmp_path / "issuing.crt"
    ca(service, "export-csr", "--output", str(csr))
    openssl("x509", "-req", "-in", csr, "-CA", tmp_path / "r.crt", "-CAkey", tmp_path / "r.key", "-days", "365",
            "-copy_extensions", "copyall", "-out", certificate)  # fmt: skip
    done = ca_attempt(service, "import", str(certificate))
    assert "no root of this fleet has issued it (its issuer is CN=Group root): give the root" in done.stderr
    ca(service, "import", str(certificate), "--root", str(tmp_path / "r.crt"))
    wait_for_state(service, "issuing-2", "announced")
    assert states(service)["root-2"] == "active"
    assert x509.load_pem_x509_certificate((tmp_path / "r.crt").read_bytes()) in told(service)
    ca(service, "rollover", "activate", "--without-waiting")
    wait_for_state(service, "issuing-2", "active")
    device = enrol(service, tmp_path, "meter-1")
    openssl("verify", "-CAfile", tmp_path / "r.crt", "-untrusted", certificate, device.certificate)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("-days", "36500"), "it expires after its root"),
        (("-days", "365", "-extfile", "{no_ca}"), "its basic constraints are not critical, CA:TRUE, pathlen:0"),
        (("-days", "365", "-subj", "/O=fleet.internal/CN=Fleetgate root CA"), "its names are not those of a CA under"),
    ],
    ids=["too long", "no CA", "the root's name"],
)
def test_a_certificate_that_would_not_work_is_not_taken_over(
    service: ProvisioningService, tmp_path: Path, options: tuple[str, ...], words: str
) -> None:
    csr, certificate = tmp_path / "issuing.csr", tmp_path / "issuing.crt"
    (tmp_path / "no_ca").write_text("basicConstraints=critical,CA:FALSE\n")
    ca(service, "export-csr", "--output", str(csr))
    options = tuple(option.format(no_ca=tmp_path / "no_ca") for option in options)
    openssl("x509", "-req", "-in", csr, "-CA", service.dir / "root-ca.crt", "-CAkey", service.dir / "root-ca.key",
            "-passin", f"pass:{PASSPHRASE}", "-out", certificate, *options)  # fmt: skip
    done = ca_attempt(service, "import", str(certificate))
    assert (done.returncode, words in done.stderr) == (1, True), done.stderr
    assert "issuing-2" not in states(service)
    done = ca_attempt(service, "import", str(service.dir / "issuing-ca.crt"))
    assert done.stderr == "fleet-provisioning: this is the certificate of issuing-ca, which is active already\n"


def test_a_root_is_succeeded_and_each_reaches_what_is_under_the_other(
    service: ProvisioningService, tmp_path: Path
) -> None:
    before = enrol(service, tmp_path, "meter-1")
    service.set(FLEET_PROVISIONING_PUBLIC_HTTP_URL=service.http)  # The CAs from now on name the CRLs above them.
    assert json.loads(ca(service, "root", "begin", "--json"))["state"] == "active"
    wait_for_state(service, "root-2", "active")
    # RFC 7030 §4.1.3: the current root, the old one, and the two between them.
    anchors = x509.load_pem_x509_certificates(service.bundle.read_bytes())
    crosses = [each for each in told(service) if each not in anchors]
    assert [each.subject == each.issuer for each in crosses] == [True, True]
    (tmp_path / "crosses.pem").write_bytes(pem_of(*crosses))
    roll_over(service, "issuing-2")
    after = enrol(service, tmp_path, "meter-2")
    for device, issuing, anchor in ((before, "issuing-ca", "root-2"), (after, "issuing-2", "root-ca"),
                                    (before, "issuing-ca", "root-ca"), (after, "issuing-2", "root-2")):  # fmt: skip
        openssl("verify", "-x509_strict", "-CAfile", service.dir / f"{anchor}.crt", "-untrusted",
                service.dir / f"{issuing}.crt", "-untrusted", tmp_path / "crosses.pem", device.certificate)  # fmt: skip
    # All on the way names its CRL, each from its own issuer: whoever asks for all of them gets an answer.
    path = after.certificate.with_name("path.pem")
    path.write_bytes(after.certificate.read_bytes() + (service.dir / "issuing-2.crt").read_bytes() + pem_of(*crosses))
    openssl("verify", "-x509_strict", "-crl_check_all", "-CRLfile", named_lists(path), "-CAfile",
            service.dir / "root-ca.crt", "-untrusted", path, path)  # fmt: skip
    # A device that knows the old root alone still reaches the service, which is under the new one.
    assert Curl(service.https, service.dir / "root-ca.crt").run("/.well-known/est/cacerts").status == 200
    done = ca_attempt(service, "root", "retire", "root-ca")
    assert "root-ca cannot be retired: issuing-ca lives under it" in done.stderr


def test_a_transcript_that_was_changed_is_not_vouched_for(service: ProvisioningService) -> None:
    ca(service, "rollover", "begin", "--witness", "A. Auditor")
    (transcript,) = (service.dir / "ceremonies").glob("*-ca-rollover-begin.txt")
    text = transcript.read_text()
    assert "Witness: A. Auditor" in text
    assert PASSPHRASE not in text
    assert "confirms" in ca(service, "verify-transcript", str(transcript))
    transcript.write_text(text.replace("A. Auditor", "B. Burglar"))
    done = ca_attempt(service, "verify-transcript", str(transcript))
    assert (done.returncode, "no entry of the audit log confirms" in done.stderr) == (1, True)


@pytest.mark.parametrize("store", ["sqlite", "postgresql"])
def test_founding_is_a_ceremony_with_witnesses_that_the_audit_log_vouches_for(
    tmp_path: Path, store: str, request: pytest.FixtureRequest
) -> None:
    """The keys that all others depend on were made, and certified, without a transcript and without an entry."""
    settings = {}
    if store == "postgresql":
        settings["database_url"] = request.getfixturevalue("postgresql").new_database(template="template0")
    service = ProvisioningService(tmp_path / "fleet", settings)
    init = ("init", "--dir", str(service.dir))
    assert service.command(*init, "--server-name", "no name").returncode == 1
    service.command(*init, "--witness", "A. Auditor", "--witness", "B. Board", check=True)
    (transcript,) = (service.dir / "ceremonies").iterdir()
    text = transcript.read_text()
    assert "Witness: A. Auditor\nWitness: B. Board\n" in text
    assert "Key of root-ca: encrypted, in root-ca.key\n" in text
    for name in ("root-ca", "issuing-ca"):
        fingerprint = openssl("x509", "-noout", "-fingerprint", "-sha256", "-in", service.dir / f"{name}.crt").decode()
        assert fingerprint.partition("=")[2].strip() in text, "what whoever verifies by hand compares"
    assert PASSPHRASE not in text
    entries = json.loads(service.command("audit", "show", "--json", "--dir", str(service.dir), check=True).stdout)
    assert [(each["action"], each["subject"]) for each in entries[:4]] == [
        ("signing CA certificate", "root-ca"),
        ("signing CA certificate", "issuing-ca"),
        ("CA certificate signed", "root-ca"),
        ("CA certificate signed", "issuing-ca"),
    ]
    assert "confirms" in ca(service, "verify-transcript", str(transcript))
    service.command("audit", "verify", "--dir", str(service.dir), check=True)


def test_another_process_on_the_same_store_takes_a_new_ca_over(tmp_path: Path, postgresql: PostgresqlServer) -> None:
    with ExitStack() as stack:
        idle = stack.enter_context(ProvisioningService.copied_on(postgresql, tmp_path / "first", FAST))
        shutil.copytree(idle.dir, tmp_path / "second")
        settings = FAST | {"database_url": idle.database_url}
        first = stack.enter_context(idle)
        second = stack.enter_context(ProvisioningService(tmp_path / "second", settings))
        ca(first, "rollover", "begin")
        for each in (first, second):  # Either may hear of it first.
            wait_for_state(each, "issuing-2", "announced")
        # The second trusts the new CA, and says that it has no key of it.
        assert set(told(second)) == set(told(first))
        assert '"ca": "issuing-2"' in next(line for line in second.log.splitlines() if "CA cannot be used here" in line)
        shutil.copy(first.dir / "issuing-2.key", second.dir)
        said = ca(first, "rollover", "activate", "--without-waiting", "--despite-services")
        assert "Other services may not have said yet whether they can use it. One on another" in said
        for each in (first, second):
            wait_for_state(each, "issuing-2", "active")
        device = enrol(second, tmp_path, "meter-1")
        assert issuer_of(device) == "Fleetgate issuing CA 2"
        assert ocsp_status(first, device, "issuing-2") == "good"


def test_an_operator_gets_in_again_when_the_last_certificate_is_lost(
    service: ProvisioningService, tmp_path: Path
) -> None:
    directory = ("--dir", str(service.dir))
    enrol(service, tmp_path, "meter-1")
    assert service.command("suspend", "--device", "meter-1", *directory).returncode == 0
    for name in ("operator.crt", "operator.key"):
        (service.dir / name).unlink()
    order = ("token", "create", "--device", "anna", "--role", "operator", *directory)
    assert service.command(*order).returncode == 1, "nobody can make a token"

    for name, why in (("meter-1", "is a device, not an operator"), ("a b", "the operator's name"), ("boris", "")):
        done = ca_attempt(service, "restore-operator", name)
        assert why in done.stderr
        assert (done.returncode == 0) is (why == "")
    assert (
        json.loads(service.command("operator", "list", "--json", *directory, check=True).stdout)[-1]["role"] == "admin"
    )
    ca(service, "restore-operator")
    assert service.command(*order).returncode == 0
    assert service.command("suspend", "--device", "boris", *directory).returncode == 0
    assert (
        "boris is suspended and this command does not change that"
        in ca_attempt(service, "restore-operator", "boris").stderr
    )
    assert service.command("audit", "verify", *directory).returncode == 0


def test_a_command_of_a_newer_version_leaves_the_store_of_a_running_service_alone(tmp_path: Path) -> None:
    with (
        ProvisioningService.copied(tmp_path / "fleet") as service,
        closing(sqlite3.connect(service.dir / "fleet.db")) as store,
    ):
        store.execute("UPDATE alembic_version SET version_num = '0027'")
        store.commit()
        done = ca_attempt(service, "rollover", "begin")
        assert (done.returncode, done.stdout) == (1, "")
        assert "the store has an older schema, and this command brings it up to date" in done.stderr
        assert f"{service.dir} is served already, by process" in done.stderr
        path, copied = service.dir / "fleet.db", tmp_path / "copied"
        shutil.copytree(service.dir, copied, ignore=shutil.ignore_patterns("fleet.db*", "*.lock"))
        done = ca_attempt(ProvisioningService(copied, {"database_url": f"sqlite:///{path}"}), "rollover", "begin")
        assert done.returncode == 1
        assert f"the store {path} is used by another service, of another directory" in done.stderr
        assert store.execute("SELECT version_num FROM alembic_version").fetchone() == ("0027",)
        assert not (service.dir / "issuing-2.key").exists()


def test_a_ca_whose_key_could_not_be_opened_when_it_became_active_issues_when_it_can(tmp_path: Path) -> None:
    secret = tmp_path / "passphrase"
    secret.write_text(PASSPHRASE)
    with ProvisioningService.copied(tmp_path / "fleet", FAST | {"passphrase_file": secret}) as service:
        secret.unlink()  # It was mounted for the start only.
        elsewhere = ProvisioningService(service.dir, FAST)
        ca(elsewhere, "rollover", "begin")
        ca(elsewhere, "rollover", "activate", "--without-waiting")

        def issuing() -> str:
            said: str = json.loads(Curl(service.http).run("/readyz").body)["checks"]["issuing_ca"]
            return said

        wait_until(lambda: issuing() == "none", "the CA that cannot be used")
        secret.write_text(PASSPHRASE)
        wait_until(lambda: issuing() == "ok", "it can again")
        enrol(service, tmp_path, "meter-1")
        assert service.log.count('"CA cannot be used here"') == 1


def test_a_service_whose_issuing_key_is_away_starts_and_issues_when_it_is_back(tmp_path: Path) -> None:
    """Its retiring CA's is here: brokers have their feed, devices their lists, and operators get in."""
    idle = ProvisioningService.copied(tmp_path / "fleet", FAST)
    ca(idle, "rollover", "begin")
    ca(idle, "rollover", "activate", "--without-waiting")
    key = (idle.dir / "issuing-2.key").rename(tmp_path / "key")
    with idle as service:
        assert json.loads(Curl(service.http).run("/readyz").body)["checks"]["issuing_ca"] == "none"
        assert Curl(service.http).run("/crl/issuing-ca.crl").status == 200
        device = OpensslDevice(tmp_path, "meter-1")
        shown = f"meter-1:{service.token(device='meter-1', group='north')}"
        stranger = Curl(service.https, service.bundle)
        answer = stranger.est("simpleenroll", device.request(), "--user", shown)
        assert (answer.status, answer.text.partition(",")[0]) == (
            503,
            "UNAVAILABLE: the issuing CA of line default cannot be used here now",
        )
        key.rename(service.dir / "issuing-2.key")
        wait_until(
            lambda: stranger.est("simpleenroll", device.another(), "--user", shown).status == 200, "a certificate"
        )
    assert "Traceback" not in service.log
