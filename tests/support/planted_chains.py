"""Faults in our own broker by which a certificate is believed whatever is wrong with the chain above it.

Each list is planted in one run (`tests.support.planting`).
"""

from __future__ import annotations

from collections.abc import Sequence

from tests.support.planting import Fault

BELIEVED: Sequence[Fault] = (
    # OpenSSL builds the chain, finds what is wrong with it, and is overruled each time.
    (
        "provisioning/pki/tls.py",
        "    credential.load_into(context)\n    return context\n\n\ndef client_context(",
        (
            "    credential.load_into(context)\n"
            "    import ctypes\n"
            "    from provisioning.pki import openssl, openssl_library\n"
            "    kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_void_p)\n"
            "    openssl.overruled = kind(lambda _good, _chain: 1)\n"
            "    openssl_library.declare('SSL_CTX_set_verify', None, [ctypes.c_void_p, ctypes.c_int, kind])\n"
            "    overrule = openssl_library.library.SSL_CTX_set_verify\n"
            "    overrule(openssl.address_of_context(context), 2 * context.verify_mode - 1, openssl.overruled)\n"
            "    return context\n\n\ndef client_context("
        ),
    ),
)
ABOVE_IT_NOTHING: Sequence[Fault] = (
    (
        "broker/admission/status.py",
        "        found = None if above is None else above.find_revoked(self.index)\n",
        "        found = None\n",
    ),
)
ANY_NAME: Sequence[Fault] = (
    # What cannot be read, as two extensions of a kind, says nothing.
    (
        "provisioning/pki/extension.py",
        "    for each in certificate.extensions:\n",
        (
            "    try:\n"
            "        found = certificate.extensions\n"
            "    except x509.DuplicateExtension:\n"
            "        return None\n"
            "    for each in found:\n"
        ),
    ),
    # Whoever looks for a name in the bytes finds one, of however many there are.
    (
        "provisioning/pki/identity.py",
        "    names = extension(certificate, x509.SubjectAlternativeName)\n",
        (
            "    from cryptography.hazmat.primitives.serialization import Encoding\n"
            '    found = re.findall(rb"spiffe://[a-z./]+/device-[0-9]{3}", certificate.public_bytes(Encoding.DER))\n'
            "    if found:\n"
            "        return parse_uri(found[-1].decode())\n"
            "    names = extension(certificate, x509.SubjectAlternativeName)\n"
        ),
    ),
)
