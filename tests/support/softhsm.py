"""A PKCS #11 token in software: SoftHSM, with its objects in a directory of the test's."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

PIN = "1234"
_MODULES = (
    Path("/usr/lib/softhsm/libsofthsm2.so"),
    Path("/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so"),
    Path("/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so"),
)


@dataclass(frozen=True)
class SoftToken:
    """One token. `configuration` belongs into the environment as SOFTHSM2_CONF, before the module is loaded."""

    configuration: Path
    label: str

    @classmethod
    def new(cls, directory: Path, label: str = "fleet") -> SoftToken:
        tokens = directory / "tokens"
        tokens.mkdir()
        configuration = directory / "softhsm2.conf"
        configuration.write_text(f"directories.tokendir = {tokens}\nobjectstore.backend = file\nlog.level = ERROR\n")
        token = cls(configuration, label)
        token.run("--init-token", "--free", "--label", label, "--pin", PIN, "--so-pin", "87654321")
        return token

    @property
    def module(self) -> Path:
        return next(path for path in _MODULES if path.exists())

    @property
    def uri(self) -> str:
        """Where new keys are made."""
        return f"pkcs11:token={self.label}?module-path={self.module}"

    @property
    def objects(self) -> list[Path]:
        """The files of everything in it."""
        return [path for path in (self.configuration.parent / "tokens").rglob("*.object") if path.stem != "token"]

    def run(self, *arguments: str) -> None:
        environment = os.environ | {"SOFTHSM2_CONF": str(self.configuration)}
        done = subprocess.run(
            ["softhsm2-util", *arguments], env=environment, capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode == 0, done.stderr


_SOURCE = Path(__file__).with_name("hanging_token.c")


class HangingModule:
    """The module of *token* for a process that has `environment`; where it `hangs`, no signature comes to its end."""

    def __init__(self, token: SoftToken) -> None:
        directory = token.configuration.parent
        self._library, self._flag = directory / "hanging_token.so", directory / "hangs"
        self.uri = f"pkcs11:token={token.label}?module-path={self._library}"
        self.environment = {"HANGING_TOKEN": str(self._flag), "HANGING_TOKEN_MODULE": str(token.module)}
        options = ["-shared", "-fPIC", "-O1", "-Wall", "-Werror"]
        subprocess.run(["gcc", *options, "-o", str(self._library), str(_SOURCE), "-ldl"], check=True)

    def hang(self, *, hangs: bool) -> None:
        """Hang from now on, or sign again."""
        self._flag.touch() if hangs else self._flag.unlink()

    @property
    def asked(self) -> bool:
        """Whether somebody waits for a signature, or has."""
        return self._flag.with_suffix(".asked").exists()
