"""Client of the operators' REST API, second part: who may enrol, and how.

The rules are those of `provisioning.client.operator`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from datetime import datetime
from typing import Any
from urllib.parse import quote

from provisioning.client.operator import Answer, OperatorClient


class EnrolmentGroup(Answer):
    """A configured enrolment group: which ways lead into it, and what its devices get."""

    name: str
    ways: list[str]
    profile: str
    lifetime_seconds: int | None = None
    maximum_devices: int | None = None
    same_key_seconds: int
    new_key: str
    created_at: datetime
    created_by: str
    changed_at: datetime
    changed_by: str


class EnrolmentOperatorClient(OperatorClient):
    """An operator's client that also decides who may enrol."""

    async def create_group(self, name: str, rules: Mapping[str, Any]) -> EnrolmentGroup:
        """Make an enrolment group; *rules* as ``POST /v1/groups`` names them."""
        return await self._call(EnrolmentGroup, "POST", "/v1/groups", {**rules, "name": name})

    async def change_group(self, name: str, rules: Mapping[str, Any]) -> EnrolmentGroup:
        """Change the *rules* that are given; a limit of 0 takes it away."""
        return await self._call(EnrolmentGroup, "PATCH", f"/v1/groups/{quote(name, safe='')}", rules)

    async def group(self, name: str) -> EnrolmentGroup:
        """Return one configured group."""
        return await self._call(EnrolmentGroup, "GET", f"/v1/groups/{quote(name, safe='')}")

    async def groups(self) -> AsyncIterator[EnrolmentGroup]:
        """Yield every configured group in order of name."""
        async for item in self._walk("/v1/groups", {}):
            yield self._read(EnrolmentGroup, item)
