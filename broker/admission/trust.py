"""One generation of trust: all bundles, and what has been learned about the CAs below them.

Theory
------
OpenSSL verifies a client's path against the anchors of all bundles together; which bundle the path belongs to is found
here, from that very path. CAs are few and clients are many, so the result for a path is kept: after the first client
the answer is one dict access. While a CA is being renewed there are several paths above one issuing CA. Each expires
with its own certificates, and a client that uses the new path is not judged by the expired one.

Of several anchors that could have issued a certificate (by their names, and their key identifiers where both say one)
OpenSSL takes the first that is valid today, in the order in which they were given, and tries no other. So who may name
an anchor could name one that looks like ours, and our clients' paths would end there, or fail there.

Rules
-----
1. The first bundle, in configuration order, that vouches for the path judges, and its word is final. But what a URL of
   another trust domain's bundle alone has named, an anchor from outside, takes no device of anybody else: OpenSSL is
   given it after all others, and its bundle judges after those for which the settings name a key in the path. One that
   has only the CA above the path is no such bundle: two departments may be below one root, and what the CA of the one
   claims is not the other's. Among those from outside the settings' order counts. And a CA that the settings have named
   first for one bundle is confined to it, whichever of its certificates a client shows, and whatever that is called:
   where they name the key of a CA in the path, below the anchor of the bundle that would judge, for an earlier bundle,
   that judges.
2. Only CA certificates from a path that OpenSSL has verified are learned, and per bundle at most `_MOST_PATHS` paths,
   and `_MOST_NAMESAKES` CAs of one name. Clients of any further path are refused (`TRUST_FULL`), which is logged once
   per bundle. So a CA in one bundle cannot use up the room of another. Where there is no room, paths that have expired
   are forgotten: a CA that is replaced every few hours, under one name, would fill its bundle in a day or two.
3. A resumed session brings no path: its issuer is then the CA, learned or an anchor, whose key signed the certificate.
   Of several with that key the first in this order is taken (`_place`): in date; not below an anchor from outside; an
   anchor, and of these the first in the settings, all as OpenSSL would; in a bundle of the broker's own trust domain,
   for any CA can certify another CA's key, and what a foreign one says about a key of ours affects none of ours; in the
   settings' order. For clients that are away all are learned ones (`_rank`). Of several paths above one CA in one
   bundle the first learned counts, unless another lasts longer or has no fault. Directly below an anchor rule 1
   decides, as in a full handshake, and where no bundle accepts it the next with its key is looked at. At most
   `_MOST_TRIED` keys are tried, those first that the certificate may mean.
4. Immutable except for what it learns; another configuration is another generation. No I/O but the log, no clock.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from datetime import datetime

import structlog
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from broker.admission.bundle import TrustBundle, allows, constrains_no_more
from broker.admission.claims import end_of, firm_keys, is_from_outside, may_judge
from broker.admission.issuers import Issuer, UnreadableAuthority
from broker.admission.refusal import RefusalCode, Refused
from broker.mqtt.codes import ReasonCode
from provisioning.pki.extension import UNUSABLE, extension
from provisioning.pki.issued_by import as_compared, is_issued_by
from provisioning.pki.keys import key_identifier
from provisioning.pki.revocation import CasAbove

log = structlog.get_logger("broker")

_MOST_PATHS = 1024
_MOST_NAMESAKES = 32
"""CAs of one name in one bundle."""
_MOST_TRIED = 32
"""The keys of one name that a resumed session is tried against, at 0.1 to 0.4 ms per signature."""
_SHOWN = 200


class Trust:
    """All trusted anchors, and the paths learned below them."""

    def __init__(self, bundles: Sequence[TrustBundle], generation: int = 1, *, has_room: bool = False) -> None:
        """*has_room*: clients of a path for which there is no room are judged like others; nothing is learned."""
        self.bundles = tuple(bundles)
        self._has_room = has_room
        self.generation = generation
        self.domains = frozenset(bundle.terms.trust_domain for bundle in self.bundles)
        """The trust domains that bundles vouch for; None: the broker's own."""
        self._full: set[str] = set()
        """The bundles that have been reported as full."""
        self.learned = 0
        """How many paths were learned so far; when it grows, a CRL that found no issuer before may find one."""
        self._paths: dict[tuple[bytes, ...], Issuer] = {}
        """The issuer at the start of each path, by the path's CA certificates."""
        self._issuers: dict[tuple[bytes, str], Issuer] = {}
        """One of those issuers per issuing CA and bundle, used where there is no path."""
        anchors = list(self._anchors())
        self._certificates = frozenset(each.certificate for each in anchors)
        self._called: dict[Hashable, list[Issuer]] = {}
        """The anchors, and `_issuers`, by their names."""
        self._ordered: dict[tuple[Hashable, str | None], list[Issuer]] = {}
        """What was found of a name, or of a key, since a CA was learned or forgotten last."""
        self._judges: dict[tuple[Issuer, str | None], Issuer | None] = {}
        """By an anchor that may have issued to a client: the issuer in the bundle that judges."""
        self._absent: dict[tuple[CasAbove, tuple[bytes, ...]], Sequence[TrustBundle]] = {}
        """By the CAs above a client that is away: which bundles vouch for it."""
        self._ends: dict[bytes, x509.Certificate] = {}
        """By a CA's name and key: the anchor that OpenSSL takes."""
        for each in anchors:
            self._called.setdefault(each.called, []).append(each)
        self.topmost = frozenset(each.certificate.public_bytes(Encoding.DER) for each in anchors if each.above is None)
        """The anchors, in DER, that no other one has issued: where `cafile` alone judges, devices may be among them."""
        self._anchors_revoked_as = frozenset(key for anchor in anchors for key in anchor.path_revoked_as)
        self.revoked_as = set(self._anchors_revoked_as)
        """How the revocation index identifies every known CA."""

    def paths_of(self, bundle: TrustBundle) -> int:
        """Return how many of them belong to *bundle*."""
        return sum(each.bundle is bundle for each in self._paths.values())

    def anchors_pem(self, own: str | None) -> str:
        """Return every bundle's anchors in PEM, for OpenSSL, in the order of rule 1; *own* as in `issuer_of`."""
        return b"".join(each.public_bytes(Encoding.PEM) for each in self.given(own)).decode()

    def given(self, own: str | None) -> list[x509.Certificate]:
        """Return every bundle's anchors, each once, as OpenSSL is given them."""
        anchors = sorted(self._anchors(), key=lambda each: is_from_outside(each, own))
        return list(dict.fromkeys(each.certificate for each in anchors))

    @property
    def fingerprints(self) -> dict[str, list[str]]:
        """The SHA-256 of every bundle's anchors, for the record."""
        return {
            bundle.name: [anchor.certificate.fingerprint(SHA256()).hex() for anchor in bundle.anchors]
            for bundle in self.bundles
        }

    def issuer_of(
        self, certificate: x509.Certificate, path: Sequence[bytes], now: datetime, own: str | None = None
    ) -> Issuer | None:
        """Return the issuer of *certificate*, from the verified *path* (DER, the client's own first; empty if resumed).

        *now*: by which paths expire. *own* is the broker's trust domain, if it has one. Raises `UnreadableAuthority`.
        """
        if len(path) > 1:
            above = tuple(path[1:])
            known = self._paths.get(above)
            return known if known is not None else self._learn(above, now, own)
        if path:
            return None  # The client's own certificate is an anchor; it has no issuer.
        return self._who_signed(certificate, now, own)

    def _who_signed(self, certificate: x509.Certificate, now: datetime, own: str | None) -> Issuer | None:
        """Return the issuer of *certificate* by its signature (rule 3)."""
        tried: dict[bytes, bool] = {}
        """The keys, and whether it has signed."""
        for each in _likely_first(self._in_order(as_compared(certificate.issuer), own), certificate, now):
            if each.key_id not in tried:
                if len(tried) >= _MOST_TRIED:
                    break
                tried[each.key_id] = is_issued_by(certificate, each.certificate)
            if tried[each.key_id] and (judge := self._judging_for(each, own)) is not None:
                return judge
        return None

    def _in_order(self, name: Hashable, own: str | None) -> list[Issuer]:
        """Return the CAs that are called so in the order of rule 3, but for their dates."""
        known = self._ordered.get((name, own))
        if known is None:
            known = sorted(self._called.get(name, ()), key=lambda each: self._place(each, own))
            if known:
                self._ordered[name, own] = known
        return known

    def _judging_for(self, issuer: Issuer, own: str | None) -> Issuer | None:
        """Return *issuer*, or if it is an anchor the issuer of the CA directly below, in the bundle that judges."""
        if issuer.certificate not in self._certificates:
            return issuer  # Of a path, of which rule 1 has decided that.
        key = issuer, own
        if key not in self._judges:
            self._judges[key] = self._judging([issuer.certificate], own)
        return self._judges[key]

    def _judging(self, path: Sequence[x509.Certificate], own: str | None) -> Issuer | None:
        """Return the issuer at the start of *path*, in the bundle that judges (rule 1)."""
        # As OpenSSL verifies it, which looks no further than the first anchor.
        end = next((place for place, each in enumerate(path, 1) if each in self._certificates), len(path))
        path = path[:end]
        keys = [key_identifier(each.public_key()) for each in path]
        claims = filter(None, (bundle.issuer_at(path) for bundle in self.bundles))
        judge = next(claims, None)
        if judge is None:
            return None
        if is_from_outside(judge, own):
            firm = (each for each in claims if not firm_keys(each.bundle, own).isdisjoint(keys))
            judge = next((each for each in firm if not is_from_outside(each, own)), judge)
        key = end_of(judge).key_id
        below = keys[: keys.index(key)] if key in keys else keys
        for bundle in self.bundles[: self.bundles.index(judge.bundle)]:
            confined = firm_keys(bundle, own).intersection(below)
            if confined and (claim := bundle.issuer_by_key(path, confined)) is not None:
                return claim
        return judge

    def vouching(self, authorities: Sequence[bytes], above: CasAbove | None, own: str | None) -> Sequence[TrustBundle]:
        """Return the bundles, one of which judges a client that is away, if they vouch for the path above it.

        It is the one that judges if that is known: *above* are the CAs as they were when a handshake verified them, and
        *authorities* their keys. *own* as in `issuer_of`.
        """
        if above is None or not above.cas:
            return self._vouching_by_keys(authorities, above, own)
        key = above, tuple(authorities)
        if key not in self._absent:
            if len(self._absent) >= _MOST_PATHS:
                self._absent.clear()
            self._absent[key] = self._vouching_again(authorities, above, own)
        return self._absent[key]

    def _vouching_again(self, authorities: Sequence[bytes], above: CasAbove, own: str | None) -> Sequence[TrustBundle]:
        """Return what `vouching` does, as if OpenSSL verified the path now.

        Of each CA it takes an anchor, whichever certificate of that name and key it is, before what the client sends.
        """
        path = tuple(above.verified())
        place, end = next(
            ((place, end) for place, each in enumerate(above.cas) if (end := self._end_at(each, own)) is not None),
            (len(above.cas), None),
        )
        if isinstance(above, Issuer) and above in {*self._paths.values(), *self._judges.values()}:
            judge: Issuer | None = above  # It is of this generation.
        elif end is None:
            judge = self._judging(path, own) if path else None
        elif not (allows(end, path[:place]) and _may_end(path, place, end)):
            judge = None
        elif path or place == 0:
            judge = self._judging([*path[:place], end], own)
        else:  # After a restart no certificates are known.
            return may_judge(self.bundles, authorities[:place], end, own)
        return [] if judge is None or judge.fault is not None else [judge.bundle]

    def _end_at(self, ca: bytes, own: str | None) -> x509.Certificate | None:
        """Return the anchor that OpenSSL takes for a CA (`ca_digest`), if there is one."""
        if not self._ends:
            for each in sorted(self._anchors(), key=lambda each: self._place(each, own)):
                self._ends.setdefault(each.cas[0], each.certificate)
        return self._ends.get(ca)

    def _vouching_by_keys(
        self, authorities: Sequence[bytes], above: CasAbove | None, own: str | None
    ) -> Sequence[TrustBundle]:
        """Return what `vouching` does, as far as keys tell."""
        return [
            each
            for each in self.bundles
            if each.vouches_for(authorities, above) and not self.judges_before(each, authorities, above, own)
        ]

    def judges_before(
        self, bundle: TrustBundle, authorities: Sequence[bytes], above: CasAbove | None, own: str | None
    ) -> bool:
        """Whether an earlier bundle judges what is below CAs with the keys *authorities*, for which *bundle* vouches.

        By rule 1, as far as keys tell; *above* and *own* as in `TrustBundle.vouches_for` and `issuer_of`. An anchor of
        one of the bundles ends the path; what stands directly above that may still be another's. Where both name the CA
        at which it ends, by different certificates, the earlier one judges only what certainly ends at its own.
        """
        end = bundle.place_in(authorities)
        if end is None:
            return False
        near, issuing = authorities[: end + 2], None if end or above is None else above.issuing
        ends = bundle.anchors_with(authorities[end]) if issuing is None else [issuing]
        return any(
            each.claims(near, above) and (each.place_in(near) != end or all(map(each.ends_at, ends)))
            for each in self.bundles[: self.bundles.index(bundle)]
            if not firm_keys(each, own).isdisjoint(near)
        )

    def _place(self, issuer: Issuer, own: str | None) -> tuple[bool, bool, bool, int]:
        """Return by what *issuer* comes before or after others of its name: an anchor as OpenSSL is given it."""
        outside, is_of_others, place = self._rank(issuer, own)
        is_learned = not issuer.is_anchor or issuer.certificate not in self._certificates
        return outside, is_learned, is_learned and is_of_others, place

    def _rank(self, issuer: Issuer, own: str | None) -> tuple[bool, bool, int]:
        """Return by what *issuer* comes before or after others where there is no path (rule 3)."""
        bundle = issuer.bundle
        is_of_others = bundle.terms.trust_domain not in {None, own}
        return is_from_outside(issuer, own), is_of_others, self.bundles.index(bundle)

    def _anchors(self) -> Iterator[Issuer]:
        return (anchor for bundle in self.bundles for anchor in bundle.anchors)

    def warn_of_claims(self, own: str | None) -> None:
        """Log which anchors from outside have the key of another bundle's anchor, or could be taken for it."""
        met: dict[object, dict[str, Issuer]] = {}
        """By what makes them alike, one of each bundle; there may be very many."""
        for each in sorted(self._anchors(), key=lambda each: self._rank(each, own)):
            name, identified = each.called, each.identifier
            called = (each.key_id, name) if identified is None else (each.key_id, (name, identified), (name, None))
            near = (other for key in called for other in met.get(key, {}).values())
            other = next((other for other in near if other.bundle is not each.bundle), None)
            if other is not None and is_from_outside(each, own):
                log.warning(
                    "an anchors_url lists a CA of another trust bundle",
                    code="ANCHOR_OF_ANOTHER",
                    bundle=each.bundle.name,
                    detail=f"{each.subject[:_SHOWN]} is an anchor of {other.bundle.name}, which judges its clients",
                )
            for key in (each.key_id, name, (name, identified)):
                met.setdefault(key, {}).setdefault(each.bundle.name, each)

    def issuing(self, bundle: TrustBundle) -> list[Issuer]:
        """Return the CAs of *bundle* that issue to clients: those of clients seen here, or else its anchors."""
        seen = [each for each in self._issuers.values() if each.bundle is bundle]
        known = {each.key_id for each in seen}
        above = {each.key_id for issuer in [*seen, *bundle.anchors] for each in issuer.path() if each is not issuer}
        return seen + [anchor for anchor in bundle.anchors if anchor.key_id not in above | known]

    def issuers_with(self, key_id: bytes, own: str | None) -> list[Issuer]:
        """Return the CAs with that key identifier which may issue to clients: anchors, and those learned.

        They are those of the first bundle that has one, in the order of rule 3; *own* as there.
        """
        known = self._ordered.get((key_id, own))
        if known is None:
            found = [each for each in (*self._issuers.values(), *self._anchors()) if each.key_id == key_id]
            first = self._first_of(found, own)
            known = self._first_of([self._judging_for(each, own) or each for each in first], own)
            if known:
                self._ordered[key_id, own] = known
        return known

    def _first_of(self, issuers: Sequence[Issuer], own: str | None) -> list[Issuer]:
        """Return those of *issuers*, each once, before which none comes (rule 3)."""
        ranked = {each: self._rank(each, own) for each in issuers}
        first = min(ranked.values(), default=None)
        return [each for each, rank in ranked.items() if rank == first]

    def keys_at(self, now: datetime) -> set[bytes]:
        """Return the key identifiers of the CAs that have not expired: anchors, and those learned."""
        known = {each for issuer in (*self._paths.values(), *self._anchors()) for each in issuer.path()}
        return {each.key_id for each in known if now <= each.not_after}

    def key_ends(self, key_id: bytes) -> datetime | None:
        """Return when the last certificate of a CA with that key expires, if one is known."""
        known = (each for issuer in (*self._paths.values(), *self._anchors()) for each in issuer.path())
        return max((each.certificate.not_valid_after_utc for each in known if each.key_id == key_id), default=None)

    def authorities(self, name: x509.Name) -> list[Issuer]:
        """Return every CA of that name: anchors, and those learned."""
        wanted = as_compared(name)
        found = {
            each.certificate.public_bytes(Encoding.DER): each
            for issuer in [*self._paths.values(), *self._anchors()]
            for each in issuer.path()
            if each.called == wanted
        }
        return list(found.values())

    def _learn(self, ders: tuple[bytes, ...], now: datetime, own: str | None) -> Issuer | None:
        try:
            issuer = self._judging([x509.load_der_x509_certificate(der) for der in ders], own)
        except UNUSABLE as error:
            raise UnreadableAuthority(str(error)) from error
        if issuer is None:
            return None
        key = ders[0], issuer.bundle.name
        if self._what_is_full(key, issuer) and self._forget_expired(issuer.bundle, now):
            self._full.discard(issuer.bundle.name)
        if met := self._what_is_full(key, issuer):
            return issuer if self._has_room else self._one_too_many(issuer, met)
        self.learned += 1
        self._paths[ders] = issuer
        self.revoked_as.update(issuer.path_revoked_as)
        self._file(key, issuer)
        return issuer

    def _file(self, key: tuple[bytes, str], issuer: Issuer) -> None:
        known = self._issuers.get(key)
        if known is None or _counts_before(issuer, known):
            self._unfile(key)
            self._issuers[key] = issuer
            self._called.setdefault(issuer.called, []).append(issuer)
            self._ordered.clear()

    def _unfile(self, key: tuple[bytes, str]) -> None:
        if (known := self._issuers.pop(key, None)) is not None:
            called = self._called[known.called]
            called.remove(known)
            if not called:
                del self._called[known.called]
            self._ordered.clear()

    def _what_is_full(self, key: tuple[bytes, str], issuer: Issuer) -> str:
        """Return what there is too much of to learn another path to *issuer*, filed by *key*; empty: nothing."""
        if self.paths_of(issuer.bundle) >= _MOST_PATHS:
            return f"{_MOST_PATHS} paths of CAs"
        if key not in self._issuers and self._namesakes_of(issuer) >= _MOST_NAMESAKES:
            return f"{_MOST_NAMESAKES} CAs called {issuer.subject[:_SHOWN]!r}"
        return ""

    def _forget_expired(self, bundle: TrustBundle, now: datetime) -> bool:
        """Forget the paths of *bundle* that have expired, and with them all their clients; return whether any has."""
        theirs = [(ders, each) for ders, each in self._paths.items() if each.bundle is bundle]
        expired = [ders for ders, each in theirs if each.not_after < now]
        if not expired:
            return False
        for ders, _ in theirs:
            self._unfile((ders[0], bundle.name))
        for ders in expired:
            del self._paths[ders]
        for ders, each in theirs:
            if ders in self._paths:
                self._file((ders[0], bundle.name), each)
        learned = (key for each in self._paths.values() for key in each.path_revoked_as)
        self.revoked_as = {*self._anchors_revoked_as, *learned}
        return True

    def _namesakes_of(self, issuer: Issuer) -> int:
        return sum(each.bundle is issuer.bundle and each.called == issuer.called for each in self._issuers.values())

    def _one_too_many(self, issuer: Issuer, met: str) -> Issuer:
        """Return a copy of *issuer* that is not learned and whose clients are refused; log it once per bundle.

        *met*: how many there are already.
        """
        name = issuer.bundle.name
        if name not in self._full:
            self._full.add(name)
            log.error(
                "a trust bundle is full",
                code=RefusalCode.TRUST_FULL,
                bundle=name,
                detail=f"its clients have used {met}; clients with another are refused",
            )
        detail = f"the trust bundle {name} has seen {met}, its maximum"
        # A copy, because the original, an anchor, belongs to other, known paths too.
        refused = Issuer(issuer.certificate, issuer.bundle, issuer.above, is_anchor=issuer.is_anchor)
        refused.fault = Refused(RefusalCode.TRUST_FULL, ReasonCode.QUOTA_EXCEEDED, detail)
        return refused


