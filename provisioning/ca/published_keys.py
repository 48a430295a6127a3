"""Keys whose private half is printed in an RFC: for tests and examples, so that everybody has them.

They come with sample code, and so into devices that nobody has given a key of their own. A list of all that is known
to be public has millions of keys, and is fetched by an operator (`provisioning.ca.key_blocklist`); these few are
refused by every service. Each is recognised as in that list, by a digest: of a P-521 or RSA-1024 key, too, which is
never certified, but may be shown in a manufacturer's certificate.

Handles: looking up. Does not handle: keys of DSA, X25519 and other kinds, which no certificate here is for.
"""

from __future__ import annotations

from typing import Final

_IN_RFCS: Final = {
    "RFC 4474": ("1b12d669098bb7f23eeb071af5642f",),
    "RFC 4870": ("54c9d985b2129c4f329891453fd77f",),
    "RFC 4871": ("1be2c2e898b8cb93583845439eb7b8",),
    "RFC 5702": ("9004d540add099c4569be19d13c032", "ca2051ddc164a3ce581dd0ef259f9e"),
    "RFC 6605": ("f017cc3a1ad4afd02dbcf7e03a716a", "9dd2bc0e3d5fc1035d1ab8ed65423a"),
    "RFC 6979": (
        "6cf3851753f1da70ddab40b85f7fe1",
        "3936cb962ccf458f9d96e7d53ed364",
        "10985c901b9bc6c098258f3ae43e4f",
        "cab8860f3b4d077859313d2a4ef4fe",
        "0925f7c753355dd3cd3c4904001d6f",
    ),
    "RFC 7515": ("26d6872d476b20e7eaa7cc894dcbc0", "c4a8d76ecf5f712a6f98052d967a15", "08d4c44ed3de00523ff625400c954b"),
    "RFC 7517": ("fa0823c601e01670320f579ad4c5c4",),
    "RFC 7520": (
        "91c2c702c0240040ba2a82a55357ac",
        "9824cb1775986a785650f342359396",
        "b322d7b4b4a3b7113718b338a6d2d7",
        "764d93fbafa4ff760cdd00e242e1e6",
        "2fa826c24364cd3811e370291c3eec",
    ),
    "RFC 8032": (
        "21fe31dfa154a261626bf854046fd2",
        "39f713d0a644253f04529421b9f51b",
        "dac073e0123bdea59dd9b3bda9cf60",
        "91384c411e5af29648f17f922b4026",
        "5f9b247e2a654719f198e4f241d6b0",
    ),
    "RFC 8080": ("4f5c3376bc776ab9ad2b1b53d99b54", "09474483b4a9315b6e3408f50fc52a"),
    "RFC 8410": ("e744c0791320c3285460eddb523f14",),
    "RFC 8696": ("75ec43793a1681e6f043eb674ffd85",),
    "RFC 9216": ("1f632c1b69e93a3f6fb11ff0abe1e9", "b9c3f3dcb228aab2e0eaf2fc535ff0"),
    "RFC 9421": (
        "9af6159203e8509e0550defa50b312",
        "73cc3db46dd36894434b9b56888194",
        "fa2bc28a552a8316d284796d1b00dc",
        "b16c2d1bead1262639764fdb0ee4d3",
    ),
    "RFC 9500": (
        "33d5b04ff73a985edb0f91900a927b",
        "d5246bc377541fb76508de53d527eb",
        "718d4d86179831caf9ff705a08a587",
        "336ab2ef332415f3ec691a96a4dfd2",
        "f37f4a83bbce8e3e8118ca38541b39",
        "95ebd9e88bd04c3238d9593c875af8",
    ),
    "RFC 9635": ("4cef6712be02dc19cf064219c3d181",),
}
"""By `provisioning.ca.key_blocklist.digest_of`."""
_WHERE: Final = {bytes.fromhex(digest): name for name, digests in _IN_RFCS.items() for digest in digests}


def published_in(digest: bytes) -> str | None:
    """Return the document that the key with this *digest* is printed in; None: in none of these."""
    return _WHERE.get(digest)
