"""ML-KEM-768 as the library has it: against published answers, against the reference in plain
Python, and the checks of FIPS 203, section 7.2, that sealing rests on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from hypothesis import given, settings
from hypothesis import strategies as st

from fedshield.crypto.public_keys import MLKEM_BYTES, PublicKey
from fedshield.crypto.seal import CIPHERTEXT_BYTES
from fedshield.errors import CryptoError
from reference import mlkem as reference

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "mlkem768.json").read_text())
X25519 = (9).to_bytes(32, "little")
KEY = MLKEM768PrivateKey.from_seed_bytes(bytes(range(64))).public_key().public_bytes_raw()
COEFFICIENTS = reference.byte_decode(KEY[:1152], 12)


def test_the_published_key_and_rejection() -> None:
    """Of the library and of the reference: a key from its seed, and the secret that a ciphertext
    gives which nobody encapsulated."""
    vector = VECTORS["rejection"]
    seed, ciphertext = bytes.fromhex(vector["seed"]), bytes.fromhex(vector["c"])
    key = MLKEM768PrivateKey.from_seed_bytes(seed)
    ek, dk = reference.keys(seed[:32], seed[32:])
    assert key.public_key().public_bytes_raw() == ek
    assert ek.hex().startswith(vector["ek_first"])
    assert ek.hex().endswith(vector["ek_last"])
    assert len(ek) == MLKEM_BYTES
    assert len(ciphertext) == CIPHERTEXT_BYTES
    assert key.decapsulate(ciphertext).hex() == vector["k"]
    assert reference.decapsulate(dk, ciphertext).hex() == vector["k"]


def test_the_published_encapsulation() -> None:
    """Of the reference: the library takes no message."""
    vector = VECTORS["encapsulation"]
    secret, ciphertext = reference.encapsulate(
        bytes.fromhex(vector["ek"]), bytes.fromhex(vector["m"])
    )
    assert secret.hex() == vector["k"]
    assert ciphertext.hex().startswith(vector["c_first"])
    assert ciphertext.hex().endswith(vector["c_last"])
    assert len(ciphertext) == CIPHERTEXT_BYTES


@settings(deadline=None, max_examples=15)
@given(
    seed=st.binary(min_size=64, max_size=64),
    message=st.binary(min_size=32, max_size=32),
    changed=st.integers(0, 8 * CIPHERTEXT_BYTES - 1),
)
def test_the_library_does_what_the_reference_does(
    seed: bytes, message: bytes, changed: int
) -> None:
    key, (ek, dk) = MLKEM768PrivateKey.from_seed_bytes(seed), reference.keys(seed[:32], seed[32:])
    public = key.public_key()
    assert public.public_bytes_raw() == ek
    secret, ciphertext = reference.encapsulate(ek, message)
    assert key.decapsulate(ciphertext) == reference.decapsulate(dk, ciphertext) == secret
    theirs, other = public.encapsulate()
    assert reference.decapsulate(dk, other) == theirs
    bent = bytearray(ciphertext)
    bent[changed // 8] ^= 1 << changed % 8
    rejected = key.decapsulate(bytes(bent))
    assert rejected == reference.decapsulate(dk, bytes(bent))
    assert rejected != secret


def with_coefficient(place: int, value: int) -> bytes:
    coefficients = [*COEFFICIENTS]
    coefficients[place] = value
    return reference.byte_encode(coefficients, 12) + KEY[1152:]


def refuses(mlkem: bytes) -> bool:
    """Whether the library does, and then our check."""
    try:
        MLKEM768PublicKey.from_public_bytes(mlkem)
    except ValueError:
        with pytest.raises(CryptoError, match="not reduced mod 3329"):
            PublicKey(mlkem, X25519).check()
        return True
    PublicKey(mlkem, X25519).check()
    return False


def test_every_coefficient_is_checked_against_the_modulus() -> None:
    """FIPS 203, section 7.2, modulus check: 12 bits hold up to 4095, a key's numbers up to 3328."""
    for place in range(768):
        assert refuses(with_coefficient(place, 3329)), place
    for value in (3329, 3330, 4000, 4095):
        assert refuses(with_coefficient(value % 768, value))
    for value in (0, 1, 3328):
        assert not refuses(with_coefficient(700, value))
    assert refuses(b"\xff" * MLKEM_BYTES)


@pytest.mark.parametrize("size", [0, 32, MLKEM_BYTES - 1, MLKEM_BYTES + 1])
def test_another_length_is_no_key(size: int) -> None:
    """FIPS 203, section 7.2, type check."""
    assert refuses(KEY[:size] + bytes(max(0, size - MLKEM_BYTES)))


@pytest.mark.parametrize("size", [0, 1087, 1089])
def test_a_ciphertext_of_another_length_is_refused(size: int) -> None:
    """FIPS 203, section 7.3, type check: `receive` cuts exactly what the standard takes."""
    with pytest.raises(ValueError, match="ciphertext"):
        MLKEM768PrivateKey.from_seed_bytes(bytes(64)).decapsulate(bytes(size))
