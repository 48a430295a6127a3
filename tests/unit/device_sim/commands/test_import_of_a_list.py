"""`fleet-sim import --from clients.csv`: what a list names, and what is no list."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from typer.testing import CliRunner

from device_sim.cli import app
from tests.support.foreign_ca import ForeignCa
from tests.support.importing_user import ImportingUser, chain_in


@pytest.fixture
def place(tmp_path: Path) -> ImportingUser:
    return ImportingUser(tmp_path)


def test_a_list_names_files_and_says_what_they_are_called(place: ImportingUser) -> None:
    aws = place.ca.issue("AWS IoT Certificate"), place.ca.issue("AWS IoT Certificate")
    for number, held in enumerate(aws, 1):
        held.write(place.certs, f"{number}")
    issuing = ForeignCa("Issuing CA", place.ca)
    issuing.issue("meter-3").write(place.certs, "3")
    (place.certs / "chain.pem").write_text(issuing.pem)
    path = place.listed(
        {
            "certificate": "certs/1.crt",
            "key": "certs/1.key",
            "name": "thing-1",
            "client_id": "urn:thing:1",
            "site": "a",
        },
        {"certificate": "certs/2.crt", "key": place.certs / "2.key", "name": "thing-2", "group": "north", "site": "b"},
        {"certificate": "certs/3.crt", "key": "certs/3.key", "chain": "certs/chain.pem", "site": "c"},
    )
    assert place.imported(path, "--group", "south") == ""
    assert "column not used: site" in place.said
    fleet = place.read()
    assert fleet.devices == ["meter-3", "thing-1", "thing-2"]
    assert [fleet.client_id(name) for name in fleet.devices] == ["meter-3", "urn:thing:1", "thing-2"]
    assert [fleet.entries[name].identity.group for name in fleet.devices] == ["south", "south", "north"]
    assert chain_in(fleet, "meter-3") == ["CN=meter-3", "CN=Issuing CA"]
    assert '"client_id":"urn:thing:1"' in (place.fleet / "index.jsonl").read_text()


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"certificate": "certs/1.crt", "key": "certs/2.key"}, "2.key is not the key of {certs}/1.crt: name the pair"),
        ({"certificate": "certs/1.crt", "key": "certs/1.crt"}, "1.crt holds no private key: name the file that does"),
        ({"certificate": "certs/1.key"}, "1.key holds no certificate in PEM, DER, PKCS #7 or #12"),
        ({"certificate": "ca.pem"}, "ca.pem is a CA's certificate: name a client's"),
        ({"certificate": "certs/s.crt", "key": "certs/s.key"}, "s.crt is for servers only (extended key usage)"),
        ({"certificate": "certs/missing.crt"}, "missing.crt cannot be read: No such file or directory"),
        ({"certificate": "certs/all.pem"}, "all.pem holds the certificates of 2 clients: give each its own file"),
        ({"certificate": "", "key": "certs/1.key"}, "mine.csv line 2: no certificate is named"),
        (
            {"certificate": "certs/1.crt", "key": "certs/1.key", "client_id": "a\x07b"},
            "'a\\x07b' cannot be a client identifier",
        ),
        (
            {"certificate": "certs/1.crt", "key": "certs/1.key", "client_id": "backend-1"},
            "have the same client identifier, backend-1",
        ),
        ({"certificate": "backend.crt", "key": "backend.key"}, "backend.crt is the backend's own certificate"),
        ({"certificate": "certs/1.crt", "key": "certs/1.key", "group": "a b"}, "1.crt: group 'a b': use 1 to 64"),
        ({"cert": "certs/1.crt"}, "mine.csv has no column `certificate` in its first line"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(place: ImportingUser, row: dict[str, object], words: str) -> None:
    for number in (1, 2):
        place.ca.issue(f"meter-{number}").write(place.certs, f"{number}")
    place.ca.issue("broker", server=True).write(place.certs, "s")
    (place.certs / "all.pem").write_bytes((place.certs / "1.crt").read_bytes() + (place.certs / "2.crt").read_bytes())
    said = place.imported(place.listed(row))
    assert words.format(certs=place.certs) in said
    assert "mine.csv" in said
    assert not place.fleet.exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "has no column `certificate`"),
        (b"certificate;key\na;b\n", "has no column `certificate` in its first line, separated by commas"),
        (b"certificate,key\n", "has no row below its first line"),
        (b"certificate,key\na\n", "line 2: more or fewer fields than the first line has"),
        (b"certificate,key\na,b,c\n", "line 2: more or fewer fields than the first line has"),
        (b'certificate,key\na,"b\n', "write it as CSV with commas"),
        (b"\xff\xfe\0", "is no text in UTF-8"),
        (b"certificate,key\na\0.crt,b\n", "has NUL characters in it"),
    ],
)
def test_what_is_no_list_is_told(place: ImportingUser, content: bytes, words: str) -> None:
    path = place.path / "mine.csv"
    path.write_bytes(content)
    assert words in place.imported(path)


def test_columns_may_have_spaces_around_them_and_none_is_there_twice(place: ImportingUser) -> None:
    place.ca.issue("meter-1").write(place.certs, "1")
    path = place.path / "mine.csv"
    path.write_text("certificate, key , name\ncerts/1.crt, certs/1.key, one\n")
    assert place.imported(path) == ""
    assert place.read().devices == ["one"]
    path.write_text("certificate,key,key\ncerts/1.crt,certs/2.key,certs/1.key\n")
    assert "mine.csv has two columns `key`: leave one of them out" in place.imported(path)


def test_no_two_devices_of_a_fleet_have_one_client_identifier_though_two_lists_name_them(place: ImportingUser) -> None:
    """Each would throw the other out, throughout a run."""
    for number in (1, 2):
        place.ca.issue(f"meter-{number}").write(place.certs, f"{number}")
    row: dict[str, object] = {"certificate": "certs/1.crt", "key": "certs/1.key", "client_id": "c:1"}
    assert place.imported(place.listed(row)) == ""
    other: dict[str, object] = {"certificate": "certs/2.crt", "key": "certs/2.key", "client_id": "c:1"}
    said = place.imported(place.listed(other), "--backend-id", "receiver")
    assert "2.crt and meter-1, which is in" in said
    assert "have the same client identifier, c:1: give one of them its own" in said
    assert place.read().devices == ["meter-1"]
    assert place.imported(place.listed({**row, "client_id": "c:2"}, other)) == "", "both are given anew"


def test_a_list_of_a_spreadsheet_has_a_mark_in_front(place: ImportingUser) -> None:
    place.ca.issue("meter-1").write(place.certs, "1")
    path = place.path / "mine.csv"
    path.write_bytes(b"\xef\xbb\xbfcertificate,key\r\ncerts/1.crt,certs/1.key\r\n")
    assert place.imported(path) == ""
    assert place.read().devices == ["meter-1"]


def test_what_export_writes_can_be_imported_as_it_is(place: ImportingUser, tmp_path: Path) -> None:
    place.ca.issue("meter-1").write(place.certs, "1")
    place.ca.issue("meter-2").write(place.certs, "2")
    path = place.listed(
        {"certificate": "certs/1.crt", "key": "certs/1.key", "client_id": "c:1", "name": "one", "group": "north"},
        {"certificate": "certs/2.crt", "key": "certs/2.key", "client_id": "", "name": "", "group": ""},
    )
    assert place.imported(path, "--backend-id", "receiver") == ""
    before, others = place.read(), tmp_path / "others"
    done = CliRunner().invoke(app, ["export", str(place.fleet), str(others)])
    assert done.exit_code == 0, done.output
    with (others / "clients.csv").open() as file:
        topics = {row["client_id"]: row["telemetry_topic"] for row in csv.DictReader(file)}
    assert topics == {"c:1": "fleet/north/one/telemetry", "meter-2": "fleet/meters/meter-2/telemetry"}
    again = ImportingUser.__new__(ImportingUser)
    again.path, again.fleet = place.path, tmp_path / "again"
    backend = ("--backend-cert", str(others / "service.crt"), "--backend-key", str(others / "service.key"))
    identifier = (others / "service.id").read_text().strip()
    assert again.imported(others / "clients.csv", "--backend-id", identifier, backend=backend) == ""
    assert again.read().entries == before.entries
    assert all(again.read().credential(name) == before.credential(name) for name in before.entries)
