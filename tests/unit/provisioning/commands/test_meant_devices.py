"""Which devices or certificates a command is about: one way of naming them, each once, a group when it is confirmed."""

from __future__ import annotations

import io
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
import typer
from cryptography.hazmat.primitives.serialization import Encoding

from provisioning.commands.meant_devices import Doing, Meant, Named, confirm
from provisioning.errors import ConfigurationError
from provisioning.program.given_file import SECRET_BYTES
from tests.support.foreign_ca import ForeignCa

SUSPEND = Doing("suspend", lambda device: device.state == "active")
REVOKE = Doing("revoke", lambda device: device.state == "active", for_ever=True)


class Groups:
    """A service whose devices these are, by group: names and states."""

    def __init__(self, **devices: dict[str, str]) -> None:
        self._devices = devices

    def run(self, command: Callable[[Any], Awaitable[None]]) -> None:
        anyio.run(command, self)

    async def devices(
        self, *, group: str | None = None, claim: str | None = None, **_: object
    ) -> AsyncIterator[SimpleNamespace]:
        group = claim or group  # A claim lets in those of one group.
        for each in self._devices if group is None else [group]:
            for name, state in self._devices.get(each, {}).items():
                yield SimpleNamespace(name=name, state=state, group=each)

    async def groups(self) -> AsyncIterator[SimpleNamespace]:
        yield SimpleNamespace(name="configured")


SERVICE: Any = Groups(
    west={"m-1": "active", "m-2": "suspended", "m-3": "active"}, one={"m-4": "active"}, done={"m-5": "suspended"}
)


