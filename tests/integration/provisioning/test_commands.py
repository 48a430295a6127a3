"""The operator's commands against a running service."""

from __future__ import annotations

import csv
import json
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.broker_process import wait_until
from tests.support.curl import Curl
from tests.support.enrolled import enrol
from tests.support.openssl import OpensslDevice
from tests.support.provisioning import REPOSITORY, ProvisioningService


class Operator:
    """Runs commands with the service's directory; they find its ports, which are not those of its settings."""

    def __init__(self, service: ProvisioningService) -> None:
        self._service = service

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        done = self._service.command(*arguments, "--dir", str(self._service.dir))
        return done.returncode, done.stdout, done.stderr


@pytest.fixture
def command(service: ProvisioningService) -> Operator:
    return Operator(service)


def test_from_token_to_revocation(command: Operator, stranger: Curl, device: OpensslDevice) -> None:
    code, token, said = command("token", "create", "--device", device.name, "--group", "north")
    assert (code, token.count("\n")) == (0, 1)
    assert said.startswith("One-time token ")
    assert token.startswith("fgt_")
    answer = stranger.est("simpleenroll", device.request(), "--user", f"{device.name}:{token.strip()}")
    assert answer.status == 200, answer.text
    _, listed, _ = command("device", "list", "--group", "north", "--json")
    (shown,) = [each for each in json.loads(listed) if each["name"] == device.name]
    assert (shown["role"], shown["state"], shown["certificates"]) == ("device", "active", 1)
    _, listed, _ = command("certificate", "list", "--device", device.name, "--json")
    (certificate,) = json.loads(listed)
    _, shown_text, _ = command("certificate", "show", certificate["serial"])
    assert certificate["fingerprint_sha256"] in shown_text
    code, revoked, _ = command("revoke", "--serial", certificate["serial"], "--reason", "keyCompromise", "--json")
    assert code == 0
    (first,) = json.loads(revoked)
    assert (first["device"], first["reason"]) == (device.name, "keyCompromise")
    # Again: the original facts, not new ones.
    _, again, _ = command("revoke", "--serial", certificate["serial"], "--reason", "superseded", "--json")
    assert json.loads(again) == [first]
    _, text, _ = command("device", "show", device.name)
    assert "keyCompromise" in text
    # Nobody has decided about the device, which can show nothing any more.
    _, listed, _ = command("device", "list", "--state", "active", "--certificate", "revoked", "--json")
    (shown,) = [each for each in json.loads(listed) if each["name"] == device.name]
    assert (shown["state"], shown["certificate"]) == ("active", "revoked")
    assert command("device", "list", "--certificate", "lost")[0] == 2
    code, _, _ = command("revoke", "--device", device.name)
    assert code == 0
    _, listed, _ = command("device", "list", "--state", "revoked")
    assert device.name in listed

    def ready() -> str:  # Not while the store takes more than two seconds to answer, as on a busy machine.
        code, shown, _ = command("status")
        assert code == 0
        return shown if shown.split()[:2] == ["ready", "yes"] else ""

    shown = wait_until(ready, "the service is ready")
    assert [line.split()[0] for line in shown.splitlines()[1:6]] == [
        "version",
        *("devices", "certificates", "tokens", "feed"),
    ]
    counted = json.loads(command("status", "--json")[1])
    assert f"{counted['certificates']['revoked']} revoked" in shown
    assert f"number {counted['crls']['root-ca']['number']}, 0 entries, lapses 20" in shown


def read(tokens: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(tokens.read_text().splitlines()))


@pytest.mark.parametrize(("names", "is_told"), [((), True), (("--dns-name", "mqtt.example.org"), False)])
def test_a_broker_s_token_that_names_no_host_is_told(command: Operator, names: tuple[str, ...], is_told: bool) -> None:
    name = f"broker-found-{len(names)}"
    code, token, said = command("token", "create", "--device", name, "--role", "broker", *names)
    assert (code, token.count("\n")) == (0, 1)
    assert (f"{name} will be found under no name" in said and "--dns-name" in said) is is_told


