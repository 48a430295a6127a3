"""The one-time token that buys the broker's first certificate, or the next if the service no longer accepts that one.

It is read again whenever it is needed: it is spent at the first start, its file may be removed then, and be back later.
"""

from __future__ import annotations

import structlog

from broker.settings.config import BrokerConfig
from provisioning.program.given_file import SECRET_BYTES, text_of

log = structlog.get_logger("broker")


class EnrolmentToken:
    """The token of the settings, or of the file that they name."""

    def __init__(self, config: BrokerConfig) -> None:
        self._config = config
        self.problem: str | None = None
        """The file that could not be used, and why, when that was found out last; None: it never was."""

    def read(self) -> str | None:
        """Return the present token; log once if there is none in the file."""
        config = self._config
        if config.token_file is not None:
            try:
                token = text_of(config.token_file, SECRET_BYTES).strip()
                why = "it is empty"
            except OSError as error:
                token, why = "", error.strerror or type(error).__name__
            except UnicodeDecodeError:
                token, why = "", "it is no text"
            if token:
                return token
            is_told, self.problem = self.problem is not None, f"{config.token_file}: {why}"
            if not is_told:
                log.info("no token", detail=self.problem)
        return config.token.get_secret_value() if config.token is not None else None
