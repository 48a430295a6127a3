"""Founding, starting, stopping, and dying: what must hold whatever happens to the process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import socket
import subprocess
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from provisioning.client.csr import build_csr
from provisioning.client.est import EnrolmentRefused, EnrolmentUnavailable, EstClient
from provisioning.pki.keys import generate_key
from provisioning.service.service_signals import STOP_SECONDS
from tests.support import programs
from tests.support.curl import Curl
from tests.support.descriptors import a_shell_that_allows, allowed
from tests.support.enrolled import spent
from tests.support.openssl import openssl
from tests.support.provisioning import ProvisioningService

ON_BOTH_STORES = True


def test_init_founds_an_authority_that_only_its_owner_can_read(tmp_path: Path) -> None:
    service = ProvisioningService.founded(tmp_path / "new" / "fleet")
    assert service.dir.stat().st_mode & 0o777 == 0o700
    for path in service.dir.iterdir():
        if path.suffix in (".key", ".db"):
            assert path.stat().st_mode & 0o777 == 0o600, path
    for name in ("root-ca", "issuing-ca"):
        assert "ENCRYPTED" in (service.dir / f"{name}.key").read_text()
    for name in ("server", "operator"):
        openssl("verify", "-x509_strict", "-CAfile", service.bundle, service.dir / f"{name}.crt")
    names = openssl("x509", "-noout", "-ext", "subjectAltName", "-in", service.dir / "server.crt").decode()
    assert "DNS:localhost, IP Address:127.0.0.1, IP Address:0:0:0:0:0:0:0:1" in names
    assert [path.name for path in service.dir.parent.iterdir()] == ["fleet"]


def test_init_never_overwrites_and_leaves_nothing_half_made(tmp_path: Path) -> None:
    service = ProvisioningService.copied(tmp_path / "fleet")
    before = {path: path.read_bytes() for path in service.dir.rglob("*") if path.is_file()}
    again = service.command("init", "--dir", str(service.dir))
    assert again.returncode == 1
    assert "init does not overwrite anything" in again.stderr
    assert {path: path.read_bytes() for path in service.dir.rglob("*") if path.is_file()} == before
    for code, *arguments in ((1, "--trust-domain", "NOT VALID"), (1, "--passphrase-file", str(tmp_path / "none")),
                             (1, "--server-name", "bad name"), (2, "--public-http-url", "nonsense")):  # fmt: skip
        failed = service.command("init", "--dir", str(tmp_path / "other"), *arguments)
        assert failed.returncode == code, arguments
        assert failed.stderr.count("\n") == 1, failed.stderr
        assert arguments[0].removeprefix("--") in failed.stderr.replace(" ", "-").replace("_", "-"), "what to correct"
        assert [path.name for path in tmp_path.iterdir()] == ["fleet"]


class SilentStore:
    """A database that never answers: an init has the CAs' keys by then, and waits for it."""

    def __init__(self, service: ProvisioningService, stack: ExitStack) -> None:
        self._service = service
        self._stack = stack
        self._silent = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        self._silent.settimeout(60)
        self._log = stack.enter_context((service.dir.parent / "log").open("wb"))
        address = f"127.0.0.1:{self._silent.getsockname()[1]}"
        store = f"postgresql+psycopg://nobody@{address}/nothing?connect_timeout=600"
        self._variables = {**service.environment, "FLEET_PROVISIONING_DATABASE_URL": store}

    def holds_up(self) -> tuple[programs.Process, Path]:
        """Begin to found the service; return the process that waits, and where it has the keys."""
        parent = self._service.dir.parent
        before = set(parent.iterdir())
        init = programs.start("provisioning", ["init", "--dir", str(self._service.dir)], self._variables, self._log)
        self._stack.callback(_end, init)
        self._stack.enter_context(self._silent.accept()[0])
        (made,) = set(parent.iterdir()) - before
        assert (made / "issuing-ca.key").exists()
        return init, made


def _end(process: programs.Process) -> None:
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_init_that_is_stopped_leaves_nothing(tmp_path: Path, number: signal.Signals, code: int) -> None:
    with ExitStack() as stack:
        init, _ = SilentStore(ProvisioningService(tmp_path / "fleet"), stack).holds_up()
        init.send_signal(number)
        assert init.wait(60) == code
    assert (tmp_path / "log").read_text() == "fleet-provisioning: stopped\n"
    assert [path.name for path in tmp_path.iterdir()] == ["log"]


def test_what_an_init_that_was_killed_has_left_is_named_by_the_next(tmp_path: Path) -> None:
    """Not what one that still runs is making, nor a folder of a similar name, which may be somebody's copy."""
    service, copy = ProvisioningService(tmp_path / "fleet"), tmp_path / ".fleet-of-old"
    copy.mkdir()
    (copy / "root-ca.key").write_text("a key\n")
    with ExitStack() as stack:
        store = SilentStore(service, stack)
        killed, left = store.holds_up()
        killed.kill()
        killed.wait()
        _, being_made = store.holds_up()
        again = service.command("init", "--dir", str(service.dir), check=True)
        # While that one still waits: with its connection it would end, and clear up, before it is killed.
        assert {path.name for path in tmp_path.iterdir()} == {"fleet", "log", copy.name, left.name, being_made.name}
    assert again.stderr == (
        f"fleet-provisioning: warning: an init that was killed has left {left}, with keys of CAs that were never "
        f"founded: rm -r {left}\n"
    )
    assert not list(service.dir.glob("*.lock"))


