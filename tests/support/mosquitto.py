"""mosquitto's clients: third-party publishers and subscribers."""

from __future__ import annotations

import queue
import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from provisioning.pki.tls import CredentialFiles

PATIENCE = 60.0


@dataclass(frozen=True)
class Mosquitto:
    """How and as whom the clients reach a broker; *version* in the form of ``-V``."""

    port: int
    anchors: Path
    credential: CredentialFiles | None
    version: str = "5"

    def arguments(self, program: str, *options: str) -> list[str]:
        line = [program, "-h", "localhost", "-p", str(self.port), "-V", self.version, "--cafile", str(self.anchors)]
        if self.credential is not None:
            line += ["--cert", str(self.credential.certificate), "--key", str(self.credential.key)]
        return [*line, *options]

    def publish(self, topic: str, message: str, *options: str) -> subprocess.CompletedProcess[str]:
        """Run ``mosquitto_pub``."""
        return subprocess.run(
            self.arguments("mosquitto_pub", "-d", "-t", topic, "-m", message, *options),
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
        )

    def subscribe(self, topic_filter: str, *options: str) -> MosquittoSub:
        """Start ``mosquitto_sub``; it has subscribed when this returns."""
        return MosquittoSub(self.arguments("mosquitto_sub", "-d", "-t", topic_filter, *options))


class MosquittoSub:
    """A running ``mosquitto_sub``."""

    def __init__(self, arguments: list[str]) -> None:
        # It writes into a pipe, where the C library would buffer lines.
        self.process = subprocess.Popen(
            ["stdbuf", "-oL", *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.wait_for("received SUBACK")

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line.rstrip("\n"))
        self._lines.put(None)

    def wait_for(self, text: str) -> str:
        """Return the next line of output that contains *text*."""
        seen: list[str] = []
        while True:
            line = self._lines.get(timeout=PATIENCE)
            assert line is not None, f"{text!r} was expected before the end: {seen}"
            seen.append(line)
            if text in line:
                return line

    def end(self) -> int:
        """Wait until the program has ended by itself; return its exit code."""
        return self.process.wait(timeout=PATIENCE)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.process.terminate()
        self.process.wait(timeout=PATIENCE)
        self._reader.join(timeout=PATIENCE)
        assert self.process.stdout is not None
        self.process.stdout.close()
