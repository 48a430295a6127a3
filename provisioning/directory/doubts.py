"""Settings that work and are probably mistakes. `init` and `serve` warn of them, `doctor` reports them.

Rules
-----
1. A doubt never stops a start: a reverse proxy may serve CRLs over TLS for clients that can use it, and a start that
   fails would not make a key that has been copied any safer.
2. No text contains a secret, nor its length.

Does not handle: private files that others may read (`provisioning.pki.open_to_all`), and settings that cannot be used,
which are errors (`provisioning.config`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from provisioning.config import Settings
from provisioning.directory.files import OPERATOR, SERVER, AuthorityFiles
from provisioning.errors import ConfigurationError

SHORTEST: Final = 15
"""Characters of a password that protects something alone (NIST SP 800-63B-4 §3.1.1.2)."""

ANOTHER_ONE: Final = (
    "make one with openssl rand -hex 24, and encrypt the keys with it (docs/changes.md, Changing the passphrase)"
)


@dataclass(frozen=True, slots=True)
class Doubt:
    """What is probably a mistake, and the remedy."""

    what: str
    remedy: str

    def __str__(self) -> str:
        """Return both, as one line."""
        return f"{self.what}: {self.remedy}"


def doubts(settings: Settings) -> Iterator[Doubt]:
    """Yield all doubts about *settings*."""
    yield from about_keys(settings)
    yield from about_address(settings)


def about_keys(settings: Settings) -> Iterator[Doubt]:
    """Yield doubts about the passphrase, if it encrypts a CA's key file: it can be guessed, or is not read whole."""
    if settings.passphrase is None and settings.passphrase_file is None:
        return
    files = AuthorityFiles(settings.directory)
    names = {path.stem for path in files.directory.glob("*.crt")} - {SERVER, OPERATOR}
    if not any(files.key(name).exists() for name in names):
        return
    try:
        passphrase = settings.read_passphrase()
    except ConfigurationError:  # Whoever opens a key reports it; a service whose keys are in a token needs none.
        return
    if len(passphrase.decode(errors="replace")) < SHORTEST:
        yield Doubt(
            f"the passphrase has fewer than {SHORTEST} characters: whoever copies a CA's key file can guess it",
            ANOTHER_ONE,
        )
    if b"\n" in passphrase:
        yield Doubt(
            "the passphrase has several lines: openssl reads the first one only, and does not open the keys with it",
            ANOTHER_ONE,
        )


def about_founding(settings: Settings, server_names: Sequence[str]) -> Iterator[Doubt]:
    """Yield doubts about an authority just founded with *server_names*, if any were given: others will come by them."""
    if server_names and settings.public_http_url is None:
        yield Doubt(
            "--public-http-url was not given, so the issuing CA's certificate, good for five years, names no CRL of "
            "its root: clients that check the whole path, as .NET's and Java's can, refuse what is below it",
            "if there will be such clients, found the authority again with it, in another directory, before the first "
            "device enrols",
        )


def about_address(settings: Settings) -> Iterator[Doubt]:
    """Yield doubts about the address of CRLs, OCSP and CA certificates, which every certificate carries."""
    url = settings.public_http_url
    if url is None:
        if settings.public_listener:
            yield Doubt(
                f"public_http_url is not set: certificates name {settings.host}:{settings.http_port} as the address of "
                "CRL and OCSP",
                "set it to the name that relying parties reach, before the first device enrols",
            )
    elif url.scheme == "https":
        # RFC 5280 §8: to trust the connection, a client would first need what it fetches over it.
        yield Doubt(
            f"public_http_url is {url}: many clients do not fetch CRLs and OCSP answers over TLS, since the server's "
            "certificate would need the same check; they refuse every certificate, or check nothing",
            "use http://, what is fetched there is signed (RFC 5280 §8); existing certificates keep their address",
        )
    elif url.port == settings.port != settings.http_port:
        yield Doubt(
            f"public_http_url is {url}: port {url.port} is the HTTPS port, where no CRL is served",
            f"name the plain HTTP port, {settings.http_port}; existing certificates keep their address",
        )
