"""A fleet of certificates that openssl, cfssl and certtool have made, run at mosquitto and at a broker of ours."""

from __future__ import annotations

import asyncio
import csv
import json
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from device_sim.credentials.fleet_directory import FleetDirectory
from device_sim.stage.foreign_process import free_port
from tests.support.broker_process import BrokerProcess, wait_until
from tests.support.fleet_sim import fleet_sim, ran
from tests.support.foreign_ca import ForeignCa
from tests.support.needed import needed
from tests.support.openssl import P256, openssl
from tests.support.programs import REPOSITORY
from tests.support.scenarios import ON_ANY_MACHINE

SCENARIO = (
    ON_ANY_MACHINE
    + """
name = "imported"
devices = 6
[[groups]]
name = "meters"
telemetry = { every = "100ms" }
[[stages]]
ramp = { rate = 50 }
[[stages]]
command = { rate = 50, deadline = "60s" }
[[stages]]
hold = "1s"
[thresholds]
published = ["> 0"]
lost = ["== 0"]
altered = ["== 0"]
unexpected = ["== 0"]
unanswered_commands = ["== 0"]
unreached = ["== 0"]
refused_messages = ["== 0"]
"""
)
PASSPHRASE = "correct horse"
CLIENT = "extendedKeyUsage=clientAuth\n"
RECEIVER = "urn:receiver"


