"""Property: a path is walked by names that were looked up, as it is walked by trying everything there is."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from functools import cache

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from broker.admission.named_cas import NamedCas
from broker.admission.walked_path import walk, walk_below
from provisioning.pki.keys import generate_key
from tests.support.pki import shared_pki
from tests.support.plain_walk import plain_walk

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey
PKI = shared_pki()
DAY = timedelta(days=1)


@cache
def keys() -> Sequence[Key]:
    return (generate_key(), generate_key(), rsa.generate_private_key(65537, 2048), ed25519.Ed25519PrivateKey.generate())


def name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


@st.composite
def certificates(draw: st.DrawFn, *, is_ca: bool = True) -> x509.Certificate:
    """Draw one of few names and keys, so that most have namesakes, and many an issuer that can have signed them."""
    weighted = st.sampled_from([0, 0, 0, 1, 2, 3])
    key, signer = keys()[draw(weighted)], keys()[draw(weighted)]
    subject, issuer = draw(st.sampled_from("AB")), draw(st.sampled_from(["A", "B", "a", "b "]))
    if draw(st.integers(0, 3)) == 0:
        issuer, signer = subject, key
    begins, ends = draw(st.sampled_from([(-1, 1), (-1, 1), (-1, 1), (-9, -1), (-9, -2), (1, 9)]))
    builder = x509.CertificateBuilder(
        name(issuer),
        name(subject if is_ca else "meter-1"),
        key.public_key(),
        draw(st.integers(1, 2)),
        PKI.now + begins * DAY,
        PKI.now + ends * DAY,
    )
    length = draw(st.sampled_from([None, None, 0])) if is_ca else None
    builder = builder.add_extension(x509.BasicConstraints(ca=is_ca, path_length=length), critical=True)
    if draw(st.booleans()):
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    stated = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
    match draw(st.integers(0, 3)):
        case 0:
            builder = builder.add_extension(stated, critical=False)
        case 1:
            by = [x509.DirectoryName(name(draw(st.sampled_from("ABb"))))]
            both = x509.AuthorityKeyIdentifier(stated.key_identifier, by, draw(st.integers(1, 2)))
            builder = builder.add_extension(both, critical=False)
    return builder.sign(signer, None if isinstance(signer, ed25519.Ed25519PrivateKey) else hashes.SHA256())


@given(
    certificates(is_ca=False), st.lists(certificates(), max_size=6), st.lists(certificates(), max_size=6), st.booleans()
)
def test_the_walk_by_name_goes_where_the_plain_one_goes(
    client: x509.Certificate, shown: list[x509.Certificate], anchors: list[x509.Certificate], alike: bool
) -> None:
    if alike:  # What is an anchor may be shown as well, and the other way round.
        shown, anchors = shown + anchors[:2], anchors + shown[:2]
    chain = [client, *shown]
    code, came = plain_walk(chain, anchors, PKI.now)
    for explained in (True, False):
        step, path = walk_below(NamedCas(anchors), chain, PKI.now, explained=explained)
        assert (step.code, path, step.passed) == (code, came, not code)
    step, path = walk(chain, anchors, PKI.now)
    assert (step.code, path) == (code, [] if code else came)
