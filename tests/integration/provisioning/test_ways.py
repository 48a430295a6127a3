"""The ways to be let in, over the wire: curl and openssl as devices, the command line as operator."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from provisioning.pki.keys import key_to_pem
from provisioning.pki.tls import CredentialFiles
from tests.support.broker_process import wait_until
from tests.support.curl import Curl, CurlAnswer
from tests.support.manufacturer import Manufacturer
from tests.support.openssl import OpensslDevice, certificate_facts, openssl
from tests.support.provisioning import ProvisioningService
from tests.support.ways import listed
from tests.support.web import WebServer
from tests.support.webhook import WebhookServer

ON_BOTH_STORES = True


class Operator:
    """Runs commands with the service's directory and address."""

    def __init__(self, service: ProvisioningService) -> None:
        self._service = service

    def __call__(self, *arguments: str, code: int = 0) -> str:
        done = self._service.command(*arguments, "--dir", str(self._service.dir), "--url", self._service.https)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr


@pytest.fixture
def command(service: ProvisioningService) -> Operator:
    return Operator(service)


def group(command: Operator, name: str, *ways: str, options: Sequence[str] = ()) -> None:
    command("group", "create", name, *(word for way in ways for word in ("--way", way)), *options)


def presenting(service: ProvisioningService, pem: Path) -> Curl:
    return Curl(service.https, service.bundle, CredentialFiles(pem, pem))


def claim(command: Operator, group_name: str, directory: Path, devices: int = 2) -> Path:
    path = directory / "claim.pem"
    made = command(
        "claim", "create", group_name, "--group", group_name, "--devices", str(devices), "--output", str(path), "--json"
    )
    assert json.loads(made)["maximum_devices"] == devices
    assert "private" not in made
    assert path.stat().st_mode & 0o777 == 0o600
    return path


def test_a_claim_is_not_made_where_its_file_cannot_be(service: ProvisioningService, tmp_path: Path) -> None:
    where = ("--dir", str(service.dir), "--url", service.https)
    service.command("group", "create", "claims-nowhere", "--way", "claim", *where, check=True)
    (there := tmp_path / "there").touch()
    for path, said in (
        (there, f"{there} exists already: choose another --output"),
        (tmp_path / "none" / "claim", f"make the directory {tmp_path / 'none'} or choose another"),
    ):
        arguments = ("--group", "claims-nowhere", "--devices", "5", "--output", str(path), *where)
        done = service.command("claim", "create", "claims-nowhere", *arguments)
        assert (done.returncode, said in done.stderr) == (1, True), done.stderr
    listed = service.command("claim", "list", "--json", *where, check=True).stdout
    assert "claims-nowhere" not in listed, "none was made to be ended again"


def test_a_claim_for_a_group_that_would_refuse_it_is_made_and_said(
    service: ProvisioningService, tmp_path: Path
) -> None:
    output = tmp_path / "claim.pem"
    where = ("--dir", str(service.dir), "--url", service.https, "--output", str(output))
    done = service.command("claim", "create", "claims-astray", "--group", "claims-astray", "--devices", "5", *where)
    assert (done.returncode, output.exists()) == (0, True)
    assert "claims-astray is not configured, and admits nobody by claim: fleet-provisioning group create" in done.stderr


def only_enrolment(client: Curl) -> None:
    """What a claim's or a manufacturer's certificate must not be good for."""
    for path in ("/v1/status", "/v1/devices", "/v1/claims", "/v1/revocations/feed"):
        answer = client.run(path)
        assert (answer.status, json.loads(answer.body)["code"]) == (403, "CERTIFICATE_UNKNOWN"), path
    refused = client.run("/v1/tokens", "-H", "Content-Type: application/json", data=b'{"device": "x"}')
    assert (refused.status, json.loads(refused.body)["code"]) == (403, "CERTIFICATE_UNKNOWN")


def code_of(answer: CurlAnswer) -> tuple[int, str]:
    return answer.status, answer.text.split(":")[0]


