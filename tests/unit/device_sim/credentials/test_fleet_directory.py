from __future__ import annotations

import json
import os
import shutil
import threading
from pathlib import Path
from typing import cast

import pytest

from device_sim.credentials.certification import CertificateAuthority, UnusableAuthority
from device_sim.credentials.enrolling import certify_fleet, end_fleet, names_of
from device_sim.credentials.fleet_directory import FleetDirectory, FleetUnusable, Origin
from provisioning.client.operator import OperatorClient
from provisioning.pki.keys import KeyFileError, generate_key, key_to_pem
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.pki.tls import CredentialFiles, TlsConfigurationError
from tests.support.authority import Authority
from tests.support.planted import Planted

AUTHORITY = Authority()


def new_fleet(path: Path) -> FleetDirectory:
    return FleetDirectory.create(path, Origin(), AUTHORITY.pem, "backend")


def files_below(path: Path) -> list[Path]:
    return [file for file in path.rglob("*") if file.is_file()]


@pytest.fixture
def ca_files(tmp_path: Path) -> tuple[Path, Path]:
    certificate, key = tmp_path / "ca.crt", tmp_path / "ca.key"
    certificate.write_text(AUTHORITY.pem)
    key.write_bytes(key_to_pem(AUTHORITY._key))
    return certificate, key


def test_what_is_kept_can_be_read_by_another_process(tmp_path: Path) -> None:
    held = AUTHORITY.issue("meter-1")
    with new_fleet(tmp_path / "fleet").changing() as fleet:
        fleet.keep(held)
    again = FleetDirectory.read(tmp_path / "fleet")
    assert again.devices == ["meter-1"]
    assert again.credential("meter-1") == held
    assert again.anchors.read_text() == AUTHORITY.pem


def test_a_key_goes_into_no_file_that_somebody_has_put_there(tmp_path: Path) -> None:
    fleet = new_fleet(tmp_path / "fleet")
    planted = [
        Planted.at(fleet.path / "devices" / f".meter-1.{kind}.new", linked=linked)
        for kind, linked in (("key", True), ("crt", False))
    ]
    with fleet.changing():
        fleet.keep(AUTHORITY.issue("meter-1"))
    assert [each.read() for each in planted] == [b"", b""]
    assert FleetDirectory.read(fleet.path).devices == ["meter-1"]


def test_every_file_is_its_owners_alone(tmp_path: Path) -> None:
    with new_fleet(tmp_path / "fleet").changing() as fleet:
        fleet.keep(AUTHORITY.issue("meter-1"))
    files = files_below(tmp_path / "fleet")
    assert len(files) == 5
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}
    assert (tmp_path / "fleet").stat().st_mode & 0o777 == 0o700


def test_a_line_that_was_cut_short_is_no_device_and_no_obstacle(tmp_path: Path) -> None:
    with new_fleet(tmp_path / "fleet").changing() as fleet:
        fleet.keep(AUTHORITY.issue("meter-1"))
        fleet.keep(AUTHORITY.issue("meter-2"))
    index = tmp_path / "fleet" / "index.jsonl"
    os.truncate(index, index.stat().st_size - 10)
    assert FleetDirectory.read(tmp_path / "fleet").devices == ["meter-1"]
    with FleetDirectory.read(tmp_path / "fleet").changing() as fleet:
        fleet.keep(AUTHORITY.issue("meter-2"))
    assert FleetDirectory.read(tmp_path / "fleet").devices == ["meter-1", "meter-2"]


def test_the_last_line_about_a_device_holds(tmp_path: Path) -> None:
    with new_fleet(tmp_path / "fleet").changing() as fleet:
        fleet.keep(AUTHORITY.issue("meter-1"))
        renewed = AUTHORITY.issue("meter-1")
        fleet.keep(renewed)
        fleet.keep(AUTHORITY.issue("meter-2"))
        fleet.revoked("meter-2")
    again = FleetDirectory.read(tmp_path / "fleet")
    assert again.credential("meter-1") == renewed
    assert again.devices == ["meter-1"]


def test_one_process_changes_a_fleet_at_a_time(tmp_path: Path) -> None:
    with (
        new_fleet(tmp_path / "fleet").changing(),
        pytest.raises(FleetUnusable, match="in use by another process"),
        FleetDirectory.read(tmp_path / "fleet").changing(),
    ):
        pytest.fail("two held it")


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("fleet.json", b"{}", "is damaged"),
        ("fleet.json", b'{"schema":99}', "this program knows 1"),
        ("fleet.json", b'{"schema":1,"provisioning_url":5,"operator":null,"service":"x"}', "provisioning_url is int"),
        ("fleet.json", b'{"schema":1,"provisioning_url":null,"operator":null,"service":["x"]}', "service is list"),
        ("fleet.json", b"[" * 100_000, "is damaged"),
    ],
)
def test_damage_is_told(tmp_path: Path, file: str, content: bytes, words: str) -> None:
    new_fleet(tmp_path / "fleet")
    (tmp_path / "fleet" / file).write_bytes(content)
    with pytest.raises(FleetUnusable, match=words):
        FleetDirectory.read(tmp_path / "fleet")