def _likely_first(called: Sequence[Issuer], certificate: x509.Certificate, now: datetime) -> Iterator[Issuer]:
    """Yield *called*, CAs of one name, as they may have issued *certificate*, and of these those in date first.

    A CA may have, as for OpenSSL, unless its certificate says another key identifier than *certificate* states; and so
    may all with its key, whatever theirs say: of those with one key the order stays, in date or not. But where
    *certificate* states a serial number, the CA's certificate with that comes first.
    """
    if len(called) <= 1:
        yield from called
        return
    by = extension(certificate, x509.AuthorityKeyIdentifier)
    stated = None if by is None else by.key_identifier
    if by is not None and (serial := by.authority_cert_serial_number) is not None:
        called = sorted(called, key=lambda each: each.certificate.serial_number != serial)
    likely = {each.key_id for each in called if stated is None or each.identifier is None or each.identifier == stated}
    for is_likely in (True, False):
        group = [each for each in called if (each.key_id in likely) is is_likely]
        yield from (each for each in group if each.is_in_date(now))
        yield from (each for each in group if not each.is_in_date(now))


def _may_end(path: Sequence[x509.Certificate], place: int, end: x509.Certificate) -> bool:
    """Whether the anchor *end* may be at this *place* of *path*, or above it; also true if that is not known."""
    if not path:
        return True
    return constrains_no_more(end, path[place:]) and (place < len(path) or is_issued_by(path[-1], end))


def _counts_before(issuer: Issuer, other: Issuer) -> bool:
    """Whether the path of *issuer* is the better one of two above the same CA."""
    return (issuer.fault is None, issuer.not_after) > (other.fault is None, other.not_after)