@pytest.mark.parametrize("version", ["--tlsv1.2", "--tlsv1.3"])
def test_a_batch_enrols_with_its_claim_and_activates(
    command: Operator, service: ProvisioningService, device: OpensslDevice, tmp_path: Path, version: str
) -> None:
    name = device.name
    group(command, name, "claim")
    factory = presenting(service, claim(command, name, tmp_path))
    only_enrolment(factory)
    options = (version, "--tls-max", version[-3:])
    answer = factory.est("simpleenroll", device.request(), *options)
    assert answer.status == 200, answer.text
    device.take(answer.body)
    serial = certificate_facts(device.certificate, "-serial").strip().removeprefix("serial=").lower()
    (trial,) = json.loads(command("certificate", "list", "--device", name, "--json"))
    assert (trial["serial"], trial["state"], trial["reason"]) == (serial, "suspended", "certificateHold")
    assert "on trial" in command("device", "show", name)
    mine = Curl(service.https, service.bundle, device.credential)
    assert code_of(factory.est("simplereenroll", device.encoded())) == (403, "CERTIFICATE_UNKNOWN")
    names = f"URI:spiffe://fleet.internal/device/{name}/{name}"
    activated = mine.est("simplereenroll", device.renewal(names, new_key=False), *options)
    assert activated.status == 200, activated.text
    device.take(activated.body)
    openssl("verify", "-purpose", "sslclient", "-CAfile", service.bundle, device.certificate)
    (states,) = [json.loads(command("claim", "list", "--json"))]
    assert [(each["used"], each["maximum_devices"]) for each in states if each["name"] == name] == [(1, 2)]
    command("claim", "end", name)
    other = OpensslDevice(tmp_path, f"{name}-b")
    # The claim is no anchor any more: TLS itself ends it.
    line = factory.arguments("/.well-known/est/simpleenroll", "--data-binary", other.request().decode())
    assert subprocess.run(line, capture_output=True, check=False, timeout=60).returncode != 0


def test_what_a_claim_signs_is_nobody(
    command: Operator, service: ProvisioningService, device: OpensslDevice, tmp_path: Path
) -> None:
    group(command, device.name, "claim")
    shared = claim(command, device.name, tmp_path)
    openssl("req", "-x509", "-CA", shared, "-CAkey", shared, "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
            "-nodes", "-keyout", device.key, "-subj", "/CN=admin", "-out", device.certificate)  # fmt: skip
    chained = device.directory / "chained.pem"
    chained.write_bytes(device.key.read_bytes() + device.certificate.read_bytes() + shared.read_bytes())
    line = presenting(service, chained).arguments("/v1/status")
    refused = subprocess.run(line, capture_output=True, check=False, timeout=60)
    assert refused.returncode != 0
    assert refused.stdout == b""


def test_a_manufacturer_s_device_enrols_with_what_it_was_made_with(
    command: Operator, service: ProvisioningService, device: OpensslDevice, tmp_path: Path
) -> None:
    name = device.name[:40]
    acme = Manufacturer(f"Acme of {name}")
    (tmp_path / "ca.pem").write_text(acme.pem)
    group(command, name, "manufacturer")
    command("manufacturer", "add", name, "--group", name, "--certificate", str(tmp_path / "ca.pem"),
            "--name-prefix", "acme-")  # fmt: skip
    idevid = tmp_path / "idevid.pem"
    idevid.write_bytes(acme.idevid(name[-8:])[1])
    factory = presenting(service, idevid)
    only_enrolment(factory)
    named = f"acme-{name[-8:]}"
    wrong = factory.est("simpleenroll", device.request())
    assert code_of(wrong) == (403, "MANUFACTURER_CERTIFICATE")
    assert f"the certificate is that of device {named}" in wrong.text
    answer = factory.est(f"{name}/simpleenroll", device.request(subject=f"/CN={named}"))
    assert answer.status == 200, answer.text
    device.take(answer.body)
    assert f"device/{name}/{named}" in certificate_facts(device.certificate, "-ext", "subjectAltName")
    expired = tmp_path / "expired.pem"
    expired.write_bytes(acme.idevid("SN-old", end=datetime.now(UTC) - timedelta(hours=1))[1])
    late = presenting(service, expired).est("simpleenroll", device.request(subject="/CN=acme-SN-old"))
    assert code_of(late) == (403, "MANUFACTURER_CERTIFICATE")
    command("manufacturer", "end", name)
    assert "ended" in command("manufacturer", "list")