def test_a_batch_of_tokens_goes_to_a_private_file(
    command: Operator, stranger: Curl, device: OpensslDevice, service: ProvisioningService, tmp_path: Path
) -> None:
    names = [f"{device.name}-{number}" for number in range(3)]
    (tmp_path / "names").write_text("\n".join(names) + "\n\n")
    output = tmp_path / "tokens.csv"
    enrol(service, *names[1:], group="north")
    service.revoke(device=names[2])
    batch = ("token", "batch", "--group", "north", "--output", str(output))
    code, said, told = command(*batch, "--devices-file", str(tmp_path / "names"))
    assert (code, said) == (0, f"3 tokens in {output}\n")
    undo = f"if not meant: token void --device {names[2]}"
    assert f"1 device ({names[2]}) is revoked: with its token each is admitted again; {undo}" in told
    assert f"1 device ({names[1]}) is enrolled already" in told
    counted = command("token", "batch", "--group", "north", "--count", "1", "--output", f"{output}.one", "--json")
    assert json.loads(counted[1]) == {"tokens": 1, "file": f"{output}.one"}
    assert output.stat().st_mode & 0o777 == 0o600
    rows = read(output)
    assert [row["device"] for row in rows] == names
    first = OpensslDevice(tmp_path, names[0])
    assert stranger.est("simpleenroll", first.request(), "--user", f"{names[0]}:{rows[0]['token']}").status == 200
    code, _, said = command(*batch, "--count", "2")
    assert code == 1
    assert "never overwritten" in said
    output.unlink()
    assert command(*batch, "--count", "600")[0] == 0
    assert len(read(output)) == 600


def test_a_batch_that_is_interrupted_says_how_far_it_came(
    command: Operator, device: OpensslDevice, tmp_path: Path
) -> None:
    names = [f"{device.name[:50]}-{number}" for number in range(500)]
    (tmp_path / "names").write_text("\n".join([*names, "no name"]))
    output = tmp_path / "tokens.csv"
    code, _, said = command(
        "token", "batch", "--group", "north", "--output", str(output), "--devices-file", str(tmp_path / "names")
    )
    assert code == 1
    assert f"the first 500 of 501 tokens are in {output}" in said
    assert "no name" in said
    assert [each["device"] for each in read(output)] == names


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("revoke", "--device", "nobody"), 1, "DEVICE_UNKNOWN: no device is called 'nobody'"),
        (("device", "show", "nobody"), 1, "DEVICE_UNKNOWN"),
        (("certificate", "show", "xyz"), 1, "INVALID_REQUEST: serial 'xyz'"),
        (("revoke",), 2, "give exactly one of --device, --serial"),
        (("revoke", "--device", "a", "--reason", "boredom"), 2, "boredom"),
        (("token", "create"), 2, "give --device, or --group"),
        (("token", "batch", "--output", "x"), 2, "exactly one of --devices-file and --count"),
        (("token", "batch", "--output", "x", "--count", "2"), 2, "--count needs --group"),
        (("device", "list", "--cafile", "/nowhere"), 1, "/nowhere cannot be read"),
        (("nonsense",), 2, "nonsense"),
        (("ca", "root", "sign", "none.csr", "--output", "x" * 300), 1, "x cannot be written: File name too long"),
        (("ca", "root", "sign", "none.csr", "--output", ""), 2, "'--output': is empty; name a file or a directory"),
        (("ca", "root", "sign", "none.csr", "--output", "new.crt", "--root", "no"), 1, "no.crt: say where the root is"),
        (("ca", "import", __file__), 1, "the certificate is no PEM certificate: give the file that holds it"),
        (("audit", "show", "--after", "9" * 30), 2, "--after"),
    ],
    ids=lambda value: "_".join(value)[:80] if isinstance(value, tuple) else None,
)
def test_a_failed_command_says_why_in_one_line(
    command: Operator, arguments: tuple[str, ...], code: int, words: str
) -> None:
    returned, stdout, stderr = command(*arguments)
    assert (returned, stdout) == (code, "")
    assert words in stderr
    assert "Traceback" not in stderr
    assert code == 2 or stderr.count("\n") == 1


def test_a_service_that_does_not_answer_is_named(service: ProvisioningService) -> None:
    done = service.command("device", "list", "--dir", str(service.dir), "--url", "https://127.0.0.1:1")
    assert done.returncode == 1
    assert "https://127.0.0.1:1 does not answer" in done.stderr


