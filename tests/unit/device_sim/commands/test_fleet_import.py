"""`fleet-sim import`: what a user has from another CA becomes a fleet, or nothing does and the command says why."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
    pkcs12,
)
from typer.testing import CliRunner

from device_sim.cli import app
from provisioning.pki.keys import PrivateKey, generate_key
from provisioning.pki.role import Role
from tests.support.authority import Authority
from tests.support.foreign_ca import ONE_DAY, ForeignCa, ForeignCertificate
from tests.support.importing_user import ImportingUser, chain_in

PASSPHRASE = b"correct horse"


@pytest.fixture
def place(tmp_path: Path) -> ImportingUser:
    return ImportingUser(tmp_path)


def test_a_directory_becomes_a_fleet_whatever_its_files_are_called(place: ImportingUser) -> None:
    first, second, third = (place.ca.issue(f"meter-{number}") for number in (1, 2, 3))
    first.write(place.certs, "meter-1")
    (place.certs / "private").mkdir()
    (place.certs / "aws-certificate.pem.crt").write_bytes(second.pem)
    (place.certs / "private" / "aws-private.pem.key").write_bytes(second.key_pem)
    (place.certs / "both.pem").write_bytes(b"Bag Attributes\n    friendlyName: x\n" + third.key_pem + third.pem)
    (place.certs / "copy-of-both.pem").write_bytes(third.pem)
    (place.certs / "openssl.cnf").write_text("[req]\n")
    (place.certs / "index.attr").write_bytes(bytes(range(256)))
    assert place.imported() == ""
    fleet = place.read()
    assert fleet.devices == ["meter-1", "meter-2", "meter-3"]
    assert {entry.identity.group for name, entry in fleet.entries.items() if name[0] == "m"} == {"meters"}
    assert (fleet.service, fleet.origin.imported, fleet.anchors.read_text()) == ("backend-1", True, place.ca.pem)
    for name in fleet.entries:
        fleet.credential(name).context(fleet.anchors)  # Certificate and key belong together.
    modes = {stat.S_IMODE(file.stat().st_mode) for file in place.fleet.rglob("*") if file.is_file()}
    assert modes == {0o600}
    assert "run steady --devices 3 --fleet" in place.result


MAKERS: dict[str, Callable[[], PrivateKey]] = {
    "RSA": lambda: rsa.generate_private_key(65537, 2048),
    "P-384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "Ed25519": ed25519.Ed25519PrivateKey.generate,
}
PEM, DER, PKCS8, OLDER = Encoding.PEM, Encoding.DER, PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL
FORMS = [(PEM, PKCS8, False), (PEM, PKCS8, True), (DER, PKCS8, False), (DER, PKCS8, True)]
OLDER_FORMS = [(PEM, OLDER, False), (PEM, OLDER, True), (DER, OLDER, False)]


@pytest.mark.parametrize(
    ("kind", "encoding", "form", "locked"),
    [(kind, *form) for kind in MAKERS for form in FORMS]
    + [(kind, *form) for kind in ("RSA", "P-384") for form in OLDER_FORMS],
)
def test_every_kind_of_key_in_every_form(
    place: ImportingUser, kind: str, encoding: Encoding, form: PrivateFormat, *, locked: bool
) -> None:
    held = place.ca.issue("meter-1", key=MAKERS[kind]())
    encryption = BestAvailableEncryption(PASSPHRASE) if locked else NoEncryption()
    (place.certs / "one.crt").write_bytes(held.certificate.public_bytes(encoding))
    (place.certs / "one.key").write_bytes(held.key.private_bytes(encoding, form, encryption))
    if locked:
        assert "one.key is encrypted: give --passphrase-file" in place.imported()
        (place.path / "wrong").write_bytes(b"battery")
        assert "one.key does not open with the passphrase in --passphrase-file" in place.imported(
            None, "--passphrase-file", str(place.path / "wrong")
        )
        assert not place.fleet.exists()
        (place.path / "right").write_bytes(PASSPHRASE + b"\n")
    assert place.imported(None, *(("--passphrase-file", str(place.path / "right")) if locked else ())) == ""
    copied = place.read().credential("meter-1").key_pem
    assert load_pem_private_key(copied, None).private_bytes(*_PLAIN) == held.key.private_bytes(*_PLAIN)


_PLAIN = (Encoding.DER, PrivateFormat.PKCS8, NoEncryption())


def test_an_rsa_key_whose_numbers_do_not_belong_together_is_named(place: ImportingUser) -> None:
    held, other = (rsa.generate_private_key(65537, 2048) for _ in range(2))
    certificate, key = place.ca.issue("meter-1", key=held).write(place.certs, "meter-1")
    numbers, wrong = held.private_numbers(), other.private_numbers()
    mixed = rsa.RSAPrivateNumbers(
        numbers.p, numbers.q, wrong.d, wrong.dmp1, wrong.dmq1, numbers.iqmp, numbers.public_numbers
    ).private_key(unsafe_skip_rsa_key_validation=True)
    key.write_bytes(mixed.private_bytes(PEM, PKCS8, NoEncryption()))
    assert (
        f"{certificate} has no private key in {place.certs}; {key} holds an RSA key whose numbers" in place.imported()
    )


@pytest.mark.parametrize("locked", [False, True])
def test_a_pkcs12_file_is_opened(place: ImportingUser, *, locked: bool) -> None:
    issuing = ForeignCa("Issuing CA", place.ca)
    held = issuing.issue("meter-1")
    assert isinstance(held.key, ec.EllipticCurvePrivateKey)
    encryption = BestAvailableEncryption(PASSPHRASE) if locked else NoEncryption()
    (place.certs / "meter-1.p12").write_bytes(
        pkcs12.serialize_key_and_certificates(b"meter-1", held.key, held.certificate, [issuing.certificate], encryption)
    )
    (place.path / "right").write_bytes(PASSPHRASE)
    if locked:
        assert "meter-1.p12 is encrypted: give --passphrase-file" in place.imported()
    assert place.imported(None, "--passphrase-file", str(place.path / "right")) == ""
    assert chain_in(place.read(), "meter-1") == ["CN=meter-1", "CN=Issuing CA"]


@pytest.mark.parametrize("where", ["same file", "beside", "in the trust anchors"])
def test_a_chain_is_built_of_who_has_signed_and_has_no_root(place: ImportingUser, where: str) -> None:
    above = ForeignCa("Policy CA", place.ca)
    issuing, namesake = ForeignCa("Issuing CA", above), ForeignCa("Issuing CA", above)
    held = issuing.issue("meter-1")
    chain = "".join(ca.pem for ca in (namesake, above, place.ca, issuing)).encode()
    _, key = held.write(place.certs, "meter-1")
    if where == "same file":
        key.with_suffix(".crt").write_bytes(held.pem + chain)
    elif where == "beside":
        (place.certs / "chain.pem").write_bytes(chain)
    else:
        (place.path / "ca.pem").write_bytes(chain)
    place.ca.own.write(place.certs, "ca")
    issuing.issue("backend-1").write(place.path, "backend")
    assert place.imported() == ""
    assert chain_in(place.read(), "backend-1") == ["CN=backend-1", "CN=Issuing CA", "CN=Policy CA"]
    assert chain_in(place.read(), "meter-1") == ["CN=meter-1", "CN=Issuing CA", "CN=Policy CA"]
    # The key of the CA is nobody's to copy.
    assert not any(place.ca.own.key_pem in file.read_bytes() for file in place.fleet.rglob("*") if file.is_file())


def test_what_is_no_device_is_left_out_and_told(place: ImportingUser) -> None:
    place.ca.issue("meter-1").write(place.certs, "meter-1")
    place.ca.issue("broker", server=True).write(place.certs, "broker")
    place.backend.write(place.certs, "backend")
    (place.certs / "orphan.key").write_bytes(place.ca.issue("x").key_pem)
    (place.certs / "README").write_text(
        "A key begins with -----BEGIN PRIVATE KEY-----, and a request with\n-----BEGIN X"
    )
    Authority().issue("receiver", role=Role.SERVICE, group=None).write(place.certs, "receiver")
    place.ca.own.write(place.certs, "ca")
    (place.certs / "other").mkdir()
    place.fleet = place.certs / "other" / ".." / "fleet"
    assert place.imported() == ""
    assert place.read().devices == ["meter-1"]
    assert f"left out: {place.certs}/broker.crt: for servers only" in place.said
    assert f"left out: {place.certs}/receiver.crt: of a service" in place.said
    assert f"left out: {place.certs}/ca.crt: of a CA" in place.said
    assert f"left out: {place.certs}/orphan.key: a key without its certificate" in place.said
    assert place.said.count("without its certificate") == 1
    renewed = place.ca.issue("meter-1")
    renewed.write(place.certs, "meter-1")
    assert place.imported() == ""  # The copy of the former one is no second meter-1.
    assert place.read().credential("meter-1").certificate_pem == renewed.pem


@pytest.mark.parametrize("known_by", ["what it has signed", "the trust anchors"])
@pytest.mark.parametrize("with_key", [True, False])
def test_a_ca_that_does_not_say_that_it_is_one_is_no_device(
    place: ImportingUser, known_by: str, *, with_key: bool
) -> None:
    """`openssl x509 -req -signkey` makes such: its key would be copied, or asked for."""
    silent = ForeignCa("plant-ca", says_so=False)
    (silent if known_by == "what it has signed" else place.ca).issue("meter-1").write(place.certs, "meter-1")
    if known_by == "the trust anchors":
        (place.path / "ca.pem").write_text(place.ca.pem + silent.pem)
    _, key = silent.own.write(place.certs, "ca")
    if not with_key:
        key.unlink()
    assert place.imported() == ""
    assert place.read().devices == ["meter-1"]
    assert not any(silent.own.key_pem in file.read_bytes() for file in place.fleet.rglob("*") if file.is_file())
    assert (f"left out: {place.certs}/ca.crt: of a CA" in place.said) is with_key


def test_a_certificate_inside_a_line_is_somebody_elses_text(place: ImportingUser) -> None:
    """AWS prints one so when it creates it: the files are made of that, and both lie in one directory."""
    certificate, key = place.ca.issue("meter-1").write(place.certs, "meter-1")
    printed = json.dumps({"certificatePem": certificate.read_text(), "keyPair": {"PrivateKey": key.read_text()}})
    (place.certs / "created.json").write_text(printed)
    indented = place.ca.issue("meter-2")
    (place.certs / "values.yaml").write_bytes(b"tls: |\n" + indent(indented.pem + indented.key_pem))
    marked = place.ca.issue("meter-3")
    (place.certs / "notepad.pem").write_bytes(b"\xef\xbb\xbf" + marked.key_pem + marked.pem)
    assert place.imported() == ""
    assert place.read().devices == ["meter-1", "meter-2", "meter-3"]


def indent(lines: bytes) -> bytes:
    return b"".join(b"  " + line for line in lines.splitlines(keepends=True))


def test_a_linked_directory_is_not_followed_and_told(place: ImportingUser) -> None:
    place.ca.issue("meter-1").write(place.certs, "meter-1")
    place.ca.issue("meter-2").write(place.path / "elsewhere", "meter-2")
    (place.certs / "more").symlink_to(place.path / "elsewhere")
    (place.certs / "itself").symlink_to(place.certs)
    assert place.imported() == ""
    assert place.read().devices == ["meter-1"]
    assert f"left out: {place.certs}/more: a link to a directory" in place.said


def expired(ca: ForeignCa) -> ForeignCertificate:
    return ca.issue("meter-9", until=datetime.now(UTC) - ONE_DAY)


def not_yet(ca: ForeignCa) -> ForeignCertificate:
    return ca.issue("meter-9", since=datetime.now(UTC) + ONE_DAY, until=datetime.now(UTC) + 2 * ONE_DAY)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (expired, "bad.crt has expired on "),
        (not_yet, "bad.crt is not valid before "),
        (
            lambda ca: ca.issue("Meter 9"),
            "a letter or digit; say in a CSV file, in a column `name`, what it is called in topics",
        ),
        (lambda ca: ca.issue("a/b"), "bad.crt: name 'a/b': use 1 to 64 letters"),
        (lambda ca: ca.issue("+"), "bad.crt: name '+': use 1 to 64 letters"),
        (lambda ca: ca.issue("00:1A:2B"), "bad.crt: name '00:1A:2B': use 1 to 64 letters"),
        (
            lambda ca: ca.issue(None, alternative=x509.DNSName("m9.plant.example")),
            "bad.crt has no Common Name, but other names (m9.plant.example): say in a CSV file, in a column `name`",
        ),
        (lambda ca: ca.issue(None), "bad.crt has no Common Name: say in a CSV file"),
        (lambda ca: ca.issue("meter-1"), "have the same name, meter-1: leave one out, or give each its own in a CSV"),
        (lambda ca: ca.issue("backend-1"), "have the same name, backend-1: leave one out"),
        (
            lambda ca: ca.issue("meter-9", key=rsa.generate_private_key(65537, 1024)),  # noqa: S505 - that is the point
            "bad.crt is too weak for TLS (EE_KEY_TOO_SMALL): give one with a P-256 key",
        ),
    ],
)
def test_one_that_cannot_be_used_is_named_with_its_remedy_and_nothing_is_imported(
    place: ImportingUser, make: Callable[[ForeignCa], ForeignCertificate], words: str
) -> None:
    place.ca.issue("meter-1").write(place.certs, "a-good-one")
    make(place.ca).write(place.certs, "bad")
    assert words in place.imported()
    assert not place.fleet.exists()


def test_many_that_cannot_be_used_are_told_together(place: ImportingUser) -> None:
    for number in range(12):
        expired(place.ca).write(place.certs, f"old-{number:02d}")
    said = place.imported()
    assert said.count("has expired on") == 10
    assert "and 2 more" in said


def test_a_certificate_without_its_key_is_named_and_so_is_a_key_of_no_use(place: ImportingUser) -> None:
    certificate, key = place.ca.issue("meter-1").write(place.certs, "meter-1")
    key.write_bytes(generate_key().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    assert f"{certificate} has no private key in {place.certs}: put it there" in place.imported()
    key.write_bytes(ed448.Ed448PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    assert f"{key} holds a Ed448PrivateKey, where an EC, RSA or Ed25519 key is needed" in place.imported()
    locked = place.ca.own.key.private_bytes(PEM, PKCS8, BestAvailableEncryption(PASSPHRASE))
    (place.certs / "ca.key").write_bytes(locked)  # The one of a similar name is told.
    key.write_bytes(b"-----BEGIN PRIVATE KEY-----\nnonsense\n-----END PRIVATE KEY-----\n")
    assert f"{key} holds a key that cannot be parsed: convert it (openssl pkey" in place.imported()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (lambda held: held.pem[:200], "is not whole: a part of it has no end"),
        (lambda _held: b"-----BEGIN CERTIFICATE-----\nTUlJ\n-----END CERTIFICATE-----\n", "cannot be parsed"),
        # As many as there is room for: looked through to the end for each, it would take hours.
        (lambda _held: b"-----BEGIN CERTIFICATE-----\n" * 500_000, "is not whole: a part of it has no end"),
    ],
)
def test_a_damaged_file_is_named(
    place: ImportingUser, content: Callable[[ForeignCertificate], bytes], words: str
) -> None:
    held = place.ca.issue("meter-1")
    certificate, _ = held.write(place.certs, "meter-1")
    certificate.write_bytes(content(held))
    said = place.imported()
    assert f"{certificate} " in said
    assert words in said


def test_certificates_of_our_own_keep_their_identity(place: ImportingUser) -> None:
    ours = Authority()
    ours.issue("meter-1", group="north").write(place.certs, "meter-1")
    assert place.imported() == ""
    identity = place.read().entries["meter-1"].identity
    assert identity.uri == "spiffe://fleet.internal/device/north/meter-1"


def test_who_runs_it_again_continues_and_replaces_what_has_changed(place: ImportingUser) -> None:
    first = place.ca.issue("meter-1")
    first.write(place.certs, "meter-1")
    assert place.imported() == ""
    index = (place.fleet / "index.jsonl").read_bytes()
    assert place.imported() == ""
    assert "nothing has changed" in place.said
    assert (place.fleet / "index.jsonl").read_bytes() == index
    renewed = place.ca.issue("meter-1")
    renewed.write(place.certs, "meter-1")
    place.ca.issue("meter-2").write(place.certs, "meter-2")
    place.ca.issue("receiver").write(place.path, "backend")
    assert place.imported() == ""
    fleet = place.read()
    assert (fleet.devices, fleet.service) == (["meter-1", "meter-2"], "receiver")
    assert fleet.credential("meter-1").certificate_pem == renewed.pem


def test_an_import_that_was_cut_off_is_continued(place: ImportingUser) -> None:
    for number in (1, 2, 3):
        place.ca.issue(f"meter-{number}").write(place.certs, f"{number}")
    assert place.imported() == ""
    index = place.fleet / "index.jsonl"
    index.write_bytes(index.read_bytes()[:-200])  # As after kill -9: one line is cut short, and one is missing.
    assert len(place.read().devices) == 1
    assert place.imported() == ""
    assert place.read().devices == ["meter-1", "meter-2", "meter-3"]


def test_an_enrolled_fleet_and_an_imported_one_are_not_mixed(place: ImportingUser) -> None:
    place.ca.issue("meter-1").write(place.certs, "meter-1")
    assert place.imported() == ""
    ca = place.ca.own.write(place.path, "ca")
    enrol = ["enrol", str(place.fleet), "--devices", "2", "--ca-cert", str(ca[0]), "--ca-key", str(ca[1])]
    done = CliRunner().invoke(app, enrol)
    assert (done.exit_code, "was imported: add to it with" in " ".join(done.stderr.split())) == (1, True), done.output
    enrol[1] = str(place.path / "enrolled")
    assert CliRunner().invoke(app, enrol).exit_code == 0
    place.fleet = place.path / "enrolled"
    assert "was enrolled: import into a directory of its own" in place.imported()
    place.fleet = place.certs
    assert "exists and is no fleet" in place.imported()


@pytest.mark.parametrize("answer", ["y\n", "n\n"])
def test_cleanup_removes_copies_alone_and_claims_no_revocation(place: ImportingUser, answer: str) -> None:
    place.ca.issue("meter-1").write(place.certs, "meter-1")
    before = {file: file.read_bytes() for file in place.path.rglob("*") if file.is_file()}
    assert place.imported() == ""
    done = CliRunner().invoke(app, ["enrol", str(place.fleet), "--cleanup"], input=answer)
    assert "Nothing is revoked" in " ".join(done.stderr.split())
    assert "revoked," not in done.stdout
    assert place.fleet.exists() == (answer == "n\n")
    assert {file: file.read_bytes() for file in before} == before


def test_what_needs_our_service_is_told_before_the_run_begins(place: ImportingUser) -> None:
    for number in range(20):
        place.ca.issue(f"meter-{number}").write(place.certs, f"{number}")
    assert place.imported() == ""
    done = CliRunner().invoke(
        app, ["run", "smoke", "--devices", "20", "--fleet", str(place.fleet), "--broker", "localhost:1"]
    )
    said = " ".join(done.stderr.split())
    assert done.exit_code == 2, done.output
    assert "it needs our provisioning service, and this fleet was imported: enrol a fleet with --provisioning" in said
    done = CliRunner().invoke(app, ["run", "steady", "--fleet", str(place.fleet), "--broker", "localhost:1"])
    said = " ".join(done.stderr.split())
    assert (done.exit_code, f"--devices 20, or `fleet-sim import {place.fleet} --from …`" in said) == (2, True), said


@pytest.mark.parametrize("common_name", ["Receiver of All", None])
def test_a_backend_without_a_usable_name_needs_an_identifier(place: ImportingUser, common_name: str | None) -> None:
    place.ca.issue("meter-1").write(place.certs, "meter-1")
    place.ca.issue(common_name).write(place.path, "backend")
    assert "backend.crt has no Common Name that could be a client identifier: give --backend-id" in place.imported()
    assert "--backend-cert and --backend-key: " in place.imported(
        backend=("--backend-cert", str(place.path / "backend.crt"))
    )
    assert place.imported(None, "--backend-id", "urn:receiver") == ""
    fleet = place.read()
    assert (fleet.service, fleet.client_id(fleet.service)) == ("backend", "urn:receiver")


def test_nothing_to_import_and_options_of_no_use_are_told(place: ImportingUser) -> None:
    assert f"{place.certs} holds no device's certificate: name" in place.imported()
    ForeignCa("meter-1").own.write(place.certs, "meter-1")  # As `openssl req -x509` makes them.
    assert f"no device's certificate ({place.certs}/meter-1.crt: of a CA): name" in place.imported()
    assert "nowhere cannot be read: No such file or directory" in place.imported(place.path / "nowhere")
    (place.path / "empty").write_bytes(b"\n")
    assert "is empty: put the passphrase there" in place.imported(None, "--passphrase-file", str(place.path / "empty"))
    assert "group 'a b'" in place.imported(None, "--group", "a b")
    (place.path / "ca.pem").write_text("nothing")
    done = CliRunner().invoke(
        app,
        ["import", str(place.fleet), "--from", str(place.certs), "--cafile", str(place.path / "ca.pem"),
         "--backend-cert", str(place.path / "backend.crt")],
    )  # fmt: skip
    assert done.exit_code == 2
    assert "holds no whole PEM certificate: name the CA certificates that verify the broker" in " ".join(
        done.stderr.split()
    )
    assert not place.fleet.exists()