def test_what_the_manufacturer_has_revoked_lets_nobody_in(
    command: Operator, service: ProvisioningService, device: OpensslDevice, tmp_path: Path
) -> None:
    name = device.name[:40]
    acme = Manufacturer(f"Acme of {name}")
    (ca := tmp_path / "ca.pem").write_text(acme.pem)
    (key := tmp_path / "ca.key").write_bytes(key_to_pem(acme.key))
    (stolen := tmp_path / "stolen.pem").write_bytes(acme.idevid("SN1")[1])
    (good := tmp_path / "good.pem").write_bytes(acme.idevid("SN2")[1])
    (config := tmp_path / "ca.cnf").write_text(
        f"[ca]\ndefault_ca=it\n[it]\ndatabase={tmp_path}/index\ncrlnumber={tmp_path}/number\ndefault_md=sha256\n"
        "default_crl_days=1\ncrl_extensions=ext\n[ext]\nauthorityKeyIdentifier=keyid\n"
    )
    (tmp_path / "index").touch()
    (tmp_path / "number").write_text("01\n")
    signed = ("ca", "-config", config, "-cert", ca, "-keyfile", key)
    openssl(*signed, "-revoke", stolen, "-crl_reason", "keyCompromise")
    openssl(*signed, "-gencrl", "-out", first := tmp_path / "first.crl")
    openssl(*signed, "-revoke", good, "-crl_reason", "superseded")
    openssl(*signed, "-gencrl", "-out", tmp_path / "second.pem")
    openssl("crl", "-in", tmp_path / "second.pem", "-outform", "DER", "-out", second := tmp_path / "second.crl")

    group(command, name, "manufacturer")
    command("manufacturer", "add", name, "--group", name, "--certificate", str(ca), "--name-prefix", f"{name[-8:]}-")
    said = command("manufacturer", "crl", name, str(first))
    assert f"List 1 of {name} is in use until " in said
    assert "1 certificate revoked, 1 of them by this list, 0 released" in said

    def enrols(idevid: Path, number: str) -> CurlAnswer:
        subject = f"/CN={name[-8:]}-{number}"
        return presenting(service, idevid).est("simpleenroll", device.request(subject=subject))

    refused = enrols(stolen, "SN1")
    assert code_of(refused) == (403, "MANUFACTURER_REVOKED")
    assert "(keyCompromise)" in refused.text
    assert enrols(good, "SN2").status == 200
    taken = json.loads(command("manufacturer", "crl", name, str(second), "--json"))
    assert (taken["number"], taken["entries"], taken["revoked"]) == (2, 2, 1)
    assert taken["sha256"] == hashlib.sha256(second.read_bytes()).hexdigest()
    assert code_of(enrols(good, "SN2")) == (403, "MANUFACTURER_REVOKED")
    assert "CRL_OLDER: number 1" in command("manufacturer", "crl", name, str(first), code=1)
    shown = command("manufacturer", "show", name)
    assert "lapsed lists        refuse" in shown
    assert shown.splitlines()[-1].split()[0] == "2"
    assert "lapsed lists        accept" in command("manufacturer", "set", name, "--lapsed-lists", "accept")
    (listed,) = [each for each in json.loads(command("manufacturer", "list", "--json")) if each["name"] == name]
    assert [each["number"] for each in listed["lists"]] == [2]
    assert f"  {listed['lists'][0]['next_update'][:10]} " in command("manufacturer", "list")
    assert "0 lists of" in command("manufacturer", "remove-crl", name, "0" * 9, code=1)
    beginning = shown.splitlines()[-1].split()[1]
    assert taken["sha256"].startswith(beginning)
    assert f"List 2 of {name} is forgotten: 2 certificates released" in command(
        "manufacturer", "remove-crl", name, beginning
    )
    assert enrols(stolen, "SN1").status == 200

    with WebServer() as web:
        web.pages["/devices.crl"] = second.read_bytes()
        url = f"{web.url}/devices.crl"
        said = command("manufacturer", "set", name, "--list-url", url, "--revoked-devices", "suspend")
        assert url in said

        def states() -> list[str]:
            return [each["state"] for each in json.loads(command("manufacturer", "revoked", name, "--json"))]

        wait_until(lambda: states() == ["suspended", "suspended"], "both devices are out")
        assert "privilegeWithdrawn" not in (told := command("manufacturer", "revoked", name))
        assert "keyCompromise" in told
        shown = command("manufacturer", "show", name, "--json")
        assert json.loads(shown)["list_urls"][0]["problem"] is None
    assert "list_urls: a list's URL must begin with http://" in command(
        "manufacturer", "set", name, "--list-url", "https://pki.acme.example/", code=1
    )
    assert url not in command("manufacturer", "set", name, "--no-list-urls")
    assert "give at least one of --lapsed-lists" in command("manufacturer", "set", name, code=2)


