"""The life cycle of a fleet's root: succeeded by one that the old one certifies, retired when nothing is under it.

Theory
------
Two certificates carry trust between the roots (RFC 7030 §4.1.3): the new key certified by the old root, for parties
that trust only the old one, and the old key certified by the new one. They are published with the roots, so parties may
switch in any order. The next issuing CA is signed by the new root (`provisioning.authorities.next_authority`).

A certificate between roots lasts as long as they do. So by itself the end of the old root would change nothing: whoever
has its key presents, with a CA of his own making, the certificate by which the new root vouches for that key.

Rules
-----
1. A root with an issuing CA under it is not retired, and neither is the last root, nor one by which others are
   connected; that is asked once more in the transaction, as another host may change it meanwhile. By which certificates
   others vouch for its key, is revoked: the feed says so, and their CRLs, which are signed at once, as the service may
   not be able to open a root's key, and the old key is destroyed after this (`provisioning.authorities.owed_lists`).
   One that was retired by a version that did not do that may be retired again, and one whose CRLs could not be signed.
2. A new root has a new key, made where the settings say; if a later step fails, the key is deleted, unless the root is
   recorded all the same, or may be: whoever waits for a commit can be cancelled, the commit cannot, and its answer may
   be lost. So is a key file whose name another host has given its own root; not one in a token, which both may use.
3. A key that waits for its root, as that of a ceremony that was killed, is used by the next one.
4. A new root's first CRL is signed with it: certificates name it, and the key may leave at once. A ceremony that ends
   before that leaves it to the service.
5. A new root's key in a file has the passphrase of the old one's: those who keep the root may have one of their own. If
   the old one is in a token, it is that of the issuing CAs' files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial

from sqlalchemy.engine import Connection
from sqlalchemy.exc import IntegrityError

from provisioning.authorities.authority import root_crl_plan, urls_of_root
from provisioning.authorities.authority_life import AuthorityLife
from provisioning.authorities.ceremony_transcript import facts_of, operator_name
from provisioning.authorities.owed_lists import BY, OwedLists, unlisted, vouching_for
from provisioning.ca.ceremony import CertificateAuthority, RootSuccession, succeed_root
from provisioning.errors import ConfigurationError, Refused
from provisioning.pki.issued_by import is_issued_by
from provisioning.pki.keys import PrivateKey
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.revocation.grounds import Grounds
from provisioning.revocation.of_authority import revoke_cross
from provisioning.revocation.publisher import CrlPlan, CrlPublisher
from provisioning.store import authorities, serials
from provisioning.store.audit import Action
from provisioning.store.authorities import AuthorityKind, AuthorityState, StoredAuthority, described


@dataclass(frozen=True, slots=True)
class RootLife:
    """The root's ceremonies, on the same directory, store and transcript as the issuing CAs'."""

    life: AuthorityLife

    async def begin(self, *, another: bool = False) -> str:
        """Make a successor of the newest root, with the certificates between the two; return its name.

        *another*: even if the newest one is not in use yet.
        """
        old = await self.life.newest_root()
        found = await self.life.every()
        if not another and not _under(old, found):
            raise ConfigurationError(
                f"{old.name} is the next root already, and no issuing CA is under it yet: ca rollover begin has it "
                f"sign one, ca root retire {old.name} ends it, --another makes one more after it"
            )
        settings, name = self.life.settings, f"root-{sum(each.kind is AuthorityKind.ROOT for each in found) + 1}"
        old_key = self.life.places.open_for(old.name, old.certificate)
        waiting = self.life.places.open_waiting(name) if self.life.places.holds(name) else None
        if waiting is None and not self.life.places.in_file(old.name):  # Rule 5: its own passphrase has opened it.
            self.life.check_passphrase(found)
        self.life.transcript.begin()
        key, signer = self.life.places.create(name) if waiting is None else (waiting, None)
        numbers = (serials.new_serial(), serials.new_serial(), serials.new_serial())
        may_be_recorded = False
        try:
            await self.life.log_step(Action.SIGNING_CA, name, {"root": name, "cross": old.name})
            succession = succeed_root(
                CertificateAuthority(old.certificate, old_key),
                key,
                settings.trust_domain,
                numbers,
                self.life.clock(),
                (urls_of_root(settings, old.name), urls_of_root(settings, name)),
            )
            record = partial(self._record, name=name, old=old.name, succession=succession, now=self.life.clock())
            may_be_recorded = True
            try:
                await self.life.database.write(record)
            except IntegrityError as error:
                raise ConfigurationError(
                    f"{name} was made by another command at the same time: see ca list, and start again"
                ) from error
        except BaseException as error:
            if signer is not None and (not may_be_recorded or await self._is_surely_not_recorded(name, key, error)):
                await self.life.discard(name, signer, key)
            raise
        transcript = self.life.transcript
        transcript.say(f"Key of {name}: {self.life.places.place(name)}")
        transcript.certificate(f"New root {name}", succession.new_root)
        transcript.certificate("New key certified by the old root", succession.new_with_old)
        transcript.certificate("Old key certified by the new root", succession.old_with_new)
        await self.life.write_files(name)
        plan = root_crl_plan(settings, self.life.places, name, succession.new_root)
        await CrlPublisher(self.life.database, plan, self.life.clock).start()
        return name

    def _record(
        self, connection: Connection, *, name: str, old: str, succession: RootSuccession, now: datetime
    ) -> None:
        """Record the root called *name* and the certificates between it and the *old* one, if that is still in use."""
        _check_stays(old, authorities.every(connection, for_update=True))
        for each, kind, certificate in (
            (name, AuthorityKind.ROOT, succession.new_root),
            (f"{name}{BY}{old}", AuthorityKind.CROSS, succession.new_with_old),
            (f"{old}{BY}{name}", AuthorityKind.CROSS, succession.old_with_new),
        ):
            authorities.add(connection, each, kind, AuthorityState.ACTIVE, certificate, now)
            self.life.note(connection, Action.CA_SIGNED, each, facts_of(certificate))

    async def _is_surely_not_recorded(self, name: str, key: PrivateKey, error: BaseException) -> bool:
        if isinstance(error, Refused):  # The server may be about to commit what it was sent before it was lost.
            return False
        try:  # Behind the transaction, whoever waited for that: a reader would not see what is about to be committed.
            found = await self.life.database.write(authorities.every)
        except Refused:
            return False
        recorded = next((each.certificate for each in found if each.name == name), None)
        if recorded is None:
            return True
        return self.life.places.in_file(name) and recorded.public_key() != key.public_key()

    async def retire(self, name: str, *, apart: bool = False) -> Sequence[str]:
        """End a root under which no trusted issuing CA is left; return the certificates by which others vouched for it.

        Those are revoked, and in the newest CRLs. *apart*: even if others are connected by this root alone.
        """
        now, by = self.life.clock(), operator_name()
        found = await self.life.every()
        owed = await self.life.database.read(partial(unlisted, name=name, found=found, now=now))
        _check_unused(name, found, owed)
        if not apart:
            _check_connects_none(name, found)
        crosses = [*vouching_for(name, found), *owed]
        lists, unsigned = OwedLists(self.life).signable(crosses, found, apart=apart)
        self.life.transcript.begin()

        def transaction(connection: Connection) -> Sequence[str]:
            found = authorities.every(connection, for_update=True)
            _check_unused(name, found, owed)
            if not apart:
                _check_connects_none(name, found)
            revoked = vouching_for(name, found)
            if {each.name for each in revoked} - {each.name for each in crosses}:
                raise ConfigurationError(f"another root vouches for {name} since this was begun: run it again")
            for each in revoked:
                revoke_cross(connection, each, Grounds(RevocationReason.CESSATION_OF_OPERATION), by=by, now=now)
            for each in found:
                if each.state.trusted and each not in revoked and name in each.name.split(BY):
                    authorities.set_state(connection, each.name, AuthorityState.RETIRED, now)
                    self.life.note(connection, Action.CA_CHANGED, each.name, {"state": AuthorityState.RETIRED})
            return [each.name for each in (*revoked, *owed)]

        revoked = await self.life.database.write(transaction)
        await self._tell(name, lists, unsigned, revoked)
        return revoked

    async def _tell(
        self, name: str, lists: Sequence[CrlPlan], unsigned: Sequence[ConfigurationError], revoked: Sequence[str]
    ) -> None:
        """Write the files and sign the CRLs, also if the files cannot be written; then raise what is not done."""
        unwritten: ConfigurationError | None = None
        try:
            await self.life.write_files()
        except ConfigurationError as error:  # The CRL is owed all the same.
            unwritten = error
        try:
            for plan in lists:
                await CrlPublisher(self.life.database, plan, self.life.clock).publish()
        except (ConfigurationError, Refused) as error:
            also = "" if unwritten is None else f"{unwritten}; "
            raise ConfigurationError(
                f"{also}{error}; {name} is retired all the same, but keep its key until a CRL of {lists[0].name} ends "
                f"{' and '.join(revoked)}: run this again, or the service signs it, with that root's key"
            ) from error
        if unwritten is not None:
            raise unwritten
        if unsigned:
            raise ConfigurationError(
                f"{'; '.join(map(str, unsigned))}; {name} is retired all the same, but keep its key until that is "
                "signed, too: run this again with --apart and the passphrase of that root"
            )


def _check_stays(name: str, found: Sequence[StoredAuthority]) -> None:
    """Raise `ConfigurationError` if *name* is no root any more: the next one would vouch for its key."""
    if name not in {each.name for each in authorities.trusted_roots(found)}:
        raise ConfigurationError(f"{name} was retired meanwhile, by another command: start again, with a root in use")


def _check_unused(name: str, found: Sequence[StoredAuthority], owed: Sequence[StoredAuthority]) -> None:
    """Raise `ConfigurationError` unless *name* is a root to retire, or one that is retired and still vouched for."""
    roots = authorities.trusted_roots(found)
    chosen = next((each for each in roots if each.name == name), None)
    if chosen is None:
        if owed or vouching_for(name, found):
            return
        raise ConfigurationError(f"there is no root {name!r} to retire; there are {described(roots)}")
    under = _under(chosen, found)
    if under or len(roots) == 1:
        live = "live" if len(under) > 1 else "lives"
        what = f"{', '.join(under)} {live} under it" if under else "it is the only one"
        raise ConfigurationError(f"{name} cannot be retired: {what}")


def _check_connects_none(name: str, found: Sequence[StoredAuthority]) -> None:
    """Raise `ConfigurationError` if two roots that stay vouch for each other only by the one called *name*."""
    roots = [each.name for each in authorities.trusted_roots(found)]
    if name not in roots:
        return
    others = [each for each in roots if each != name]
    lost = _connected(others[0], found) - _connected(others[0], found, without=name)
    if apart := sorted(lost.intersection(others)):
        raise ConfigurationError(
            f"{name} cannot be retired: only by it {others[0]} and {', '.join(apart)} vouch for each other, so who "
            f"knows one of them would be cut off from what is below the other: retire {others[0]} first, or, if its "
            "key was stolen, say --apart"
        )


def _connected(root: str, found: Sequence[StoredAuthority], *, without: str = "") -> set[str]:
    """Return *root*, and the roots that certificates between roots connect it with, but by the one called *without*."""
    pairs = [each.name.split(BY) for each in found if each.kind is AuthorityKind.CROSS and each.state.trusted]
    reached, before = {root}, set[str]()
    while reached != before:
        before = set(reached)
        reached |= {each for pair in pairs if without not in pair and before.intersection(pair) for each in pair}
    return reached


def _under(root: StoredAuthority, found: Sequence[StoredAuthority]) -> list[str]:
    """Return the names of the issuing CAs in use under *root*."""
    return [
        each.name
        for each in found
        if each.kind is AuthorityKind.ISSUING
        and each.state.trusted
        and is_issued_by(each.certificate, root.certificate)
    ]