def test_a_directory_without_an_authority_is_said_before_a_port_that_is_taken(
    service: ProvisioningService, tmp_path: Path
) -> None:
    taken = ("--port", str(service.port), "--http-port", "0")
    done = service.command("serve", "--dir", str(tmp_path / "none"), *taken)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert f"{tmp_path / 'none'} holds no certificate authority: give the right --dir" in done.stderr


def test_a_second_service_on_one_sqlite_directory_is_refused(service: ProvisioningService) -> None:
    if service.database_url.startswith("postgresql"):
        pytest.skip("there several may")
    told = f"{service.dir} is served already, by process {service.pid}, at https://localhost:{service.port}: stop that"
    second = service.command("serve", "--dir", str(service.dir), "--port", "0", "--http-port", "0")
    assert (second.returncode, second.stdout) == (1, "")
    assert told in second.stderr
    assert "on SQLite one service runs at a time" in second.stderr
    on_its_port = service.command("serve", "--dir", str(service.dir), "--port", str(service.port), "--http-port", "0")
    assert on_its_port.stderr.startswith(f"fleet-provisioning: port {service.port} on 127.0.0.1 is in use: {told}")


@pytest.mark.parametrize("by", ["database_url", "a link", "a hard link"])
def test_a_second_service_on_one_sqlite_store_is_refused_whatever_its_directory(
    service: ProvisioningService, tmp_path: Path, by: str
) -> None:
    """Only the directory was locked: both issued, and by a hard link each had a log of its own."""
    if service.database_url.startswith("postgresql"):
        pytest.skip("there several may")
    store, path = service.dir / "fleet.db", tmp_path / "fleet.db"
    shutil.copytree(service.dir, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("fleet.db*", "*.lock"))
    if by == "a link":
        path.symlink_to(store)
    elif by == "a hard link":
        path.hardlink_to(store)
    else:
        path = store
    other = ProvisioningService(tmp_path, {"database_url": f"sqlite:///{path}"})
    second = other.command("serve", "--dir", str(tmp_path), "--port", "0", "--http-port", "0")
    assert (second.returncode, second.stdout) == (1, "")
    assert f"the store {path} is used by another service, of another directory: on SQLite one service" in second.stderr
    assert "Traceback" not in second.stderr


def test_help_shows_every_command_with_an_example(service: ProvisioningService) -> None:
    for words in (("init",), ("serve",), ("revoke",), ("token", "create"), ("token", "batch"), ("device", "list"),
                  ("device", "show"), ("certificate", "list"), ("certificate", "show")):  # fmt: skip
        done = service.command(*words, "--help")
        assert done.returncode == 0
        assert f"fleet-provisioning {' '.join(words)} " in done.stdout
    assert service.command("version").stdout.startswith("fleet-provisioning ")


def what_was_signed(entry: dict[str, Any]) -> tuple[str, object]:
    """Return what was signed: the list by its number, a certificate by its serial number."""
    details = entry["details"]
    return entry["subject"], details.get("number") or details.get("serial")


def test_a_device_is_found_by_a_part_of_its_name(command: Operator, device: OpensslDevice, stranger: Curl) -> None:
    _, token, _ = command("token", "create", "--device", device.name, "--group", "north")
    assert stranger.est("simpleenroll", device.request(), "--user", f"{device.name}:{token.strip()}").status == 200
    part = device.name[1:].upper()
    found = json.loads(command("device", "list", "--name", part, "--json")[1])
    assert device.name in {each["name"] for each in found}
    assert all(part in each["name"].upper() for each in found)
    _, table, _ = command("device", "list", "--name", "ROVISIONIN")
    assert [line.split()[0] for line in table.splitlines()] == ["name", "provisioning"]