def test_a_manufacturer_s_list_that_says_less_is_taken_only_by_the_option_that_says_so(
    command: Operator, device: OpensslDevice, tmp_path: Path
) -> None:
    name, acme = device.name[:40], Manufacturer(f"Acme of {device.name[:40]}")
    (ca := tmp_path / "ca.pem").write_text(acme.pem)
    group(command, name, "manufacturer")
    command("manufacturer", "add", name, "--group", name, "--certificate", str(ca))

    def of(number: int, minutes: int, entries: int) -> str:
        """Return the file of a list that was made so many minutes ago."""
        made = datetime.now(UTC) - timedelta(minutes=minutes)
        content = listed(acme, *range(1, entries + 1), number=number, now=made)
        (path := tmp_path / f"{number}.crl").write_bytes(content)
        return str(path)

    command("manufacturer", "crl", name, of(7, 3, 40))
    for odd, option, other in (
        (of(6, 2, 40), "--renumbered", "--fewer"),
        (of(8, 1, 2), "--fewer", "--renumbered"),
    ):
        command("manufacturer", "crl", name, odd, code=1)
        command("manufacturer", "crl", name, odd, other, code=1)
        assert "is in use until" in command("manufacturer", "crl", name, odd, option)


def test_a_list_is_imported_and_its_faults_are_named_by_line(
    command: Operator, stranger: Curl, device: OpensslDevice, tmp_path: Path
) -> None:
    name = device.name
    group(command, name, "listed")
    csr = device.request()
    spki = openssl("pkey", "-in", device.key, "-pubout", "-outform", "DER")
    digest = hashlib.sha256(spki).hexdigest()
    file = tmp_path / "devices.csv"
    file.write_text(
        f"name,key_sha256\n{name},{digest}\nbad name,\n{name}-b,xyz\n{name}-c,\n{name}-d,,x,y\n{name}-f,{digest}\n"
    )
    said = command("listed", "import", name, "--file", str(file), code=1)
    assert f"{file}:3: name 'bad name'" in said
    assert f"{file}:4: key 'xyz'" in said
    assert f"{file}:5: has" not in said
    assert f"{file}:6: has 4 cells for 2 columns: take out what is too much, or put quotation marks around" in said
    assert f"{file}:7: the key of '{name}-f' is that of '{name}' in this file" in said
    assert f"2 devices added to the list of {name}, 0 replaced, 4 lines wrong" in said
    assert name in command("listed", "list", name)
    for cut in (f"{name},{digest}"[: -len(digest)], name, name[:-1]):
        file.write_text(f"name,key_sha256\n{name}-e,\n{cut}")
        said = command("listed", "import", name, "--file", str(file), code=1)
        assert f"{file}:3: the file ends without the end of its last line: it has no cell for one of" in said
        assert digest in command("listed", "list", name), "no key is forgotten"
    file.write_text(f"name,key_sha256\n{name}\n{name}-e,\n")
    assert f"{file}:2: it has no cell" in command("listed", "import", name, "--file", str(file), code=1)
    file.write_text(f"name,key_sha256\n{name},{digest}\n")
    assert json.loads(command("listed", "import", name, "--file", str(file), "--json"))["replaced"] == 0, "the same"
    assert code_of(stranger.est(f"{name}/simpleenroll", device.request(subject=f"/CN={name}-c"))) == (
        401,
        "NOT_ADMITTED",
    )
    assert stranger.est(f"{name}/simpleenroll", csr).status == 200
    file.write_text("name\n" + "".join(f"{name}-{number}\n" for number in range(1000)) + '"without an end\n')
    said = command("listed", "import", name, "--file", str(file), code=1)
    assert f"{file} is imported as far as line 1001\n" in said
    assert f"{file}, after line 1001: unexpected end of data: close each quotation mark" in said
    (tmp_path / "wrong.csv").write_text("device\nx\n")
    assert "must have the columns name" in command("listed", "import", name, "--file", f"{tmp_path}/wrong.csv", code=1)
    (tmp_path / "more.csv").write_text("key_sha256,name,note,site\n,x,y,z\n")
    said = command("listed", "import", name, "--file", f"{tmp_path}/more.csv", code=1)
    assert "and no others; its first line is 'key_sha256,name,note,site'; take out 'note', 'site'" in said
    taken = command("listed", "remove", name, f"{name}-x", f"{name}-c", "--json", code=1)
    assert f"'{name}-x' is not on the list" in taken
    assert f'"removed": [\n    "{name}-c"\n  ]' in taken, "the same form for any number of them"
    assert "DEVICE_UNKNOWN" in command("listed", "remove", name, f"{name}-c", code=1)


