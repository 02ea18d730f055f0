"""What a scheme does for one sum at a site: encode, encrypt, open, decode. Two kinds.

`SharedKey` (plain, ckks): every site holds the run's key; the sum opens under it.
`OneTimeKeys` (rlwe): every sum has a fresh key at each site, which is handed back as `secret` to
be shared out; the sum opens under the sum of the keys.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fedshield.crypto import framing
from fedshield.crypto.decode import KeyCheck
from fedshield.crypto.rlwe import scheme as rlwe
from fedshield.crypto.rlwe.layout import RlweLayout
from fedshield.crypto.rlwe.params import SECURITY_BITS, RlweParameters
from fedshield.crypto.scheme import SiteScheme, parameters, rlwe_parameters
from fedshield.crypto.shares import OpenedShares, ShareShape
from fedshield.errors import CryptoError, PlanError
from fedshield.plan.quorum import Rules
from fedshield.plan.schema import Plan
from fedshield.types import EncodedIntegers, EncodedUpdate, Float32, Layout, OpenedSum
from fedshield.update import encode_grid, encode_integers

Encoded = EncodedUpdate | EncodedIntegers
#: Slices of the values that travel, and the clip of each.
Parts = Sequence[tuple[slice, float]]


@dataclass(frozen=True, eq=False)
class EncryptedUpdate:
    """An upload's blocks and, where the key is for this sum only, what is to be shared out: the
    key's coefficients, the residues that go with them (reserved integers and tags), and 32
    secret bytes to draw shares and salts from."""

    blocks: tuple[bytes, ...] = field(repr=False)
    secret: NDArray[np.int64] | None = field(default=None, repr=False)
    residues: tuple[int, ...] = field(default=(), repr=False)
    share_seed: bytes = field(default=b"", repr=False)


class Cipher(Protocol):
    """One scheme at one site, during a session."""

    #: Names the key without telling it; zeros where each sum has its own.
    key_id: bytes
    #: Whether the key of a sum must be opened by shares.
    one_time: bool

    def weights_layout(self) -> Layout: ...

    def update_layout(self, sha256: str, num_values: int) -> Layout: ...

    def num_blocks(self, layout: Layout) -> int:
        """Messages that a vector of this layout travels in."""

    def sum_block_bytes(self, layout: Layout, index: int) -> int:
        """Most bytes of message `index` of a sum."""

    def share_shape(self, layout: Layout, rules: Rules) -> ShareShape:
        """Of the shares of a sum of this layout, where its key is opened by shares."""

    def encode_count(self, num_examples: int) -> Encoded: ...

    def encode_update(
        self,
        values: Float32,
        layout: Layout,
        parts: Parts,
        weight: float,
        train_loss: float,
        seed: int,
    ) -> Encoded: ...

    def encrypt(self, encoded: Encoded, context: bytes) -> EncryptedUpdate: ...

    def key_check(
        self, blocks: Sequence[bytes], layout: Layout, num_contributors: int, context: bytes
    ) -> KeyCheck | None:
        """What tells the sum of the keys that these blocks were made under from any other; None
        where nothing does."""

    def open(
        self,
        blocks: Sequence[bytes],
        layout: Layout,
        shares: OpenedShares | None,
        num_contributors: int,
        context: bytes,
        parts: Parts,
    ) -> OpenedSum:
        """The checked sum. Raises `CryptoError`."""

    def count(self, opened: OpenedSum, num_contributors: int) -> int:
        """The total of the example counts."""


class SharedKey:
    """plain and ckks: float slots under the run's one key."""

    one_time = False

    def __init__(self, plan: Plan, scheme: SiteScheme, num_sites: int) -> None:
        self.scheme = scheme
        self.key_id = scheme.key_id
        self._grid_bits = plan.encoding.grid_bits if plan.scheme.name == "ckks" else None
        self._slot_limit = scheme.parameters.sum_limit / (2 * num_sites)

    def weights_layout(self) -> Layout:
        return encode_grid.weights_layout(self.scheme.parameters, self.scheme.number_format)

    def update_layout(self, sha256: str, num_values: int) -> Layout:
        named = self.scheme.parameters
        return encode_grid.update_layout(sha256, num_values, named, self.scheme.number_format)

    def num_blocks(self, layout: Layout) -> int:
        return layout.num_blocks

    def sum_block_bytes(self, layout: Layout, index: int) -> int:
        named = self.scheme.parameters
        slots = min(layout.values_per_block, layout.num_slots - index * layout.values_per_block)
        if named.scheme == "plain":
            return 4 * slots
        # A ciphertext's last digits vary with the compressor.
        return named.block_limit(-(-slots // named.values_per_ciphertext))

    def share_shape(self, layout: Layout, rules: Rules) -> ShareShape:
        raise CryptoError(f"{self.scheme.parameters.scheme}: its key is not opened by shares")

    def encode_count(self, num_examples: int) -> Encoded:
        return encode_grid.encode_count(num_examples, self.weights_layout())

    def encode_update(
        self,
        values: Float32,
        layout: Layout,
        parts: Parts,
        weight: float,
        train_loss: float,
        seed: int,
    ) -> Encoded:
        return encode_grid.encode_update(
            values,
            weight,
            layout,
            grid_bits=self._grid_bits,
            slot_limit=self._slot_limit,
        )

    def encrypt(self, encoded: Encoded, context: bytes) -> EncryptedUpdate:
        assert isinstance(encoded, EncodedUpdate)
        return EncryptedUpdate(tuple(self.scheme.encrypt(encoded.slots)))

    def key_check(
        self, blocks: Sequence[bytes], layout: Layout, num_contributors: int, context: bytes
    ) -> KeyCheck | None:
        return None

    def open(
        self,
        blocks: Sequence[bytes],
        layout: Layout,
        shares: OpenedShares | None,
        num_contributors: int,
        context: bytes,
        parts: Parts,
    ) -> OpenedSum:
        return encode_grid.decode_sum(self.scheme.open(blocks, layout.num_slots), layout)

    def count(self, opened: OpenedSum, num_contributors: int) -> int:
        return encode_grid.decode_count(opened, num_contributors)


class OneTimeKeys:
    """rlwe: integers under a key for each sum. `repr` shows the parameters only."""

    one_time = True
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
        return self._lay(layout).num_chunks

    def sum_block_bytes(self, layout: Layout, index: int) -> int:
        return self._lay(layout).sum_chunk_bytes(index)

    def share_shape(self, layout: Layout, rules: Rules) -> ShareShape:
        return share_shape(self.parameters, layout, rules)

    def encode_count(self, num_examples: int) -> Encoded:
        return encode_integers.encode_count(num_examples, self.parameters)

    def encode_update(
        self,
        values: Float32,
        layout: Layout,
        parts: Parts,
        weight: float,
        train_loss: float,
        seed: int,
    ) -> Encoded:
        return encode_integers.encode_update(
            values, layout, parts, weight, train_loss, self.parameters, seed
        )

    def _tag_seed(self, context: bytes) -> bytes:
        return hmac.digest(self._group_key, b"fedshield tag 1" + context, "sha256")

    def encrypt(self, encoded: Encoded, context: bytes) -> EncryptedUpdate:
        assert isinstance(encoded, EncodedIntegers)
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

    def key_check(
        self, blocks: Sequence[bytes], layout: Layout, num_contributors: int, context: bytes
    ) -> KeyCheck | None:
        lay = self._lay(layout)
        if not rlwe.tells_keys(num_contributors, lay):
            return None
        return lambda key_sum: rlwe.key_fits(blocks, key_sum, num_contributors, context, lay)

    def open(
        self,
        blocks: Sequence[bytes],
        layout: Layout,
        shares: OpenedShares | None,
        num_contributors: int,
        context: bytes,
        parts: Parts,
    ) -> OpenedSum:
        if shares is None:
            raise CryptoError("sum: expected the sum of the keys, got none", "key-sum")
        opened = rlwe.open_sum(
            blocks,
            shares.key_sum,
            shares.residues,
            num_contributors,
            context,
            self._lay(layout),
            self._tag_seed(context),
        )
        return encode_integers.decode_sum(
            opened.values,
            opened.reserved,
            layout,
            num_contributors,
            parts,
            self.parameters.max_digit,
        )

    def count(self, opened: OpenedSum, num_contributors: int) -> int:
        return round(opened.reserved[encode_integers.COUNT])


def rlwe_layout(packing: RlweParameters, layout: Layout) -> RlweLayout:
    """Where the coefficients of a layout lie."""
    bits = encode_integers.UPDATE_RESERVED | encode_integers.WEIGHTS_RESERVED
    return RlweLayout(packing, layout.num_values, tuple(bits[name] for name in layout.reserved))


def share_shape(packing: RlweParameters, layout: Layout, rules: Rules) -> ShareShape:
    """Of the shares of one sum under `rlwe`."""
    count = rlwe_layout(packing, layout).num_residues
    return ShareShape(rules.threshold, rules.num_sites, count, packing.q)


def parameters_of(plan: Plan) -> RlweParameters:
    """The packing of a plan's `rlwe`. Raises `PlanError`, naming the knob, if none sums exactly
    or equal weights would leave a site too few steps."""
    num_sites = len(plan.data.site_names())
    try:
        found = rlwe_parameters(num_sites, plan.encoding.bits, plan.encoding.headroom)
        found.site_limit(1.0 / num_sites)
    except CryptoError as error:
        raise PlanError(f"encoding.bits: {error}") from None
    return found


@dataclass(frozen=True)
class SchemeFacts:
    """What a plan's scheme is, in numbers: `bytes_per_value` of an upload on the wire."""

    parameters: str
    security_bits: int | None
    bytes_per_value: float


def facts(plan: Plan) -> SchemeFacts:
    if plan.scheme.name == "rlwe":
        found = parameters_of(plan)
        return SchemeFacts(found.name, SECURITY_BITS, found.bytes_per_value)
    named = parameters(plan.scheme.name, plan.scheme.parameter_set)
    return SchemeFacts(named.name, named.security_bits, named.bytes_per_value)


def block_sizes(plan: Plan, layout: Layout) -> list[tuple[int, int]]:
    """Bytes of each message of an upload, and of the aggregate; for ckks to the mean ciphertext."""
    if plan.scheme.name == "rlwe":
        lay = rlwe_layout(parameters_of(plan), layout)
        return [(lay.chunk_bytes(i), lay.sum_chunk_bytes(i)) for i in range(lay.num_chunks)]
    named = parameters(plan.scheme.name, plan.scheme.parameter_set)
    sizes: list[tuple[int, int]] = []
    for start in range(0, layout.num_slots, layout.values_per_block):
        slots = min(layout.values_per_block, layout.num_slots - start)
        size = 4 * slots
        if plan.scheme.name == "ckks":
            count = -(-slots // named.values_per_ciphertext)
            size = len(framing.pack([b""] * count)) + count * named.ciphertext_bytes
        sizes.append((size, size))
    return sizes


def update_layout(plan: Plan, num_values: int) -> Layout:
    """The layout of an update of so many values, without any key: its sizes are true, its
    digest is not."""
    if plan.scheme.name == "rlwe":
        return encode_integers.update_layout("", num_values, parameters_of(plan))
    named = parameters(plan.scheme.name, plan.scheme.parameter_set)
    return encode_grid.update_layout("", num_values, named, "")


def weights_layout(plan: Plan) -> Layout:
    """The layout of the weights phase, without any key."""
    if plan.scheme.name == "rlwe":
        return encode_integers.weights_layout(parameters_of(plan))
    return encode_grid.weights_layout(parameters(plan.scheme.name, plan.scheme.parameter_set), "")
