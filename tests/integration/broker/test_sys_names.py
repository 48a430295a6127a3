"""Every name that a running mosquitto publishes below ``$SYS`` is published here too, or named as not offered."""

from __future__ import annotations

import shutil
import socket
import subprocess
from pathlib import Path

from broker.engine.sys_topics import INTERVAL, NOT_OFFERED, SysTopics
from broker.mqtt.message import Message
from device_sim.stage.foreign_process import free_port
from tests.support.broker_process import wait_until
from tests.support.wire import MemoryBroker


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def names_of_mosquitto(folder: Path) -> set[str]:
    program = shutil.which("mosquitto", path="/usr/bin:/usr/sbin:/usr/local/sbin")
    assert program is not None, "Remedy, as root: apt-get install mosquitto"
    port = free_port()
    configuration = folder / "mosquitto.conf"
    configuration.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\nsys_interval 1\n")
    with subprocess.Popen([program, "-c", configuration]) as server:
        try:
            wait_until(lambda: listens(port), "mosquitto listens")
            # What counts something is published when it has changed: it stays until the second interval has passed.
            command = ["mosquitto_sub", "-h", "127.0.0.1", "-p", str(port), "-t", "$SYS/#", "-F", "%t", "-W", "4"]
            said = subprocess.run(command, capture_output=True, text=True, check=False)
        finally:
            server.terminate()
    return {line.removeprefix("$SYS/broker/") for line in said.stdout.splitlines()}


def test_mosquittos_names_are_ours(tmp_path: Path) -> None:
    broker = MemoryBroker()
    published: set[str] = set()

    def note(message: Message, _now: float) -> None:
        published.add(message.topic.decode().removeprefix("$SYS/broker/"))

    class Engine:
        """The engine, whose own messages are noted."""

        publish_own = staticmethod(note)

        def __getattr__(self, name: str) -> object:
            return getattr(broker.engine, name)

    topics = SysTopics(Engine(), 0.0)  # type: ignore[arg-type]
    list(topics.publish(INTERVAL))
    theirs = names_of_mosquitto(tmp_path)
    assert len(theirs) > 40
    assert theirs - published == theirs & NOT_OFFERED
    assert not NOT_OFFERED & published