def test_pending_is_202_until_an_operator_decides(command: Operator, stranger: Curl, device: OpensslDevice) -> None:
    name = device.name
    group(command, name, "approval")
    csr = device.request()
    waiting = stranger.est(f"{name}/simpleenroll", csr)
    assert (waiting.status, waiting.headers["Retry-After"], waiting.headers.get_content_type()) == (
        202,
        "30",
        "text/plain",
    )
    assert waiting.text.startswith("PENDING: request ")
    (request,) = json.loads(command("approval", "list", "--group", name, "--json"))
    assert request["name"] == name
    command("approval", "approve", str(request["id"]))
    answer = stranger.est(f"{name}/simpleenroll", csr)
    assert answer.status == 200, answer.text
    assert stranger.est(f"{name}/simpleenroll", csr).body == answer.body
    other = OpensslDevice(device.directory, f"{name}-b")
    csr = other.request()
    assert stranger.est(f"{name}/simpleenroll", csr).status == 202
    (request,) = json.loads(command("approval", "list", "--group", name, "--json"))
    command("approval", "deny", str(request["id"]))
    assert code_of(stranger.est(f"{name}/simpleenroll", csr)) == (403, "APPROVAL_DENIED")
    assert "no request has the number" in command("approval", "approve", "999999", code=1)


def test_a_webhook_may_veto_and_its_silence_lets_nobody_in(
    command: Operator, service: ProvisioningService, stranger: Curl, device: OpensslDevice
) -> None:
    name = device.name
    with WebhookServer() as webhook:
        group(command, name, "token+webhook", options=("--webhook-url", webhook.url))
        operator = Curl(service.https, service.bundle, service.operator)

        def wait_for_it(seconds: int) -> None:
            change = json.dumps({"webhook_timeout_seconds": seconds}).encode()
            json_type = ("-H", "Content-Type: application/json", "-X", "PATCH")
            assert operator.run(f"/v1/groups/{name}", *json_type, data=change).status == 200

        wait_for_it(30)
        csr, user = device.request(), ("--user", f"{name}:{service.token(device=name, group=name)}")
        for body, status, expected in (
            (b'{"allow": false, "reason": "not in\\nstock"}', 200, (403, "WEBHOOK_VETO")),
            (b'{"allow": "yes"}', 200, (503, "WEBHOOK_FAILED")),
            (b'{"allow": 1}', 200, (503, "WEBHOOK_FAILED")),
            (b"[]", 200, (503, "WEBHOOK_FAILED")),
            (b"nonsense", 200, (503, "WEBHOOK_FAILED")),
            (b'{"allow": true, "x": "' + b"a" * 20_000 + b'"}', 200, (503, "WEBHOOK_FAILED")),
            (b'{"allow": true}', 500, (503, "WEBHOOK_FAILED")),
            (b'{"allow": true}', 302, (503, "WEBHOOK_FAILED")),
        ):
            webhook.body, webhook.status = body, status
            assert code_of(stranger.est("simpleenroll", csr, *user)) == expected, body
        webhook.body, webhook.status = b'{"allow": true}', 200
        webhook.release.clear()
        wait_for_it(1)
        late = stranger.est("simpleenroll", csr, *user)
        assert code_of(late) == (503, "WEBHOOK_FAILED")
        assert "did not answer within 1 s" in late.text
        webhook.release.set()
        wait_for_it(30)
        answer = stranger.est("simpleenroll", csr, *user)
        assert answer.status == 200, answer.text
        assert webhook.asked[-1]["device"] == name
        assert webhook.asked[-1]["evidence"] == ["token"]
    token = service.token(device=f"{name}-b", group=name)
    gone = stranger.est("simpleenroll", device.request(subject=f"/CN={name}-b"), "--user", f"{name}-b:{token}")
    assert code_of(gone) == (503, "WEBHOOK_FAILED")
    assert gone.headers["Retry-After"]
