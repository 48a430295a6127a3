"""What is said beside the tokens that were made."""

from __future__ import annotations

import asyncio
import socket
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from provisioning.client.enrolment import EnrolmentOperatorClient
from provisioning.client.operator import RequestRefused, ServiceFails, ServiceUnavailable
from provisioning.client.operator_answers import DeviceSearch, IssuedToken
from provisioning.commands.operator_commands import _status_rows
from provisioning.commands.service_command import Connection
from provisioning.commands.token_commands import _say_if_new, create_batch
from provisioning.pki.role import Role
from provisioning.pki.tls import TlsConfigurationError
from tests.support.pki import shared_device, shared_pki


async def test_a_token_that_was_made_is_no_failure_because_a_question_after_it_is_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # Taken, and nobody listens.
        address = f"https://127.0.0.1:{nobody.getsockname()[1]}"
        async with EnrolmentOperatorClient(address, shared_pki().anchors, shared_device("anna").credential) as client:
            await _say_if_new(client, "west")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (
            httpx.Response(503, json={"code": "UNAVAILABLE", "detail": "try again later"}),
            "ServiceFails: the provisioning service at https://ca failed: UNAVAILABLE: try again later",
        ),
        (httpx.Response(500, text="oops"), "ServiceFails: the provisioning service at https://ca failed: status 500"),
        (httpx.Response(502, json=[]), "ServiceFails: the provisioning service at https://ca failed: status 502"),
        (httpx.Response(404, json={"code": "X", "title": "none"}), "RequestRefused: X: none"),
        (
            httpx.Response(404, json={"code": "NOT_FOUND", "detail": "x"}),
            "RequestRefused: NOT_FOUND: x; the service at https://ca knows no such request: if it is older, update it",
        ),
        (
            httpx.Response(404, text="<html>"),
            "RequestRefused: Not Found from https://ca; name the first address of its ready line",
        ),
    ],
)
async def test_why_a_service_fails_is_told(answer: httpx.Response, said: str) -> None:
    async with EnrolmentOperatorClient("https://ca", shared_pki().anchors, shared_device("anna").credential) as client:
        error = client._refusal(answer)
    assert isinstance(error, (ServiceFails, RequestRefused))
    assert f"{type(error).__name__}: {error}" == said


async def test_an_older_service_that_lists_everybody_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """It leaves out of account what it does not know: what is shown may be decommissioned by whoever reads it."""
    device = {
        "name": "m-1", "role": "device", "group": "north", "state": "active", "created_at": "2026-11-27T12:00:00Z",
        "certificates": 1,
    }  # fmt: skip

    async def answer(*_arguments: object, **_named: object) -> httpx.Response:
        return httpx.Response(200, json={"items": [device], "next": None})

    async with EnrolmentOperatorClient("https://ca", shared_pki().anchors, shared_device("anna").credential) as client:
        monkeypatch.setattr("provisioning.client.operator.ask", answer)
        assert [each.name async for each in client.devices(state="active")] == ["m-1"]
        searches: list[DeviceSearch] = [{"certificate": "expired"}, {"claim": "batch"}, {"manufacturer": "acme"}]
        for search in searches:
            (what,) = search
            with pytest.raises(ServiceUnavailable, match=f"https://ca is older and cannot search by {what}: "):
                [each async for each in client.devices(**search)]


def test_an_address_that_is_empty_is_not_that_of_the_service_here(tmp_path: Path) -> None:
    """A variable that was not set had a device of another service revoked."""
    with pytest.raises(TlsConfigurationError, match="'' is no address of a provisioning service"):
        Connection(directory=tmp_path, url="").client()


def test_the_status_says_one_of_one_and_which_devices_have_nothing_to_show() -> None:
    found = {
        "devices": {"active": 3, "suspended": 0},
        "active_devices_without_certificate": 1,
        "certificates": {"active": 2},
        "tokens": {"open": 1},
        "feed": {"sequence": 4, "subscribers": 1},
        "crls": {
            name: {"number": 7, "entries": entries, "next_update": "2027-01-05T10:00:00+00:00"}
            for name, entries in (("root-ca", 1), ("issuing-ca", 2))
        },
    }
    assert list(_status_rows(found)) == [
        ("devices", "3 active (1 of them without a good certificate), 0 suspended"),
        ("certificates", "2 active"),
        ("tokens", "1 open"),
        ("feed", "at 4, 1 follower"),
        ("CRL root-ca", "number 7, 1 entry, lapses 2027-01-05 10:00:00 UTC"),
        ("CRL issuing-ca", "number 7, 2 entries, lapses 2027-01-05 10:00:00 UTC"),
    ]


@pytest.mark.parametrize(
    ("interrupted", "said"),
    [
        (0, "perhaps the first 500 of 1100 tokens were made, and nobody has seen them: token list --state open"),
        (2, "the first 1000 of 1100 tokens are in {}, and perhaps the 100 that follow were made, and nobody has seen"),
    ],
)
def test_of_a_batch_that_is_interrupted_the_tokens_are_told_that_nobody_has_seen(
    interrupted: int,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Whoever presses Ctrl-C does not know whether the service has made those that it was asked for."""
    asked = 0

    class Interrupted:
        async def create_tokens(self, *, count: int, **_rules: object) -> list[IssuedToken]:
            nonlocal asked
            if asked == interrupted:
                raise asyncio.CancelledError
            asked += 1
            at = datetime(2027, 1, 1, tzinfo=UTC)
            return [IssuedToken(group="west", role=Role.DEVICE, token="t", expires_at=at, id=1)] * count

    monkeypatch.setattr(Connection, "run", lambda _, command: asyncio.run(command(Interrupted())))
    output = tmp_path / "tokens.csv"
    nowhere = dict.fromkeys(("directory", "url", "cafile", "cert", "key"))
    given = dict.fromkeys(("devices_file", "ttl", "lifetime"))
    with pytest.raises(asyncio.CancelledError):
        create_batch(output=output, count=1100, group="west", role=Role.DEVICE, as_json=False, **given, **nowhere)
    assert said.format(output) in capsys.readouterr().err
    assert output.exists() == bool(interrupted)