def test_the_audit_log_is_shown_and_verified_while_the_service_runs(own_service: ProvisioningService) -> None:
    own_service.token(device="meter-1", group="north")
    directory = ("--dir", str(own_service.dir))
    verified = own_service.command("audit", "verify", *directory, check=True).stdout
    entries, head = verified.splitlines()
    assert entries.endswith("all as they were written")
    document = json.loads(own_service.command("audit", "verify", "--json", *directory, check=True).stdout)
    assert (f"head {document['head']}", document["findings"]) == (head, [])
    shown = json.loads(own_service.command("audit", "show", "--json", *directory, check=True).stdout)
    for before, after in (("signing certificate", "certificate signed"), ("signing CRL", "CRL signed")):
        begun = {what_was_signed(each): each for each in shown if each["action"] == before}
        signed = [each for each in shown if each["action"] == after]
        assert signed
        for each in signed:
            first = begun[what_was_signed(each)]
            assert first["number"] < each["number"], each
            assert first["at"] <= each["at"], each
    actions = [each["action"] for each in shown]
    assert {"signing certificate", "certificate signed", "signing CRL", "CRL signed"} <= set(actions)
    assert shown[-1]["subject"] == "meter-1"
    assert "tokens created" in own_service.command("audit", "show", *directory, check=True).stdout
    last = json.loads(own_service.command("audit", "show", "--limit", "1", "--json", *directory, check=True).stdout)
    assert last == shown[-1:]
    about = json.loads(own_service.command("audit", "show", "signing", "--json", *directory, check=True).stdout)
    assert about == [each for each in shown if "signing" in json.dumps(each)]
    later = own_service.command("audit", "show", "--after", "2", "--limit", "1", "--json", *directory, check=True)
    assert json.loads(later.stdout) == shown[2:3]
    own_service.tokens(devices=[f"meter-{number}" for number in range(500)])
    table = own_service.command("audit", "show", "meter-321", *directory, check=True).stdout
    assert '"devices": ["meter-321", "… 249 more"]' in table
    table = own_service.command("audit", "show", "--limit", "1", *directory, check=True).stdout
    assert '"meter-256", "meter-257", "… 242 more"]' in table
    done = own_service.command("audit", "show", "--no-signatures", "--limit", "1", *directory, check=True)
    assert "tokens created" in done.stdout
    assert "only the last is shown: --limit shows more" in done.stderr
    done = own_service.command("audit", "show", "--after", "2", "--limit", "1", *directory, check=True)
    assert "only the first is shown: --after 3 shows the next" in done.stderr
    operators = own_service.command(
        "audit", "show", "--by", "admin", "--no-signatures", "--json", *directory, check=True
    )
    assert {each["actor"] for each in json.loads(operators.stdout)} == {"admin"}
    assert not {each["action"] for each in json.loads(operators.stdout)} & {"signing certificate", "CRL signed"}
    today = own_service.command("audit", "show", "--since", shown[0]["at"], "--json", *directory, check=True).stdout
    assert json.loads(today)[0] == shown[0]
    done = own_service.command("audit", "show", "--until", shown[0]["at"], *directory, check=True)
    assert (done.stdout, done.stderr) == ("", "fleet-provisioning: no entry of these\n")
    assert "no entry with that text" in own_service.command("audit", "show", "nobody", *directory, check=True).stderr
    own_service.stop()
    with sqlite3.connect(own_service.dir / "fleet.db") as store:
        store.execute("DROP TRIGGER audit_entries_no_delete")
        store.execute("DELETE FROM audit_entries WHERE number = 2")
    store.close()
    own_service.start()
    found = own_service.command("audit", "verify", "--head", head.removeprefix("head "), *directory)
    assert (found.returncode, found.stdout) == (1, "entries 2 to 2 are missing\n")
    found = own_service.command("audit", "verify", "--json", *directory)
    assert (found.returncode, json.loads(found.stdout)["findings"]) == (1, ["entries 2 to 2 are missing"])


READING = """
import signal, sys
from provisioning.store import audit_findings
def findings(*_):
    print("reading", flush=True)
    sys.stdin.read()
audit_findings.findings = findings
signal.signal(signal.SIGINT, signal.default_int_handler)
from provisioning.__main__ import main
main()
"""
"""The program, with a log that takes for ever to read."""


def test_nobody_who_presses_ctrl_c_waits_until_the_audit_log_is_read(own_service: ProvisioningService) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", READING, "audit", "verify", "--dir", str(own_service.dir)],
        cwd=REPOSITORY, env=own_service.environment, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "reading\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == -signal.SIGINT, "as any program that is interrupted"
    finally:
        process.kill()
        assert process.communicate() == ("", "")
