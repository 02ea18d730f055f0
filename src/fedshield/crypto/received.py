"""TenSEAL objects out of bytes that another party sent, checked before anything is done with them.

Notable: TenSEAL believes the length that a serialised vector claims for itself. A false one makes
it read past its buffers when it decrypts, and a vector without a ciphertext ends the process. So
that outer form is checked here, byte by byte; SEAL validates what lies within. Nothing here holds
a key.
"""

from __future__ import annotations

import struct
from typing import Any

from fedshield.crypto.scheme import MODULUS_BITS, SCALE_BITS, SchemeParameters
from fedshield.errors import CryptoError

# TenSEAL's CKKSVectorProto, the one way in which it writes one ciphertext: packed sizes (field 1),
# the ciphertext (field 2), the scale (field 3).
_SIZES, _CIPHERTEXT = b"\x0a", b"\x12"
_SCALE = b"\x19" + struct.pack("<d", 2.0**SCALE_BITS)
_FRESH_POLYNOMIALS = 2


def context(raw: bytes, parameters: SchemeParameters, what: str) -> Any:
    """The TenSEAL context in `raw`.

    Args:
        raw: as TenSEAL writes it, from anyone.
        parameters: of the named set.
        what: what it is, for the error.

    Raises:
        CryptoError: unless it parses and has the named set's degree, modulus and scale, and nothing
            that more than additions would need.
    """
    import tenseal

    try:
        found = tenseal.context_from(raw, n_threads=1)
        key = found.seal_context().data.key_context_data()
        got = (
            key.parms().poly_modulus_degree(),
            key.total_coeff_modulus_bit_count(),
            found.global_scale,
        )
        beyond = found.has_galois_keys() or found.has_relin_keys()
    except Exception as error:  # TenSEAL raises bare ValueError and RuntimeError
        raise CryptoError(f"{what}: does not parse ({type(error).__name__})") from None
    wanted = (
        2 * parameters.values_per_ciphertext,
        sum(MODULUS_BITS[parameters.name]),
        2.0**SCALE_BITS,
    )
    if got != wanted:
        raise CryptoError(
            f"{what}: expected degree, modulus bits and scale {wanted} of {parameters.name}, "
            f"got {got}"
        )
    if beyond:
        raise CryptoError(f"{what}: expected nothing beyond additions, got Galois or other keys")
    found.auto_relin = found.auto_rescale = found.auto_mod_switch = False
    return found


def vector(context: Any, raw: bytes, parameters: SchemeParameters) -> Any:
    """The one-ciphertext CKKS vector in `raw`.

    Args:
        context: of the named set, from `context`.
        raw: as TenSEAL writes it, from anyone.
        parameters: of the named set.

    Returns:
        TenSEAL's vector, of 1 to values_per_ciphertext values.

    Raises:
        CryptoError: for anything else, before TenSEAL relies on it.
    """
    import tenseal

    _check_form(raw, parameters.values_per_ciphertext)
    try:
        found = tenseal.ckks_vector_from(context, raw)
        (ciphertext,) = found.ciphertext()
        first = context.seal_context().data.first_parms_id()
        fresh = ciphertext.parms_id() == first and ciphertext.size() == _FRESH_POLYNOMIALS
        scaled = ciphertext.scale == 2.0**SCALE_BITS
    except Exception as error:
        raise CryptoError(f"ciphertext: does not parse ({type(error).__name__})") from None
    if not (fresh and scaled):
        raise CryptoError("ciphertext: expected a fresh one or a sum, at the set's scale")
    return found


def _check_form(raw: bytes, most_values: int) -> None:
    size_length, at = _varint(raw, 1)
    num_values, size_end = _varint(raw, at)
    length, start = _varint(raw, size_end + 1)
    whole = (
        raw[:1] == _SIZES
        and size_end == at + size_length
        and raw[size_end : size_end + 1] == _CIPHERTEXT
        and raw[start + length :] == _SCALE
    )
    if not (whole and 1 <= num_values <= most_values):
        raise CryptoError(
            f"ciphertext: expected one, of 1 to {most_values} values, got other bytes"
        )


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    """A protobuf number at `at`, in its shortest form of at most five bytes, and where it ends."""
    value = 0
    for place, byte in enumerate(raw[at : at + 5]):
        value |= (byte & 0x7F) << (7 * place)
        if byte < 0x80 and (byte or not place):
            return value, at + place + 1
    raise CryptoError("ciphertext: expected a length, got other bytes")
