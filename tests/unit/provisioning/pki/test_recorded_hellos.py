"""No server refuses the hello of a real client: those of sixty clients and settings are sent again."""

from __future__ import annotations

import base64
from functools import cache
from pathlib import Path

import pytest

from provisioning.pki.tls import ClientCertificate, server_context
from tests.support.client_hellos import answer_of
from tests.support.pki import shared_pki

RECORDED = Path(__file__).parents[3] / "support" / "recorded_hellos.txt"
"""Its first lines say what is in it, and how to add one."""
SERVERS = ["broker", "broker-1.2", "provisioning"]
SERVER_HELLO, ALERT = b"\x16\x03\x03", b"\x15\x03\x03\x00\x02\x02"
PROTOCOL_VERSION = 70
FRAGMENT = 16


@cache
def recorded() -> list[tuple[str, str, bytes]]:
    """Return of each hello what becomes of it, who sent it, and its records."""
    lines = [line for line in RECORDED.read_text().splitlines() if not line.startswith("#")]
    rows = [line.split(" | ") for line in lines]
    return [(kind, who, base64.b64decode(hello, validate=True)) for kind, who, hello in rows]


def fragmented(hello: bytes) -> bytes:
    """Return *hello* in records of a few bytes each, as from a device with hardly any memory."""
    place, pieces = 0, []
    while place < len(hello):
        size = int.from_bytes(hello[place + 3 : place + 5])
        body = hello[place + 5 : place + 5 + size]
        parts = [body[start : start + FRAGMENT] for start in range(0, size, FRAGMENT)]
        pieces += [hello[place : place + 3] + len(part).to_bytes(2) + part for part in parts]
        place += 5 + size
    return b"".join(pieces)


def expected(kind: str, *, allow_tls12: bool) -> bytes:
    if kind == "1.3" or (kind == "1.2" and allow_tls12):
        return SERVER_HELLO
    return ALERT + bytes([PROTOCOL_VERSION if kind == "1.2" else int(kind)])


@pytest.mark.parametrize("server", SERVERS)
def test_a_real_client_is_answered(server: str) -> None:
    """Whole, or as small records. Those that are refused on purpose are in the file, too."""
    allow_tls12 = server != "broker"
    context = server_context(
        shared_pki().broker().credential,
        shared_pki().anchors,
        client_certificate=ClientCertificate.REQUIRED,
        allow_tls12=allow_tls12,
        resumes=server != "provisioning",
        remembered_sessions=0 if server == "provisioning" else 100,
    )
    wrong = []
    for kind, who, hello in recorded():
        answer = answer_of(context, fragmented(hello) if server == "provisioning" else hello)
        if not answer.startswith(expected(kind, allow_tls12=allow_tls12)):
            wrong.append((who, answer[:7].hex()))
    assert not wrong
    assert {kind for kind, *_ in recorded()} >= {"1.3", "1.2"}
