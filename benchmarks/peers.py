"""The servers that are compared, each freshly started for every run, on loopback, with the same credentials.

`fleetgate`       this repository's broker with its default policy, which cannot be switched off. Its revocation index
                  is consulted at each admission; there is no provisioning service to feed it.
`fleetgate-compiled`  the same, its hot path compiled (`make compiled`, docs/performance-in-detail.md).
`mosquitto`       Debian's mosquitto with an access control list equivalent to Fleetgate's default policy:
                  a device publishes below its own topic only, the backend reads everything.
`mosquitto-open`  the same without the list: mosquitto when it checks nothing but the certificate.
`nats-server`, `rabbitmq`  see `foreign_peers`.
`aedes`, `amqtt`  see `scripted_peers`.

The limits that would make any of them drop messages are lifted. None logs connections or writes to disk.
"""

from __future__ import annotations

import os
import platform
import shutil
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from foreign_peers import NotInstalled, nats_server, program, rabbitmq
from pki import BACKEND, GROUP, BenchPki
from processes import REPOSITORY, Child
from scripted_peers import aedes, amqtt
from scripted_peers import version as scripted_version

from provisioning.program.version import product_version

_FOREIGN = {"nats-server": nats_server, "rabbitmq": rabbitmq, "aedes": aedes, "amqtt": amqtt}
PEERS = ("fleetgate", "fleetgate-compiled", "mosquitto", "mosquitto-open", *_FOREIGN)
_FLEETGATE = {"fleetgate": REPOSITORY, "fleetgate-compiled": REPOSITORY / ".build" / "compiled"}
_START_SECONDS = 60
_ATTEMPTS = 3
_FLEETGATE_CONFIGURATION = """\
host = "127.0.0.1"
port = 0
log_level = "warning"
unsafe_no_revocation = true

[limits]
max_inflight = 65535
max_queued_messages = 1_000_000
max_queued_bytes = 1_073_741_824
"""


@dataclass(frozen=True, slots=True)
class Server:
    """A running peer."""

    process: Child
    port: int


class PeerMissing(RuntimeError):
    """A peer is not installed; the text says how to install it."""


@contextmanager
def start(
    peer: str,
    pki: BenchPki,
    folder: Path,
    cores: frozenset[int] | None = None,
    *,
    under: tuple[str, ...] = (),
) -> Iterator[Server]:
    """Run *peer* with its files in *folder* (new, the caller's) until the block ends; raise `ChildFailed`.

    *under* is a command that runs it; not for foreign peers.
    """
    if peer in _FLEETGATE:
        process, port = _fleetgate(pki, folder, cores, packages_of(compiled=peer == "fleetgate-compiled"), under)
    elif peer in _FOREIGN:
        try:
            with _FOREIGN[peer](pki, folder, port := free_port(), free_port(), cores) as process:
                if not _accepts(process, port):
                    raise process.failed("does not start")
                yield Server(process, port)
        except NotInstalled as error:
            raise PeerMissing(str(error)) from None
        return
    else:
        process, port = _mosquitto(pki, folder, cores, under, with_policy=peer == "mosquitto")
    with process:
        yield Server(process, port)


def packages_of(*, compiled: bool) -> Path:
    """Return the folder from which the broker is imported; raise `PeerMissing` if it has not been compiled."""
    folder = _FLEETGATE["fleetgate-compiled" if compiled else "fleetgate"]
    if not (folder / "broker").is_dir():
        raise PeerMissing("the compiled broker is not built. Remedy: make compiled")
    return folder


def ready_line(process: Child, program: str) -> list[str]:
    """Return the addresses in the ready line of *program*."""
    first, word, *addresses = process.read_line(_START_SECONDS).split() or ["", ""]
    if (first, word) != (program, "ready"):
        raise process.failed(f"began with {first!r} {word!r} instead of '{program} ready'")
    return addresses