class Plant:
    """A root by openssl, an issuing CA below it, and devices of several programs, each with files of its own kind."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.certs = path / "certs"
        self.certs.mkdir()
        openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", path / "ca.key", "-out", path / "ca.pem",
                "-subj", "/CN=Plant Root", "-days", "30")  # fmt: skip
        of_a_ca = "basicConstraints=critical,CA:TRUE\nkeyUsage=keyCertSign,cRLSign\n"
        self._certify("issuing", "/CN=Plant Devices", of_a_ca)
        self._certify("broker", "/CN=localhost", "subjectAltName=DNS:localhost,IP:127.0.0.1\n")
        self._certify("backend", "/CN=backend-1", CLIENT, "issuing")
        with (path / "backend.crt").open("ab") as file:  # As servers have it: the chain in the same file.
            file.write((path / "issuing.crt").read_bytes())
        # openssl's defaults, as scripts have them; an encrypted RSA key; Ed25519 in DER; SEC 1, the chain beside it.
        self._certify("meter-1", "/CN=meter-1", CLIENT, "issuing", at=self.certs)
        self._certify("meter-2", "/CN=meter-2", CLIENT, "issuing", ("rsa:2048",), at=self.certs)
        self._rewrite("meter-2", "rsa", "-aes256", "-passout", f"pass:{PASSPHRASE}", "-traditional")
        self._certify("meter-3", "/CN=meter-3", CLIENT, "issuing", ("ed25519",), at=self.certs)
        self._rewrite("meter-3", "pkey", "-outform", "DER")
        der = openssl("x509", "-in", self.certs / "meter-3.crt", "-outform", "DER")
        (self.certs / "meter-3.crt").write_bytes(der)
        self._certify("meter-4", "/CN=meter-4", CLIENT, "issuing", at=self.certs)
        self._rewrite("meter-4", "ec")
        self._by_cfssl("meter-5")
        self._by_certtool("meter-6")
        (self.certs / "issuing.pem").write_bytes((path / "issuing.crt").read_bytes())
        (path / "passphrase").write_text(PASSPHRASE + "\n")

    def _certify(
        self,
        stem: str,
        subject: str,
        extensions: str,
        by: str = "ca",
        algorithm: tuple[str, ...] = P256,
        at: Path | None = None,
    ) -> None:
        at = at or self.path
        issuer = self.path / ("ca.pem" if by == "ca" else f"{by}.crt")
        (self.path / "extensions").write_text(extensions)
        openssl("req", "-newkey", *algorithm, "-nodes", "-keyout", at / f"{stem}.key", "-out", at / f"{stem}.csr",
                "-subj", subject)  # fmt: skip
        openssl("x509", "-req", "-in", at / f"{stem}.csr", "-CA", issuer, "-CAkey", self.path / f"{by}.key",
                "-extfile", self.path / "extensions", "-days", "10", "-out", at / f"{stem}.crt")  # fmt: skip

    def _rewrite(self, stem: str, command: str, *options: str) -> None:
        key = self.certs / f"{stem}.key"
        openssl(command, "-in", key, *options, "-out", key.with_suffix(".new"))
        key.with_suffix(".new").replace(key)

    def _by_cfssl(self, name: str) -> None:
        asked = self.path / "asked.json"
        asked.write_text(json.dumps({"CN": name, "key": {"algo": "ecdsa", "size": 384}}))
        profile = self.path / "profile.json"
        profile.write_text(json.dumps({"signing": {"default": {"expiry": "240h", "usages": ["client auth"]}}}))
        done = subprocess.run(
            [needed("cfssl"), "gencert", "-ca", "issuing.crt", "-ca-key", "issuing.key", "-config", profile, asked],
            cwd=self.path, capture_output=True, check=True, timeout=60,
        )  # fmt: skip
        answer = json.loads(done.stdout)
        (self.certs / f"{name}.pem").write_text(answer["cert"])
        (self.certs / f"{name}-key.pem").write_text(answer["key"])  # As cfssljson names them.

    def _by_certtool(self, name: str) -> None:
        (self.path / "template").write_text(f'cn = "{name}"\ntls_www_client\nsigning_key\nexpiration_days = 10\n')

        def certtool(*options: str) -> bytes:
            command = [needed("certtool"), *options]
            return subprocess.run(command, cwd=self.path, capture_output=True, check=True, timeout=60).stdout

        key = certtool("--generate-privkey", "--key-type", "ecdsa", "--curve", "secp256r1")
        (self.path / "certtool.key").write_bytes(key)
        certificate = certtool(
            "--generate-certificate", "--load-privkey", "certtool.key", "--load-ca-certificate", "issuing.crt",
            "--load-ca-privkey", "issuing.key", "--template", "template",
        )  # fmt: skip
        (self.certs / f"{name}-all.pem").write_bytes(certificate + key)

    def lists(self) -> list[str]:
        """Return the files of both CAs' empty revocation lists, made by openssl."""
        found = []
        for name, certificate in (("ca", "ca.pem"), ("issuing", "issuing.crt")):
            (self.path / f"{name}.index").write_text("")
            (self.path / f"{name}.cnf").write_text(
                f"[ca]\ndefault_ca=c\n[c]\ndatabase={self.path}/{name}.index\ndefault_md=sha256\ndefault_crl_days=9\n"
                f"crlnumber={self.path}/{name}.number\ncrl_extensions=e\n[e]\nauthorityKeyIdentifier=keyid:always\n"
            )
            (self.path / f"{name}.number").write_text("01\n")
            openssl("ca", "-config", self.path / f"{name}.cnf", "-gencrl", "-keyfile", self.path / f"{name}.key",
                    "-cert", self.path / certificate, "-out", self.path / f"{name}.crl")  # fmt: skip
            found.append(str(self.path / f"{name}.crl"))
        return found

    def importing(self, fleet: Path, source: Path, *more: str) -> list[str]:
        return [
            "import", str(fleet), "--from", str(source), "--cafile", str(self.path / "ca.pem"),
            "--backend-cert", str(self.path / "backend.crt"), "--backend-key", str(self.path / "backend.key"),
            "--passphrase-file", str(self.path / "passphrase"), *more,
        ]  # fmt: skip


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory) -> Plant:
    return Plant(tmp_path_factory.mktemp("plant"))


async def imported(plant: Plant, tmp_path: Path, source: Path, *more: str) -> Path:
    fleet = tmp_path / "fleet"
    code, out, err = await ran(tmp_path, *plant.importing(fleet, source, *more))
    assert code == 0, err
    assert "6 devices in" in out
    return fleet


