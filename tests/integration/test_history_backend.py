"""The backend of docs/backends.md keeps every reading once: whoever is killed in between, and whoever restarts."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
import pytest

from tests.support import programs
from tests.support.broker_process import BrokerProcess, wait_until
from tests.support.enrolled import Enrolled, enrol
from tests.support.postgresql import PostgresqlServer
from tests.support.provisioning import REPOSITORY, ProvisioningService
from tests.support.tls_client import TlsClient

PAGE = REPOSITORY / "docs" / "backends.md"
_PLACES = 'NAME, BROKER, PORT, ANCHORS = "history-1", "mqtt.example.org", 8883, "ca-bundle.crt"\n'
_DATABASE = 'DATABASE = "dbname=history"\n'
_ACK = "    client.ack(message.mid, message.qos)\n"


@pytest.fixture
def service(tmp_path: Path) -> Iterator[ProvisioningService]:
    with ProvisioningService.copied(tmp_path / "fleet", {"feed_heartbeat_seconds": 1}) as running:
        yield running


@pytest.fixture
def broker(tmp_path: Path, service: ProvisioningService) -> Iterator[BrokerProcess]:
    with BrokerProcess.enrolled(tmp_path / "broker", service, stamp_publisher=True) as running:
        running.arguments[running.arguments.index("--port") + 1] = str(running.port)  # After a restart, too.
        yield running


@pytest.fixture
def database(postgresql: PostgresqlServer) -> Iterator[str]:
    with postgresql.database(template="template1") as url:
        yield url.replace("+psycopg", "")


@dataclass
class Backend:
    """The page's program, once for each name, and one device that publishes readings."""

    directory: Path
    service: ProvisioningService
    broker: BrokerProcess
    database: str
    numbers: Iterator[int] = field(default_factory=lambda: iter(range(1, 1000)))

    def __post_init__(self) -> None:
        (self.meter,) = enrol(self.service, "meter-1")
        (table,) = re.findall(r"^```sql\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
        with psycopg.connect(self.database) as connection:
            connection.execute(table)

    @contextmanager
    def program(self, who: Enrolled, *, instead_of_ack: str = "") -> Iterator[subprocess.Popen[str]]:
        """Run the program as *who*; it does something else, if that is given, where it would acknowledge."""
        (text,) = re.findall(
            r'^```python\n("""python history\.py.*?)^```$', PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
        )
        here = f'NAME, BROKER, PORT, ANCHORS = "{who.name}", "localhost", {self.broker.port}, "{self.service.bundle}"\n'
        for told, instead in ((_PLACES, here), (_DATABASE, f'DATABASE = "{self.database}"\n')):
            assert text.count(told) == 1
            text = text.replace(told, instead)
        assert text.count(_ACK) == 1
        text = text.replace(_ACK, instead_of_ack or _ACK)
        place = self.directory / who.name
        place.mkdir(exist_ok=True)
        (place / "history.py").write_text(text)
        (place / "pair.pem").write_bytes(who.pem)
        process = subprocess.Popen(
            [sys.executable, "history.py"], cwd=place, stderr=subprocess.PIPE, text=True, env=dict(os.environ)
        )
        with process:
            try:
                yield process
            finally:
                process.kill()

    def subscribed(self, number: int) -> None:
        """Wait until *number* of them are connected and have a subscription."""
        words = [
            "sessions",
            "--role",
            "service",
            "--connected",
            "--json",
            "--state-dir",
            str(self.broker.dir / "state"),
        ]

        def there() -> bool:
            done = programs.run("broker", words, self.broker.environment, timeout=60)
            known: list[int] = [each["subscriptions"] for each in json.loads(done.stdout)["sessions"]]
            return sum(known) >= number

        wait_until(there, f"{number} subscriptions", pause=0.2)

    def publish(self, count: int) -> set[bytes]:
        """Publish readings and wait for their acknowledgements."""
        payloads = [b'{"number": %d}' % next(self.numbers) for _ in range(count)]
        with TlsClient(self.broker.port, self.service.bundle, self.meter.credential) as client:
            client.connect(client_id="meter-1")
            for payload in payloads:
                client.publish("fleet/meters/meter-1/telemetry", payload, qos=1)
        return set(payloads)

    def kept(self) -> list[tuple[str, bytes]]:
        with psycopg.connect(self.database) as connection:
            return connection.execute("SELECT device, payload FROM readings").fetchall()

    def keeps(self, payloads: set[bytes]) -> None:
        """Wait until all *payloads* are kept; each is, once, and as that of its device."""
        wait_until(lambda: {payload for _, payload in self.kept()} >= payloads, "the readings", pause=0.1)
        assert sorted(self.kept()) == sorted(("meter-1", payload) for payload in payloads)


def test_every_reading_is_kept_once_whoever_is_killed(
    tmp_path: Path, service: ProvisioningService, broker: BrokerProcess, database: str
) -> None:
    backend = Backend(tmp_path, service, broker, database)
    one, two = enrol(service, "history-1", "history-2", role="service")
    with backend.program(
        one, instead_of_ack="    import os; os._exit(9)\n"
    ) as process:  # It has kept the first reading, and said so to nobody.
        backend.subscribed(1)
        published = backend.publish(10)
        assert process.wait(60) == 9
        assert len(backend.kept()) == 1
    with ExitStack() as both:
        first = both.enter_context(backend.program(one))
        both.enter_context(backend.program(two))
        backend.keeps(published)
        backend.subscribed(2)
        broker.stop(signal.SIGKILL)
        broker.start()
        backend.subscribed(2)
        published |= backend.publish(10)
        backend.keeps(published)

        service.revoke(devices=["history-1"], reason="keyCompromise")
        assert first.wait(60) == 1
        assert first.stderr is not None
        said = first.stderr.read()
        assert "refused by the broker: REVOKED: certificate revoked (keyCompromise)" in said, said
        published |= backend.publish(10)
        backend.keeps(published)


def test_what_a_revoked_one_had_in_hand_the_others_get_and_a_failing_database_ends_the_program(
    tmp_path: Path, service: ProvisioningService, broker: BrokerProcess, database: str
) -> None:
    backend = Backend(tmp_path, service, broker, database)
    one, two = enrol(service, "history-1", "history-2", role="service")
    hangs = "    import time; time.sleep(1000)\n"
    with backend.program(one, instead_of_ack=hangs), backend.program(two) as second:
        backend.subscribed(2)
        published = backend.publish(20)
        wait_until(lambda: len(backend.kept()) == 11, "what the second one gets, and the first of the other's")
        service.revoke(devices=["history-1"], reason="keyCompromise")
        backend.keeps(published)
        with psycopg.connect(database) as connection:
            connection.execute("DROP TABLE readings")
        backend.publish(1)
        assert second.wait(60) == 1
        assert second.stderr is not None
        assert 'relation "readings" does not exist' in second.stderr.read()
