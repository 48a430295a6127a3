"""The doctor: each thing that can be wrong with a store is made so, found, and named with its remedy."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import psycopg
from cryptography.hazmat.primitives.serialization import Encoding

from provisioning.directory.audit_chain import make_key
from tests.support.pki import shared_pki
from tests.support.postgresql import PostgresqlServer
from tests.support.provisioning import REPOSITORY, ProvisioningService
from tests.support.told_doctor import findings


def test_what_was_restored_by_half_is_named_and_nothing_is_made_in_its_place(tmp_path: Path) -> None:
    """The service starts on none of it, the doctor says what is wrong, and the ceremonies neither."""
    directory = tmp_path / "fleet"
    service = ProvisioningService.copied(directory, {"port": 0, "http_port": 0})
    found = ["--dir", str(directory)]

    def refused(words: str, *commands: str) -> None:
        for command in commands:
            done = service.command(*command.split(), *found)
            assert (done.returncode, done.stdout) == (1, "")
            assert words in done.stderr.splitlines()[-1]
            assert "Traceback" not in done.stderr

    key = (directory / "issuing-ca.key").read_bytes()
    shutil.copy(directory / "root-ca.key", directory / "issuing-ca.key")
    refused("the key of issuing-ca", "serve")
    code, wrong = findings(service)
    assert (code, "does not belong to its certificate" in wrong["keys"][0]["detail"]) == (1, True)
    (directory / "issuing-ca.key").write_bytes(key)

    other = ProvisioningService(directory, {"port": 0, "http_port": 0, "trust_domain": "plant-7.example"})
    done = other.command("serve", *found)
    assert (done.returncode, 'put trust_domain = "fleet.internal" back into ' in done.stderr) == (1, True)
    code, wrong = findings(other)
    file_and_variable = f"{directory / 'provisioning.toml'}, and unset FLEET_PROVISIONING_TRUST_DOMAIN"
    remedy = f'put trust_domain = "fleet.internal" back into {file_and_variable}, which comes before it'
    assert (code, wrong["trust domain"][0]["remedy"]) == (1, remedy)

    key = (directory / "server.key").read_bytes()
    (directory / "server.key").unlink()
    done = other.command("serve", *found)
    assert (done.returncode, "trust_domain is plant-7.example" in done.stderr) == (1, True), "no operator is of that"
    (directory / "server.key").write_bytes(key)
    (directory / "server.key").chmod(0o600)
    certificate = (directory / "server.crt").read_bytes()
    (directory / "server.crt").unlink()
    code, wrong = findings(service)
    assert (code, wrong["certificates"][0]["remedy"]) == (1, "restart the service: it issues itself another")
    done = other.command("serve", *found)
    assert (done.returncode, "trust_domain is plant-7.example" in done.stderr) == (1, True), "nor is it issued then"
    (directory / "server.crt").write_bytes(certificate)

    bundle = directory / "ca-bundle.crt"
    bundle.rename(directory / "elsewhere")
    code, wrong = findings(service)
    assert (code, wrong["certificates"][0]["remedy"]) == (1, "restart the service: it writes the file again")
    (directory / "elsewhere").rename(bundle)

    directory.chmod(0o770)
    refused(
        f"others may write to it, and could have put there what is to be believed; look what is in it, and then chmod "
        f"-R go-w {directory}",
        "serve",
    )
    code, wrong = findings(service)
    assert (code, [each["remedy"] for each in wrong["files"]]) == (1, [f"chmod 0700 {directory}"])
    directory.chmod(0o750)
    (directory / "provisioning.toml").chmod(0o664)
    code, wrong = findings(service)
    assert (code, f"chmod -R go-w {directory}" in wrong["files"][-1]["remedy"]) == (1, True)
    (directory / "provisioning.toml").chmod(0o644)
    directory.chmod(0o700)

    root = (directory / "root-ca.crt").read_bytes()
    (directory / "root-ca.crt").write_bytes(shared_pki().anchors.encode())
    refused("root-ca.crt is not the certificate that the database", "serve")
    code, wrong = findings(service)
    assert (code, "root-ca.crt is not the certificate" in wrong["CAs"][0]["detail"]) == (1, True)
    (directory / "root-ca.crt").write_bytes(root)

    audit_key = directory / "audit.key"
    audit_key.rename(directory / "elsewhere")
    refused("audit.key is missing, and the audit log has entries", "serve")
    assert not audit_key.exists()
    make_key(audit_key)
    another_s = "audit.key is not the key of this database's audit log, in which all that is written with it would look"
    refused(another_s, "serve", "ca rollover begin")
    code, wrong = findings(service)
    assert (code, another_s in wrong["audit log"][0]["detail"]) == (1, True)
    (directory / "elsewhere").replace(audit_key)
    assert "audit log" not in findings(service)[1]

    with contextlib.closing(sqlite3.connect(directory / "fleet.db")) as store:
        store.execute("UPDATE alembic_version SET version_num = '0027'")
        store.commit()
        transcript = f"ca verify-transcript {directory / 'root-ca.crt'}"
        refused("copy the store (docs/backup.md) and start this version", "ca list", transcript)
        assert store.execute("SELECT version_num FROM alembic_version").fetchone() == ("0027",), (
            "who looks changes nothing"
        )
        store.execute("ALTER TABLE audit_entries RENAME TO elsewhere")
        refused("from before there was an audit log", "audit verify", "audit show")

    (directory / "fleet.db").unlink()
    missing = "fleet.db is not there: if it is on PostgreSQL, give its database_url in provisioning.toml or as"
    refused(missing, "serve", "ca list", "audit verify")
    named = {"port": 0, "http_port": 0, "database_url": f"sqlite:///{directory / 'fleet.db'}"}
    code, wrong = findings(ProvisioningService(directory, named))
    assert (code, "is not there" in wrong["database"][0]["detail"]) == (1, True)
    assert not list(directory.glob("fleet.db*"))
    (directory / "fleet.db").write_bytes(b"no database at all " * 1000)
    refused("cannot be used", "serve", "ca list", "audit verify")


def test_a_database_that_does_not_answer_and_a_directory_that_is_none(
    pristine: ProvisioningService, tmp_path: Path
) -> None:
    gone = ProvisioningService(
        pristine.dir, {"port": 0, "http_port": 0, "database_url": "postgresql+psycopg://fleet:hush@127.0.0.1:1/fleet"}
    )
    done = gone.command("doctor", "--dir", str(gone.dir))
    assert done.returncode == 1
    assert "postgresql+psycopg://fleet:***@127.0.0.1:1/fleet cannot be used: connection failed" in done.stdout
    assert "hush" not in done.stdout + done.stderr
    done = pristine.command("doctor", "--dir", str(tmp_path / "nothing"))
    assert done.returncode == 1
    assert "remedy: give the right --dir, restore a backup" in done.stdout
    assert "1 of 1 checks failed" in done.stderr


def test_a_driver_that_is_not_installed_is_a_finding_like_others(pristine: ProvisioningService) -> None:
    code = "import sys; sys.modules['psycopg'] = None; from provisioning.__main__ import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "doctor", "--dir", str(pristine.dir)],
        env={**os.environ, **pristine.environment, "FLEET_PROVISIONING_DATABASE_URL": "postgresql+psycopg:///fleet"},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    found = [line for line in done.stdout.splitlines() if line.startswith("failed   database")]
    assert len(found) == 1, done.stdout + done.stderr
    assert "driver is not installed: in the clone, .venv/bin/pip install -e '.[postgres]'" in found[0]
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)


def test_a_store_that_is_elsewhere_is_not_said_to_be_lost_alone(pristine: ProvisioningService, tmp_path: Path) -> None:
    shutil.copytree(pristine.dir, tmp_path / "fleet")
    (tmp_path / "fleet" / "fleet.db").unlink()
    elsewhere = ProvisioningService(tmp_path / "fleet", {"port": 0, "http_port": 0})
    _, found = findings(elsewhere)
    (finding,) = found["database"]
    assert "fleet.db is missing" in finding["detail"]
    assert "FLEET_PROVISIONING_DATABASE_URL" in finding["remedy"]


def test_a_server_that_does_not_wait_for_its_disk_is_warned_of(
    pristine: ProvisioningService, postgresql: PostgresqlServer
) -> None:
    with postgresql.database() as url:  # The tests' own: they are in a hurry.
        _, found = findings(ProvisioningService(pristine.dir, {"port": 0, "http_port": 0, "database_url": url}))
    (warned,) = [each for each in found["database"] if "fsync" in each["detail"]]
    assert (warned["verdict"], warned["remedy"]) == ("warning", "set fsync = on in postgresql.conf")


def test_rows_whose_former_versions_are_kept_are_warned_of(
    pristine: ProvisioningService, postgresql: PostgresqlServer
) -> None:
    """As by a transaction that was left open; here they are those of one transaction."""
    often = "DO $$BEGIN FOR each IN 1..10100 LOOP UPDATE counters SET value = 0 WHERE name = 'crl'; END LOOP; END$$"
    with postgresql.database() as url:
        with psycopg.connect(url.replace("+psycopg", "")) as other:
            other.execute("INSERT INTO counters (name, value) VALUES ('crl', 0) ON CONFLICT DO NOTHING")
            other.execute(often)
        _, found = findings(ProvisioningService(pristine.dir, {"port": 0, "http_port": 0, "database_url": url}))
    (warned,) = [each for each in found["database"] if "dead versions" in each["detail"]]
    assert warned["verdict"] == "warning"
    assert "pg_stat_activity" in warned["remedy"]


def test_a_standby_is_told_from_a_database_that_takes_changes(
    pristine: ProvisioningService, postgresql: PostgresqlServer
) -> None:
    with postgresql.database() as url:
        for read_only in (False, True):
            asked = f"{url}?options=-cdefault_transaction_read_only={read_only}"
            settings = {"port": 0, "http_port": 0, "database_url": asked}
            _, found = findings(ProvisioningService(pristine.dir, settings))
            said = [each["detail"] for each in found["database"]]
            assert any("is read-only: it is a standby" in each for each in said) is read_only


def test_a_table_that_was_dropped_and_a_certificate_of_another_service_are_found(tmp_path: Path) -> None:
    service = ProvisioningService.copied(tmp_path / "fleet", {"port": 0, "http_port": 0})
    shutil.copy(service.dir / "operator.crt", service.dir / "server.crt")
    code, found = findings(service)
    (finding,) = found["certificates"]
    assert (code, finding["detail"]) == (1, "server.crt does not match the key in server.key")
    stranger = shared_pki().service("provisioning")
    (service.dir / "server.crt").write_bytes(stranger.certificate.public_bytes(Encoding.PEM))
    code, found = findings(service)
    (finding,) = found["certificates"]
    assert code == 1
    assert finding["detail"].startswith(f"server.crt was not issued by a CA of {service.dir}, but by")
    assert finding["remedy"] == "restart the service: it renews its own certificate"
    with service:
        pass  # It does as it is told.
    assert findings(service)[1]["certificates"] == []
    with contextlib.closing(sqlite3.connect(service.dir / "fleet.db")) as connection:
        connection.execute("DROP TABLE group_paces")
        connection.execute("ALTER TABLE claims DROP COLUMN taken")
        connection.commit()
    code, found = findings(service)
    (finding,) = found["tables"]
    assert (code, finding["detail"].partition(" lacks ")[2]) == (
        1, "claims.taken, group_paces: what needs them is refused"
    )  # fmt: skip
    assert "restore the store from the backup" in finding["remedy"]


def test_a_lock_that_another_program_does_not_give_back_is_found(pristine: ProvisioningService) -> None:
    """`status` said that the doctor says why the store is slow, and the doctor found nothing."""
    database = pristine.dir / "fleet.db"
    with contextlib.closing(sqlite3.connect(database, isolation_level=None)) as shell:
        shell.execute("BEGIN IMMEDIATE")
        code, found = findings(pristine)
        (finding,) = found["database"]
        assert (code, finding["detail"].partition(" is locked: ")[2]) == (
            1, "another program has kept others from writing for 2 seconds"
        )  # fmt: skip
        assert finding["remedy"].endswith(f"fuser -v {database} names those that have it open")
        listed = pristine.command("ca", "list", "--dir", str(pristine.dir))
        assert (listed.returncode, listed.stdout.count("active")) == (0, 2), "who only looks needs no lock"
    assert findings(pristine)[0] == 0