ENTRY: dict[str, object] = {
    "name": "m", "role": "device", "group": "g", "trust_domain": "t", "serial": "1",
    "not_after": "2027-03-02T19:07:26+00:00", "revoked": False,
}  # fmt: skip


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"[", "it is no JSON: Expecting value, at character 3"),
        (b"[" * 100_000, "it is nested too deeply"),
        (b"[]", "it is no object of JSON"),
        ({"role": None}, "role is missing"),
        ({"role": "boss"}, "role: 'boss' is not a valid Role"),
        ({"group": ["g"]}, "group is no text"),
        ({"name": "a/b"}, "name 'a/b': use"),
        ({"trust_domain": "T"}, "trust domain 'T': use"),
        ({"serial": "zz"}, "serial: invalid literal"),
        ({"not_after": "2027-03-02T19:07:26"}, "not_after: 2027-03-02T19:07:26 has no offset from UTC"),
        ({"revoked": "no"}, "revoked is neither true nor false"),
        ({"client_id": 5}, "client_id is no text"),
        ({"client_id": "x" * 65_536}, "client_id: 'x{40}', of 65,536 characters, cannot be a client identifier"),
        ({"client_id": "a\x00b"}, "client_id: 'a.x00b', of 3 characters"),
    ],
)
def test_a_line_of_the_index_that_holds_no_device_is_told_with_field_and_remedy(
    tmp_path: Path, line: bytes | dict[str, object], words: str
) -> None:
    new_fleet(tmp_path / "fleet")
    second = line if isinstance(line, bytes) else json.dumps({**ENTRY, **line}).encode()
    (tmp_path / "fleet" / "index.jsonl").write_bytes(json.dumps(ENTRY).encode() + b"\n" + second + b"\n")
    said = rf"fleet/index\.jsonl line 2 is damaged: {words}.*; put it right, or remove the line, .* `fleet-sim enrol"
    with pytest.raises(FleetUnusable, match=said):
        FleetDirectory.read(tmp_path / "fleet")


def test_an_operators_file_that_was_moved_is_named_with_what_to_do(tmp_path: Path) -> None:
    operator = CredentialFiles(tmp_path / "op.crt", tmp_path / "op.key")
    fleet = FleetDirectory.create(tmp_path / "fleet", Origin("https://ca", operator), AUTHORITY.pem, "backend")
    for moved, there in (("certificate", operator.certificate), ("key", operator.key)):
        with pytest.raises(TlsConfigurationError, match=f"the operator's {moved} {there} cannot .*: `fleet-sim enrol "):
            fleet.expect_operator()
        there.touch()
    fleet.expect_operator()
    new_fleet(tmp_path / "of-a-ca").expect_operator()


def test_a_directory_with_something_else_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(FleetUnusable, match="is no fleet: name an empty directory"):
        new_fleet(tmp_path)
    with pytest.raises(FleetUnusable, match="fleet-sim enrol"):
        FleetDirectory.read(tmp_path)


async def test_a_ca_of_ones_own_makes_a_fleet_continues_it_and_ends_it(
    tmp_path: Path, ca_files: tuple[Path, Path]
) -> None:
    authority = CertificateAuthority.load(*ca_files)
    fleet = FleetDirectory.create(tmp_path / "fleet", Origin(), authority.pem, "backend")
    counted: list[int] = []
    for size, made in ((3, 3), (5, 2)):
        counted.clear()
        await certify_fleet(fleet, names_of("meter", size), "m", "fleet.internal", authority, lambda: counted.append(1))
        assert len(counted) == made
    assert fleet.devices == names_of("meter", 5)
    assert fleet.credential("backend").identity.group is None
    fleet.credential("meter-00001").context(fleet.anchors)  # Certificate and key belong together.
    (tmp_path / "fleet" / "note").write_text("the user's")
    await end_fleet(fleet, None, 4, lambda: None)
    assert [file.name for file in files_below(tmp_path / "fleet")] == ["note"]


