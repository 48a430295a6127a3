"""Where a foreign CA's certificate keeps its name: every source, played by mosquitto's clients, seen by a backend.

Each CA has a trust bundle with its own source, pattern, client identifier and user name policy; the backend's own
certificate is of another bundle. What the broker takes the publisher for is what it stamps on the message.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256

from provisioning.pki.identity import Identity
from provisioning.pki.keys import spki_fingerprint
from provisioning.pki.role import Role
from tests.support.broker_process import BrokerProcess, wait_until
from tests.support.mosquitto import Mosquitto, MosquittoSub
from tests.support.pki import DOMAIN, Held, Pki, pem_of

NOBODY = Identity(DOMAIN, Role.DEVICE, "x", "x")


@dataclass(frozen=True)
class Case:
    """One bundle: its table, a certificate of its CA, whom that must name, and how its client must connect."""

    source: str
    table: str
    make: Callable[[Pki], Held]
    name: Callable[[Held], str]
    group: str
    client_id: str = "{name}"
    user: str = ""
    wrong: tuple[str, str] = ("another", "Client Identifier not valid")
    """A client identifier that is refused, and the words in which mosquitto says so."""


def named(name: str) -> Callable[[Held], str]:
    return lambda _held: name


CASES = [
    Case(
        "san-uri",
        "pattern = 'urn:dev:(?P<group>[a-z]+):(?P<name>[a-z0-9-]+)'",
        lambda pki: pki.certify(NOBODY, common_name="u", uris=["urn:dev:north:m-uri"]),
        named("m-uri"),
        "north",
    ),
    Case(
        "san-dns",
        "pattern = '(?P<name>[a-z0-9-]+)\\.(?P<group>[a-z]+)\\.example'",
        lambda pki: pki.certify(NOBODY, common_name="d", uris=[], names=[x509.DNSName("m-dns.south.example")]),
        named("m-dns"),
        "south",
        client_id="{name}-second",
        wrong=("m-dn", "Client Identifier not valid"),
    ),
    Case(
        "san-email",
        "pattern = '(?P<name>[^@]+)@example\\.org'\ngroup = \"mail\"",
        lambda pki: pki.certify(NOBODY, common_name="e", uris=[], names=[x509.RFC822Name("m-mail@example.org")]),
        named("m-mail"),
        "mail",
        client_id="",
        user="m-mail",
        wrong=("m-mail", "Client Identifier not valid"),
    ),
    Case(
        "san-ip",
        'group = "addresses"',
        lambda pki: pki.certify(
            NOBODY, common_name="i", uris=[], names=[x509.IPAddress(ipaddress.ip_address("192.0.2.7"))]
        ),
        named("192.0.2.7"),
        "addresses",
    ),
    Case(
        "common-name",
        "pattern = '(?P<role>device|service)\\.(?P<group>[a-z]+)\\.(?P<name>.+)'",
        lambda pki: pki.certify(NOBODY, common_name="device.east.m-cn", uris=[]),
        named("m-cn"),
        "east",
    ),
    Case(
        "subject",
        "pattern = 'CN=(?P<name>[a-z-]+)'\ngroup = \"dn\"",
        lambda pki: pki.certify(NOBODY, common_name="m-subject", uris=[]),
        named("m-subject"),
        "dn",
        user="dn/m-subject",
    ),
    Case(
        "fingerprint",
        'group = "prints"',
        lambda pki: pki.certify(NOBODY, common_name="f", uris=[]),
        lambda held: held.certificate.fingerprint(SHA256()).hex(),
        "prints",
    ),
    Case(
        "public-key",
        'group = "keys"',
        lambda pki: pki.certify(NOBODY, common_name="k", uris=[]),
        lambda held: spki_fingerprint(held.certificate.public_key()).hex(),
        "keys",
    ),
]
POLICIES = {
    "san-dns": 'client_id = "prefix"',
    "san-email": 'client_id = "assigned"\nusername = "equal"',
    "subject": 'username = "{group}/{device}"',
}


@dataclass(frozen=True)
class Scene:
    """The broker, each bundle's CA, and a backend that reads everything with its user properties."""

    broker: BrokerProcess
    authorities: dict[str, Pki]
    backend: MosquittoSub
    mosquitto: Mosquitto


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory, pki: Pki) -> Iterator[Scene]:
    directory = tmp_path_factory.mktemp("sources")
    files, anchors = pki.broker().write(directory), pki.write_anchors(directory)
    tables = [f'[[trust]]\nname = "ours"\nanchors = ["{anchors}"]\nroles = ["service"]\nunsafe_no_revocation = true\n']
    authorities = {case.source: Pki() for case in CASES}
    for case in CASES:
        root = directory / f"{case.source}.pem"
        root.write_bytes(pem_of(authorities[case.source].root.certificate))
        tables.append(
            f'[[trust]]\nname = "of-{case.source}"\nanchors = ["{root}"]\ntrust_domain = "{case.source}.example"\n'
            f'groups = ["{case.group}"]\n'
            f"unsafe_no_revocation = true\n{POLICIES.get(case.source, '')}\n"
            f'[[trust.identity]]\nsource = "{case.source}"\n{case.table}\n'
        )
    config = directory / "broker.toml"
    config.write_text("\n".join(tables))
    own = ["--certfile", str(files.certificate), "--keyfile", str(files.key), "--cafile", str(anchors)]
    with BrokerProcess(directory, [*own, "--config", str(config), "--stamp-publisher"]) as broker:
        mosquitto = Mosquitto(broker.port, anchors, pki.service("reader").write(directory, "reader"))
        with mosquitto.subscribe("fleet/#", "-q", "1", "-i", "reader", "-F", "got %t %P") as backend:
            yield Scene(broker, authorities, backend, mosquitto)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.source)
