"""A service that cannot start, for a file that its settings name, signs nothing before it says so."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from provisioning.authorities.authority import open_authority
from provisioning.connections.listening import bound
from provisioning.errors import ConfigurationError
from provisioning.service.opened import Opened
from provisioning.service.parts import build
from provisioning.store import audit
from provisioning.store.serials import SerialNumbers
from tests.support.ceremonies import Ceremonies


async def test_a_start_that_fails_for_a_file_that_the_settings_name_has_signed_nothing(
    fleet_cas: Ceremonies, tmp_path: Path
) -> None:
    """It is tried again every two seconds: each try made an OCSP signer's certificate for each CA, with its entries."""
    logged = partial(audit.entries, after=0, limit=100)
    before = await fleet_cas.database.read(logged)
    for setting in ("key_blocklist", "webhook_cafile"):
        wrong: dict[str, Any] = {setting: tmp_path / "missing", "port": 0, "http_port": 0}
        settings = fleet_cas.settings.model_copy(update=wrong)
        with bound(settings) as listening:
            numbers = SerialNumbers(fleet_cas.database)
            opened = Opened(settings, open_authority(settings), listening, None, fleet_cas.database, numbers)
            with pytest.raises(ConfigurationError, match="missing"):
                await build(opened)
    assert await fleet_cas.database.read(logged) == before
