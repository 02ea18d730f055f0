"""What a site does for one sum: encode, encrypt, decrypt. Two kinds of cipher, each with the
arguments that it needs and no others.

`SharedKey` (plain, ckks): every site holds the run's key, and the sum decrypts under it.
`OneTimeKeys` (rlwe): every sum has a fresh key at each site, which is shared out among the sites;
the sum decrypts under the sum of the keys.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fedshield.crypto.decode import KeyCheck
from fedshield.crypto.rlwe import scheme as rlwe
from fedshield.crypto.rlwe.layout import RlweLayout
from fedshield.crypto.rlwe.params import RlweParameters
from fedshield.crypto.scheme import SiteScheme
from fedshield.crypto.shares import OpenedShares, ShareShape
from fedshield.plan.quorum import Rules
from fedshield.types import EncodedIntegers, EncodedUpdate, Float32, Layout, OpenedSum
from fedshield.update import encode_grid, encode_integers

Encoded = EncodedUpdate | EncodedIntegers
#: Slices of the values that travel, and the quantisation range of each.
Parts = Sequence[tuple[slice, float]]


@dataclass(frozen=True, eq=False)
class WeightedUpdate:
    """What a site is about to encode. `values`: float32, (num_values,), those that travel;
    `weight`: the site's share of all rows; `seed`: of stochastic rounding."""

    values: Float32 = field(repr=False)
    parts: Parts = field(repr=False)
    weight: float
    train_loss: float
    seed: int


@dataclass(frozen=True, eq=False)
class EncryptedUpdate:
    """An upload's blocks, and what is to be shared out with them: the one-time key's
    coefficients, the residues that go with them (reserved integers and tags), and 32 secret bytes
    to draw shares and salts from."""

    blocks: tuple[bytes, ...] = field(repr=False)
    secret: NDArray[np.int64] = field(repr=False)
    residues: tuple[int, ...] = field(repr=False)
    share_seed: bytes = field(repr=False)


@dataclass(frozen=True, eq=False)
class EncryptedSum:
    """What the coordinator hands back: `blocks` of the sum of `num_contributors` updates that were
    encrypted under `context`."""

    blocks: Sequence[bytes] = field(repr=False)
    layout: Layout
    num_contributors: int
    context: bytes


