"""What the devices of a fleet present to be enrolled, for every way that a group may allow (`docs/enrolment.md`).

Theory
------
A group names ways, and each alternative may combine several (`claim+approval`). The service judges; a device presents
all that it was given: a one-time token, the claim of its batch, its manufacturer's certificate, or just a key that
someone has put on a list or approves.

Rules
-----
1. If the service recognises a device by its key, the key is on disk before the service has seen it: an interrupted
   device returns under the same identity, and gets what it was granted.
2. A provisional certificate (from a claim) is activated at once; it is never kept.
3. The approver approves a request only if name and key are those of a device of this fleet.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from device_sim.backoff import Backoff
from device_sim.credentials.certification import CertificateAuthority, idevid
from device_sim.credentials.credential import HeldCredential
from device_sim.credentials.fleet_directory import FleetUnusable
from provisioning.client.csr import build_csr
from provisioning.client.enrolment import EnrolmentOperatorClient
from provisioning.client.est import EnrolmentPending, EnrolmentUnavailable, EstClient
from provisioning.pki.keys import PrivateKey
from provisioning.pki.tls import CredentialFiles

_ATTEMPTS = 5
_BACKOFF = Backoff(base=0.2, cap=3.0)
_LOOK_AGAIN = 0.5
_ASK_AGAIN = 5.0


class Way(StrEnum):
    """A way into a group. A webhook asks the service's owner, not the device."""

    TOKEN = "token"  # noqa: S105 - the name of a way
    CLAIM = "claim"
    MANUFACTURER = "manufacturer"
    LISTED = "listed"
    APPROVAL = "approval"
    WEBHOOK = "webhook"


_BY_KEY = frozenset({Way.CLAIM, Way.MANUFACTURER, Way.LISTED, Way.APPROVAL})


def ways_of(text: str) -> frozenset[Way]:
    """Return the ways in *text*, as in ``claim+approval``. Raises `ValueError`, which names the valid ones."""
    try:
        return frozenset(Way(word) for word in text.split("+"))
    except ValueError:
        raise ValueError(f"{text}: write one of {', '.join(Way)}, or several with + between them") from None


@dataclass(frozen=True, slots=True)
class Given:
    """What the fleet's owner has for its devices. *decides* is whether the owner approves their requests here."""

    ways: frozenset[Way] = frozenset({Way.TOKEN})
    claim: CredentialFiles | None = None
    manufacturer: CertificateAuthority | None = None
    decides: bool = False
    life: float | None = None
    """Lifetime in seconds requested for a token's certificate, if not the default."""

    def __post_init__(self) -> None:
        for way, thing, option in (
            (Way.CLAIM, self.claim, "--claim"),
            (Way.MANUFACTURER, self.manufacturer, "--manufacturer-cert and --manufacturer-key"),
        ):
            if (way in self.ways) != (thing is not None):
                raise ValueError(f"--way {way} and {option} go together: give both, or neither")

    @property
    def keeps_keys(self) -> bool:
        """Whether the service recognises a device by its key (rule 1)."""
        return bool(self.ways & _BY_KEY)


