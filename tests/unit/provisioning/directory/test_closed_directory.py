"""What others may write of the service's directory is refused, whoever runs it; what they only read is not."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pydantic import SecretStr

from provisioning.authorities.authority import found
from provisioning.config import Settings
from provisioning.directory.closed_directory import check_directory_closed
from provisioning.errors import ConfigurationError

NOBODY = 59_999
"""Another user, who is not root."""


@pytest.fixture
def fleet(tmp_path: Path) -> Path:
    directory = tmp_path / "fleet"
    directory.mkdir(0o700)
    for name in ("fleet.db", "server.key", "provisioning.toml"):
        (directory / name).touch(0o600)
    return directory


@pytest.mark.parametrize("outer", [0o700, 0o750, 0o755, 0o2750])
def test_what_others_only_read_or_do_not_reach_is_not_refused(fleet: Path, outer: int) -> None:
    fleet.chmod(outer)
    (fleet / "provisioning.toml").chmod(0o664 if outer == 0o700 else 0o644)
    check_directory_closed(Settings(directory=fleet))


@pytest.mark.parametrize(
    ("outer", "name", "inner", "by_the_group_alone"),
    [
        (0o2770, ".", 0o2770, True),
        (0o702, ".", 0o702, False),
        (0o750, "provisioning.toml", 0o664, True),
        (0o755, "fleet.db", 0o666, False),
        (0o755, "server.key", 0o620, True),
    ],
)
def test_what_others_may_write_is_refused_with_what_to_type(
    fleet: Path, outer: int, name: str, inner: int, *, by_the_group_alone: bool
) -> None:
    fleet.chmod(outer)
    (fleet / name).chmod(inner)
    with pytest.raises(ConfigurationError) as refused:
        check_directory_closed(Settings(directory=fleet))
    text = str(refused.value)
    assert text.startswith(f"{fleet / name} has mode {inner:04o}: others may write to it")
    assert f"chmod -R go-w {fleet}" in text
    assert ("unsafe_group_writable_directory" in text) is by_the_group_alone
    trusting = Settings(directory=fleet, unsafe_group_writable_directory=True)
    if by_the_group_alone:
        check_directory_closed(trusting)
        return
    with pytest.raises(ConfigurationError):
        check_directory_closed(trusting)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives a directory away")
def test_root_may_run_it_for_the_owner_and_is_told_what_he_can_do(fleet: Path) -> None:
    for each in (fleet, *fleet.iterdir()):
        os.chown(each, NOBODY, NOBODY)
    check_directory_closed(Settings(directory=fleet))
    fleet.chmod(0o770)
    with pytest.raises(ConfigurationError, match=f"chmod -R go-w {fleet}"):
        check_directory_closed(Settings(directory=fleet))


async def test_what_init_makes_is_nobody_else_s_to_write_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o002)
    try:
        settings = Settings(directory=tmp_path / "fleet", passphrase=SecretStr("a passphrase of a CA's keys"))
        files = await found(settings, ["localhost"], lambda: datetime.now(UTC))
    finally:
        os.umask(before)
    files.directory.chmod(0o755)
    check_directory_closed(settings)
    assert files.bundle.stat().st_mode & 0o777 == 0o644