def test_a_client_is_whom_its_certificate_names(scene: Scene, case: Case, tmp_path: Path) -> None:
    held = case.make(scene.authorities[case.source])
    name = case.name(held)
    client = replace(scene.mosquitto, credential=held.write(tmp_path, "client"))
    topic = f"fleet/{case.group}/{name}/telemetry"
    user = ["-u", case.user] if case.user else []
    identifier = ["-i", case.client_id.format(name=name)] if case.client_id else []
    done = client.publish(topic, "1", "-q", "1", *identifier, *user)
    assert done.returncode == 0, done.stdout + done.stderr
    got = scene.backend.wait_for(f"got {topic} ")
    # Of another trust domain than the broker's: by its URI, or a backend would take it for one of ours (0139).
    assert f"fleet-device:spiffe://{case.source}.example/device/{case.group}/{name}" in got
    assert f"fleet-group:{case.group}" in got
    assert f"fleet-serial:{held.certificate.serial_number:x}" in got
    wrong, words = case.wrong
    refused = client.publish(topic, "1", "-q", "1", "-i", wrong, *user)
    assert refused.returncode != 0
    assert words.lower() in (refused.stdout + refused.stderr).lower()
    if user:
        refused = client.publish(topic, "1", "-q", "1", *identifier, "-u", "another")
        assert refused.returncode != 0
        assert "bad user name or password" in (refused.stdout + refused.stderr).lower()


def test_what_no_source_names_is_refused(scene: Scene, tmp_path: Path) -> None:
    held = scene.authorities["san-dns"].certify(NOBODY, common_name="d", uris=[], names=[x509.DNSName("m.example")])
    client = replace(scene.mosquitto, credential=held.write(tmp_path, "client"))
    done = client.publish("fleet/south/m/telemetry", "1", "-q", "1", "-i", "m")
    assert done.returncode != 0
    (refusal,) = wait_until(lambda: scene.broker.events("INVALID_IDENTITY"), "the refusal is logged")
    assert "san-dns: nothing matches" in refusal["detail"]
