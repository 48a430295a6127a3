"""A part is loaded if it is new and good; what is not leaves the one in use."""

from __future__ import annotations

import asyncio
import ssl
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from broker.admission.policy_file import DEFAULT_POLICY_FILE, PolicyError
from broker.credentials.own_certificate import OwnCertificate
from broker.reload.parts import ReloadedCertificate, ReloadedPolicy, Unchanged, describe_certificate
from broker.settings.config import BrokerConfig
from broker.sources.staple import Staple
from provisioning.pki.tls import (
    ClientCertificate,
    CredentialFiles,
    CredentialPem,
    TlsConfigurationError,
    server_context,
)
from tests.support.pki import shared_device, shared_pki
from tests.support.wire import MemoryBroker

PKI = shared_pki()
NOBODY = '[role.service]\npublish.allow = ["#"]\n'


def config(directory: Path, policy: Path | None = None) -> BrokerConfig:
    own = directory / "own.pem"
    return BrokerConfig(cafile=own, certfile=own, keyfile=own, policy_file=policy, unsafe_no_revocation=True)


async def test_a_policy_is_loaded_where_its_text_is_another(tmp_path: Path) -> None:
    broker = MemoryBroker()
    part = ReloadedPolicy(broker.engine, DEFAULT_POLICY_FILE.read_text(), lambda: broker.now)
    assert isinstance(part.load(config(tmp_path), None), Unchanged)
    assert part.files(config(tmp_path)) == []
    file = tmp_path / "policy.toml"
    file.write_text(NOBODY)
    assert part.files(config(tmp_path, file)) == [file]
    client = broker.open(shared_device("meter-1"))
    client.connect(client_id="meter-1")
    loaded = part.load(config(tmp_path, file), None)
    assert not isinstance(loaded, Unchanged)
    detail, effects = await part.preview(loaded)
    assert effects is not None
    assert (detail, effects.disconnected, client.closed) == ("", 1, False)
    _, effects = await part.apply(loaded)
    broker.settle()
    assert effects is not None
    assert (effects.disconnected, client.closed) == (1, True)
    assert isinstance(part.load(config(tmp_path, file), None), Unchanged)
    assert isinstance(part.load(config(tmp_path, file), NOBODY), Unchanged), "what is proposed is what there is"


@pytest.mark.parametrize("proposed", [None, "[role.nobody]"])
def test_a_policy_that_is_wrong_is_named(tmp_path: Path, proposed: str | None) -> None:
    broker = MemoryBroker()
    part = ReloadedPolicy(broker.engine, "", lambda: broker.now)
    file = tmp_path / "policy.toml"
    file.write_text("[role.nobody]")
    with pytest.raises(PolicyError) as caught:
        part.load(config(tmp_path, file), proposed)
    assert str(caught.value).startswith("the proposed policy: " if proposed else f"{file}: ")


def described(files: CredentialFiles) -> str:
    return describe_certificate(CredentialPem.of(files), files.certificate)


@pytest.mark.parametrize(
    ("begins", "ends", "good"), [(-60, 60, True), (-120, -60, False), (60, 120, False)], ids=["now", "over", "to come"]
)
def test_a_certificate_that_is_not_valid_now_is_not_taken(tmp_path: Path, begins: int, ends: int, good: bool) -> None:
    begin, end = (PKI.now + timedelta(minutes=minutes) for minutes in (begins, ends))
    held = PKI.broker(not_before=begin, not_after=end)
    files = held.write(tmp_path)
    if good:
        assert f"{held.certificate.serial_number:x}" in described(files)
        return
    with pytest.raises(TlsConfigurationError, match="is valid from"):
        described(files)


def test_a_certificate_that_is_not_for_servers_is_not_taken(tmp_path: Path) -> None:
    with pytest.raises(TlsConfigurationError, match="is not for servers"):
        described(PKI.device("meter-1").write(tmp_path))


def test_a_file_without_a_certificate_is_named(tmp_path: Path) -> None:
    (tmp_path / "own.pem").write_bytes(b"")
    with pytest.raises(TlsConfigurationError, match=r"own\.pem"):
        described(CredentialFiles(tmp_path / "own.pem", tmp_path / "own.pem"))


class Noted(Staple):
    """A staple that notes in which order it is used."""

    order: list[object]

    def adopt(self, context: ssl.SSLContext) -> None:
        super().adopt(context)
        self.order.append(("adopted", context))

    async def tried(self) -> None:
        await super().tried()
        self.order.append("tried")


async def test_another_certificate_counts_when_a_staple_for_it_was_asked_for(tmp_path: Path) -> None:
    """Else the first who come get it without, and one that must be stapled is refused by them."""
    second = PKI.broker()
    files = PKI.broker().write(tmp_path)
    anchors = PKI.write_anchors(tmp_path)
    settings = BrokerConfig(cafile=anchors, certfile=files.certificate, keyfile=files.key, unsafe_no_revocation=True)
    before = CredentialPem.of(files)
    own = OwnCertificate(files, before)
    staple = Noted(settings, own, MemoryBroker().engine, asyncio.get_running_loop().time)
    staple.order = []

    class Door:
        """A listener, as far as it presents a certificate."""

        def __setattr__(self, name: str, value: object) -> None:
            staple.order.append((name, value))

    def build(credential: CredentialPem) -> ssl.SSLContext:
        return server_context(credential, anchors, client_certificate=ClientCertificate.REQUIRED)

    doors: Any = [Door(), Door()]
    part = ReloadedCertificate(own, build, doors, staple)
    assert part.files(settings) == [files.certificate, files.key]
    assert isinstance(part.load(settings, None), Unchanged)
    second.write(tmp_path)
    loaded = part.load(settings, None)
    assert not isinstance(loaded, Unchanged)
    detail, effects = await part.preview(loaded)
    assert f"serial {second.certificate.serial_number:x}" in detail
    assert (effects, own.credential, staple.order) == (None, before, [])
    running = asyncio.create_task(staple.run())
    assert await part.apply(loaded) == (detail, None)
    presented = ("context", loaded[1])
    assert own.credential == CredentialPem.of(files)
    assert staple.order == [("adopted", loaded[1]), "tried", presented, presented]
    assert isinstance(part.load(settings, None), Unchanged)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