def test_what_is_no_ca_is_refused(tmp_path: Path, ca_files: tuple[Path, Path]) -> None:
    certificate, _ = ca_files
    (tmp_path / "other.key").write_bytes(key_to_pem(generate_key()))
    with pytest.raises(UnusableAuthority, match="is not the key of"):
        CertificateAuthority.load(certificate, tmp_path / "other.key")
    AUTHORITY.issue("meter-1").write(tmp_path, "device")
    with pytest.raises(UnusableAuthority, match="is not a CA certificate"):
        CertificateAuthority.load(tmp_path / "device.crt", tmp_path / "device.key")
    with pytest.raises(KeyFileError, match="cannot be read"):
        CertificateAuthority.load(certificate, tmp_path / "missing.key")


def test_a_larger_fleet_begins_with_the_same_names() -> None:
    assert names_of("meter", 10_000)[:10] == names_of("meter", 10)


def test_a_write_that_fails_names_its_file(tmp_path: Path) -> None:
    """/dev/full takes no byte, as a full disk."""
    fleet = FleetDirectory.create(tmp_path / "fleet", Origin(), AUTHORITY.pem, "backend", lasting=False)
    index = fleet.path / "index.jsonl"
    index.unlink()
    index.symlink_to("/dev/full")
    with fleet.joined(), pytest.raises(OSError, match="No space left") as told:
        fleet.keep(AUTHORITY.issue("meter-1"))
    assert told.value.filename == str(index)


@pytest.mark.parametrize("lasting", [True, False])
def test_a_fleet_that_is_removed_at_the_end_waits_for_no_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lasting: bool
) -> None:
    """A disk that takes three milliseconds for each file had held up a run of ten thousand devices for a minute."""
    authority, synced = Authority(), list[int]()
    fleet = FleetDirectory.create(tmp_path / "fleet", Origin(), authority.pem, "backend", lasting=lasting)
    monkeypatch.setattr(os, "fsync", synced.append)
    with fleet.changing():
        fleet.keep(authority.issue("meter-1"))
    assert bool(synced) is lasting
    assert FleetDirectory.read(tmp_path / "fleet").credential("meter-1").identity.name == "meter-1"


def test_a_change_waits_for_the_disk_with_many_files_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Alone each file waits for a journal of its own; thousands of them looked like a program that hangs."""
    together = threading.Barrier(4, timeout=60)
    synced = []

    def sync(file: int) -> None:
        path = Path(f"/proc/self/fd/{file}").readlink()
        synced.append(path.name)
        if path.suffix in {".crt", ".key"}:
            together.wait()

    fleet = new_fleet(tmp_path / "fleet")
    monkeypatch.setattr(os, "fsync", sync)
    with fleet.changing():
        for number in range(8):
            fleet.keep(AUTHORITY.issue(f"meter-{number}"))
    assert sorted(synced[:-2]) == sorted(path.name for path in (fleet.path / "devices").iterdir())
    assert synced[-2:] == ["devices", "index.jsonl"], "the names after their files, and what is said of them last"


async def test_whose_file_is_lost_takes_no_part_and_is_revoked_with_the_others(
    tmp_path: Path, ca_files: tuple[Path, Path]
) -> None:
    """Its key may be with somebody who has moved it."""
    authority, revoked = CertificateAuthority.load(*ca_files), list[str]()
    fleet = new_fleet(tmp_path / "fleet")
    await certify_fleet(fleet, names_of("meter", 3), "m", "fleet.internal", authority, lambda: None)
    for name in ("meter-00001.key", "meter-00003.key"):
        (tmp_path / "fleet" / "devices" / name).unlink()
    (tmp_path / "fleet" / "devices" / "meter-00003.key").symlink_to(tmp_path / "unplugged")
    assert FleetDirectory.read(tmp_path / "fleet").devices == ["meter-00002"]
    shutil.rmtree(tmp_path / "fleet" / "devices")
    assert FleetDirectory.read(tmp_path / "fleet").devices == []

    class Operator:
        async def revoke(self, *, device: str, reason: RevocationReason) -> None:
            assert reason is RevocationReason.CESSATION_OF_OPERATION
            revoked.append(device)

    await end_fleet(fleet, cast("OperatorClient", Operator()), 1, lambda: None)
    assert revoked == ["backend", "meter-00001", "meter-00002", "meter-00003"]
    assert not (tmp_path / "fleet").exists()


async def test_a_pair_that_does_not_fit_is_named(tmp_path: Path, ca_files: tuple[Path, Path]) -> None:
    fleet = new_fleet(tmp_path / "fleet")
    authority = CertificateAuthority.load(*ca_files)
    await certify_fleet(fleet, names_of("meter", 1), "m", "fleet.internal", authority, lambda: None)
    (tmp_path / "fleet" / "devices" / "meter-00001.key").write_bytes(key_to_pem(generate_key()))
    with pytest.raises(TlsConfigurationError, match="certificate and key of meter-00001 do not belong together"):
        FleetDirectory.read(tmp_path / "fleet").credential("meter-00001").context(fleet.anchors)
