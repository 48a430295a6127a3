"""Limits per identity on connecting, losing connections, and being in two places. Judged after admission.

Theory
------
Before TLS only an address is known (`broker.door.strangers`). After admission a certificate is, and what a client does
with a valid one is counted against its identity, or against that certificate alone:

*Rate.* Connections of one identity in `_RATE_SECONDS`: a program that connects for every message costs one handshake
each. A service has many instances, so its limit is at least the number of sessions it may have.

*Flapping.* A client that is admitted and lost again and again without a DISCONNECT: a bad line, a crash loop, two
devices with one client identifier. After `flapping_count` times in `_FLAPPING_SECONDS` it is banned for `ban_seconds`,
with this certificate: whoever has stolen it delays no successor. Who sends DISCONNECT each time is subject to the rate.

*Clones.* A session is taken over with the same certificate from another address, then from the first again, then from
the other: the key was copied, or a client moves between two networks remarkably often. After `_CLONE_RETURNS` returns
in `_CLONE_SECONDS` this is logged and counted; with `quarantine_clones` the certificate is banned, which disconnects
both. Two clones behind one address look like one flapping client.

Rules
-----
1. No I/O, no clock. One dict access per admission, nothing on the data path.
2. Every table is bounded: counts are forgotten with their window, bans when they end.
3. Bans end by themselves: a mistake of ours locks nobody out for ever.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Final

import structlog

from broker.admission.peer import Peer
from broker.admission.refusal import RefusalCode, Refused
from broker.metrics import Metrics
from broker.mqtt.codes import ReasonCode
from broker.settings.limits import Limits
from provisioning.pki.revocation import CertificateKey
from provisioning.pki.role import Role

log = structlog.get_logger("broker")

_RATE_SECONDS: Final = 10.0
_FLAPPING_SECONDS: Final = 60.0
_CLONE_SECONDS: Final = 600.0
_CLONE_RETURNS: Final = 3
_MOST_KEYS = 200_000
_MOST_PLACES = 10_000
_LOST: Final = frozenset({"CONNECTION_LOST", "CLIENT_CLOSED", "KEEP_ALIVE_TIMEOUT", "SESSION_TAKEN_OVER", "BAD_PACKET"})
"""Codes with which a client's connection ends without DISCONNECT from it."""


class WindowCount:
    """How often each key was counted in about the last *seconds*: this window, and a share of the one before."""

    __slots__ = ("_before", "_now", "_seconds", "_since")

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._since = 0.0
        self._now: dict[Hashable, int] = {}
        self._before: dict[Hashable, int] = {}

    def of(self, key: Hashable, now: float) -> float:
        """Return the count of *key*."""
        gone = now - self._since
        if gone >= self._seconds:
            self._before = self._now if gone < 2 * self._seconds else {}
            self._now = {}
            self._since, gone = now, 0.0
        return self._now.get(key, 0) + self._before.get(key, 0) * (1.0 - gone / self._seconds)

    def add(self, key: Hashable, now: float) -> float:
        """Count *key* once more, and return the new count."""
        count = self.of(key, now) + 1.0
        if len(self._now) < _MOST_KEYS or key in self._now:
            self._now[key] = self._now.get(key, 0) + 1
        return count

    def forget(self, key: Hashable) -> None:
        """Reset the count of *key*."""
        self._now.pop(key, None)
        self._before.pop(key, None)


@dataclass(slots=True)
class _Places:
    """The places from which a certificate has taken over its session."""

    since: float
    displaced: str
    returns: int = 0


