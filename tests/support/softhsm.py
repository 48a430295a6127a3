"""A software PKCS #11 token: SoftHSM, with its objects in a directory of the test's."""

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
    """One token. `configuration` belongs in the environment as SOFTHSM2_CONF, before the module is loaded."""

    configuration: Path
    label: str
    through: Path | None = None
    """The module wrapped around SoftHSM's, if any."""

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
        return self.through or next(path for path in _MODULES if path.exists())

    @property
    def uri(self) -> str:
        """Where new keys are created."""
        return f"pkcs11:token={self.label}?module-path={self.module}"

    @property
    def objects(self) -> list[Path]:
        """The files of all its objects."""
        return [path for path in (self.configuration.parent / "tokens").rglob("*.object") if path.stem != "token"]

    def run(self, *arguments: str) -> None:
        environment = os.environ | {"SOFTHSM2_CONF": str(self.configuration)}
        done = subprocess.run(
            ["softhsm2-util", *arguments], env=environment, capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode == 0, done.stderr


_SOURCE = Path(__file__).with_name("faulty_token.c")


class FaultyModule:
    """A faulty module for *token* in a process that has `environment`; its functions do as told."""

    def __init__(self, token: SoftToken) -> None:
        directory = token.configuration.parent
        self.library = directory / "faulty_token.so"
        self.uri = f"pkcs11:token={token.label}?module-path={self.library}"
        self._told = directory / "told"
        self._told.mkdir()
        self.environment = {"FAULTY_TOKEN": str(self._told), "FAULTY_TOKEN_MODULE": str(token.module)}
        options = ["-std=gnu17", "-shared", "-fPIC", "-O1", "-Wall", "-Werror"]
        subprocess.run(["gcc", *options, "-o", str(self.library), str(_SOURCE), "-ldl"], check=True)

    def tell(self, function: str, what: str) -> None:
        """Make *function* do *what* from now on: "hang", a number to return (``"0x30"``), or as in faulty_token.c."""
        new = self._told / "new"
        new.write_text(what)
        new.rename(self._told / function)

    def mend(self, function: str) -> None:
        """Make *function* work normally."""
        (self._told / function).unlink()

    def mend_all(self) -> None:
        """Make all of them work normally."""
        for path in self._told.iterdir():
            if path.name.startswith("C_"):
                path.unlink()

    @property
    def asked(self) -> bool:
        """Whether something waits for a hanging function, or has."""
        return (self._told / "asked").exists()

    @property
    def asked_times(self) -> int:
        """How often a hanging function has checked whether it may continue."""
        return len((self._told / "asked").read_text()) if self.asked else 0

    @property
    def begun(self) -> int:
        """How often C_Initialize has hung and returned."""
        return len((self._told / "begun").read_text()) if (self._told / "begun").exists() else 0

    @property
    def sessions(self) -> int:
        """How many sessions were opened and not closed."""
        noted = (self._told / "sessions").read_text() if (self._told / "sessions").exists() else ""
        return noted.count("+") - noted.count("-")
