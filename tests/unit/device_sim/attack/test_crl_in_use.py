"""The CRL file of a broker that runs already: an attack lets nobody in whom the CA keeps out, and puts it back."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography import x509

from device_sim.attack.capabilities import CapabilityError, CrlFile
from device_sim.attack.crl_in_use import CrlInUse
from device_sim.attack.issuer import Issuer
from device_sim.attack.target import SigningRegistrar
from device_sim.credentials.certification import common_name

_REVOKED, _ELSEWHERE = 1001, 1002


@pytest.fixture(scope="module")
def own() -> Issuer:
    """The CA whose key the tester has."""
    return Issuer.founded(common_name("Plant CA"))


@pytest.fixture
def file(tmp_path: Path, own: Issuer) -> CrlFile:
    """The file that a broker reads: that CA's CRL, and another CA's."""
    path = tmp_path / "crl.pem"
    path.write_bytes(own.crl([_REVOKED]) + Issuer.founded(common_name("Other CA")).crl([_ELSEWHERE]))
    return CrlFile(crl_file=path, reload=("sh", "-c", f"cp {path} {tmp_path}/read.pem"))


def _lists(path: Path) -> list[x509.CertificateRevocationList]:
    blocks = path.read_bytes().split(b"-----BEGIN")[1:]
    return [x509.load_pem_x509_crl(b"-----BEGIN" + each) for each in blocks]


async def test_whom_the_ca_has_revoked_stays_revoked_and_the_file_is_put_back(own: Issuer, file: CrlFile) -> None:
    before, read = file.crl_file.read_bytes(), file.crl_file.with_name("read.pem")
    was, other = _lists(file.crl_file)
    registrar = SigningRegistrar(own, file, before=CrlInUse(file, own))
    paper = own.device("device-001", "meters", "fleet.internal")
    await registrar.revoke(paper)
    now, same = _lists(read)
    assert {each.serial_number for each in now} == {_REVOKED, paper.certificate.serial_number}
    entry, entered = now.get_revoked_certificate_by_serial_number(_REVOKED), next(iter(was))
    assert entry is not None
    assert (entry.revocation_date_utc, list(entry.extensions)) == (
        entered.revocation_date_utc,
        list(entered.extensions),
    )
    assert same == other
    number = x509.CRLNumber
    assert now.extensions.get_extension_for_class(number) == was.extensions.get_extension_for_class(number)
    assert now.last_update_utc >= was.last_update_utc

    with pytest.raises(CapabilityError, match=r"crl\.pem\.before-attack is there: an attack that was killed"):
        CrlInUse(file, own)
    assert await registrar.put_back() == ""
    assert file.crl_file.read_bytes() == read.read_bytes() == before
    assert CrlInUse(file, own).own == (was,)


async def test_nothing_is_written_where_nobody_was_revoked(own: Issuer, file: CrlFile) -> None:
    before = CrlInUse(file, own)
    assert await SigningRegistrar(own, file, before=before).put_back() == ""
    assert sorted(each.name for each in file.crl_file.parent.iterdir()) == ["crl.pem"]


async def test_what_was_not_put_back_is_said(own: Issuer, file: CrlFile, tmp_path: Path) -> None:
    failing = CrlFile(crl_file=file.crl_file, reload=("false",))
    before = CrlInUse(failing, own)
    before.keep()
    assert (await before.put_back(60)).endswith("may not have read it: `false` ended with status 1")
    file.crl_file.unlink()
    file.crl_file.mkdir()
    told = await before.put_back(60)
    assert (
        told
        == f"{tmp_path}/crl.pem is not as it was (Is a directory): {tmp_path}/crl.pem.before-attack is what it held"
    )


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read: No such file or directory"),
        (b"", "holds no CRL in PEM: name the file that the broker reads"),
        (b"-----BEGIN X509 CRL-----\nAAAA\n", "holds no CRL in PEM that can be read: "),
    ],
)
def test_a_file_that_is_none_of_crls_is_refused(tmp_path: Path, own: Issuer, content: bytes | None, words: str) -> None:
    path = tmp_path / "crl.pem"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CapabilityError, match=words):
        CrlInUse(CrlFile(crl_file=path), own)
