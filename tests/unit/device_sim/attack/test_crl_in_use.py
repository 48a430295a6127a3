"""The CRL file of a broker that runs already: an attack lets nobody in whom the CA keeps out, and puts it back."""

from __future__ import annotations

import errno
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from device_sim.attack.capabilities import CapabilityError, CrlFile
from device_sim.attack.crl_in_use import CrlInUse
from device_sim.attack.issuer import Issuer
from device_sim.attack.target import Impossible, SigningRegistrar
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
    assert now.last_update_utc > was.last_update_utc
    await registrar.revoke(own.device("device-002", "meters", "fleet.internal"))
    later = _lists(file.crl_file)[0].last_update_utc
    assert now.last_update_utc < later < datetime.now(UTC), "else a broker takes it for the one that it has"

    with pytest.raises(CapabilityError, match=r"crl\.pem\.before-attack is there: an attack that was killed"):
        CrlInUse(file, own)
    assert await registrar.put_back() == ""
    assert file.crl_file.read_bytes() == read.read_bytes() == before
    assert CrlInUse(file, own).own == (was,)


async def test_what_the_ca_publishes_meanwhile_counts_and_stays(own: Issuer, file: CrlFile) -> None:
    registrar = SigningRegistrar(own, file, before=CrlInUse(file, own))
    papers = [own.device(f"device-00{number}", "meters", "fleet.internal") for number in (1, 2)]
    await registrar.revoke(papers[0])
    published = own.crl([_REVOKED, 1003])
    file.crl_file.write_bytes(published)
    await registrar.revoke(papers[1])
    (now,) = _lists(file.crl_file)
    assert {each.serial_number for each in now} == {
        _REVOKED,
        1003,
        *(each.certificate.serial_number for each in papers),
    }
    assert file.crl_file.with_name("crl.pem.before-attack").read_bytes() == published
    file.crl_file.write_bytes(published := own.crl([_REVOKED, 1003, 1004]))
    assert await registrar.put_back() == ""
    assert file.crl_file.read_bytes() == published
    assert not file.crl_file.with_name("crl.pem.before-attack").exists()


async def test_of_two_attacks_at_once_one_revokes_nobody(own: Issuer, file: CrlFile) -> None:
    first, second = (SigningRegistrar(own, file, before=CrlInUse(file, own)) for _ in range(2))
    paper = own.device("device-001", "meters", "fleet.internal")
    await first.revoke(paper)
    with pytest.raises(Impossible, match="another attack uses"):
        await second.revoke(own.device("device-002", "meters", "fleet.internal"))
    assert await second.put_back() == ""
    assert paper.certificate.serial_number in {each.serial_number for each in _lists(file.crl_file)[0]}


async def test_a_file_is_put_back_though_its_copy_was_removed(own: Issuer, file: CrlFile) -> None:
    before, registrar = file.crl_file.read_bytes(), SigningRegistrar(own, file, before=CrlInUse(file, own))
    await registrar.revoke(own.device("device-001", "meters", "fleet.internal"))
    file.crl_file.with_name("crl.pem.before-attack").unlink()
    assert await registrar.put_back() == ""
    assert file.crl_file.read_bytes() == before


async def test_on_a_full_disk_the_file_stays_as_it_is(
    own: Issuer, file: CrlFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, registrar = file.crl_file.read_bytes(), SigningRegistrar(own, file, before=CrlInUse(file, own))
    write = Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        written = write(path, content[: len(before)])
        if written < len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return written

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(Impossible, match=r"nobody can be revoked: .*: No space left on device"):
        await registrar.revoke(own.device("device-001", "meters", "fleet.internal"))
    assert file.crl_file.read_bytes() == before
    assert await registrar.put_back() == ""
    assert file.crl_file.read_bytes() == before


async def test_nothing_is_written_where_nobody_was_revoked(own: Issuer, file: CrlFile) -> None:
    before = CrlInUse(file, own)
    assert await SigningRegistrar(own, file, before=before).put_back() == ""
    assert sorted(each.name for each in file.crl_file.parent.iterdir()) == ["crl.pem"]


async def test_what_was_not_put_back_is_said(own: Issuer, file: CrlFile, tmp_path: Path) -> None:
    failing = CrlFile(crl_file=file.crl_file, reload=("false",))
    before = CrlInUse(failing, own)
    before.publish([1003])
    file.crl_file.unlink()
    file.crl_file.mkdir()
    told = await before.put_back(60)
    assert (
        told
        == f"{tmp_path}/crl.pem is not as it was (Is a directory): {tmp_path}/crl.pem.before-attack is what it held"
    )
    file.crl_file.rmdir()
    assert (await before.put_back(60)).endswith("may not have read it: `false` ended with status 1")
    assert not before.copy.exists(), "the next attack would take it for that of a killed one"


def test_a_delta_crl_is_refused(own: Issuer, file: CrlFile) -> None:
    builder = x509.CertificateRevocationListBuilder().issuer_name(own.certificate.subject)
    builder = builder.last_update(datetime.now(UTC)).next_update(datetime.now(UTC) + timedelta(days=1))
    delta = builder.add_extension(x509.DeltaCRLIndicator(1), critical=True).sign(own.key, hashes.SHA256())
    file.crl_file.write_bytes(own.crl([_REVOKED]) + delta.public_bytes(Encoding.PEM))
    with pytest.raises(CapabilityError, match="holds a delta CRL, or an indirect one"):
        CrlInUse(file, own)


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