def answering(monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{answer}\n"))


@pytest.mark.parametrize(
    "named",
    [
        Named(),
        Named(device=[], serial=[]),
        Named(device=["a"], serial=["1"]),
        Named(device=["a"], group="west"),
        Named(devices_file=Path("a"), serials_file=Path("b")),
        Named(device=[], serial=["1"], group=""),
    ],
)
def test_nothing_and_two_ways_of_naming_are_refused(named: Named) -> None:
    with pytest.raises(typer.BadParameter) as caught:
        named.check("device", "serial", "devices_file")
    assert str(caught.value) == "give exactly one of --device, --serial and --devices-file"


@pytest.mark.parametrize(
    "named",
    [
        Named(device=["a", "b"], serial=[]),
        Named(serial=["1"]),
        Named(devices_file=Path("a")),
        Named(device=[], serials_file=Path("a")),
        Named(certificate=[Path("a")]),
        Named(group="west"),
    ],
)
def test_one_way_is_taken(named: Named) -> None:
    named.check("device", "serial", "devices_file", "serials_file", "group")


@pytest.mark.parametrize(
    ("named", "meant"),
    [
        (Named(device=["b", "a", "b"]), Meant("device", ["b", "a"], single=False)),
        (Named(device=["a", "a"]), Meant("device", ["a"], single=True)),
        (Named(serial=["0x0A:bC", "abc", "00ABC"]), Meant("serial", ["abc"], single=True)),
        (Named(serial=["0", "7", "zz", "0x", ":"]), Meant("serial", ["0", "7", "zz", "0x", ":"], single=False)),
    ],
)
def test_what_is_named_is_meant_once_and_written_as_the_service_writes_it(named: Named, meant: Meant) -> None:
    assert named.meant([]) == meant


def test_what_a_file_names_is_a_list_however_short(tmp_path: Path) -> None:
    file = tmp_path / "names"
    file.write_text("m-1\n")
    assert Named(devices_file=file).meant(["m-9"]) == Meant("device", ["m-1"], single=False)
    file.write_text("0A\n0b\n")
    assert Named(serials_file=file).meant([]) == Meant("serial", ["a", "b"], single=False)
    assert Named(group="west").meant(["m-1"]) == Meant("device", ["m-1"], single=False)
    assert Named(group="west").meant([]) == Meant("device", [], single=False)


def test_of_a_certificates_file_only_the_first_certificate_leaves_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own, above = ForeignCa("meter-1").own, ForeignCa().own
    file, der = tmp_path / "meter-1.pem", tmp_path / "meter-1.der"
    file.write_bytes(b"0 of it\n" + own.key_pem + own.pem + above.pem)
    der.write_bytes(own.certificate.public_bytes(Encoding.DER))
    assert Named(certificate=[file, der]).meant([]) == Meant("certificate", [own.pem.decode()], single=False)
    for content in (b"", own.key_pem, b"-----BEGIN CERTIFICATE-----\n"):
        file.write_bytes(content)
        with pytest.raises(typer.Exit):
            Named(certificate=[file]).meant([])
        assert f"{file} has no certificate in PEM or DER" in capsys.readouterr().err
    file.write_bytes(own.pem + b"\n" * SECRET_BYTES)
    with pytest.raises(typer.Exit):
        Named(certificate=[file]).meant([])
    assert f"{file} cannot be read: it has more than 64 KiB" in capsys.readouterr().err


def test_a_file_that_names_nothing_or_is_not_there_ends_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "names"
    for named in (Named(devices_file=file), Named(serials_file=file)):
        file.unlink(missing_ok=True)
        with pytest.raises(typer.Exit) as caught:
            named.meant([])
        said = f"{file} cannot be read: No such file or directory; name one that is there\n"
        assert (caught.value.exit_code, said in capsys.readouterr().err) == (1, True)
        file.write_text("\n")
        with pytest.raises(typer.Exit) as caught:
            named.meant([])
        assert (caught.value.exit_code, str(file) in capsys.readouterr().err) == (1, True)


def test_of_a_group_those_are_meant_of_whom_something_is_left_to_do_once_that_is_confirmed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answering(monkeypatch, "y")
    assert Named(group="west").together(SERVICE, SUSPEND, yes=False) == ["m-1", "m-3"]
    assert "Suspend 2 devices of group west, m-1 to m-3?" in capsys.readouterr().err
    answering(monkeypatch, "y")
    assert Named(group="one").together(SERVICE, REVOKE, yes=False) == ["m-4"]
    assert "Revoke 1 device of group one, m-4, for ever?" in capsys.readouterr().err
    answering(monkeypatch, "n")
    with pytest.raises(typer.Exit):
        Named(group="west").together(SERVICE, SUSPEND, yes=False)
    capsys.readouterr()
    answering(monkeypatch, "n")
    assert Named(group="west").together(SERVICE, SUSPEND, yes=True) == ["m-1", "m-3"]
    assert capsys.readouterr().err == ""
    assert Named(device=["m-1"]).together(SERVICE, SUSPEND, yes=False) == []


def test_those_that_a_claim_let_in_are_meant_together_and_a_claim_may_have_let_in_nobody(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answering(monkeypatch, "y")
    assert Named(claim="west").together(SERVICE, REVOKE, yes=False) == ["m-1", "m-3"]
    assert "Revoke 2 devices of claim west, m-1 to m-3, for ever?" in capsys.readouterr().err
    assert Named(claim="new").together(SERVICE, REVOKE, yes=False) == []
    assert capsys.readouterr().err == "fleet-provisioning: no device of claim new is left to revoke\n"


def test_a_group_in_which_all_is_done_is_no_failure_and_one_that_has_nobody_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answering(monkeypatch, "n")
    assert Named(group="done").together(SERVICE, SUSPEND, yes=False) == []
    assert capsys.readouterr().err == "fleet-provisioning: no device of group done is left to suspend\n"
    for slip, meant in (("dome", "did you mean done"), ("confgured", "did you mean configured"), ("x", "device list")):
        with pytest.raises(ConfigurationError, match=f"group '{slip}' has no device; {meant}"):
            Named(group=slip).together(SERVICE, SUSPEND, yes=True)


def test_who_is_sure_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, "n")
    confirm("Is it?", yes=True)
    with pytest.raises(typer.Exit):
        confirm("Is it?", yes=False)
