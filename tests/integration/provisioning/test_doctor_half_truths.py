"""The doctor says what is so: no check hides another, none calls well what it cannot see, and no server ends it."""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from cryptography import x509

from provisioning.doctor.doctor import unwritable
from tests.support.pki import shared_pki
from tests.support.prepared_fleet import PASSPHRASE
from tests.support.provisioning import ProvisioningService

Ports = dict[str, object]
IDLE: Ports = {"port": 0, "http_port": 0}
NOBODY = 65534


@pytest.fixture
def idle(tmp_path: Path) -> ProvisioningService:
    """An authority that does not run."""
    return ProvisioningService.copied(tmp_path / "fleet", IDLE)


def wrong(service: ProvisioningService) -> list[tuple[str, str, str]]:
    """Return what is not well: check, detail and remedy."""
    done = service.command("doctor", "--json", "--dir", str(service.dir))
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return [(each["check"], each["detail"], each["remedy"]) for each in found if each["verdict"] != "ok"]


def change(service: ProvisioningService, *statements: str, values: tuple[object, ...] = ()) -> None:
    with closing(sqlite3.connect(service.dir / "fleet.db")) as store:
        for each in statements:
            store.execute(each, values)
        store.commit()


def test_a_store_that_does_not_say_its_version_is_not_called_empty(idle: ProvisioningService) -> None:
    change(idle, "DELETE FROM alembic_version")
    ((check, detail, _),) = wrong(idle)
    assert (check, detail.partition(" ")[2]) == (
        "database",
        "does not say of which version it is: alembic_version is missing or empty, beside 38 tables",
    )
    (idle.dir / "fleet.db").write_bytes(b"")
    ((_, detail, _),) = wrong(idle)
    assert detail.endswith("fleet.db is empty")


def test_a_store_that_says_two_versions_is_refused_in_words(idle: ProvisioningService) -> None:
    change(idle, "INSERT INTO alembic_version VALUES ('0001')")
    ((check, detail, _),) = wrong(idle)
    assert check == "database"
    assert "alembic_version has several rows" in detail
    done = idle.command("serve", "--dir", str(idle.dir))
    assert done.returncode == 1
    assert "alembic_version has several rows" in done.stderr
    assert "Traceback" not in done.stderr


def test_every_file_of_a_key_is_looked_at_whatever_is_wrong_with_another(idle: ProvisioningService) -> None:
    (idle.dir / "gone.key").symlink_to("/nowhere")
    for name in ("root-ca.key", "issuing-ca.key"):
        (idle.dir / name).write_text("torn")
        (idle.dir / name).chmod(0o600)
    (idle.dir / "audit.key").unlink()
    (about_keys,) = [detail for check, detail, _ in wrong(idle) if check == "keys"]
    for name in ("issuing-ca.key", "root-ca.key", "audit.key"):
        assert name in about_keys


def test_an_open_file_hides_no_open_secret(tmp_path: Path) -> None:
    (secret := tmp_path / "passphrase").write_text(PASSPHRASE)
    secret.chmod(0o644)
    service = ProvisioningService.copied(tmp_path / "fleet", {**IDLE, "passphrase_file": str(secret)})
    service.dir.chmod(0o711)
    (service.dir / "server.crt").chmod(0o666)
    details = [detail for check, detail, _ in wrong(service) if check == "files"]
    assert len(details) == 3
    assert "server.crt" in details[1]
    assert str(secret) in details[2]


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"", "holds no certificates"), (None, "holds no CA of "), (b"-----BEGIN", "holds no certificates")],
)
def test_a_bundle_that_vouches_for_nobody_is_found(idle: ProvisioningService, content: bytes | None, said: str) -> None:
    idle.bundle.write_bytes(shared_pki().anchors.encode() if content is None else content)
    ((check, detail, remedy),) = wrong(idle)
    assert (check, remedy) == ("certificates", "restart the service: it writes the file again")
    assert said in detail


def test_an_operator_whom_the_store_does_not_know_is_found(idle: ProvisioningService) -> None:
    """A copy of the store from before its enrolment was restored: each of its commands is refused."""
    serial = x509.load_pem_x509_certificate((idle.dir / "operator.crt").read_bytes()).serial_number
    change(idle, "DELETE FROM certificates WHERE serial = ?", values=(f"{serial:x}",))
    found = wrong(idle)
    assert [(check, detail) for check, detail, _ in found] == [
        ("certificates", "operator.crt is not in the database: whoever presents it is refused"),
        ("operators", "no admin has a valid certificate"),
    ]
    assert all("ca restore-operator" in remedy for _, _, remedy in found)


