"""curl, as a third-party client."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from email.message import Message
from email.parser import BytesHeaderParser
from pathlib import Path

from provisioning.pki.tls import CredentialFiles

HOW_IT_IS_SENT = {
    "announced": (),
    "in chunks": ("--header", "Transfer-Encoding: chunked"),
    # Long after what waits for it has given up, it would be sent without having been asked for.
    "asked for first": ("--header", "Expect: 100-continue", "--expect100-timeout", "55"),
    "by HTTP/1.0": ("--http1.0",),
}
"""Options for each way of sending a body that a server of HTTP must take (RFC 9112 §6, RFC 9110 §10.1.1)."""


@dataclass(frozen=True)
class CurlAnswer:
    """One HTTP response."""

    status: int
    headers: Message
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()


@dataclass(frozen=True)
class Curl:
    """Runs curl against one service; *anchors* as --cacert, *credential* as --cert and --key."""

    base_url: str
    anchors: Path | None = None
    credential: CredentialFiles | None = None

    def arguments(self, path: str, *options: str) -> list[str]:
        """Return the command line."""
        line = ["curl", "--silent", "--show-error", "--max-time", "60"]
        if self.anchors is not None:
            line += ["--cacert", str(self.anchors)]
        if self.credential is not None:
            line += ["--cert", str(self.credential.certificate), "--key", str(self.credential.key)]
        return [*line, *options, self.base_url + path]

    def run(self, path: str, *options: str, data: bytes | None = None) -> CurlAnswer:
        """Send one request; *data* is its body."""
        body = [] if data is None else ["--data-binary", "@-"]
        unasked = [] if "Expect: 100-continue" in options else ["--header", "Expect:"]
        done = subprocess.run(
            self.arguments(path, "--include", *unasked, *options, *body),
            input=data,
            capture_output=True,
            check=False,
            timeout=90,
        )
        assert done.returncode == 0, done.stderr.decode()
        head, _, content = done.stdout.partition(b"\r\n\r\n")
        if head.startswith(b"HTTP/1.1 100 "):
            head, _, content = content.partition(b"\r\n\r\n")
        status_line, _, headers = head.partition(b"\r\n")
        return CurlAnswer(int(status_line.split()[1]), BytesHeaderParser().parsebytes(headers), content)

    def est(self, operation: str, data: bytes, *options: str) -> CurlAnswer:
        """Send an EST request."""
        return self.run(
            f"/.well-known/est/{operation}", "--header", "Content-Type: application/pkcs10", *options, data=data
        )