def test_serve_explains_why_it_cannot_start(tmp_path: Path) -> None:
    service = ProvisioningService.copied(tmp_path / "fleet")
    (tmp_path / "wrong").write_text("wrong passphrase")
    for arguments, words in (
        (("--dir", str(tmp_path / "nowhere")), "run fleet-provisioning init"),
        (("--dir", str(service.dir), "--passphrase-file", str(tmp_path / "wrong")), "passphrase is wrong"),
        (
            ("--dir", str(service.dir), "--host", "192.0.2.1", "--public-listener"),
            "host: cannot listen on 192.0.2.1: ",
        ),
    ):
        failed = service.command("serve", *arguments, "--port", "0", "--http-port", "0")
        assert failed.returncode == 1
        assert words in failed.stderr
        assert "Traceback" not in failed.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_signal_ends_open_feeds_and_the_service_cleanly(
    own_service: ProvisioningService, number: signal.Signals
) -> None:
    operator = Curl(own_service.https, own_service.bundle, own_service.operator)
    line = operator.arguments("/v1/revocations/feed", "--no-buffer")
    with subprocess.Popen(line, stdout=subprocess.PIPE) as feed:
        assert feed.stdout is not None
        assert feed.stdout.readline() == b"event: current\n"
        begun = time.monotonic()
        assert own_service.stop(number) == 0
        assert time.monotonic() - begun < STOP_SECONDS - 5, "it waited for the feed"
        assert feed.wait(timeout=60) == 0, "the stream was cut, not ended"
    assert "Traceback" not in own_service.log
    assert "ERROR" not in own_service.log
    # Serial numbers that were reserved and not used have been given back.
    assert own_service.stored("SELECT count(*) FROM serial_reservations") == [(0,)]


def test_it_takes_as_many_descriptors_as_its_user_may_have(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        with a_shell_that_allows(512):
            service = stack.enter_context(ProvisioningService.copied(tmp_path / "fleet", afresh=True))
        soft, hard = allowed(service.pid)
        assert soft == hard


def test_its_memory_and_the_keys_in_it_are_dumped_nowhere(service: ProvisioningService) -> None:
    assert resource.prlimit(service.pid, resource.RLIMIT_CORE) == (0, 0)


async def test_one_token_and_fifty_concurrent_requests_give_one_certificate(
    own_service: ProvisioningService,
) -> None:
    token = own_service.token(group="north")

    attempts = [spent(own_service, f"meter-{number}", token) for number in range(50)]
    outcomes = Counter(await asyncio.gather(*attempts))
    assert outcomes == {"enrolled": 1, "TOKEN_USED": 49}


async def test_kill_9_during_a_burst_loses_no_certificate_and_no_token(own_service: ProvisioningService) -> None:
    service = own_service
    names = [f"meter-{number}" for number in range(100)]
    tokens = dict(zip(names, service.tokens(devices=names), strict=True))
    received: dict[str, x509.Certificate] = {}
    enough = asyncio.Event()

    async def enrol_some(client: EstClient, mine: list[str]) -> None:
        for name in mine:
            with contextlib.suppress(EnrolmentUnavailable):
                received[name] = await client.enrol(build_csr(generate_key(), name), user=name, token=tokens[name])
            if len(received) >= 30:
                enough.set()

    async with EstClient(service.https, service.bundle) as client:
        burst = asyncio.gather(*(enrol_some(client, names[start::16]) for start in range(16)))
        await enough.wait()
        os.kill(service.pid, signal.SIGKILL)
        await burst
    assert 30 <= len(received) < len(names), "the burst was over before the kill"
    service.kill()

    if (service.dir / "fleet.db").exists():
        assert service.stored("PRAGMA integrity_check") == [("ok",)]
    stored = {bytes(der) for (der,) in service.stored("SELECT der FROM certificates")}
    ((spent,),) = service.stored("SELECT count(*) FROM tokens WHERE used_at IS NOT NULL")
    ((devices,),) = service.stored(
        "SELECT count(*) FROM certificates JOIN devices ON device_id = devices.id WHERE role = 'device'"
    )
    abandoned = {int(serial, 16) for (serial,) in service.stored("SELECT serial FROM serial_reservations")}
    assert {certificate.public_bytes(Encoding.DER) for certificate in received.values()} <= stored
    assert spent == devices

    service.start()
    unanswered: list[str] = []
    async with EstClient(service.https, service.bundle) as client:
        for name in names:
            if name in received:
                continue
            try:
                received[name] = await client.enrol(build_csr(generate_key(), name), user=name, token=tokens[name])
            except EnrolmentRefused as refusal:
                unanswered.append(refusal.code)
    # Recorded, and the answer was lost with the process: no more than were under way.
    assert set(unanswered) <= {"TOKEN_USED"}
    assert len(unanswered) <= 16
    serials = [certificate.serial_number for certificate in received.values()]
    assert len(set(serials)) == len(serials)
    assert not abandoned & set(serials), "a serial number that may have been signed before was used again"


def test_settings_come_from_flags_before_environment_before_file(tmp_path: Path) -> None:
    service = ProvisioningService.founded(tmp_path / "fleet", {"trust_domain": "env.example"})
    file = service.dir / "provisioning.toml"
    assert 'trust_domain = "env.example"' in file.read_text()
    file.write_text(file.read_text() + "crl_life = 'nonsense'\n")
    failed = service.command("serve", "--dir", str(service.dir), "--port", "0", "--http-port", "0")
    assert failed.returncode == 2
    assert "crl_life" in failed.stderr
    file.write_text("unknown_setting = 1\n")
    failed = service.command("serve", "--dir", str(service.dir))
    assert "unknown_setting" in failed.stderr
