"""A mosquitto.conf with certificates, a CRL and an ACL file: Debian's mosquitto runs it, and the broker what is made of
it by ``fleet-broker config convert``; the same clients get the same answers.

Both take a client's name from its certificate, so anonymous clients and passwords, which the file has too, have no
effect; and both trust of a directory only the CA that lies there under the hash of its name.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from device_sim.stage.foreign_process import free_port, serving
from provisioning.pki.tls import CredentialFiles
from tests.support import programs
from tests.support.mosquitto import PATIENCE, Mosquitto
from tests.support.needed import needed
from tests.support.provisioning import REPOSITORY
from tests.support.ready_line import ready_line

PAPERS = r"""
umask 077
req() { openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 365 "$@" 2> req.err; }
ca() { req -keyout $1.key -out $1.crt -subj "/O=Example/CN=$1" -addext basicConstraints=critical,CA:TRUE \
  -addext keyUsage=critical,keyCertSign,cRLSign; }
for_name() { req -CA $1.crt -CAkey $1.key -keyout $2.key -out $2.crt -subj "/O=Example/CN=$3" \
  -addext basicConstraints=critical,CA:FALSE -addext subjectAltName=DNS:$3 $4 $5; }
ca ca; ca other
for name in localhost sensor-1 sensor-2 revoked dashboard; do for_name ca $name $name; done
for_name ca purpose sensor-1 -addext extendedKeyUsage=serverAuth
for_name other stranger sensor-1
printf '[ca]\ndefault_ca=ca\n[ca]\ndatabase=index\ndefault_md=sha256\ndefault_crl_days=30\n' > ca.cnf && : > index
crl() { openssl ca -config ca.cnf -cert ca.crt -keyfile ca.key "$@" 2> ca.err; }
crl -revoke revoked.crt && crl -gencrl -out ca.crl
mkdir cas && cp other.crt cas && ln -s ../ca.crt cas/$(openssl x509 -hash -noout -in ca.crt).0
printf 'a:$7$101$AAAAAAAAAAAAAAAA$AAAA\n' > passwd && chmod 600 passwd
"""
ACL = """\
pattern readwrite sensors/%u/#
pattern read commands/%u/+

user sensor-1
topic deny sensors/sensor-1/secret

