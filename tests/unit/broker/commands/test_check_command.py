"""``fleet-broker check`` of several certificates, and of files that hold none."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from typer.testing import CliRunner

from broker.cli import app
from broker.settings.config_loading import load
from broker.sources.anchor_copy import copy_of, keep
from provisioning.pki.keys import generate_key
from tests.support.pki import Pki, pem_of, shared_pki

REQUEST = b"-----BEGIN CERTIFICATE REQUEST-----\nMIIB\n-----END CERTIFICATE REQUEST-----\n"


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder with anchors and three certificates: two good ones, and one of another CA."""
    pki = shared_pki()
    pki.write_anchors(tmp_path)
    for name, held in (("a", pki.device("a")), ("b", pki.device("b")), ("c", Pki().device("c"))):
        (tmp_path / f"{name}.crt").write_bytes(pem_of(held.certificate, *held.chain))
    (tmp_path / "request.pem").write_bytes(REQUEST)
    return tmp_path


def check(files: Path, *arguments: str, before: tuple[str, ...] = (), offline: bool = True) -> tuple[int, str, str]:
    anchors = str(shared_pki().write_anchors(files))
    named = [str(files / each) if not each.startswith("--") else each for each in arguments]
    words = [*before, "check", *named, *["--offline"] * offline, "--cafile", anchors]
    done = CliRunner().invoke(app, words, terminal_width=300)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout, done.stderr


def test_of_several_certificates_each_is_a_line_and_each_remedy_is_told_once(files: Path) -> None:
    code, said, errors = check(files, "a.crt", "c.crt", "b.crt", "c.crt")
    assert (code, errors) == (1, "")
    lines = said.splitlines()
    assert lines[0].startswith(f"{files}/a.crt: admitted as spiffe://")
    assert lines[1].startswith(f"{files}/c.crt: refused: UNTRUSTED_ISSUER: TLS alert: ")
    assert [line[:36] for line in lines[4:]] == ["what to do about UNTRUSTED_ISSUER: t", "2 of 4 would be admitted"]
    assert check(files, "a.crt", "b.crt")[0] == 0


def test_for_programs_they_are_an_array_also_one(files: Path) -> None:
    code, said, _ = check(files, "a.crt", "c.crt", "--json")
    assert (code, [(each["file"][-5:], each["admitted"]) for each in json.loads(said)]) == (
        1,
        [("a.crt", True), ("c.crt", False)],
    )
    assert [each["admitted"] for each in json.loads(check(files, "a.crt", "--json")[1])] == [True], "one form"


def test_what_cannot_be_read_does_not_hide_the_others(files: Path) -> None:
    code, said, errors = check(files, "a.crt", "none.crt", "request.pem")
    assert (code, said.splitlines()[-1]) == (1, "1 of 3 would be admitted")
    assert f"{files}/none.crt cannot be read: No such file or directory; what happened to a client: " in errors
    assert f"{files}/request.pem: it holds no PEM certificate but a request, which nobody has signed" in errors


def test_by_files_alone_anchors_are_tried_in_the_order_in_which_a_broker_gives_them_to_openssl(files: Path) -> None:
    """What a partner's URL has named comes last, though its table is first: a CA of our issuing CA's name, here."""
    config = files / "broker.toml"
    config.write_text(
        f"""
        provisioning = "https://localhost:8443"
        state_dir = "{files}"
        [[trust]]
        name = "plant"
        anchors_url = "https://plant.example/"
        anchors_url_cafile = "{files}/anchors.pem"
        trust_domain = "plant.example"
        groups = ["meters"]
        unsafe_no_revocation = true
        [[trust]]
        name = "ours"
        anchors = ["{files}/anchors.pem"]
        unsafe_no_revocation = true
        """
    )
    copy = copy_of(load(config, {"cafile": files / "anchors.pem"}).trust[0], files)
    assert copy is not None
    keep(copy, [x509.load_pem_x509_certificate(namesake_pem())])
    code, said, errors = check(files, "a.crt", f"--config={config}")
    assert (code, errors) == (0, ""), said
    assert "bundle      ours" in said


def namesake_pem() -> bytes:
    """Return a CA of our issuing CA's name that says nothing of its key."""
    key, name = generate_key(), shared_pki().issuing.certificate.subject
    begins, ends = (shared_pki().now + timedelta(days=days) for days in (-1, 1))
    builder = x509.CertificateBuilder(name, name, key.public_key(), 5, begins, ends)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    return pem_of(builder.sign(key, SHA256()))


def test_files_alone_or_a_broker_elsewhere_decide(files: Path) -> None:
    """A URL was passed over, and who read the answer took it for that broker's."""
    alone = (2, "", "fleet-broker: --offline asks no broker, and --url one: give one of them\n")
    assert check(files, "a.crt", "--url=https://b:1") == alone
    assert check(files, "a.crt", before=("--url", "https://b:1")) == alone
    asked = "fleet-broker: --cafile goes with --offline, or with --url\n"
    assert check(files, "a.crt", offline=False) == (2, "", asked)