async def reported(tmp_path: Path, fleet: Path, port: int, *more: str) -> dict[str, object]:
    scenario = tmp_path / "imported.toml"
    scenario.write_text(SCENARIO)
    where = ("--fleet", str(fleet), "--broker", f"localhost:{port}", "--json", *more)
    code, out, err = await ran(tmp_path, "run", str(scenario), *where)
    assert code == 0, (out[-3000:], out[:3000], err)
    document: dict[str, object] = json.loads(out)
    return document


@contextmanager
def mosquitto(plant: Plant, directory: Path) -> Iterator[tuple[int, Path]]:
    """A mosquitto that trusts the root alone, with the ACL of docs/simulator.md; its port and log."""
    port = free_port()
    log, acl, config = directory / "mosquitto.log", directory / "acl", directory / "mosquitto.conf"
    acl.write_text(
        "pattern write fleet/meters/%u/#\npattern read fleet/meters/%u/cmd/#\nuser backend-1\ntopic readwrite fleet/#\n"
    )
    acl.chmod(0o600)
    config.write_text(
        f"user root\nlistener {port} 127.0.0.1\ncafile {plant.path}/ca.pem\ncertfile {plant.path}/broker.crt\n"
        f"keyfile {plant.path}/broker.key\nrequire_certificate true\nuse_identity_as_username true\n"
        f"acl_file {acl}\nmax_queued_messages 0\nlog_dest file {log}\nlog_type all\n"
    )
    process = subprocess.Popen([needed("mosquitto"), "-c", str(config)])
    try:
        wait_until(lambda: log.exists() and "running" in log.read_text(), "mosquitto's start")
        yield port, log
    finally:
        process.terminate()
        process.wait(timeout=60)


@pytest.mark.parametrize(("driver", "workers"), [("paho", 1), ("light", 1), ("light", 2)])
async def test_a_list_of_client_identifiers_runs_at_mosquitto(
    plant: Plant, tmp_path: Path, driver: str, workers: int
) -> None:
    path = tmp_path / "clients.csv"
    files = {5: ("meter-5.pem", "meter-5-key.pem"), 6: ("meter-6-all.pem", "")}
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["client_id", "certificate", "key", "chain"])
        for number in range(1, 7):
            certificate, key = files.get(number, (f"meter-{number}.crt", f"meter-{number}.key"))
            key_file = plant.certs / key if key else ""
            chain = plant.certs / "issuing.pem"
            table.writerow([f"urn:thing:{number}", plant.certs / certificate, key_file, chain])
    fleet = await imported(plant, tmp_path, path, "--backend-id", RECEIVER)
    with mosquitto(plant, tmp_path) as (port, log):
        document = await reported(tmp_path, fleet, port, "--driver", driver, "--workers", str(workers))
        assert document["verdict"] == "PASS"
        seen = set(re.findall(r"New client connected from \S+ as (\S+) \(.*u'([^']+)'\)", log.read_text()))
    devices = {(f"urn:thing:{number}", f"meter-{number}") for number in range(1, 7)}
    commanders = {f"{RECEIVER}-w{number}" for number in (1, 2)} if workers == 2 else set()
    assert seen == devices | {(name, "backend-1") for name in {RECEIVER, *commanders}}


async def test_a_directory_runs_at_our_broker_with_the_trust_bundle_of_the_page(plant: Plant, tmp_path: Path) -> None:
    page = (REPOSITORY / "docs" / "simulator.md").read_text()
    (bundle,) = (text for text in re.findall(r"```toml\n(.*?)```", page, re.DOTALL) if "[[trust]]" in text)
    bundle = bundle.replace('"ca.pem"', f'"{plant.path}/ca.pem"').replace('"ca.crl"', json.dumps(plant.lists()))
    config = tmp_path / "broker.toml"
    config.write_text(bundle)
    own = ["--certfile", str(plant.path / "broker.crt"), "--keyfile", str(plant.path / "broker.key")]
    own += ["--cafile", str(plant.path / "ca.pem"), "--config", str(config)]
    fleet = await imported(plant, tmp_path, plant.certs)
    with BrokerProcess(tmp_path / "broker", own) as ours:
        document = await reported(tmp_path, fleet, ours.port)
        assert document["verdict"] == "PASS"


