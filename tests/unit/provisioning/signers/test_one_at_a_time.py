"""Several keys of one token sign at once: one thread at a time is in its module, which takes no locks of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.support.softhsm import SoftToken

_SIGNING = """
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from provisioning.ca.signing import try_key
from provisioning.signers.pkcs11 import Pkcs11Signer
from provisioning.signers.pkcs11_uri import Pkcs11Uri
from tests.support.softhsm import PIN

module, token = Path(sys.argv[1]), sys.argv[2]
signers = [Pkcs11Signer(Pkcs11Uri(module, token, label), lambda: PIN) for label in "abcd"]
for each in signers:
    each.create()

def sign(signer):
    for _ in range(200):  # Without turns none of six runs survived it.
        try_key(signer.open())  # A session that is opened, used and closed.

with ThreadPoolExecutor(len(signers)) as pool:
    list(pool.map(sign, signers))
print("signed")
"""


def test_keys_that_sign_at_once_do_not_end_the_process(tmp_path: Path) -> None:
    token = SoftToken.new(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", _SIGNING, str(token.module), token.label],
        env=os.environ | {"SOFTHSM2_CONF": str(token.configuration)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (0, "signed\n"), done.stderr[-2000:]
