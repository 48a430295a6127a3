"""A file with the certificate that an operator means: only that is taken of it, in PEM.

Rules
-----
1. Of a chain the first is meant, as in every file for TLS; whoever means another gives it a file of its own.
2. Nothing else leaves the file: devices keep certificate and private key in one.
"""

from __future__ import annotations

import re
import ssl
from pathlib import Path
from typing import Final

from provisioning.commands.named_lines import input_of
from provisioning.errors import ConfigurationError
from provisioning.program.given_file import SECRET_BYTES

_FIRST: Final = re.compile(rb"-----BEGIN CERTIFICATE-----[A-Za-z0-9+/=\s]+-----END CERTIFICATE-----")
_SEQUENCE: Final = b"\x30"
"""What DER begins with."""


def read_certificate(path: Path) -> str:
    """Return the first certificate in a file in PEM or DER, as PEM; ``-`` is standard input.

    Raises `ConfigurationError` if there is none, and `OSError`.
    """
    file, content = input_of(path, SECRET_BYTES)
    found = _FIRST.search(content)
    if found is not None:
        return f"{found[0].decode()}\n"
    if not content.startswith(_SEQUENCE):
        raise ConfigurationError(f"{file} has no certificate in PEM or DER: name the device's certificate file")
    return ssl.DER_cert_to_PEM_cert(content)