user dashboard
topic read sensors/#
topic write commands/#
topic read $SYS/#
"""
CONF = """\
per_listener_settings false
allow_anonymous true
password_file {directory}/passwd
persistence true
persistence_location {directory}/
max_inflight_messages 20
max_queued_messages 1000
max_packet_size 4096
log_dest stderr
log_type all
{user}
listener {port} 127.0.0.1
capath {directory}/cas
certfile {directory}/localhost.crt
keyfile {directory}/localhost.key
crlfile {directory}/ca.crl
require_certificate true
use_identity_as_username true
include_dir {directory}/conf.d
"""
MORE = """\
acl_file {directory}/acl
listener {web} 127.0.0.1
protocol websockets
capath {directory}/cas
certfile {directory}/localhost.crt
keyfile {directory}/localhost.key
crlfile {directory}/ca.crl
require_certificate true
use_identity_as_username true
"""


@dataclass(frozen=True)
class Place:
    """The folder with the configuration, and where its listeners are."""

    directory: Path
    port: int

    def client(self, name: str | None, version: str = "5") -> Mosquitto:
        of = None if name is None else CredentialFiles(self.directory / f"{name}.crt", self.directory / f"{name}.key")
        return Mosquitto(self.port, self.directory / "ca.crt", of, version)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    place = Place(tmp_path, free_port())
    subprocess.run(["sh", "-ec", PAPERS], cwd=tmp_path, check=True, timeout=PATIENCE)
    (tmp_path / "acl").write_text(ACL)
    user = "user root" if os.geteuid() == 0 else ""
    (tmp_path / "mosquitto.conf").write_text(CONF.format(directory=tmp_path, port=place.port, user=user))
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d" / "more.conf").write_text(MORE.format(directory=tmp_path, web=free_port()))
    return place


def answers(place: Place) -> dict[str, object]:
    """Return what the broker at *place* answers to each client."""
    found: dict[str, object] = {}

    def publish(what: str, name: str | None, topic: str, *options: str, version: str = "5") -> None:
        done = place.client(name, version).publish(topic, "x", *options)
        refused = "failed: Not authorized" in done.stderr + done.stdout
        found[what] = ("connected" if "received CONNACK (0)" in done.stdout else "kept out", refused)

    dashboard = place.client("dashboard")
    with dashboard.subscribe("sensors/#", "-i", "any-other-name", "-q", "1", "-F", "read %t %p") as reading:
        publish("its own topic", "sensor-1", "sensors/sensor-1/t", "-i", "sensor-1", "-q", "1")
        found["is read"] = reading.wait_for("read sensors/sensor-1/t x")
        publish("with a password", "sensor-1", "sensors/sensor-1/p", "-i", "sensor-1", "-q", "1", "-u", "a", "-P", "b")
        found["is read, too"] = reading.wait_for("read sensors/sensor-1/p x")
        publish("3.1.1", "sensor-1", "sensors/sensor-1/311", "-i", "sensor-1", "-q", "1", version="311")
        found["is read in 3.1.1"] = reading.wait_for("read sensors/sensor-1/311 x")
        publish("TLS 1.2", "sensor-1", "sensors/sensor-1/12", "-i", "sensor-1", "-q", "1", "--tls-version", "tlsv1.2")
        found["is read by TLS 1.2"] = reading.wait_for("read sensors/sensor-1/12 x")
        publish("another's topic", "sensor-1", "sensors/sensor-2/t", "-i", "sensor-1", "-q", "1")
        publish("a denied topic", "sensor-1", "sensors/sensor-1/secret", "-i", "sensor-1", "-q", "1")
        publish("what it may read only", "sensor-1", "commands/sensor-1/go", "-i", "sensor-1", "-q", "1")
        for name in ("revoked", "stranger", "purpose", None):
            publish(f"as {name}", name, "sensors/sensor-1/t", "-i", "sensor-1", "-q", "1")
        publish("last", "sensor-2", "sensors/sensor-2/last", "-i", "sensor-2", "-q", "1", "-r")
        found["nothing else was read"] = reading.wait_for("read ")
    with place.client("sensor-1").subscribe(
        "commands/sensor-1/+", "-i", "sensor-1", "-q", "1", "-F", "read %t %p"
    ) as reading:
        publish("a command", "dashboard", "commands/sensor-1/go", "-q", "1")
        found["the command is read"] = reading.wait_for("read commands/sensor-1/go x")
    own = ("-t", "sensors/sensor-1/live", "-i", "sensor-1", "-F", "read %t %p")
    with place.client("sensor-1").subscribe("sensors/sensor-2/#", *own) as reading:
        publish("not for sensor-1", "sensor-2", "sensors/sensor-2/live", "-i", "sensor-2", "-q", "1")
        publish("for sensor-1", "sensor-1", "sensors/sensor-1/live", "-i", "sensor-1-too", "-q", "1")
        found["what is another's is not read"] = reading.wait_for("read ")
    line = dashboard.arguments(
        "mosquitto_sub", "-t", "$SYS/broker/clients/connected", "-C", "1", "-W", "30", "-F", "%t"
    )
    found["$SYS"] = subprocess.run(line, capture_output=True, text=True, check=False, timeout=PATIENCE).stdout
    return found


@contextmanager
def converted(place: Place) -> Iterator[None]:
    """Run the broker with what is made of the configuration."""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    settings = place.directory / "broker.toml"
    conf = str(place.directory / "mosquitto.conf")
    for line in (
        ["config", "convert", conf, "--output", str(settings)],
        ["run", "--config", str(settings), "--test-config"],
    ):
        done = programs.run("broker", line, environment, timeout=PATIENCE)
        assert (done.returncode, done.stderr) == (0, ""), done
    log = place.directory / "broker.log"
    with log.open("wb") as output:
        process = programs.start("broker", ["run", "--config", str(settings)], environment, output)
    try:
        ready = ready_line(process.stdout, PATIENCE, log.read_text)
        assert ready.startswith(f"fleet-broker ready mqtts://127.0.0.1:{place.port} wss://127.0.0.1:"), ready
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=PATIENCE) == 0
        assert process.stdout is not None
        process.stdout.close()


async def test_the_same_clients_get_the_same_answers_from_both_brokers(place: Place) -> None:
    arguments = [needed("mosquitto"), "-c", str(place.directory / "mosquitto.conf")]
    async with serving("mosquitto", arguments, log=place.directory / "mosquitto.log", ready="running"):
        theirs = await asyncio.to_thread(answers, place)
    with converted(place):
        ours = await asyncio.to_thread(answers, place)
    assert ours == theirs
    assert theirs["its own topic"] == ("connected", False)
    assert theirs["another's topic"] == theirs["a denied topic"] == ("connected", True)
    assert {theirs[f"as {name}"] for name in ("revoked", "stranger", "purpose", None)} == {("kept out", False)}
    assert theirs["nothing else was read"] == "read sensors/sensor-2/last x"
    assert theirs["what is another's is not read"] == "read sensors/sensor-1/live x"
    assert theirs["$SYS"] == "$SYS/broker/clients/connected\n"
