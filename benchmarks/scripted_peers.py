"""aedes (JavaScript) and amqtt (Python) as peers: libraries, each with a broker of a few lines in this folder.

Both get mutual TLS and the other peers' access rules, checked by their own hooks: whom a certificate names, and what it
may publish and read. aedes is installed by `make bench-peers`, in the version of benchmarks/aedes/package.json.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from foreign_peers import NotInstalled, program
from pki import BACKEND, GROUP, BenchPki
from processes import REPOSITORY, Child

AEDES = REPOSITORY / ".build" / "aedes"
_HERE = Path(__file__).resolve().parent
_START_SECONDS = 60


@contextmanager
def amqtt(pki: BenchPki, folder: Path, port: int, other: int, cores: frozenset[int] | None) -> Iterator[Child]:
    """Run amqtt's broker on *port*."""
    del other
    yield from _run("amqtt", [sys.executable, _HERE / "amqtt_broker.py"], pki, folder, port, cores)


@contextmanager
def aedes(pki: BenchPki, folder: Path, port: int, other: int, cores: frozenset[int] | None) -> Iterator[Child]:
    """Run aedes on *port*."""
    del other
    if not (AEDES / "node_modules" / "aedes").is_dir():
        raise NotInstalled("aedes is not installed. Remedy: deploy/install-bench-peers")
    yield from _run("aedes", [program("node", "nodejs"), AEDES / "broker.js"], pki, folder, port, cores)


def version(peer: str) -> str:
    """Return the version of *peer*, for the report."""
    if peer == "amqtt":
        return importlib.metadata.version("amqtt")
    about = AEDES / "node_modules" / "aedes" / "package.json"
    return str(json.loads(about.read_text())["version"]) if about.exists() else "not installed"


def _run(
    name: str, command: list[str | Path], pki: BenchPki, folder: Path, port: int, cores: frozenset[int] | None
) -> Iterator[Child]:
    files = (pki.trust_anchors, pki.server.certificate, pki.server.key)
    with Child([*command, str(port), *files, GROUP, BACKEND], folder / "log", cores=cores) as process:
        if process.read_line(_START_SECONDS) != f"{name} ready":
            raise process.failed("does not start")
        yield process
