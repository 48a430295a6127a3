"""Client of the operators' REST API about enrolment: who may enrol, and how.

The rules are those of `provisioning.client.operator`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime
from typing import Any
from urllib.parse import quote

from provisioning.client.enrolment_answers import (
    Approval,
    ClaimCertificate,
    EnrolmentGroup,
    ExpectedDevice,
    HastenedRenewal,
    IssuedClaimCertificate,
    ListOutcome,
    Manufacturer,
    RecalledDevice,
    RemovedList,
    TakenList,
)
from provisioning.client.operator import OperatorClient
from provisioning.client.operator_answers import Answer, EndedEntries, KnownToken


class _Voided(Answer):
    tokens: list[KnownToken]


class EnrolmentOperatorClient(OperatorClient):
    """An operator's client that also decides who may enrol."""

    async def create_group(self, name: str, rules: Mapping[str, Any]) -> EnrolmentGroup:
        """Create an enrolment group; *rules* as ``POST /v1/groups`` names them."""
        return await self._call(EnrolmentGroup, "POST", "/v1/groups", {**rules, "name": name})

    async def change_group(self, name: str, rules: Mapping[str, Any]) -> EnrolmentGroup:
        """Change the *rules* that are given; a limit of 0 removes it."""
        return await self._call(EnrolmentGroup, "PATCH", f"/v1/groups/{quote(name, safe='')}", rules)

    async def group(self, name: str) -> EnrolmentGroup:
        """Return one configured group."""
        return await self._call(EnrolmentGroup, "GET", f"/v1/groups/{quote(name, safe='')}")

    async def groups(self) -> AsyncIterator[EnrolmentGroup]:
        """Yield every configured group in order of name."""
        async for item in self._walk("/v1/groups", {}):
            yield self._read(EnrolmentGroup, item)

    async def create_claim(
        self, name: str, *, group: str, maximum_devices: int, life_seconds: int, activation_seconds: int | None = None
    ) -> IssuedClaimCertificate:
        """Create a claim certificate; its key is returned with it, only once."""
        request = {
            "name": name,
            "group": group,
            "maximum_devices": maximum_devices,
            "life_seconds": life_seconds,
            "activation_seconds": activation_seconds,
        }
        return await self._call(IssuedClaimCertificate, "POST", "/v1/claims", request)

    async def claims(self) -> AsyncIterator[ClaimCertificate]:
        """Yield every claim in order of name."""
        async for item in self._walk("/v1/claims", {}):
            yield self._read(ClaimCertificate, item)

    async def end_claim(self, name: str) -> ClaimCertificate:
        """End a claim: it admits no more devices."""
        return await self._call(ClaimCertificate, "DELETE", f"/v1/claims/{quote(name, safe='')}")

    async def add_manufacturer(self, name: str, *, group: str, certificate: str, name_prefix: str = "") -> Manufacturer:
        """Register the CA in *certificate* (PEM)."""
        request = {"name": name, "group": group, "certificate": certificate, "name_prefix": name_prefix}
        return await self._call(Manufacturer, "POST", "/v1/manufacturers", request)

    async def manufacturers(self) -> AsyncIterator[Manufacturer]:
        """Yield every manufacturer in order of name."""
        async for item in self._walk("/v1/manufacturers", {}):
            yield self._read(Manufacturer, item)

    async def manufacturer(self, name: str) -> Manufacturer:
        """Return one manufacturer."""
        return await self._call(Manufacturer, "GET", f"/v1/manufacturers/{quote(name, safe='')}")

    async def change_manufacturer(self, name: str, terms: Mapping[str, Any]) -> Manufacturer:
        """Change the *terms* that are given; ``PATCH /v1/manufacturers/{name}`` names them."""
        return await self._call(Manufacturer, "PATCH", f"/v1/manufacturers/{quote(name, safe='')}", terms)

    async def take_list(self, name: str, crl: bytes, *, renumbered: bool = False, fewer: bool = False) -> TakenList:
        """Upload a manufacturer's CRL, in DER or PEM; its number may be lower than the last one's if *renumbered*.

        *fewer*: it may name any part of the certificates that the last one named.
        """
        path = f"/v1/manufacturers/{quote(name, safe='')}/lists"
        said = {"renumbered": renumbered, "fewer": fewer}
        query = {each: "true" for each, is_said in said.items() if is_said} or None
        return self._read(TakenList, self._object(await self._send("POST", path, crl, query)))

    async def revoked_devices(self, name: str) -> AsyncIterator[RecalledDevice]:
        """Yield devices whose manufacturer has revoked the certificate that admitted them, in order of name."""
        async for item in self._walk(f"/v1/manufacturers/{quote(name, safe='')}/revoked", {}):
            yield self._read(RecalledDevice, item)

    async def remove_list(self, name: str, sha256: str) -> RemovedList:
        """Remove the manufacturer's list with this SHA-256, and its entries."""
        path = f"/v1/manufacturers/{quote(name, safe='')}/lists/{quote(sha256, safe='')}"
        return await self._call(RemovedList, "DELETE", path)

    async def end_manufacturer(self, name: str) -> Manufacturer:
        """End the trust in a manufacturer's CA."""
        return await self._call(Manufacturer, "DELETE", f"/v1/manufacturers/{quote(name, safe='')}")

    async def list_devices(self, group: str, batch: Sequence[tuple[str, str | None]]) -> ListOutcome:
        """Add devices, with the SHA-256 of their keys if known, to a group's list."""
        entries = [{"name": name} | ({} if key is None else {"key_sha256": key}) for name, key in batch]
        path = f"/v1/groups/{quote(group, safe='')}/listed"
        return await self._call(ListOutcome, "POST", path, {"devices": entries})

    async def listed_devices(self, group: str) -> AsyncIterator[ExpectedDevice]:
        """Yield the devices on a group's list in order of name."""
        async for item in self._walk(f"/v1/groups/{quote(group, safe='')}/listed", {}):
            yield self._read(ExpectedDevice, item)

    async def unlist_device(self, group: str, name: str) -> None:
        """Remove a device from a group's list."""
        await self._send("DELETE", f"/v1/groups/{quote(group, safe='')}/listed/{quote(name, safe='')}")

    async def end_listed_by(self, operator: str) -> EndedEntries:
        """End what *operator* has put on lists and nobody else has, too."""
        return await self._call(EndedEntries, "DELETE", f"/v1/operators/{quote(operator, safe='')}/listed")

    async def tokens(
        self,
        *,
        state: str | None = None,
        group: str | None = None,
        device: str | None = None,
        expires_before: datetime | None = None,
    ) -> AsyncIterator[KnownToken]:
        """Yield tokens that match the filters, oldest first."""
        until = None if expires_before is None else expires_before.isoformat()
        search = {"state": state, "group": group, "device": device, "expires_before": until}
        async for item in self._walk("/v1/tokens", search):
            yield self._read(KnownToken, item)

    async def token(self, number: int) -> KnownToken:
        """Return the token with this number."""
        return await self._call(KnownToken, "GET", f"/v1/tokens/{number}")

    async def void_token(self, number: int) -> KnownToken:
        """Void a token."""
        return await self._call(KnownToken, "DELETE", f"/v1/tokens/{number}")

    async def void_tokens(self, numbers: Sequence[int]) -> list[KnownToken]:
        """Void tokens, a thousand at most, in one step: all, or none if one is unknown; return them.

        Those already spent on a certificate are among them, as ``used``.
        """
        return (await self._call(_Voided, "POST", "/v1/voidings", {"tokens": list(numbers)})).tokens

    async def approvals(self, *, group: str | None = None, state: str | None = None) -> AsyncIterator[Approval]:
        """Yield requests, oldest first."""
        async for item in self._walk("/v1/approvals", {"group": group, "state": state}):
            yield self._read(Approval, item)

    async def decide(self, number: int, *, approve: bool, despite_denial: bool = False) -> Approval:
        """Approve or deny a request; approve it *despite_denial*, too."""
        request: dict[str, object] = {"decision": "approve" if approve else "deny"}
        if despite_denial:  # A service of an older version knows no such field.
            request["despite_denial"] = True
        return await self._call(Approval, "POST", f"/v1/approvals/{number}/decision", request)

    async def hasten_renewal(
        self, *, group: str | None = None, every_group: bool = False, spread_seconds: int = 0
    ) -> HastenedRenewal:
        """Tell the devices of a group, or all, to renew now, spread over a time."""
        request = {"group": group, "every_group": every_group, "spread_seconds": spread_seconds}
        return await self._call(HastenedRenewal, "POST", "/v1/renewals/hasten", request)