class Guard:
    """The counts and bans of all identities."""

    __slots__ = ("_bans", "_connects", "_losses", "_metrics", "_places", "limits")

    def __init__(self, limits: Limits, metrics: Metrics) -> None:
        self.limits = limits
        """May be replaced."""
        self._metrics = metrics
        self._connects = WindowCount(_RATE_SECONDS)
        self._losses = WindowCount(_FLAPPING_SECONDS)
        self._places: dict[CertificateKey, _Places] = {}
        self._bans: dict[Hashable, tuple[float, Refused]] = {}

    def judge(self, peer: Peer, client_id: str, now: float) -> Refused | None:
        """Return why the admitted *peer* may not connect as *client_id* now, or None; count the attempt."""
        refusal = self.banned(peer, client_id, now)
        if refusal is not None:
            return refusal
        identity, limits = peer.identity, self.limits
        allowed = limits.max_connects_per_identity
        if allowed and identity.role is not Role.DEVICE:
            allowed = max(allowed, limits.max_instances)
        if allowed and self._connects.add(identity, now) > allowed:
            return Refused(
                RefusalCode.RATE_LIMITED,
                ReasonCode.CONNECTION_RATE_EXCEEDED,
                f"{identity.name} has connected {allowed} times in {_RATE_SECONDS:.0f} s; keep the connection open",
            )
        return None

    def banned(self, peer: Peer, client_id: str, now: float) -> Refused | None:
        """Return the refusal if *peer*, or its certificate, is banned; this counts nothing."""
        if self._bans:
            for key in (_client(peer, client_id), peer.certificate):
                refusal = self._banned(key, now)
                if refusal is not None:
                    return refusal
        return None

    def ended(self, peer: Peer, client_id: str, code: str, now: float) -> None:
        """Take note that the connection of an admitted client has ended with *code*."""
        limits = self.limits
        if not limits.flapping_count or code not in _LOST:
            return
        key = _client(peer, client_id)
        if self._losses.add(key, now) < limits.flapping_count:
            return
        self._losses.forget(key)
        detail = f"connected and lost {limits.flapping_count} times in {_FLAPPING_SECONDS:.0f} s"
        self._ban(key, Refused(RefusalCode.FLAPPING, ReasonCode.BANNED, detail), now)
        log.warning(
            "client banned temporarily",
            code=RefusalCode.FLAPPING,
            client=client_id,
            identity=peer.identity.uri,
            detail=detail,
            seconds=limits.ban_seconds,
        )

    def taken_over(self, peer: Peer, before: str, after: str, now: float) -> Refused | None:
        """Take note that *peer*, at the host *after*, takes over its own session from the host *before*.

        Returns a refusal if the certificate is quarantined: the connection from *before* has to be closed too.
        """
        if before == after:
            return None
        places = self._places.get(peer.certificate)
        if places is None or now - places.since > _CLONE_SECONDS:
            if len(self._places) >= _MOST_PLACES:
                self._places.clear()
            self._places[peer.certificate] = _Places(now, before)
            return None
        places.returns += places.displaced == after
        places.displaced = before
        if places.returns < _CLONE_RETURNS:
            return None
        del self._places[peer.certificate]
        self._metrics.clones_suspected += 1
        detail = f"the certificate is used alternately from {before} and {after}"
        quarantined = self.limits.quarantine_clones
        log.warning(
            "a certificate in use at two addresses",
            code=RefusalCode.CLONE_SUSPECTED,
            identity=peer.identity.uri,
            serial=peer.serial,
            detail=detail,
            quarantined=quarantined,
        )
        if not quarantined:
            return None
        seconds = self.limits.ban_seconds
        refusal = Refused(RefusalCode.CLONE_SUSPECTED, ReasonCode.BANNED, detail, retry_after=seconds)
        self._ban(peer.certificate, refusal, now)
        return refusal

    def _ban(self, key: Hashable, refusal: Refused, now: float) -> None:
        for each in [each for each, (until, _) in self._bans.items() if until <= now]:
            del self._bans[each]
        if len(self._bans) < _MOST_PLACES:
            self._bans[key] = (now + self.limits.ban_seconds, refusal)

    def _banned(self, key: Hashable, now: float) -> Refused | None:
        found = self._bans.get(key)
        if found is None:
            return None
        until, refusal = found
        if until <= now:
            del self._bans[key]
            return None
        detail = f"{refusal.detail}; try again in {until - now:.0f} s"
        return Refused(refusal.code, refusal.reason_code, detail, retry_after=until - now)


def _client(peer: Peer, client_id: str) -> Hashable:
    return peer.identity, client_id, peer.certificate
