"""Two sorts of clients on one listener: ours by their URI, a foreign CA's by Common Name; each on its own terms."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.mqtt.codes import ReasonCode
from provisioning.pki.identity import Identity
from provisioning.pki.role import Role
from tests.support.broker_process import BrokerProcess
from tests.support.crl import crl
from tests.support.listed import answer
from tests.support.pki import DOMAIN, Held, Pki, pem_of
from tests.support.tls_client import TlsClient, attempt

CONFIG = """
[[trust]]
name = "ours"
anchors = ["{ours}"]
roles = ["device", "service"]
unsafe_no_revocation = true

[[trust]]
name = "plant"
anchors = ["{plant}"]
trust_domain = "plant.example"
crlfile = ["{crl}"]
client_id = "prefix"
username = "equal"
groups = ["plant"]

[[trust.identity]]
source = "common-name"
group = "plant"
"""


@pytest.fixture(scope="module")
def plant() -> Pki:
    return Pki()


def of_plant(plant: Pki, name: str) -> Held:
    return plant.certify(Identity(DOMAIN, Role.DEVICE, "x", "x"), common_name=name, uris=[])


@pytest.fixture(scope="module")
def bundled(tmp_path_factory: pytest.TempPathFactory, pki: Pki, plant: Pki) -> Iterator[BrokerProcess]:
    directory = tmp_path_factory.mktemp("bundled")
    files = pki.broker().write(directory)
    anchors = directory / "plant-anchors"
    anchors.mkdir()
    (anchors / "root.crt").write_bytes(pem_of(plant.root.certificate))
    list_file = directory / "plant.crl"
    list_file.write_bytes(crl(plant.issuing, [of_plant(plant, "unused")]))
    root_list = directory / "plant-root.crl"
    root_list.write_bytes(crl(plant.root))
    config = directory / "broker.toml"
    text = CONFIG.format(ours=pki.write_anchors(directory), plant=anchors, crl=f'{list_file}", "{root_list}')
    config.write_text(text)
    own = ["--certfile", str(files.certificate), "--keyfile", str(files.key), "--cafile", str(files.certificate)]
    with BrokerProcess(directory, [*own, "--config", str(config)]) as broker:
        yield broker


def test_each_is_admitted_on_the_terms_of_its_bundle(bundled: BrokerProcess, pki: Pki, plant: Pki, name: str) -> None:
    assert answer(bundled, pki.anchors, pki.device(name), name) == (ReasonCode.SUCCESS, "")
    foreign = of_plant(plant, f"p-{name}"[:60])
    assert answer(bundled, pki.anchors, foreign) == (ReasonCode.BAD_USER_NAME_OR_PASSWORD, "USERNAME_MISMATCH")
    with TlsClient(bundled.port, pki.anchors, foreign.credential) as client:
        client.connect(client_id=f"p-{name}"[:60] + "-2", username=f"p-{name}"[:60])
        subscribed = client.subscribe(f"fleet/plant/{f'p-{name}'[:60]}/cmd/#")
        assert subscribed.reason_codes == (ReasonCode.SUCCESS,)


def test_two_bundles_never_share_a_session(bundled: BrokerProcess, pki: Pki, plant: Pki, name: str) -> None:
    with TlsClient(bundled.port, pki.anchors, pki.device(name).credential) as client:
        client.connect(client_id=name)
        foreign = of_plant(plant, name)
        with TlsClient(bundled.port, pki.anchors, foreign.credential) as other:
            assert not other.connect(client_id=name, username=name, clean_start=False).session_present
            other.check_alive()
            client.check_alive()


def test_a_stranger_gets_the_alert(bundled: BrokerProcess, pki: Pki) -> None:
    assert attempt(bundled.port, pki.anchors, Pki().device("x").credential) == "TLSV1_ALERT_UNKNOWN_CA"


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ('name = "a"\nanchors = ["missing.pem"]\nunsafe_no_revocation = true', "missing.pem cannot be read"),
        ('name = "a"\nanchors = ["{leaf}"]\nunsafe_no_revocation = true', "is not the certificate of a CA"),
        ('name = "a"\nanchors = ["{leaf}"]', "trust[1]: a: no source of revocations"),
        ('name = "a"', "trust[1]: a: anchors: name files or directories of CA certificates, or anchors_url"),
        ('name = "a"\nanchors = ["x"]\nfeed = true', "feed = true needs provisioning"),
        ('name = "a"\nanchors = ["x"]\nunsafe_no_revocation = true\nidentty = 1', "trust[1].identty: no such setting"),
    ],
)
def test_a_bad_table_is_refused_with_its_place(tmp_path: Path, pki: Pki, table: str, words: str) -> None:
    files = pki.broker().write(tmp_path)
    config = tmp_path / "broker.toml"
    config.write_text(f"[[trust]]\n{table.replace('{leaf}', str(files.certificate))}\n")
    own = ["--certfile", str(files.certificate), "--keyfile", str(files.key), "--cafile", str(files.certificate)]
    code, said = BrokerProcess(tmp_path, [*own, "--config", str(config)]).fail()
    assert code in {1, 2}
    assert words in said
