"""What would another CRL, other trust anchors do? Asked of a running broker, which changes nothing by it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from broker.cli import app
from tests.support.broker_process import BrokerProcess
from tests.support.crl import crl, impostor_of, pem
from tests.support.listed import ListedBroker
from tests.support.pki import Pki, pem_of


@pytest.fixture(scope="module")
def listed(tmp_path_factory: pytest.TempPathFactory, pki: Pki) -> Iterator[ListedBroker]:
    broker = ListedBroker(tmp_path_factory.mktemp("dry-run"), pki)
    with broker.process:
        yield broker


def asked(broker: BrokerProcess, *arguments: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, [*arguments, "--state-dir", str(broker.dir / "state")], terminal_width=200)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout, done.stderr


def tried(listed: ListedBroker, path: Path) -> list[dict[str, Any]]:
    _, output, errors = asked(listed.process, "crl", "try", str(path), "--json")
    assert errors == ""
    found: list[dict[str, Any]] = json.loads(output)["lists"]
    return found


def test_a_list_that_is_tried_names_those_it_would_put_out_and_puts_nobody_out(
    listed: ListedBroker, name: str, tmp_path: Path
) -> None:
    device, other = listed.pki.device(name), listed.pki.device(f"other-{name}")
    listed.revoke()  # Nobody: whom another test has revoked is released.
    proposed = tmp_path / "proposed.crl"
    gone = {device.certificate.serial_number: None, 4711: None}
    proposed.write_bytes(crl(listed.pki.issuing, gone, number=listed.number + 1, age=timedelta(minutes=2)))
    with listed.client(device) as client, listed.client(other) as neighbour:
        client.connect(client_id=name)
        neighbour.connect()
        code, output, _ = asked(listed.process, "crl", "try", str(proposed))
        client.check_alive()
        neighbour.check_alive()
        (facts,) = tried(listed, proposed)
        listed.revoke(device)
        client.farewell()
        (after,) = tried(listed, proposed)
    assert code == 0
    assert f"revokes 2, releases 0; would disconnect 1 of 2 clients: {name} (certificate " in output
    assert (facts["newly_revoked"], facts["connected"], facts["disconnected"]) == (2, 2, 1)
    assert (after["used"], after["code"]) == (False, "CRL_OLDER"), "the same number, a minute older"


def test_a_delta_is_tried_with_the_base_that_comes_with_it(listed: ListedBroker, name: str, tmp_path: Path) -> None:
    device, other = listed.pki.device(name), listed.pki.device(f"other-{name}")
    base, delta = tmp_path / "base.crl", tmp_path / "delta.crl"
    number = listed.number + 5
    base.write_bytes(crl(listed.pki.issuing, [device], number=number))
    delta.write_bytes(crl(listed.pki.issuing, [other], number=number + 1, base=number))
    with listed.client(device) as client, listed.client(other) as neighbour:
        client.connect(client_id=name)
        neighbour.connect()
        code, output, _ = asked(listed.process, "crl", "try", str(delta), str(base))
        client.check_alive()
        neighbour.check_alive()
    of_delta, of_base = output.splitlines()
    assert code == 0
    assert of_base.startswith(f"list {number} of CN=Test Issuing CA, 1 entries: ")
    assert "would disconnect 1 of 2 clients" in of_base
    assert of_delta.startswith(
        f"list {number + 1} (a delta, with its base {number}) of CN=Test Issuing CA, 2 entries: "
    )
    assert "would disconnect 2 of 2 clients" in of_delta
    assert tried(listed, delta)[0]["code"] == "CRL_NO_BASE"  # Nothing of the trial was kept.


def test_a_list_that_would_not_be_used_says_why(listed: ListedBroker, tmp_path: Path) -> None:
    issuing, number = listed.pki.issuing, listed.number + 5
    proposed = tmp_path / "proposed.pem"
    proposed.write_bytes(
        pem(
            crl(issuing, signed_by=impostor_of(issuing), number=number),
            crl(issuing, number=number, base=number - 1),
            crl(issuing, number=number, age=-timedelta(hours=1)),
        )
    )
    code, output, _ = asked(listed.process, "crl", "try", str(proposed))
    assert code == 1
    assert [line.split(": ")[1] for line in output.splitlines()] == [
        "CRL_BAD_SIGNATURE",
        "CRL_NO_BASE",
        "CRL_NOT_YET_VALID",
    ]
    proposed.write_bytes(b"no list")
    assert [each["code"] for each in tried(listed, proposed)] == ["CRL_MALFORMED"]


def test_crl_status_tells_the_age_and_the_end_of_each_list(listed: ListedBroker, name: str) -> None:
    listed.revoke(listed.pki.device(name))
    code, output, _ = asked(listed.process, "crl", "status")
    assert code == 0
    assert "current" in output
    assert f"CN=Test Issuing CA  {listed.number}" in output
    _, output, _ = asked(listed.process, "crl", "status", "--json")
    document = json.loads(output)
    mine = next(each for each in document["lists"] if each["number"] == listed.number)
    assert (mine["state"], mine["entries"], mine["delta"]) == ("current", 1, False)
    assert mine["this_update"] < mine["late_from"] < mine["next_update"]
    assert document["policies"] == {"cafile": "require"}
    assert document["entries"]["crl"] >= 1


def test_a_late_list_is_in_the_exit_code_of_crl_status(tmp_path: Path, pki: Pki) -> None:
    listed = ListedBroker(
        tmp_path, pki, pem(crl(pki.root), crl(pki.issuing, life=timedelta(hours=4), age=timedelta(hours=3, minutes=30)))
    )
    with listed.process as broker:
        code, output, _ = asked(broker, "crl", "status")
        assert broker.events("CRL_LATE")
    assert code == 1
    assert "late" in output


def test_a_broker_without_lists_says_that_it_uses_none(broker: BrokerProcess, pki: Pki, tmp_path: Path) -> None:
    proposed = tmp_path / "proposed.crl"
    proposed.write_bytes(crl(pki.issuing))
    code, _, errors = asked(broker, "crl", "try", str(proposed))
    assert code == 1
    assert "uses no CRLs" in errors


def test_anchors_that_are_tried_name_those_they_would_put_out(listed: ListedBroker, name: str, tmp_path: Path) -> None:
    stranger, proposed = Pki(), tmp_path / "anchors.pem"
    proposed.write_bytes(pem_of(stranger.root.certificate))
    with listed.client(listed.pki.device(name)) as client:
        client.connect(client_id=name)
        code, output, _ = asked(listed.process, "reload", "--dry-run", "--anchors", str(proposed))
        assert code == 0
        assert output.startswith("trust: would be reloaded: 1 trust anchor; would disconnect 1 of 1 clients: ")
        assert "UNTRUSTED_ISSUER" in output
        proposed.write_bytes((listed.process.dir / "anchors.pem").read_bytes() + pem_of(stranger.root.certificate))
        _, output, _ = asked(listed.process, "reload", "--dry-run", "--anchors", str(proposed))
        assert "would disconnect 0 of 1 clients" in output
        client.check_alive()
    proposed.write_text("none")
    code, output, _ = asked(listed.process, "reload", "--dry-run", "--anchors", str(proposed))
    assert (code, output.split(":")[:2]) == (1, ["trust", " would be refused"])
    code, output, _ = asked(listed.process, "reload", "--dry-run", "--anchors", str(proposed), "--bundle", "plant-9")
    assert (code, "plant-9 is unknown" in output) == (1, True)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--anchors", "x"], "only with --dry-run"),
        (["--dry-run", "--bundle", "x"], "give --anchors"),
        (["--dry-run", "--anchors", "/nowhere"], "/nowhere cannot be read: No such file or directory"),
        (["--dry-run", "--anchors", "/bin/true"], "/bin/true is no text: give CA certificates in PEM"),
    ],
)
def test_wrong_usage_of_reload_is_explained(listed: ListedBroker, arguments: list[str], words: str) -> None:
    code, _, errors = asked(listed.process, "reload", *arguments)
    assert (code, words in errors) == (2, True)
