"""The broker's token is read where it is, whenever it is needed; that its file is of no use is logged once."""

from __future__ import annotations

from pathlib import Path

from pydantic import SecretStr
from structlog.testing import capture_logs

from broker.process.enrolment_token import EnrolmentToken
from broker.settings.config import BrokerConfig


def config(directory: Path, *, file: bool = False, token: str | None = None) -> BrokerConfig:
    return BrokerConfig.model_construct(
        token_file=directory / "token" if file else None, token=SecretStr(token) if token is not None else None
    )


def test_a_file_comes_before_the_settings_and_may_come_back(tmp_path: Path) -> None:
    token = EnrolmentToken(config(tmp_path, file=True, token="of the settings"))
    assert (token.read(), token.problem) == ("of the settings", f"{tmp_path}/token: No such file or directory")
    (tmp_path / "token").write_text("of the file\n")
    assert token.read() == "of the file"
    (tmp_path / "token").write_text("\n")
    assert (token.read(), token.problem) == ("of the settings", f"{tmp_path}/token: it is empty")


def test_a_file_of_no_use_is_logged_once(tmp_path: Path) -> None:
    (tmp_path / "token").write_bytes(b"\xff")
    token = EnrolmentToken(config(tmp_path, file=True))
    with capture_logs() as logged:
        assert [token.read() for _ in range(2)] == [None, None]
    assert [(each["event"], each["detail"]) for each in logged] == [("no token", f"{tmp_path}/token: it is no text")]


def test_without_a_file_the_settings_have_it_or_nobody(tmp_path: Path) -> None:
    with capture_logs() as logged:
        tokens = [EnrolmentToken(config(tmp_path, token=each)) for each in ("of the settings", None)]
        assert [(token.read(), token.problem) for token in tokens] == [("of the settings", None), (None, None)]
    assert not logged