class Evidence:
    """Gets certificates for the devices of one group. Created by `presenting`."""

    def __init__(
        self, given: Given, group: str, url: str, anchors: Path, operator: EnrolmentOperatorClient, est: EstClient
    ) -> None:
        self.keeps_keys = given.keeps_keys
        self._given = given
        self._group = group
        self._url = url
        self._anchors = anchors
        self._operator = operator
        self._est = est
        self._tokens: dict[str, str] = {}
        self._name_prefix: str | None = None
        self._undecided: dict[tuple[str, str], asyncio.Event] = {}
        self._randomness = random.Random()  # noqa: S311 - pauses only

    async def prepare(self, batch: Mapping[str, PrivateKey]) -> None:
        """Do what an operator does in advance for devices with these names and keys."""
        ways = self._given.ways
        if Way.TOKEN in ways:
            life = self._given.life
            issued = await self._operator.create_tokens(
                devices=list(batch), group=self._group, lifetime_seconds=None if life is None else round(life)
            )
            self._tokens = {token.device or "": token.token for token in issued}
        if Way.LISTED in ways:
            listed = await self._operator.list_devices(
                self._group, [(name, fingerprint(key)) for name, key in batch.items()]
            )
            if listed.errors:
                wrong = listed.errors[0]
                raise FleetUnusable(f"group {self._group} does not list {list(batch)[wrong.index]}: {wrong.detail}")

    async def certify(self, name: str, key: PrivateKey) -> HeldCredential:
        """Return the certificate of *name* for *key*.

        Raises `provisioning.client.est.EnrolmentRefused`, or `EnrolmentUnavailable` after the last attempt; waits for
        an operator's decision as long as it takes.
        """
        async with AsyncExitStack() as stack:
            est = self._est
            if self._given.manufacturer is not None:
                number = name.removeprefix(await self._prefix(self._given.manufacturer))
                presented = idevid(self._given.manufacturer, number)
                domain = self._operator.trust_domain
                est = await stack.enter_async_context(
                    EstClient(self._url, self._anchors, presented, connections=1, trust_domain=domain)
                )
            certificate = await self._asked(est, name, key)
        held = HeldCredential.of(certificate, key, name=name)
        if Way.CLAIM in self._given.ways:
            async with EstClient(self._url, self._anchors, held.pem, connections=1) as est:
                held = HeldCredential.of(
                    await est.reenrol(build_csr(key, held.identity, like=certificate)), key, name=name
                )
        return held

    async def _asked(self, est: EstClient, name: str, key: PrivateKey) -> x509.Certificate:
        csr, failed = build_csr(key, name), 0
        # A token names its group; for every other way the request names it.
        label = None if self._given.ways == {Way.TOKEN} else self._group
        while True:
            try:
                return await est.enrol(csr, user=name, token=self._tokens.get(name), label=label)
            except EnrolmentPending as error:
                await self._decision(name, key, error.retry_after or _ASK_AGAIN)
            except EnrolmentUnavailable as error:
                failed += 1
                if failed == _ATTEMPTS:
                    raise
                await asyncio.sleep(error.retry_after or _BACKOFF.pause(failed - 1, self._randomness))

    async def _decision(self, name: str, key: PrivateKey, longest: float) -> None:
        """Return when a decision about *name* may have been made."""
        if not self._given.decides:
            await asyncio.sleep(longest)
            return
        decided = self._undecided.setdefault((name, fingerprint(key)), asyncio.Event())
        await decided.wait()

    async def decide(self) -> None:
        """Approve the requests of the fleet's devices (rule 3), until cancelled."""
        while True:
            if self._undecided:
                async for request in self._operator.approvals(group=self._group, state="pending"):
                    asked = (request.name, request.key_sha256)
                    if asked in self._undecided:
                        await self._operator.decide(request.id, approve=True)
                        self._undecided.pop(asked).set()
            await asyncio.sleep(_LOOK_AGAIN)

    async def _prefix(self, authority: CertificateAuthority) -> str:
        if self._name_prefix is None:
            known = authority.certificate.fingerprint(hashes.SHA256()).hex()
            async for manufacturer in self._operator.manufacturers():
                if manufacturer.fingerprint_sha256 == known and manufacturer.ended_at is None:
                    self._name_prefix = manufacturer.name_prefix
                    break
            else:
                raise FleetUnusable(
                    "the service does not know this manufacturer: `fleet-provisioning manufacturer add NAME "
                    f"--group {self._group} --certificate …` first"
                )
        return self._name_prefix


@asynccontextmanager
async def presenting(
    given: Given, group: str, url: str, anchors: Path, operator: EnrolmentOperatorClient, connections: int
) -> AsyncIterator[Evidence]:
    """Yield an object that gets certificates for devices of *group* from the service at *url*."""
    claim = given.claim
    domain = operator.trust_domain
    async with (
        EstClient(url, anchors, claim, connections=connections, trust_domain=domain) as est,
        asyncio.TaskGroup() as tasks,
    ):
        evidence = Evidence(given, group, url, anchors, operator, est)
        deciding = tasks.create_task(evidence.decide(), name="approvals") if given.decides else None
        yield evidence
        if deciding is not None:
            deciding.cancel()


def fingerprint(key: PrivateKey) -> str:
    """Return the SHA-256 of the public key's SubjectPublicKeyInfo, in hexadecimal."""
    spki = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(spki).hexdigest()
