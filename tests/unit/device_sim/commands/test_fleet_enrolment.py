"""`fleet-sim enrol` that is run again: what the first devices have in their certificates is not changed in silence."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from device_sim.attack.issuer import Issuer
from device_sim.cli import app
from device_sim.commands.fleet_enrolment import _end
from device_sim.commands.next_command import next_command
from device_sim.credentials.certification import common_name
from device_sim.credentials.fleet_directory import FleetDirectory, Origin
from device_sim.view import View
from provisioning.pki.identity import Identity
from provisioning.pki.keys import key_to_pem
from provisioning.pki.role import Role
from provisioning.pki.tls import CredentialFiles
from tests.support.authority import Authority


@pytest.fixture
def fleet(tmp_path: Path) -> Path:
    """A fleet of two devices, in the group north."""
    authority = Issuer.founded(common_name("CA"))
    (tmp_path / "ca.pem").write_bytes(authority.pem)
    (tmp_path / "ca.key").write_bytes(key_to_pem(authority.key))
    directory = tmp_path / "fleet"
    assert enrolled(directory, "--devices", "2", "--group", "north", "--trust-domain", "north.example") == (0, "")
    return directory


def enrolled(directory: Path, *options: str) -> tuple[int, str]:
    ca = ("--ca-cert", str(directory.parent / "ca.pem"), "--ca-key", str(directory.parent / "ca.key"))
    done = CliRunner().invoke(app, ["enrol", str(directory), *ca, *options])
    return done.exit_code, "\n".join(line for line in done.stderr.splitlines() if line.startswith("fleet-sim: "))


@pytest.mark.parametrize(
    ("option", "value", "has"),
    [
        ("--group", "south", "north"),
        ("--group", "meters", "north"),
        ("--trust-domain", "south.example", "north.example"),
    ],
)
def test_another_value_than_that_in_the_certificates_is_refused_by_its_name(
    fleet: Path, option: str, value: str, has: str
) -> None:
    code, why = enrolled(fleet, "--devices", "3", option, value)
    assert (code, f"{option} {value}: these devices were enrolled with {has}" in why) == (1, True), why
    assert len(FleetDirectory.read(fleet).devices) == 2


def test_who_comes_later_is_like_the_first(fleet: Path) -> None:
    assert enrolled(fleet, "--devices", "3") == (0, "")
    assert enrolled(fleet, "--devices", "3", "--group", "north") == (0, "")
    entries = FleetDirectory.read(fleet).entries
    assert {
        (entry.identity.group, entry.identity.trust_domain) for name, entry in entries.items() if name[0] == "m"
    } == {("north", "north.example")}


def test_others_beside_them_may_have_another_group(fleet: Path) -> None:
    assert enrolled(fleet, "--devices", "1", "--prefix", "gauge", "--group", "south") == (0, "")
    assert FleetDirectory.read(fleet).entries["gauge-00001"].identity.group == "south"


@pytest.mark.parametrize(
    ("options", "answer", "code", "stays"),
    [
        ((), "n\n", 1, True),
        ((), "", 1, True),
        ((), "y\n", 0, False),
        (("--yes",), "", 0, False),
    ],
)
def test_a_fleet_is_ended_by_who_says_so(
    fleet: Path, options: tuple[str, ...], answer: str, code: int, *, stays: bool
) -> None:
    done = CliRunner().invoke(app, ["enrol", str(fleet), "--cleanup", *options], input=answer)
    assert (done.exit_code, FleetDirectory.exists(fleet)) == (code, stays), done.output
    assert ("Remove the keys of 2 devices of" in done.stderr) is (not options)
    assert (f"{fleet} stays as it is; --cleanup --yes does not ask\n" in done.stderr.replace("\n ", " ")) is stays


def test_without_a_standard_input_nobody_has_said_yes(fleet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("device_sim.commands.fleet_enrolment.sys.stdin", None)
    with pytest.raises(typer.Exit) as ended:
        _end(View(), fleet, 1, yes=False)
    assert (ended.value.exit_code, FleetDirectory.exists(fleet)) == (1, True)


def test_yes_alone_enrols_nobody(fleet: Path) -> None:
    done = CliRunner().invoke(app, ["enrol", str(fleet), "--devices", "3", "--yes"])
    assert (done.exit_code, "--yes goes with --cleanup" in done.stderr) == (2, True), done.stderr
    assert len(FleetDirectory.read(fleet).devices) == 2


def test_trust_anchors_that_are_none_are_named_before_a_fleet_is_made(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("no certificate")
    (tmp_path / "op.pem").write_text("x")
    directory, credential = tmp_path / "fleet", str(tmp_path / "op.pem")
    service = ["--provisioning", "https://localhost:1", "--cafile", str(tmp_path / "notes")]
    done = CliRunner().invoke(app, ["enrol", str(directory), *service, "--cert", credential, "--key", credential])
    assert done.exit_code == 2
    assert f"--cafile {tmp_path / 'notes'} holds no whole PEM certificate: name the file" in " ".join(
        done.stderr.split()
    )
    assert not directory.exists()


def test_what_is_next_can_be_done_with_this_fleet(fleet: Path) -> None:
    """`smoke` revokes, which takes our service: it was the first thing that was said, and the first that failed."""
    ca = ("--ca-cert", str(fleet.parent / "ca.pem"), "--ca-key", str(fleet.parent / "ca.key"))
    done = CliRunner().invoke(app, ["enrol", str(fleet), *ca, "--devices", "2", "--group", "north"])
    _, _, told = done.stdout.partition("next: ")
    assert shlex.split(told) == [
        "fleet-sim",
        "run",
        "steady",
        "--devices",
        "2",
        "--fleet",
        str(fleet),
        "--broker",
        "HOST:PORT",
    ]
    words = [*told.split()[1:-1], "127.0.0.1:1"]
    tried = CliRunner().invoke(app, words, env={"COLUMNS": "400"})
    assert (tried.exit_code, "is not let in at 127.0.0.1:1: tcp refused" in tried.output) == (1, True), tried.output


@pytest.mark.parametrize(("devices", "fewer"), [(2, ["--devices", "2"]), (50, []), (60, [])])
def test_smoke_is_next_with_as_many_devices_as_there_are(tmp_path: Path, devices: int, fewer: list[str]) -> None:
    """It has fifty, and a fleet of ten was sent into an error; so was one whose path has a space."""
    authority = Authority()
    origin = Origin("https://ca.example.org:8443", CredentialFiles(tmp_path / "o.pem", tmp_path / "o.pem"))
    fleet = FleetDirectory.create(tmp_path / "my meters", origin, authority.pem, "backend", lasting=False)
    held = authority.issue("meter-0")
    with fleet.changing():
        for number in range(devices):
            name = f"meter-{number}"
            fleet.keep(replace(held, identity=replace(held.identity, name=name)))
    words = ["fleet-sim", "run", "smoke", *fewer, "--fleet", str(tmp_path / "my meters"), "--broker", "HOST:PORT"]
    assert shlex.split(next_command(fleet)) == words


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("https://127.0.0.1:1", "https://127.0.0.1:1 does not answer: nothing listens there"),
        ("", "'' is no address of a provisioning service"),  # Of a variable that is not set.
    ],
)
def test_a_service_that_does_not_answer_changes_no_fleet(tmp_path: Path, url: str, why: str) -> None:
    """A slip in --provisioning had been written down, and each run from then on revoked nobody."""
    authority = Issuer.founded(common_name("CA"))
    operator = authority.issue(Identity("fleet.internal", Role.OPERATOR, "admin"))
    (tmp_path / "operator.pem").write_bytes(operator.pem.pem)
    pair = CredentialFiles(tmp_path / "operator.pem", tmp_path / "operator.pem")
    before = Origin("https://ca.example.org:8443", pair)
    fleet = FleetDirectory.create(tmp_path / "fleet", before, authority.pem.decode(), "backend")
    done = CliRunner().invoke(app, ["enrol", str(fleet.path), "--devices", "1", "--provisioning", url])
    assert (done.exit_code, why in done.output) == (1, True), done.output
    assert FleetDirectory.read(fleet.path).origin == before
