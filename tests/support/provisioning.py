"""A real provisioning service in a process of its own, for any test that needs one.

    with ProvisioningService.copied(tmp_path / "fleet") as service:
        token = service.token(device="meter-1", group="north")
        service.https, service.http, service.bundle, service.operator

The ports are free ones and change with every start, unless specified; the directory stays, so a service can be stopped,
killed and restarted, also at the port that it had: nobody else is given that meanwhile (`free_port`). Its log is
``<dir>.log``, shown when a start fails. `tests.support.programs` explains processes; a service whose start is tested
has its own interpreter: ``copied(…, afresh=True)``.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import httpx
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from device_sim.stage.foreign_process import free_port
from provisioning.pki.tls import CredentialFiles, client_context
from tests.support import every_store, programs
from tests.support.postgresql import PostgresqlServer
from tests.support.prepared_fleet import prepared, prepared_on, settings_environment
from tests.support.ready_line import ready_line

REPOSITORY = programs.REPOSITORY
START_SECONDS = 60


class ProvisioningService:
    """One service: its directory, and, while it runs, where it listens."""

    def __init__(self, directory: Path, settings: Mapping[str, object] | None = None, *, afresh: bool = False) -> None:
        """*settings* are set in its environment: ``{"crl_debounce_seconds": 0.05}``."""
        self.dir = directory
        self.https = ""
        self.http = ""
        self._environment = settings_environment(settings or {})
        self.database_url = str((settings or {}).get("database_url", f"sqlite:///{directory / 'fleet.db'}"))
        self._afresh = afresh
        self._process: programs.Process | None = None

    @classmethod
    def founded(cls, directory: Path, settings: Mapping[str, object] | None = None, *, afresh: bool = False) -> Self:
        """Return a service whose authority has just been created in *directory*, not running yet."""
        if every_store.server is not None and "database_url" not in (settings or {}):
            settings = {**(settings or {}), "database_url": every_store.new(directory, "template0")}
        service = cls(directory, settings, afresh=afresh)
        service.command("init", "--dir", str(directory), check=True)
        return service

    @classmethod
    def copied(cls, directory: Path, settings: Mapping[str, object] | None = None, *, afresh: bool = False) -> Self:
        """Return a service with a copy of a previously created authority, not running yet.

        It costs a twentieth of creating one. Not for two services that must be unrelated, nor for *settings* that
        ``init`` reads: key locations, names, the lifetime of the first lists.
        """
        if every_store.server is None:
            shutil.copytree(prepared(), directory)
            return cls(directory, settings, afresh=afresh)
        prepared_directory, template = prepared_on(every_store.server)
        shutil.copytree(prepared_directory, directory)
        url = every_store.new(directory, template)
        return cls(directory, {**(settings or {}), "database_url": url}, afresh=afresh)

    @classmethod
    @contextmanager
    def copied_on(
        cls,
        server: PostgresqlServer,
        directory: Path,
        settings: Mapping[str, object] | None = None,
        *,
        afresh: bool = False,
    ) -> Iterator[Self]:
        """Create one as `copied` does, with its store in a database on *server*, which is dropped at the end."""
        prepared_directory, template = prepared_on(server)
        shutil.copytree(prepared_directory, directory)
        with server.database(template) as url:
            yield cls(directory, {**(settings or {}), "database_url": url}, afresh=afresh)

    @property
    def bundle(self) -> Path:
        """The trust anchors, as a PEM file."""
        return self.dir / "ca-bundle.crt"

    @property
    def operator(self) -> CredentialFiles:
        """The first operator's credential."""
        return CredentialFiles(self.dir / "operator.crt", self.dir / "operator.key")

    @property
    def port(self) -> int:
        """The HTTPS port of the last start."""
        return int(self.https.rpartition(":")[2])

    @property
    def pid(self) -> int:
        """The running process."""
        assert self._process is not None
        return self._process.pid

    @property
    def log(self) -> str:
        """The service's log since it was created."""
        path = self._log_path
        return path.read_text(encoding="utf-8") if path.exists() else ""

    @property
    def _log_path(self) -> Path:
        return self.dir.with_name(self.dir.name + ".log")

    @property
    def environment(self) -> Mapping[str, str]:
        """The environment of its processes."""
        return self._environment

    def set(self, **variables: str) -> None:
        """From now on, start processes with these environment variables, too."""
        self._environment |= variables

    def unset(self, *variables: str) -> None:
        """From now on, start processes without these environment variables."""
        for name in variables:
            self._environment.pop(name, None)

    def command(self, *arguments: str, check: bool = False) -> subprocess.CompletedProcess[str]:
        """Run ``fleet-provisioning`` with *arguments* and return the result."""
        done = programs.run("provisioning", arguments, self._environment, timeout=START_SECONDS)
        assert done.returncode == 0 or not check, done.stderr
        return done

    def start(self, *, port: int = 0) -> Self:
        """Start the process and wait until both ports accept connections; *port* is that for HTTPS."""
        with self._log_path.open("ab") as log:
            ports = ("--port", str(port or free_port()), "--http-port", str(free_port()))
            arguments = ["serve", "--dir", str(self.dir), *ports]
            self._process = programs.start("provisioning", arguments, self._environment, log, afresh=self._afresh)
        words = ready_line(self._process.stdout, START_SECONDS, lambda: self.log).split()
        assert words[:2] == ["fleet-provisioning", "ready"], f"not ready: {words}\n{self.log}"
        self.https, self.http = words[2:]
        return self

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send the signal, wait for the end, and return the exit code (negative: the signal that killed it)."""
        process, self._process = self._process, None
        assert process is not None
        process.send_signal(number)
        try:
            return process.wait(timeout=START_SECONDS)
        finally:
            process.kill()
            assert process.stdout is not None
            process.stdout.close()

    def kill(self) -> None:
        """End the process as a power failure would."""
        self.stop(signal.SIGKILL)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_error: object) -> None:
        if self._process is not None:
            self.stop()

    def api(self) -> httpx.Client:
        """Return an HTTP client with the operator's certificate."""
        return httpx.Client(
            base_url=self.https,
            verify=client_context(self.bundle, self.operator, allow_tls12=True),
            timeout=30,
            trust_env=False,
        )

    def tokens(self, **request: Any) -> list[str]:
        """Return new enrolment tokens, as ``POST /v1/tokens`` makes them for *request*."""
        with self.api() as api:
            response = api.post("/v1/tokens", json=request)
        assert response.status_code == 201, response.text
        return [each["token"] for each in response.json()["tokens"]]

    def token(self, **request: Any) -> str:
        """Return one new enrolment token."""
        (token,) = self.tokens(**request)
        return token

    def revoke(self, **request: Any) -> list[dict[str, Any]]:
        """Revoke, and return what is now revoked."""
        with self.api() as api:
            response = api.post("/v1/revocations", json=request)
        assert response.status_code in (200, 201), response.text
        revoked: list[dict[str, Any]] = response.json()["revoked"]
        return revoked

    def suspend(self, **request: Any) -> None:
        """Put certificates on hold."""
        assert self.post("/v1/suspensions", **request).status_code in (200, 201)

    def resume(self, **request: Any) -> None:
        """Release certificates from hold."""
        assert self.post("/v1/resumptions", **request).status_code in (200, 201)

    def audit_head(self) -> str:
        """Return the head of the audit log, as ``audit verify`` prints it."""
        verified = self.command("audit", "verify", "--dir", str(self.dir), check=True).stdout
        return verified.splitlines()[1].removeprefix("head ")

    def post(self, path: str, **request: Any) -> httpx.Response:
        """Send one request as the operator."""
        with self.api() as api:
            return api.post(path, json=request)

    def stored(self, query: str) -> list[tuple[Any, ...]]:
        """Return the rows of a query to the store, on any database."""
        engine = create_engine(self.database_url, poolclass=NullPool)
        with engine.connect() as connection:
            return [tuple(row) for row in connection.execute(text(query))]
