"""Keys that take long to find, precomputed: not in real use, for tests that need their kind and size.

RSA keys are stored as their primes, DSA keys as their numbers. Each call gives the same key: if two of a kind are
needed, the second has to be generated.
"""

from __future__ import annotations

from typing import Final

from cryptography.hazmat.primitives.asymmetric import dsa, rsa

_PRIMES: Final = {
    (1024, 65537): (
        (
            "fd5568639108299847c854e3294233295d1ffce5b99b38ca8b54c58b3e17dcb7c6825aae694db81b15093d0dfa2eef41"
            "7c1d53c66ca6473aa94cc421ee09fba1"
        ),
        (
            "f643e649a996137ba971b66e1e81957ffb4352d916d0d7e4adac532957d39ee9d5205090fe63db6225eff1bd23434c2e"
            "24da35901ee51348190ae767aa7a401b"
        ),
    ),
    (2047, 65537): (
        (
            "d352f0bc9792bcc9a72d7d42cb4d04aa51adbe2132d04c8d087c0d473101854fe079d5b420e756c95b2a1ba8d14687f4"
            "a175a37374aa367ddf40f315b1e6660eccf6467557ff0fdf8bbba8703957615ad36ea76c8956cafcfd68cf5256e86ea7"
            "8e5291380c55e03fb5d950e78f4e745cc5366032ff8a8c42cd5a89f158e478fd"
        ),
        (
            "73e3224077c1501c72e361ba2475e5a62ec61a44ce6041c4dc94de2f59af993e7d46056412d6180206abcd3320d88962"
            "7439aa4373fe454ea4bc0cd71c59f15f0134be9f2bfc7f4ef22752b12f3c32f9b277d272be37d7dc5bea506a8e1c260f"
            "98110e06076d7ed08b684aafd4da9988061959722f03af6c78d02be91b9564f7"
        ),
    ),
    (2048, 65537): (
        (
            "f82b3d190e6e956b604fcadaae3a33ea6d73e3b560e1f5b37c42d6bdc3b9fcac89f8750c716d706de45897f62fc56e12"
            "875bce4743cde9d5245ef83dae9b12f9ee1ccd5c684185ac8dd6bf08465e640a8cd9045c389eee6afb534537e64c1569"
            "bdd46442e705604607a3b9b67a1efcf4cac73212e8b7ae0dfad75885250f667d"
        ),
        (
            "b6c767ed424523f6f718e74a64c429856fabe351dce447456d68d8e13b461762c5f0cf3c22aafc5df6900212a83a1336"
            "4daae4915ea82859763923d9f813645ae059f087e442ea07539a86ac3eeed305630c9e765fe2b71706fc1f811bada728"
            "a8ae0dca3b957c2456a19b54d70439202e5ad798b3773c4ec5c33823e08139a9"
        ),
    ),
    (2048, 3): (
        (
            "f9769557a6b4bb6e4e051d64844bc818fdbd8f5b3a417fb19288e7255604fcdd2a84d11d4193902458d41870c49e50d2"
            "68e242dba22db2c47ba5b5529de4893f3c52b8a452a1ac8b065eaca9622e7466c4ac15a18499a5455f6670a4f0e6e4db"
            "bc52771c4beaa94c08e9092672505efc86b8e2391baecf84f1bc11bf3b6aaf27"
        ),
        (
            "ebd7d499e4a67d8f6a32e631ac4fdc5851713d0f2b7ea6a57d64d4626d4592885185982783d329044abcc239cee60604"
            "0e8514bb278d60ecba36589029e1f71da25813fd4334f573f62dc0a7961da3f904ea3e1f1e150abad5739547743b655b"
            "876d29741206a91fdc3da630c74c580d302838e2c4740921c06554e6c4b3d317"
        ),
    ),
    (3072, 65537): (
        (
            "df33cdb1fa385ced2d77df794243dfa633657f767cb729f16e9dd1c30aa96d6c47b508a95e5ace1d31dcd5d49faa997e"
            "ce91a140fc5439c8478f09f4d00a69b150038a51d78f13bec90aeeac79b3d6ca2523a1e9dea0939ed8468b00f78dc410"
            "8817db361f1699d73ef6af71adafbd4dae83e2ac0db27db0e07ba0c3af44cffaa522705a36eb6549469c8f906ef3ae8b"
            "31a60d056cfab1cabfb89eca0729a44331bfde5463ed31b2855fbe085845230a6476b0591f1f0b40c7855641aac6ed6b"
        ),
        (
            "d332dff45ac32c91ecdad4f824dcb414e3ce8abc869e1240ee33b85a0f293d053bf2f7bb2bae98959e6190f34b85a29e"
            "e8a8f8eb96cb4ae0d76613605905e81eeafcb3ba66bacf56b10984ab37fa028e9f379b39c058fc080cba6c9fc11d72f4"
            "d0d8eb1d116120c846c34b26eb766d0723590b03333fc79561ba7900409b59869b937fcfb94726b8939e0f8d9022c10a"
            "690c2e1d10c43b37bcb1330e7b8b44ef9ff9ae83de298cd035778b23fe596af4248dec05e45ee9b8e0b302ca9f9b7ae9"
        ),
    ),
}
"""By bits and exponent: two primes."""
_DSA: Final = {
    1024: (
        (
            "a28b603363cd286e74eae08b7897757965612093d371e47a65212cab087f07f7f143a311e7895b8489f9eefe070e8e80"
            "c70e0203d98ad5746042b16ce8491bb9e7d17d921fda437484df4f00ec7931c58f825149e4e3476d5c4de3c7c8804f73"
            "31b79cf8c2c4a4eb6ef17959224369175f8352ef02cf3adeaeb8f7662d0804d9"
        ),
        "f0f0120f78377a95a70b9b2b13b9d2f2429429cf",
        (
            "6e8b43a31aeda84defa981a410df274feaf9c46a4e0c78e820d9ceb2ce91484b2bcb61354592b61a50c6857d93355194"
            "b0e93c13c11a62c811b7ffbcc484cf188ce93fb69fd78ad73a1e20a56316297e696c254f76a7e6952ed01fe398772154"
            "d4596ad2cebde6d0f832158dd0b8584e84c740eb156446908777c84d6499527e"
        ),
        (
            "4887ae7c5b74f230d76208f06493dddac8b55314835a0424aa4cd9d32b4b5194b679d52755f54d3ed242907ad9205445"
            "ac4721161aacd769cf59dfb93e8007b8d6e0a96095d0b2599a9148ab403e85941fe822a79e2cabe5d1ff049d7a98a006"
            "3e478cd430e5f993864b320910da01ddf610448283ad0a4046b2d1fa7b79c361"
        ),
        "87203435885a135b954192c2a26679a7f15e2154",
    ),
    2048: (
        (
            "817887c4a161034c557f9250bb0b15cc65aa56aba90102cdc01ad5b35cd9c0da79f5d1d0fdeb57392d3efc0f620b5b36"
            "7e017224e3e10deb5484201afdac6d582903df460fc5379f8a5bb48378acc95d706ea3df9488d60f1f3b332d393987fd"
            "e01fedd6bdb88a3bad6826b917ce8e011fb59f019373a748594e9dcba558516874723a64211895d3143c2c95521b834f"
            "069c234fc34e97eb7af1b99e86e28425a32ca84aae89192c0956eabe95643904b98ccaf0bf81d7573a1a08e352febf64"
            "860ce60a91023d4ac9ab667dafbe995b1d0352ab78dc1acb18ad829a7df6c08c9386de8b0fa9148c1a1c7b7c89c4b65e"
            "07ecff0e1d9c40249e42468d216fed9d"
        ),
        "b78cf7edfd53f6689fc044103d403e9edd554f0cd843ebf61bf65ed42e03d69d",
        (
            "7c977c2b0044d1ce35f6dcc3d4b8284c7d8164096bc25278ec1b28827c7ef6e2766e1eb17873f8f4bd8a33b6fbaa0e3d"
            "d220512d064f70b1242c6e10178100de8e92bcb54119223b100d6d9f7c62f1e97f059718cb3227a4088384d29befaba5"
            "9ce9abe89108ae6cfbb4dbed4001260feac753e7492c8a2457fc90d62a63e4d1b9c2f761d9b53d20219b93fb514106f1"
            "99e628b1934883d0e32ea2efc6e421b35bfc6705acb22bbd9dbd536bbf0ccdbd34dbddba0701e25da41c6627f40cd768"
            "1c93465128e0d4231b7dddfe4065f3d9aa3c06d4edd46b12a6d6332da9bdb4127dcbcd76f0f0d51f41a859f1e9cfa7f6"
            "cc0499726c2de0046a5760dc59c32bc0"
        ),
        (
            "3b568f8447ba5882c720308de1b435f755ab7d72f11ce98c5e31ba328d282fed04b2e0fcc93fd09119c5b883f5aac56c"
            "4de3d006ffbd1bfd1c8fc03541b7d5ce884fa0fd1e4fe676c65ad4743eef9c8bd4f71c12d423e8c86cdc50797c1bfe69"
            "82bdf9367152964b7ea6113b53d86c530bb1bf822f119cd359bbf7b41070ee0fc9747b128442324799a2e34e6972a96b"
            "07797185f2842477630dc48ae98233050c84e1b66142be6cea1b95a8a8de36c25559340ad3b4699defe34e03825f3bf8"
            "4fccaf8f7fecf27046877b1cc799533e7151ab1710247456a770ccca80bf7b6fb44d0e2201b2635bce51d7e54a84126c"
            "749e86e1321f76ee1e683186450b1aa5"
        ),
        "6ff4b260c1b6dcc575b86114087906915cab6e47ab9ddbdd02e3e10b7e382632",
    ),
}
"""By bits: p, q, g, y and x (FIPS 186-4 §4)."""


def rsa_key(bits: int = 2048, exponent: int = 65537) -> rsa.RSAPrivateKey:
    """Return the RSA key of this size and public exponent; raise KeyError if none is stored."""
    p, q = (int(prime, 16) for prime in _PRIMES[bits, exponent])
    private = pow(exponent, -1, (p - 1) * (q - 1))
    numbers = rsa.RSAPrivateNumbers(
        p, q, private, private % (p - 1), private % (q - 1), pow(q, -1, p), rsa.RSAPublicNumbers(exponent, p * q)
    )
    return numbers.private_key(unsafe_skip_rsa_key_validation=True)


def dsa_key(bits: int) -> dsa.DSAPrivateKey:
    """Return the DSA key of this size; raise KeyError if none is stored."""
    p, q, g, y, x = (int(number, 16) for number in _DSA[bits])
    public = dsa.DSAPublicNumbers(y, dsa.DSAParameterNumbers(p, q, g))
    return dsa.DSAPrivateNumbers(x, public).private_key()
