"""The two small interfaces behind which every scheme stands.

`SiteScheme` is what a site holds: it encrypts and opens. `Adder` is what the coordinator
holds: public material only. They live in different modules, so that the coordinator can
import this one and nothing that could hold a key.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Protocol

from fedshield.types import Float64

if TYPE_CHECKING:
    from fedshield.crypto.rlwe.params import RlweParameters

#: Blocks are what travels in one message; a constant, because all parties must cut alike.
BLOCK_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True)
class SchemeParameters:
    """A named parameter set.

    `ciphertext_bytes` is the measured size of one fresh serialised ciphertext (its last digits
    vary with the compressor); it is used for estimates and to bound what is accepted. The two
    key sizes are those of the serialised contexts, without and with the secret key.
    """

    scheme: str
    name: str
    security_bits: int | None
    values_per_ciphertext: int
    ciphertext_bytes: int
    public_key_bytes: int
    secret_key_bytes: int
    #: |sum| of a slot must stay below this for the opening to be right.
    sum_limit: float
    #: Whether a block is a frame of ciphertexts; else it is the numbers themselves.
    framed: bool = True

    @property
    def ciphertexts_per_block(self) -> int:
        return max(1, BLOCK_BYTES // self.ciphertext_bytes)

    @property
    def values_per_block(self) -> int:
        return self.ciphertexts_per_block * self.values_per_ciphertext

    @property
    def bytes_per_value(self) -> float:
        return self.ciphertext_bytes / self.values_per_ciphertext

    def block_limit(self, ciphertexts: int | None = None) -> int:
        """Largest block of so many ciphertexts (by default, of any number) that is accepted from
        the network, in bytes."""
        count = self.ciphertexts_per_block if ciphertexts is None else ciphertexts
        return int(count * (self.ciphertext_bytes * 1.25 + 64)) + 64


PLAIN = SchemeParameters("plain", "", None, 1, 4, 0, 0, sum_limit=float(2**100), framed=False)

# Security: N=8192 with 200 bits and N=4096 with 106 bits are both inside the 128-bit classical
# rows of the HomomorphicEncryption.org tables (218 and 109 bits; the 2024 guideline, ePrint
# 2024/463, has the same or looser rows for ternary secrets).
CKKS: dict[str, SchemeParameters] = {
    "lean": SchemeParameters("ckks", "lean", 128, 2048, 61_400, 80, 61_500, 2.0**11),
    "paper": SchemeParameters("ckks", "paper", 128, 4096, 331_400, 100, 232_800, 2.0**18),
}
#: Coefficient modulus bits per set; the last prime is SEAL's special prime.
MODULUS_BITS = {"paper": (60, 40, 40, 60), "lean": (53, 53)}
SCALE_BITS = 40


def parameters(scheme: str, name: str) -> SchemeParameters:
    """The named set. Raises `KeyError` for a name that the plan would have refused."""
    return {"plain": {"": PLAIN}, "ckks": CKKS}[scheme][name]


class Adder(Protocol):
    """The coordinator's half. Block by block; memory of one running total."""

    def add(self, total: object | None, block: bytes) -> object:
        """The running total with `block` added. Raises `CryptoError` if it does not fit."""

    def result(self, total: object) -> bytes:
        """The total as one block on the wire."""


class SiteScheme(Protocol):
    """A site's half: it holds the key."""

    parameters: SchemeParameters
    #: Names the key without telling it: a digest.
    key_id: bytes
    #: How numbers are laid out; part of the layout, so that all sites agree on it.
    number_format: str

    def encrypt(self, slots: Float64) -> Iterator[bytes]:
        """Blocks of ciphertext for float64 `slots`, values_per_block slots in each."""

    def open(self, blocks: Sequence[bytes], num_slots: int) -> Float64:
        """The sum in `blocks`, float64 of shape (num_slots,). Raises `CryptoError`."""


#: The failure bound of rlwe counts this many coefficients in a run: more than any plan has, and
#: dearer by a few hundredths of a bit only. So parties need not agree on a run's length.
RUN_COEFFICIENTS = 1 << 40


@lru_cache(maxsize=64)
def rlwe_parameters(num_sites: int, bits: int, headroom: bool) -> RlweParameters:
    """The packing of scheme `rlwe`, the same at every party.

    Args:
        num_sites: of the roster.
        bits: of a value.
        headroom: whether every site has `bits` of its own; see `rlwe.params.choose`.

    Raises:
        CryptoError: when no prime fits.
    """
    from fedshield.crypto.rlwe.params import choose

    return choose(num_sites, bits, RUN_COEFFICIENTS, headroom=headroom)