async def test_an_import_ended_by_a_signal_is_continued_by_the_same_command(tmp_path: Path) -> None:
    ca, certs, fleet = ForeignCa(), tmp_path / "certs", tmp_path / "fleet"
    for number in range(400):
        ca.issue(f"meter-{number:03d}").write(certs, f"{number}")
    ca.issue("backend-1").write(tmp_path, "backend")
    (tmp_path / "ca.pem").write_text(ca.pem)
    command = [
        "import", str(fleet), "--from", str(certs), "--cafile", str(tmp_path / "ca.pem"),
        "--backend-cert", str(tmp_path / "backend.crt"), "--backend-key", str(tmp_path / "backend.key"),
    ]  # fmt: skip
    index = fleet / "index.jsonl"
    async with fleet_sim(tmp_path, *command) as process:
        await asyncio.to_thread(wait_until, lambda: index.exists() and index.stat().st_size > 1000, "some devices")
        process.send_signal(signal.SIGINT)
        _, said = await process.communicate()
    assert process.returncode == 130
    assert f"Run the same command again to continue in {fleet}" in said.decode()
    there = FleetDirectory.read(fleet)
    assert 0 < len(there.devices) < 400
    for name in there.entries:
        there.credential(name).context(there.anchors)  # Whatever is in the index is whole.
    code, out, err = await ran(tmp_path, *command)
    assert (code, "400 devices in" in out) == (0, True), err
    there = FleetDirectory.read(fleet)
    assert all(there.credential(name).context(there.anchors) for name in there.entries)


async def test_bench_uses_the_client_identifiers_too(plant: Plant, tmp_path: Path) -> None:
    path = tmp_path / "clients.csv"
    path.write_text(f"client_id,certificate,key,chain\nurn:1,{plant.certs}/meter-1.crt,{plant.certs}/meter-1.key,"
                    f"{plant.certs}/issuing.pem\n")  # fmt: skip
    fleet = tmp_path / "fleet"
    code, _, err = await ran(tmp_path, *plant.importing(fleet, path, "--backend-id", RECEIVER))
    assert code == 0, err
    with mosquitto(plant, tmp_path) as (port, log):
        for more in ((), ("--service",)):
            to = ("-h", "localhost", "-p", str(port), "-c", "1", "-R", "100", "-d", "1", "--fleet", str(fleet), *more)
            code, _, err = await ran(tmp_path, "bench", "conn", *to)
            assert code == 0, err
        seen = re.findall(r"New client connected from \S+ as (\S+) ", log.read_text())
    assert seen == ["urn:1", f"{RECEIVER}-1"]


async def test_a_certificate_that_has_expired_since_is_named_with_the_command_that_replaces_it(
    plant: Plant, tmp_path: Path
) -> None:
    fleet = await imported(plant, tmp_path, plant.certs)
    index = fleet / "index.jsonl"
    lines = [json.loads(line) for line in index.read_text().splitlines()]
    for line in lines:
        if line["name"] == "meter-3":
            line["not_after"] = "2020-01-01T00:00:00+00:00"
    index.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "imported.toml").write_text(SCENARIO)
    with mosquitto(plant, tmp_path) as (port, _):
        where = ("--fleet", str(fleet), "--broker", f"localhost:{port}")
        code, _, err = await ran(tmp_path, "run", str(tmp_path / "imported.toml"), *where)
    assert code == 1
    assert f"meter-3 has expired: import its next one with `fleet-sim import {fleet} --from …`" in err