class SharedKey:
    """plain and ckks: float slots under the run's one key. `grid_bits`: slots are multiples of
    2^-grid_bits; None where the scheme has no grid."""

    one_time: Literal[False] = False

    def __init__(self, scheme: SiteScheme, num_sites: int, grid_bits: int | None) -> None:
        self.scheme = scheme
        #: Names the key without telling it.
        self.key_id = scheme.key_id
        self._grid_bits = grid_bits
        self._slot_limit = scheme.parameters.sum_limit / (2 * num_sites)

    def weights_layout(self) -> Layout:
        return encode_grid.weights_layout(self.scheme.parameters, self.scheme.number_format)

    def update_layout(self, sha256: str, num_values: int) -> Layout:
        named = self.scheme.parameters
        return encode_grid.update_layout(sha256, num_values, named, self.scheme.number_format)

    def num_blocks(self, layout: Layout) -> int:
        """Messages that a vector of this layout travels in."""
        return layout.num_blocks

    def sum_block_bytes(self, layout: Layout, index: int) -> int:
        """Most bytes of message `index` of a sum."""
        named = self.scheme.parameters
        slots = min(layout.values_per_block, layout.num_slots - index * layout.values_per_block)
        if not named.framed:
            return 4 * slots
        # A ciphertext's last digits vary with the compressor.
        return named.block_limit(-(-slots // named.values_per_ciphertext))

    def encode_count(self, num_examples: int) -> EncodedUpdate:
        return encode_grid.encode_count(num_examples, self.weights_layout())

    def encode_update(self, update: WeightedUpdate, layout: Layout) -> EncodedUpdate:
        return encode_grid.encode_update(
            update.values,
            update.weight,
            layout,
            grid_bits=self._grid_bits,
            slot_limit=self._slot_limit,
        )

    def encrypt(self, encoded: EncodedUpdate) -> tuple[bytes, ...]:
        """The blocks of an upload."""
        return tuple(self.scheme.encrypt(encoded.slots))

    def decrypt(self, blocks: Sequence[bytes], layout: Layout) -> OpenedSum:
        """The sum in these blocks. Raises `CryptoError`."""
        return encode_grid.decode_sum(self.scheme.open(blocks, layout.num_slots), layout)


class OneTimeKeys:
    """rlwe: integers under a key for each sum. `repr` shows the parameters only."""

    one_time: Literal[True] = True
    #: Zeros: no key serves two sums.
    key_id = bytes(16)

    def __init__(self, packing: RlweParameters, group_key: bytes, site_secret: bytes) -> None:
        self.parameters = packing
        self._group_key = group_key
        self._site_secret = site_secret

    def __repr__(self) -> str:
        return f"OneTimeKeys({self.parameters.name})"

    def weights_layout(self) -> Layout:
        return encode_integers.weights_layout(self.parameters)

    def update_layout(self, sha256: str, num_values: int) -> Layout:
        return encode_integers.update_layout(sha256, num_values, self.parameters)

    def _lay(self, layout: Layout) -> RlweLayout:
        return rlwe_layout(self.parameters, layout)

    def num_blocks(self, layout: Layout) -> int:
        """Messages that a vector of this layout travels in."""
        return self._lay(layout).num_chunks

    def sum_block_bytes(self, layout: Layout, index: int) -> int:
        """Most bytes of message `index` of a sum."""
        return self._lay(layout).sum_chunk_bytes(index)

    def share_shape(self, layout: Layout, rules: Rules) -> ShareShape:
        """Of the shares of the key of a sum of this layout."""
        return share_shape(self.parameters, layout, rules)

    def encode_count(self, num_examples: int) -> EncodedIntegers:
        return encode_integers.encode_count(num_examples, self.parameters)

    def encode_update(self, update: WeightedUpdate, layout: Layout) -> EncodedIntegers:
        return encode_integers.encode_update(
            update.values,
            layout,
            update.parts,
            update.weight,
            update.train_loss,
            self.parameters,
            update.seed,
        )

    def _tag_seed(self, context: bytes) -> bytes:
        return hmac.digest(self._group_key, b"fedshield tag 1" + context, "sha256")

    def encrypt(self, encoded: EncodedIntegers, context: bytes) -> EncryptedUpdate:
        """Encrypt under a fresh key, which is bound to `context` (32 bytes: session and round)."""
        layout = encoded.layout
        key = rlwe.one_time_key(
            encoded.digits, encoded.reserved, context, layout.sha256(), self._site_secret
        )
        encryption = rlwe.Encryption(
            encoded.digits,
            encoded.reserved,
            key,
            context,
            self._lay(layout),
            self._tag_seed(context),
        )
        blocks = tuple(encryption.chunks())
        share_seed = hmac.digest(key.seed, b"fedshield shares 2", "sha256")
        return EncryptedUpdate(blocks, key.secret(), encryption.residues(), share_seed)

    def key_check(self, total: EncryptedSum) -> KeyCheck | None:
        """What tells the sum of the keys that a sum was made under from any other; None where
        nothing does."""
        lay = self._lay(total.layout)
        if not rlwe.tells_keys(total.num_contributors, lay):
            return None
        return lambda key_sum: rlwe.key_fits(
            total.blocks, key_sum, total.num_contributors, total.context, lay
        )

    def decrypt(self, total: EncryptedSum, shares: OpenedShares, parts: Parts) -> OpenedSum:
        """The checked sum. `shares`: the sum of the keys and residues; `parts`: the ranges that
        its values were encoded with. Raises `CryptoError`."""
        opened = rlwe.open_sum(
            total.blocks,
            shares.key_sum,
            shares.residues,
            total.num_contributors,
            total.context,
            self._lay(total.layout),
            self._tag_seed(total.context),
        )
        return encode_integers.decode_sum(
            opened.values,
            opened.reserved,
            total.layout,
            total.num_contributors,
            parts,
            self.parameters.max_digit,
        )


#: One scheme at one site, during a session.
Cipher = SharedKey | OneTimeKeys


def example_count(opened: OpenedSum, num_contributors: int) -> int:
    """The total of the example counts in a decrypted sum of the weights phase. Raises
    `CryptoError` for what no sum of counts is."""
    count = opened.reserved.get(encode_integers.COUNT)
    if count is not None:
        return round(count)
    return encode_grid.decode_count(opened, num_contributors)


def rlwe_layout(packing: RlweParameters, layout: Layout) -> RlweLayout:
    """Where the coefficients of a layout lie."""
    bits = encode_integers.UPDATE_RESERVED | encode_integers.WEIGHTS_RESERVED
    return RlweLayout(packing, layout.num_values, tuple(bits[name] for name in layout.reserved))


def share_shape(packing: RlweParameters, layout: Layout, rules: Rules) -> ShareShape:
    """Of the shares of one sum under `rlwe`."""
    count = rlwe_layout(packing, layout).num_residues
    return ShareShape(rules.threshold, rules.num_sites, count, packing.q)
