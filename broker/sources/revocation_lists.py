"""The sources of revocations of one broker besides the feed: CRLs in files and at URLs, and OCSP responders."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Final

from broker.admission.peer import DEFAULT_BUNDLE
from broker.engine.engine import Engine
from broker.settings.config import BrokerConfig
from broker.sources.asker import StatusAsker
from broker.sources.crl_files import CrlFiles
from broker.sources.crl_intake import CrlIntake
from broker.sources.crl_urls import CrlUrls
from broker.sources.ocsp_client import OcspClient
from provisioning.pki.crl import CrlProblem
from provisioning.pki.revocation import CertificateKey
from provisioning.program.starting import importing

_PATIENCE: Final = 10.0
"""Seconds: a file may be on a disk that hangs, and others wait for whoever waits for it."""


class RevocationLists:
    """All sources of lists, as tasks. Without any it does nothing; sources may be added later."""

    def __init__(self, engine: Engine, config: BrokerConfig, clock: Callable[[], float]) -> None:
        self.intake = CrlIntake(engine, clock)
        self.files = CrlFiles(self.intake, config.crl_files, config.crl_check_seconds)
        self.urls = CrlUrls(self.intake, config.crl_refresh_seconds, clock)
        self.urls.configure(_urls_of(config))
        self.intake.sources = (self.files.forgotten, self.urls.forgotten)
        self._admission = engine.admission
        self._engine = engine
        self._news = asyncio.Event()
        status, refresh = engine.admission.status, config.ocsp_refresh_seconds
        self._ocsp = OcspClient(status, engine.metrics, engine.history.told, self._news.set, refresh, clock)
        self._asker = StatusAsker(engine.admission, self.files, self.urls, self._ocsp, clock)
        status.on_release = self._released
        self.current = asyncio.Event()
        """Set once every source has been tried, or has had its time; what takes longer goes on."""
        self._set_asker(config)

    def use(self, config: BrokerConfig) -> None:
        """Use the files and URLs of *config* from now on."""
        self.files.paths = config.crl_files
        self.urls.configure(_urls_of(config))
        self._set_asker(config)

    async def look(self) -> bool:
        """Read the files that are new; return whether that is done. What takes longer is read by `run`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE):
                await self.files.look()
            return True
        return False

    def clock_set(self, ahead: float) -> None:
        """Take note that the wall clock was set *ahead* by so many seconds; negative: back."""
        self.urls.clock_set()
        self._ocsp.slept(max(0.0, ahead))

    def _released(self, certificate: CertificateKey) -> None:
        self._ocsp.released(certificate)
        self.urls.released(certificate)

    async def run(self) -> None:
        """Follow the sources until cancelled."""
        try:
            await asyncio.gather(self._first_look(), self.urls.fetch_due())
            self.current.set()
            asks = self._asker.ask_again(self._engine)
            await asyncio.gather(self.files.run(), self.urls.run(), asks, self._enforce())
        finally:
            await self._asker.close()
            await self.files.close()

    async def _first_look(self) -> None:
        """Read the files, and say which ones take longer than anybody waits: nothing else waits for those."""
        if not await self.look():
            for path in self.files.being_read:
                self.intake.complain(CrlProblem.CRL_UNREADABLE, f"not read within {_PATIENCE:g} s", str(path))

    async def _enforce(self) -> None:
        """Close the sessions of clients that a responder has just reported as revoked."""
        while True:
            await self._news.wait()
            self._news.clear()
            await self.intake.enforce()

    def _set_asker(self, config: BrokerConfig) -> None:
        asks = config.has_crls or config.has_ocsp or any(each.has_crls or each.has_ocsp for each in config.trust)
        self._admission.asker = self._asker if asks else None
        self._engine.returning.ask = self._asker.ask_about
        fetches = config.all_crl_urls or config.has_ocsp or config.crl_from_certificates
        if fetches or any(each.has_ocsp or each.crl_from_certificates for each in config.trust):
            with importing():
                import httpx  # noqa: F401 - now, and not while the first client waits at the door


def _urls_of(config: BrokerConfig) -> list[tuple[str, str]]:
    """Return every URL of a CRL in the settings, preceded by the name of its bundle."""
    of_all = [(DEFAULT_BUNDLE, url) for url in config.crl_urls]
    return of_all + [(bundle.name, url) for bundle in config.trust for url in bundle.crl_urls]
