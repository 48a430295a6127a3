"""The doctor: each thing that can be wrong is made so, found, and named with its remedy."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from sqlalchemy import create_engine, text

from provisioning.directory.audit_chain import make_key
from provisioning.pki.own_directory import user_argument
from tests.support.ca_life import ca
from tests.support.pki import shared_pki
from tests.support.postgresql import PostgresqlServer
from tests.support.prepared_fleet import PASSPHRASE
from tests.support.provisioning import REPOSITORY, ProvisioningService
from tests.support.small_volume import small_volume


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> ProvisioningService:
    """An authority that does not run; its ports are free ones."""
    return ProvisioningService.founded(tmp_path_factory.mktemp("doctor") / "fleet", {"port": 0, "http_port": 0})


def findings(service: ProvisioningService, *arguments: str) -> tuple[int, dict[str, list[dict[str, Any]]]]:
    """Return the exit code, and what is not well, by check."""
    done = service.command("doctor", "--json", "--dir", str(service.dir), *arguments)
    found: dict[str, list[dict[str, Any]]] = {}
    for each in json.loads(done.stdout):
        found.setdefault(each["check"], [])
        if each["verdict"] != "ok":
            assert each["remedy"], "a finding without a remedy"
            found[each["check"]].append(each)
    return done.returncode, found


def test_nothing_is_wrong_with_an_authority_that_was_just_founded(pristine: ProvisioningService) -> None:
    code, found = findings(pristine)
    assert code == 0
    assert set(found) == {
        "build",
        "files",
        "keys",
        "certificates",
        "disk",
        "clock",
        "database",
        "operators",
        "CAs",
        "CRL",
        "ports",
    }
    assert not any(found.values())
    done = pristine.command("doctor", "--dir", str(pristine.dir))
    assert "ok       keys          the keys of issuing-ca, root-ca open" in done.stdout


def test_a_running_service_is_recognised_and_another_program_named(
    own_service: ProvisioningService, pristine: ProvisioningService
) -> None:
    port = own_service.http.rpartition(":")[2]
    done = pristine.command("doctor", "--dir", str(pristine.dir), "--json")
    assert done.returncode == 0
    settings = {"port": own_service.port, "http_port": port}
    running = ProvisioningService(own_service.dir, settings)
    assert running.command("doctor", "--dir", str(running.dir)).stdout.count(": the service runs there") == 2
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = ProvisioningService(pristine.dir, {"port": own_service.port, "http_port": other.getsockname()[1]})
        code, found = findings(taken)
    assert code == 1
    assert len(found["ports"]) == 2
    assert all("ss -ltnp" in each["remedy"] for each in found["ports"])
    _, found = findings(ProvisioningService(pristine.dir, settings))
    assert all("ss -ltnp" in each["remedy"] for each in found["ports"]), "both ports are another fleet's"


def test_a_credential_of_the_directory_that_is_refused_is_found(tmp_path: Path) -> None:
    """As a command leaves it that is killed when it has revoked a CA, before it has certified the operator again."""
    service = ProvisioningService.copied(tmp_path / "fleet", {"port": 0, "http_port": 0})
    code, found = findings(service)
    assert (code, found["certificates"]) == (0, [])
    before = {path: path.read_bytes() for path in service.dir.glob("operator.*")}
    for order in (
        ("rollover", "begin"),
        ("rollover", "activate", "--without-waiting"),
        ("revoke", "issuing-ca", "--yes"),
    ):
        ca(service, *order)
    for path, content in before.items():
        path.write_bytes(content)
    code, found = findings(service)
    server, finding = sorted(found["certificates"], key=lambda each: "operator.crt" in each["detail"])
    assert server["detail"] == "server.crt is revoked: whoever presents it is refused"
    assert (code, finding["detail"]) == (1, "operator.crt is revoked: whoever presents it is refused")
    assert "ca restore-operator" in finding["remedy"]


def test_what_a_killed_command_has_left_is_named_and_what_one_writes_is_not(tmp_path: Path) -> None:
    service = ProvisioningService.copied(tmp_path / "fleet", {"port": 0, "http_port": 0})
    left, being_written = (service.dir / f".operator.key.{number}.new" for number in (1, 2))
    for path in (left, being_written):
        path.write_text("a key")
    os.utime(left, (0, 0))
    code, found = findings(service)
    (finding,) = found["files"]
    assert (code, finding["verdict"], finding["remedy"]) == (0, "warning", f"rm {left}")
    assert being_written.name not in finding["detail"]


def test_open_files_wrong_passphrase_and_a_database_of_another_version_are_found(
    own_service: ProvisioningService,
) -> None:
    service = own_service
    service.stop()
    idle = ProvisioningService(service.dir, {"port": 0, "http_port": 0})
    (service.dir / "operator.key").chmod(0o644)
    code, found = findings(idle)
    assert (code, found["files"][0]["remedy"]) == (1, f"chmod 0600 {service.dir / 'operator.key'}")
    (service.dir / "operator.key").chmod(0o600)
    (wrong := service.dir.parent / "passphrase").write_text("nonsense")
    wrong.chmod(0o644)
    code, found = findings(idle, "--passphrase-file", str(wrong))
    assert (code, len(found["keys"])) == (1, 1)
    (open_to_all,) = found["files"]
    assert (open_to_all["verdict"], open_to_all["remedy"]) == ("warning", f"chmod 600 {wrong}")
    wrong.chmod(0o640)
    assert findings(idle, "--passphrase-file", str(wrong))[1]["files"] == []
    engine = create_engine(f"sqlite:///{service.dir / 'fleet.db'}")
    with engine.begin() as connection:
        connection.execute(text("UPDATE crls SET next_update = '2020-01-01 00:00:00'"))
    code, found = findings(idle)
    assert (code, len(found["CRL"])) == (1, 2)
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM audit_head"))
    code, found = findings(idle)
    assert (code, found["audit log"][0]["detail"]) == (1, "its last entries cannot be read: there is no head")
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    engine.dispose()
    code, found = findings(idle)
    assert (code, "newer version" in found["database"][0]["detail"]) == (1, True)
    (service.dir / "fleet.db").write_bytes(b"no database at all " * 1000)
    code, found = findings(idle)
    assert (code, "file is not a database" in found["database"][0]["detail"]) == (1, True)
    assert found["database"][0]["remedy"].startswith("restore it from the backup"), "there is no server to start"
    (service.dir / "fleet.db").write_bytes(b"")
    code, found = findings(idle)
    assert (code, "is empty" in found["database"][0]["detail"]) == (1, True)
    (service.dir / "fleet.db").unlink()
    code, found = findings(idle)
    assert (code, found["database"][0]["remedy"].split("; or")[0]) == (1, "restore it from the backup")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_files_that_root_has_made_in_another_s_directory_are_named(tmp_path: Path) -> None:
    service = ProvisioningService.founded(tmp_path / "fleet", {"port": 0, "http_port": 0})
    directory, somebody = service.dir, 65534
    for path in (directory, *directory.iterdir()):
        os.chown(path, somebody, -1)
    assert findings(service)[0] == 0, "root looks on, and it is all somebody's"
    os.chown(directory / "fleet.db", 0, -1)
    os.chown(directory / "issuing-ca.key", 0, -1)
    code, found = findings(service)
    (finding,) = found["files"]
    user = user_argument(somebody)
    assert (code, finding["remedy"]) == (1, f"chown {user} {directory / 'fleet.db'} {directory / 'issuing-ca.key'}")
    assert (
        f"fleet.db, issuing-ca.key: owned by root; a service that runs as the directory's owner, {user},"
        in finding["detail"]
    )


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


def test_the_sum_comes_last_where_both_outputs_are_one_file(tmp_path: Path) -> None:
    with (tmp_path / "told").open("w") as file:
        command = [sys.executable, "-m", "provisioning", "doctor", "--dir", str(tmp_path / "nothing")]
        buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
        subprocess.run(command, stdout=file, stderr=file, env=buffered, check=False, timeout=60)
    *_, last = (tmp_path / "told").read_text().splitlines()
    assert last == "fleet-provisioning: 1 of 1 checks failed"


def test_a_store_that_is_elsewhere_is_not_said_to_be_lost_alone(pristine: ProvisioningService, tmp_path: Path) -> None:
    shutil.copytree(pristine.dir, tmp_path / "fleet")
    (tmp_path / "fleet" / "fleet.db").unlink()
    elsewhere = ProvisioningService(tmp_path / "fleet", {"port": 0, "http_port": 0})
    _, found = findings(elsewhere)
    (finding,) = found["database"]
    assert "fleet.db is missing" in finding["detail"]
    assert "FLEET_PROVISIONING_DATABASE_URL" in finding["remedy"]


def test_a_service_that_runs_at_another_port_than_its_settings_say_is_found(own_service: ProvisioningService) -> None:
    with socket.create_server(("127.0.0.1", 0)) as first, socket.create_server(("127.0.0.1", 0)) as second:
        ports = {"port": first.getsockname()[1], "http_port": second.getsockname()[1]}
        code, found = findings(ProvisioningService(own_service.dir, ports))
    assert code == 0, "nothing keeps it from serving"
    assert [each["verdict"] for each in found["ports"]] == ["warning", "warning"]
    assert all(f"runs at https://localhost:{own_service.port}" in each["detail"] for each in found["ports"])


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


def test_each_line_s_ca_is_looked_at_and_a_retired_one_never_again(tmp_path: Path) -> None:
    service = ProvisioningService.copied(tmp_path / "fleet", {"port": 0, "http_port": 0})

    def ca(*arguments: str) -> None:
        done = service.command("ca", *arguments, "--dir", str(service.dir))
        assert done.returncode == 0, done.stderr

    ca("rollover", "begin", "--line", "meters")
    ca("rollover", "activate", "--without-waiting")
    done = service.command("doctor", "--dir", str(service.dir))
    assert "not expiring soon: root-ca (active), issuing-ca (active), issuing-meters-1 (active)" in done.stdout
    (service.dir / "issuing-meters-1.key").rename(tmp_path / "kept.key")
    code, found = findings(service)
    assert code == 1
    assert [each["detail"] for each in found["CAs"]] == [
        "issuing-meters-1 issues certificates, but its key is not here"
    ]
    ca("rollover", "end-line", "meters")
    ca("rollover", "retire", "issuing-meters-1")
    assert findings(service)[0] == 0


@pytest.mark.parametrize(("url", "circular"), [("https://ca.example.org", True), ("http://ca.example.org", False)])
def test_a_list_that_is_fetched_over_what_it_is_needed_for_is_warned_of(
    pristine: ProvisioningService, url: str, circular: bool
) -> None:
    service = ProvisioningService(pristine.dir, {"port": 0, "http_port": 0, "public_http_url": url})
    code, found = findings(service)
    assert code == 0, "a service with such certificates goes on"
    assert [each["verdict"] for each in found.get("address", [])] == ["warning"] * circular
    assert not circular or "use http://" in found["address"][0]["remedy"]


def test_the_keys_have_another_passphrase(pristine: ProvisioningService, tmp_path: Path) -> None:
    """As docs/operations.md says."""
    shutil.copytree(pristine.dir, tmp_path / "fleet")
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_text(f"{PASSPHRASE}\n")
    new.write_text("another passphrase\n")
    for key in (tmp_path / "fleet").glob("*-ca.key"):
        line = ["openssl", "pkcs8", "-topk8", "-in", str(key), "-passin", f"file:{old}", "-passout", f"file:{new}"]
        key.write_bytes(subprocess.run(line, check=True, capture_output=True).stdout)
    settings = {"port": 0, "http_port": 0}
    code, found = findings(ProvisioningService(tmp_path / "fleet", settings))
    assert (code, "the passphrase is wrong" in found["keys"][0]["detail"]) == (1, True)
    assert findings(ProvisioningService(tmp_path / "fleet", settings | {"passphrase": "another passphrase"}))[0] == 0


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


@pytest.fixture
def volume() -> Iterator[Path]:
    """A file system of two megabytes, with room for 64 files."""
    with small_volume("size=2m,nr_inodes=64") as place:
        yield place


@pytest.mark.parametrize("lacking", ["bytes", "files"])
def test_a_volume_without_room_is_the_only_thing_to_mend(
    volume: Path, lacking: str, pristine: ProvisioningService
) -> None:
    """Of a full one SQLite says I/O error: the remedy was to restore the store from the backup."""
    shutil.copytree(pristine.dir, volume, dirs_exist_ok=True)
    with contextlib.suppress(OSError):
        for number in range(64):
            (volume / f"ballast-{number}").write_bytes(b"x" * (2 * 1024 * 1024 if lacking == "bytes" else 1))
    code, found = findings(ProvisioningService(volume, {"port": 0, "http_port": 0}))
    assert code == 1
    ((told,)) = found["disk"]
    assert "fit at" in told["detail"] if lacking == "files" else "0 MiB free" in told["detail"]
    assert all("has too little room" in each["detail"] for each in found.get("database", []))
    assert not any("backup" in each["remedy"] for each in (*found["disk"], *found.get("database", [])))
