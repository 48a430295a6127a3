"""The doctor: each thing that can be wrong is made so, found, and named with its remedy."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from provisioning.pki.own_directory import user_argument
from tests.support.ca_life import ca
from tests.support.prepared_fleet import PASSPHRASE
from tests.support.provisioning import ProvisioningService
from tests.support.small_volume import small_volume
from tests.support.told_doctor import findings


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


def test_the_sum_comes_last_where_both_outputs_are_one_file(tmp_path: Path) -> None:
    with (tmp_path / "told").open("w") as file:
        command = [sys.executable, "-m", "provisioning", "doctor", "--dir", str(tmp_path / "nothing")]
        buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
        subprocess.run(command, stdout=file, stderr=file, env=buffered, check=False, timeout=60)
    *_, last = (tmp_path / "told").read_text().splitlines()
    assert last == "fleet-provisioning: 1 of 1 checks failed"


def test_a_service_that_runs_at_another_port_than_its_settings_say_is_found(own_service: ProvisioningService) -> None:
    with socket.create_server(("127.0.0.1", 0)) as first, socket.create_server(("127.0.0.1", 0)) as second:
        ports = {"port": first.getsockname()[1], "http_port": second.getsockname()[1]}
        code, found = findings(ProvisioningService(own_service.dir, ports))
    assert code == 0, "nothing keeps it from serving"
    assert [each["verdict"] for each in found["ports"]] == ["warning", "warning"]
    assert all(f"runs at https://localhost:{own_service.port}" in each["detail"] for each in found["ports"])


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


def test_only_a_whole_key_of_a_root_may_have_a_passphrase_of_its_own(
    pristine: ProvisioningService, tmp_path: Path
) -> None:
    directory = tmp_path / "fleet"
    shutil.copytree(pristine.dir, directory)
    service, root = ProvisioningService(directory, {"port": 0, "http_port": 0}), directory / "root-ca.key"
    whole, others = root.read_bytes(), (directory / "issuing-ca.key").read_bytes()
    line = ["openssl", "pkcs8", "-topk8", "-in", str(root), "-passin", f"pass:{PASSPHRASE}", "-passout", "pass:another"]
    own = subprocess.run(line, check=True, capture_output=True).stdout
    for key, verdict in ((own, "warning"), (b"", "failed"), (whole[: len(whole) // 2], "failed"), (others, "failed")):
        root.write_bytes(key)
        assert [each["verdict"] for each in findings(service)[1]["keys"]] == [verdict]


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
