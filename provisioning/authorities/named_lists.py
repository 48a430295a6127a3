"""Which CRLs of this service a CA's certificate names, and whose they are.

A relying party looks for a certificate's status in the CRL that the certificate names, which its issuer signs
(RFC 5280 §4.2.1.13). A root elsewhere may copy the name from a request or a template: then it is another CA's CRL, and
every client that checks the whole path refuses what is below. Only addresses below `public_http_url` are known here.
"""

from __future__ import annotations

from collections.abc import Mapping

from cryptography import x509

from provisioning.authorities.authority import urls_of_root
from provisioning.config import Settings
from provisioning.pki.crl import urls_of
from provisioning.pki.extension import extension
from provisioning.pki.issued_by import is_issued_by


def named_lists(
    certificate: x509.Certificate, settings: Settings, known: Mapping[str, x509.Certificate]
) -> dict[str, tuple[str, bool]]:
    """Return the CRLs of the *known* CAs that *certificate* names, by their URLs: the CA, and whether it is the issuer.

    *known* are certificates by the names of their CAs.
    """
    points = extension(certificate, x509.CRLDistributionPoints)
    named = () if points is None else urls_of(points)
    lists = {urls.crl: name for name in known if (urls := urls_of_root(settings, name)) is not None}
    return {url: (lists[url], is_issued_by(certificate, known[lists[url]])) for url in named if url in lists}
