"""Paho's own programs for the command line, as Debian packages them (paho.mqtt.c-examples), over mutual TLS.

``paho_c_…`` are written with the asynchronous library, ``paho_cs_…`` with the synchronous one. Our driver in C
(`tests.interop.test_real_clients`) shows what the library does; here is what its authors make of it. Their exit codes
say nothing, and one that is refused may wait for ever: what counts is what they print, and what the broker logs.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from provisioning.pki.tls import CredentialFiles
from tests.support.broker_process import wait_until
from tests.support.listed import ListedBroker
from tests.support.needed import needed
from tests.support.pki import DOMAIN, Pki
from tests.support.real_clients import Running

VERSIONS = {"311": "3.1.1", "5": "5.0"}
"""Of MQTT: as the programs call them, and as the broker does."""

each_version = pytest.mark.parametrize("version", VERSIONS)
each_library = pytest.mark.parametrize("library", ["c", "cs"])


@pytest.fixture(scope="module")
def pki() -> Pki:
    return Pki()


@pytest.fixture(scope="module")
def listed(tmp_path_factory: pytest.TempPathFactory, pki: Pki) -> Iterator[ListedBroker]:
    broker = ListedBroker(tmp_path_factory.mktemp("listed"), pki)
    with broker.process:
        yield broker


def running(program: str, listed: ListedBroker, files: CredentialFiles | None, name: str, *more: str) -> Running:
    """Start *program* as *name*; what it says on standard error is among its lines."""
    line = ["-c", f"ssl://localhost:{listed.process.port}", "--cafile", str(listed.process.dir / "anchors.pem")]
    if files is not None:
        line += ["--cert", str(files.certificate), "--key", str(files.key)]
    # Into a pipe it would keep its lines for itself.
    aloud = ["stdbuf", "-o", "L", "/bin/sh", "-c", 'exec "$@" 2>&1', "sh"]
    return Running([*aloud, needed(program), *line, "-i", name, *more], {})


def until(program: Running, text: str) -> list[str]:
    """Return the lines up to the first with *text*."""
    lines = [program.line()]
    while text not in lines[-1]:
        lines.append(program.line())
    return lines


@each_library
@each_version
def test_messages_and_a_revocation(listed: ListedBroker, tmp_path: Path, library: str, version: str) -> None:
    meter, backend = f"meter-{library}-{version}", f"backend-{library}-{version}"
    held, topic = listed.pki.device(meter), f"fleet/meters/{meter}/state"
    device, service = held.write(tmp_path), listed.pki.service(backend).write(tmp_path)

    def publishing(message: str, *more: str) -> Running:
        options = "-V", version, "-t", topic, "-m", message, *more
        return running(f"paho_{library}_pub", listed, device, meter, *options)

    with publishing("kept", "-q", "1", "-r") as done:
        assert done.exit_code() == 0
    subscription = "-V", version, "-t", f"{topic}/#", "-q", "2"
    with running(f"paho_{library}_sub", listed, service, backend, *subscription) as listening:
        until(listening, "kept")  # So it has subscribed.
        for qos in "012":
            with publishing(f"reading-{qos}", "-q", qos) as done:
                assert done.exit_code() == 0
        shown = [line.split()[-2:] for line in listening.lines(3)]
        assert shown == [[topic, f"reading-{qos}"] for qos in range(3)]
        for name in (meter, backend):
            assert {each["version"] for each in listed.process.events("admitted", client=name)} == {VERSIONS[version]}

    listed.revoke(held)
    with publishing("again", "-q", "1") as refused:
        until(refused, "Connect failed")
    identity = f"spiffe://{DOMAIN}/device/meters/{meter}"
    assert wait_until(lambda: listed.process.events("REVOKED", identity=identity), "it is told")


@each_library
@each_version
def test_nobody_gets_in_without_a_certificate(listed: ListedBroker, library: str, version: str) -> None:
    name = f"nobody-{library}-{version}"
    with running(f"paho_{library}_pub", listed, None, name, "-V", version, "-t", "fleet/x", "-m", "1") as stranger:
        until(stranger, "Connect failed")
    assert not listed.process.events("admitted", client=name)
