"""Scenes for `tests.support.stepped_sqlite`: commands on the CAs, which work on the store and the directory themselves.

    directory = Directory(path)
    every_choice(lambda choices: world.play(directory.two_new_roots, choices, switches=1, coarse=True))

What a ceremony does with its files is between statements of its own; writing the bundle is a step, too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import pytest
from cryptography import x509
from pydantic import SecretStr

from provisioning.authorities import authority_life, own_credentials
from provisioning.authorities.authority_life import AuthorityLife
from provisioning.authorities.ceremony_transcript import Transcript
from provisioning.authorities.next_authority import NextAuthority
from provisioning.authorities.root_life import RootLife
from provisioning.config import Settings
from provisioning.directory.files import ISSUING_CA, ROOT_CA, AuthorityFiles
from provisioning.directory.one_ceremony import ceremony_on
from provisioning.errors import ConfigurationError
from provisioning.pki.keys import key_to_pem, write_private
from provisioning.pki.pem import pem_of
from provisioning.store.authorities import AuthorityKind
from tests.support.fleet import Fleet
from tests.support.process_scenes import DONE, Found, Scene, World
from tests.support.stepped_processes import Act
from tests.support.stepped_sqlite import come

_SECRET: Final = "a passphrase"


class Directory:
    """The directory of the fleet whose CAs are worked on."""

    def __init__(self, path: Path, fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
        self.settings: Final = Settings(directory=path, passphrase=SecretStr(_SECRET))
        self.files: Final = AuthorityFiles(path)
        self.files.audit_key.touch()
        for name, ca in ((ROOT_CA, fleet.authority.root_ca), (ISSUING_CA, fleet.authority.issuing_ca)):
            write_private(self.files.key(name), key_to_pem(ca.key, _SECRET.encode()))
            self.files.certificate(name).write_bytes(pem_of(ca.certificate))
        replace = own_credentials.replace_file

        def step(path: Path, content: bytes) -> None:
            come(f"file {path.name}")
            replace(path, content)

        monkeypatch.setattr(authority_life, "replace_file", step)

    def begin(self, world: World) -> None:
        """Have it as it was founded, whatever an earlier order has left."""
        for table, name in (("authorities", "name"), ("crls", "issuer")):
            gone = f"DELETE FROM {table} WHERE {name} NOT IN (?, ?)"
            world.outsider.session.execute(gone, (ROOT_CA, ISSUING_CA))
        for each in self.settings.directory.iterdir():
            if each.name.partition(".")[0] not in {ROOT_CA, ISSUING_CA, "audit"}:
                each.unlink()

    def life(self, fleet: Fleet) -> AuthorityLife:
        transcript = Transcript("a test", fleet.clock, lambda _line: None)
        return AuthorityLife(self.settings, fleet.database, fleet.clock, transcript)

    def two_new_roots(self, world: World) -> Scene:
        """Two begin the next root at once: whatever becomes of either, a root that is recorded has its key."""
        self.begin(world)
        root = self._said(lambda life: RootLife(life).begin(another=True))
        return Scene({"first": root, "second": root}, at_last=lambda _found: self._fits(world))

    def root_and_issuing_ca(self, world: World) -> Scene:
        """One begins the next root, and another, who knows nothing of him, the next issuing CA: both are told of."""
        self.begin(world)
        acts = {
            "first": self._said(lambda life: RootLife(life).begin(another=True), alone=False),
            "second": self._said(lambda life: NextAuthority(life).begin(another=True), alone=False),
        }
        return Scene(acts, at_last=lambda _found: self._fits(world), may_be=self._both_are_in_the_bundle(world))

    def two_issuing_cas(self, world: World) -> Scene:
        """Two begin the next issuing CA: there is one more, and the other says so."""
        self.begin(world)
        begin = self._said(lambda life: NextAuthority(life).begin(another=True))
        return Scene({"first": begin, "second": begin}, at_last=lambda _found: self._fits(world))

    def _said(self, work: Callable[[AuthorityLife], Awaitable[str]], *, alone: bool = True) -> Act:
        async def act(fleet: Fleet) -> str:
            try:
                with ceremony_on(self.settings.directory) if alone else contextlib.nullcontext():
                    return await work(self.life(fleet))
            except ConfigurationError as error:
                return str(error)

        return act

    def _fits(self, world: World) -> bool:
        """Whether each CA that is recorded has its key."""
        life = self.life(world.second)
        for each in world.stage.processes["second"].call(life.every()):
            if each.kind is not AuthorityKind.CROSS:
                assert life.places.holds(each.name), f"the key of {each.name} is gone"
                life.places.open_for(each.name, each.certificate)
        return True

    def _both_are_in_the_bundle(self, world: World) -> Callable[[Found], bool]:
        def compare(found: Found) -> bool:
            recorded = world.stage.processes["second"].call(self.life(world.second).every())
            known = [each for each in recorded if each.kind is not AuthorityKind.CROSS]
            bundle = x509.load_pem_x509_certificates(self.files.bundle.read_bytes())
            assert set(bundle) == {each.certificate for each in known if each.state.trusted}, "it is of before"
            return set(found.values()) == {DONE}

        return compare
