"""Files that commands create, on a disk that fails in the middle: nothing is left of them, and no token stays valid."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path
from typing import cast

import pytest

from provisioning.authorities.ceremony_transcript import Transcript
from provisioning.client.enrolment import EnrolmentOperatorClient
from provisioning.client.operator import ServiceUnavailable
from provisioning.client.operator_answers import IssuedToken
from provisioning.commands.new_file import write_new
from provisioning.commands.token_file import keep, private_file
from provisioning.errors import ConfigurationError


def failing(turn: int) -> Callable[[int], None]:
    """Return an fsync whose call number *turn* fails, and none after it."""
    calls = 0

    def sync(_descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls == turn:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    return sync


def test_what_a_command_writes_is_nobody_else_s_to_change_whatever_the_umask(tmp_path: Path) -> None:
    """A request that waits to be signed is not exchanged for somebody else's."""
    before = os.umask(0)
    try:
        write_new(tmp_path / "issuing.csr", b"request")
    finally:
        os.umask(before)
    assert (tmp_path / "issuing.csr").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("turn", [1, 2])  # The content, and the name.
def test_a_file_that_is_not_surely_on_disk_is_none_and_can_be_written_again(
    turn: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "issuing.csr"
    monkeypatch.setattr(os, "fsync", failing(turn))
    with pytest.raises(ConfigurationError, match=r"issuing.csr cannot be written: Input/output error"):
        write_new(path, b"a request")
    assert not path.exists()
    write_new(path, b"a request")
    with pytest.raises(ConfigurationError, match=r"issuing.csr cannot be written: File exists"):
        write_new(path, b"another")
    assert path.read_bytes() == b"a request"


@pytest.mark.parametrize("turn", [1, 2])
def test_of_a_transcript_that_is_not_surely_on_disk_no_half_is_left(
    turn: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing in the audit log would vouch for it, and an offline root has no other evidence."""
    transcript = Transcript("ca root sign", lambda: datetime(2026, 1, 1, tzinfo=UTC), lambda _: None)
    monkeypatch.setattr(os, "fsync", failing(turn))
    path = tmp_path / "issuing.crt.transcript.txt"
    with pytest.raises(ConfigurationError, match=r"transcript.txt cannot be written: Input/output error"):
        transcript.write(path)
    assert not path.exists()
    transcript.write(path)
    assert path.read_bytes() == transcript.text


class Stuck(FileIO):
    """A file of a disk that lets go of nothing."""

    def truncate(self, _size: int | None = None) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))


class Voiding:
    """The client, as far as it voids."""

    def __init__(self) -> None:
        self.voided: list[int] = []

    async def void_tokens(self, numbers: Sequence[int]) -> None:
        self.voided += numbers


@pytest.mark.parametrize("stuck", [False, True])
async def test_tokens_that_are_not_surely_on_disk_are_voided_whatever_else_the_disk_refuses(
    stuck: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, client = tmp_path / "tokens.csv", Voiding()
    tokens = [IssuedToken.model_construct(id=number) for number in (7, 8)]
    with private_file(path) as file:
        file.write(b"of a portion before\n")
        monkeypatch.setattr(os, "fsync", failing(1))
        opened = Stuck(file.fileno(), "r+", closefd=False) if stuck else file
        with pytest.raises(ConfigurationError, match=r"cannot be written: Input/output error; 2 tokens were voided"):
            await keep(cast("EnrolmentOperatorClient", client), opened, "a token\n", tokens)
    assert client.voided == [7, 8]
    assert path.read_bytes() == b"of a portion before\n" + b"a token\n" * stuck


class Unreachable:
    """A client whose service has gone."""

    async def void_tokens(self, _numbers: Sequence[int]) -> None:
        raise ServiceUnavailable("the provisioning service at https://ca does not answer")


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ((7,), "token 7 is valid, and nobody has seen it: token void (the provisioning service at https://ca does not"),
        ((9, 7, 12, 8, 14, 15), "tokens 7 to 9, 12, 14 to 15 are valid, and nobody has seen them: token void"),
        ((None, None), "tokens are valid, and nobody has seen them: token void (an older service tells no numbers)"),
        ((7, 8, 9), "tokens 7 to 9 are valid, and nobody has seen them: token void (the provisioning service"),
    ],
)
async def test_of_tokens_that_cannot_be_voided_either_the_numbers_are_told(
    numbers: tuple[int | None, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = [IssuedToken.model_construct(id=number) for number in numbers]
    monkeypatch.setattr(os, "fsync", failing(2))  # The name's sync is the first.
    with private_file(tmp_path / "tokens.csv") as file, pytest.raises(ConfigurationError) as error:
        await keep(cast("EnrolmentOperatorClient", Unreachable()), file, "a token\n", tokens)
    assert f"tokens.csv cannot be written: Input/output error; {said}" in str(error.value)