def test_a_store_that_cannot_be_written_is_not_called_well() -> None:
    with TemporaryDirectory() as folder, as_nobody(Path(folder)):
        (store := Path(folder) / "fleet.db").touch(0o600)
        assert unwritable(store) is None
        (Path(folder) / "closed").mkdir()
        (link := Path(folder) / "closed" / "fleet.db").symlink_to(store)
        link.parent.chmod(0o500)
        assert unwritable(link) is None, "SQLite's log is beside the file"
        Path(folder).chmod(0o500)
        assert unwritable(store) == Path(folder)
        store.chmod(0o400)
        assert unwritable(store) == store
        Path(folder).chmod(0o700)


@contextmanager
def as_nobody(folder: Path) -> Iterator[None]:
    """Be somebody whom a file's mode concerns; *folder* is theirs."""
    if os.geteuid() != 0:
        yield
        return
    os.chown(folder, NOBODY, NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@contextmanager
def chatting(words: bytes) -> Iterator[int]:
    """Yield a port where each connection is told *words*, and ended."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            while True:
                try:
                    accepted, _ = listening.accept()
                except OSError:
                    return
                with accepted:
                    accepted.sendall(words)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listening.getsockname()[1]
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join()


def test_a_server_of_another_protocol_is_only_another_program(idle: ProvisioningService) -> None:
    with chatting(b"SSH-2.0-OpenSSH_9.9\r\n" * 3) as first, chatting(b"220 mail\r\n") as second:
        settings = {"port": first, "http_port": second}
        found = wrong(ProvisioningService(idle.dir, settings))
    assert [check for check, *_ in found] == ["ports", "ports"]
    assert all("cannot be used: Address already in use" in detail for _, detail, _ in found)


def test_an_address_that_this_machine_does_not_have_is_not_a_port_in_use(idle: ProvisioningService) -> None:
    """So on a machine without 127.0.0.1, whose service was told another address as a flag."""
    elsewhere: Ports = {"host": "192.0.2.1", "public_listener": True, "public_http_url": "http://ca.example"}
    found = wrong(ProvisioningService(idle.dir, {**elsewhere, "port": 1, "http_port": 2}))
    assert [each for each in found if each[0] != "CRL"] == [  # Its CA was made when no address was announced.
        (
            "ports",
            f"{setting}: cannot listen on 192.0.2.1: Cannot assign requested address",
            "set host to an address that this machine has, such as 127.0.0.1 or ::1",
        )
        for setting in ("port 1", "http_port 2")
    ]


@pytest.mark.parametrize("proxies", [False, True], ids=["plain", "behind a proxy of this machine"])
def test_a_running_service_is_recognised_whatever_stands_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, proxies: bool
) -> None:
    names = {"proxy_protocol_from": "127.0.0.1", "http_proxy_protocol_from": "127.0.0.1"} if proxies else {}
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with ProvisioningService.copied(tmp_path / "fleet", names) as running:
        ports = {"port": running.port, "http_port": running.http.rpartition(":")[2], **names}
        seen = ProvisioningService(running.dir, ports)
        assert seen.command("doctor", "--dir", str(seen.dir)).stdout.count(": the service runs there") == 2


def test_a_service_without_its_own_certificate_or_key_starts_and_an_operator_s_lost_key_is_named(
    idle: ProvisioningService,
) -> None:
    lost = "restart the service: it issues itself another"
    for name in ("server.crt", "server.key"):
        (idle.dir / name).unlink()
        ((check, detail, remedy),) = wrong(idle)
        assert (check, remedy) == ("certificates", lost)
        assert str(idle.dir / name) in detail
        with idle:
            assert not wrong(idle), "it does as it is told"
    (idle.dir / "operator.key").unlink()
    ((check, detail, remedy),) = wrong(idle)
    assert (check, detail.startswith(f"{idle.dir}/operator.key is missing beside operator.crt")) == (
        "certificates",
        True,
    )
    assert "ca restore-operator" in remedy
    (idle.dir / "operator.crt").unlink()
    assert not wrong(idle), "its owner may keep both elsewhere"