def describe(peer: str) -> str:
    """Return the version of *peer*, for the report."""
    if peer in _FLEETGATE:
        version = product_version()
        # Debian's Python has profile-guided optimisation, pyenv's has not, and no variable of its build says so.
        return f"{version}, Python {platform.python_version()} of {sys.base_prefix}, {ssl.OPENSSL_VERSION}"
    if peer == "nats-server":
        arguments = [program("nats-server", "nats-server"), "--version"]
        return subprocess.run(arguments, capture_output=True, text=True, check=False).stdout.strip()
    if peer in {"aedes", "amqtt"}:
        return scripted_version(peer)
    if peer == "rabbitmq":
        arguments = ["dpkg-query", "--show", "--showformat=${Version}", "rabbitmq-server"]
        return subprocess.run(arguments, capture_output=True, text=True, check=False).stdout or "installed by hand"
    said = subprocess.run([mosquitto_program(), "-h"], capture_output=True, text=True, check=False).stdout
    version = said.split("\n", 1)[0].rpartition(" ")[2]
    return f"{version}, {'with' if peer == 'mosquitto' else 'without'} access control list"


def mosquitto_program() -> str:
    """Return mosquitto's path; Debian installs it outside a user's PATH."""
    found = shutil.which("mosquitto", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
    if found is None:
        raise PeerMissing("mosquitto is not installed. Remedy, as root: apt-get install mosquitto")
    return found


def _fleetgate(
    pki: BenchPki, folder: Path, cores: frozenset[int] | None, packages: Path, under: tuple[str, ...]
) -> tuple[Child, int]:
    """Start the broker in the folder *packages*."""
    configuration = folder / "broker.toml"
    configuration.write_text(_FLEETGATE_CONFIGURATION)
    process = Child(
        [
            *under,
            *(sys.executable, "-P", "-m", "broker", "run", "--config", configuration, "--state-dir", folder / "state"),
            *("--certfile", pki.server.certificate, "--keyfile", pki.server.key, "--cafile", pki.trust_anchors),
        ],
        folder / "log",
        environment={"PYTHONPATH": str(packages)},
        cores=cores,
    )
    with _stopped_on_error(process):
        port = urlsplit(ready_line(process, "fleet-broker")[0]).port
        if port is None:
            raise process.failed("named no port in its ready line")
    return process, port


def _mosquitto(
    pki: BenchPki, folder: Path, cores: frozenset[int] | None, under: tuple[str, ...], *, with_policy: bool
) -> tuple[Child, int]:
    """Start mosquitto on a port that was free a moment ago: it cannot choose one itself."""
    attempt = 0
    while True:
        attempt += 1
        port = free_port()
        configuration = folder / "mosquitto.conf"
        configuration.write_text(_configuration(pki, folder, port, with_policy=with_policy))
        process = Child([*under, mosquitto_program(), "-c", configuration], folder / "log", cores=cores)
        with _stopped_on_error(process):
            if _accepts(process, port):
                return process, port
            if attempt == _ATTEMPTS:
                raise process.failed("does not start")
        process.stop()


def _configuration(pki: BenchPki, folder: Path, port: int, *, with_policy: bool) -> str:
    lines = [
        f"listener {port} 127.0.0.1",
        f"cafile {pki.trust_anchors}",
        f"certfile {pki.server.certificate}",
        f"keyfile {pki.server.key}",
        "require_certificate true",
        "use_identity_as_username true",
        "max_queued_messages 0",
        "max_inflight_messages 0",
        "log_type none",
        "persistence false",
        "user root",  # If started as root it must still read the keys; otherwise this is ignored.
    ]
    if with_policy:
        rules = folder / "acl"
        rules.touch(mode=0o600)
        rules.write_text(f"pattern write fleet/{GROUP}/%u/#\n\nuser {BACKEND}\ntopic read fleet/#\n")
        lines.append(f"acl_file {rules}")
    return "\n".join(lines) + "\n"


def free_port() -> int:
    """Return a currently free loopback port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _accepts(process: Child, port: int) -> bool:
    """Return whether *process* accepts a connection before it ends or the time is up."""
    deadline = time.monotonic() + _START_SECONDS
    while process.running and time.monotonic() < deadline:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1):
                return process.running
        except OSError:
            time.sleep(0.02)
    return False


@contextmanager
def _stopped_on_error(process: Child) -> Iterator[None]:
    """Stop *process* if the block raises; otherwise the caller must."""
    try:
        yield
    except BaseException:
        process.stop()
        raise
