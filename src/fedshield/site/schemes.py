"""A plan's scheme: its sizes and facts, its keys, and the cipher that a site uses in a session.

`scheme_of` is the one place where a scheme is chosen by its name at a site. The coordinator's half
is chosen in `crypto.adders`, which can hold no key.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from fedshield.crypto import framing
from fedshield.crypto.ckks import CkksScheme
from fedshield.crypto.plain import PlainScheme
from fedshield.crypto.rlwe.params import SECURITY_BITS, RlweParameters
from fedshield.crypto.scheme import SchemeParameters, SiteScheme, parameters, rlwe_parameters
from fedshield.errors import CryptoError, PlanError
from fedshield.plan.schema import Plan
from fedshield.site.ciphers import Cipher, OneTimeKeys, SharedKey, rlwe_layout
from fedshield.types import Layout
from fedshield.update import encode_grid, encode_integers


@dataclass(frozen=True)
class SchemeFacts:
    """What a plan's scheme is, in numbers: `bytes_per_value` of an upload on the wire."""

    parameters: str
    security_bits: int | None
    bytes_per_value: float


@dataclass(frozen=True)
class SessionKeys:
    """What a site holds during a session. `run_key`: the key that all sites share, None where each
    sum has keys of its own; `group_key`: 32 bytes that the session's sites share; `site_secret`:
    32 bytes of this site's own."""

    run_key: SiteScheme | None = field(repr=False)
    group_key: bytes = field(repr=False)
    site_secret: bytes = field(repr=False)


class RunKeyMaker(Protocol):
    """How the one key of a run comes about."""

    def generate(self) -> SiteScheme:
        """A new key, from the operating system's generator."""

    def from_secret(self, secret: bytes) -> SiteScheme:
        """The key that another site made. Raises `CryptoError` for one that does not fit."""


class Scheme(Protocol):
    """One scheme, as a plan has it. Layouts made here, without a key, have true sizes; their
    digests are not those of a run."""

    @property
    def facts(self) -> SchemeFacts: ...

    @property
    def run_key(self) -> RunKeyMaker | None:
        """None where each sum has keys of its own."""

    def update_layout(self, num_values: int) -> Layout: ...

    def weights_layout(self) -> Layout: ...

    def block_sizes(self, layout: Layout) -> list[tuple[int, int]]:
        """Bytes of each message of an upload, and of the sum; for ckks to the mean ciphertext."""

    def cipher(self, keys: SessionKeys) -> Cipher:
        """What a site encrypts with in a session."""


@dataclass(frozen=True)
class _PlainKey:
    def generate(self) -> SiteScheme:
        return PlainScheme()

    def from_secret(self, secret: bytes) -> SiteScheme:
        if secret:
            raise CryptoError(f"run key: expected none for plain, got {len(secret)} bytes")
        return PlainScheme()


@dataclass(frozen=True)
class _CkksKey:
    parameter_set: str
    grid_bits: int

    def generate(self) -> SiteScheme:
        return CkksScheme.generate(self.parameter_set, self.grid_bits)

    def from_secret(self, secret: bytes) -> SiteScheme:
        return CkksScheme.from_secret(self.parameter_set, secret, self.grid_bits)


@dataclass(frozen=True)
class _SlotScheme:
    """plain and ckks: slots of numbers under one key of the run. `grid_bits`: slots are multiples
    of 2^-grid_bits; None where the scheme has no grid."""

    named: SchemeParameters
    run_key: RunKeyMaker
    num_sites: int
    grid_bits: int | None

    @property
    def facts(self) -> SchemeFacts:
        return SchemeFacts(self.named.name, self.named.security_bits, self.named.bytes_per_value)

    def update_layout(self, num_values: int) -> Layout:
        return encode_grid.update_layout("", num_values, self.named, "")

    def weights_layout(self) -> Layout:
        return encode_grid.weights_layout(self.named, "")

    def block_sizes(self, layout: Layout) -> list[tuple[int, int]]:
        sizes: list[tuple[int, int]] = []
        for start in range(0, layout.num_slots, layout.values_per_block):
            slots = min(layout.values_per_block, layout.num_slots - start)
            size = 4 * slots
            if self.named.framed:
                count = -(-slots // self.named.values_per_ciphertext)
                size = len(framing.pack([b""] * count)) + count * self.named.ciphertext_bytes
            sizes.append((size, size))
        return sizes

    def cipher(self, keys: SessionKeys) -> Cipher:
        assert keys.run_key is not None, "the run's key comes first"
        return SharedKey(keys.run_key, self.num_sites, self.grid_bits)


@dataclass(frozen=True)
class _OneTimeScheme:
    """rlwe: packed integers, with keys for each sum."""

    packing: RlweParameters
    run_key: None = None

    @property
    def facts(self) -> SchemeFacts:
        return SchemeFacts(self.packing.name, SECURITY_BITS, self.packing.bytes_per_value)

    def update_layout(self, num_values: int) -> Layout:
        return encode_integers.update_layout("", num_values, self.packing)

    def weights_layout(self) -> Layout:
        return encode_integers.weights_layout(self.packing)

    def block_sizes(self, layout: Layout) -> list[tuple[int, int]]:
        lay = rlwe_layout(self.packing, layout)
        return [(lay.chunk_bytes(i), lay.sum_chunk_bytes(i)) for i in range(lay.num_chunks)]

    def cipher(self, keys: SessionKeys) -> Cipher:
        return OneTimeKeys(self.packing, keys.group_key, keys.site_secret)


def _plain(plan: Plan) -> Scheme:
    return _SlotScheme(parameters("plain", ""), _PlainKey(), len(plan.data.site_names()), None)


def _ckks(plan: Plan) -> Scheme:
    chosen, grid_bits = plan.scheme.parameter_set, plan.encoding.grid_bits
    named, num_sites = parameters("ckks", chosen), len(plan.data.site_names())
    return _SlotScheme(named, _CkksKey(chosen, grid_bits), num_sites, grid_bits)


def _rlwe(plan: Plan) -> Scheme:
    return _OneTimeScheme(parameters_of(plan))


_SCHEMES: dict[str, Callable[[Plan], Scheme]] = {"plain": _plain, "ckks": _ckks, "rlwe": _rlwe}


def scheme_of(plan: Plan) -> Scheme:
    """The plan's scheme. Raises `PlanError`, naming the knob, where its packing cannot sum
    exactly."""
    return _SCHEMES[plan.scheme.name](plan)


def parameters_of(plan: Plan) -> RlweParameters:
    """The packing of a plan's `rlwe`. Raises `PlanError`, naming the knob, if none sums exactly
    or equal weights would leave a site too few steps."""
    num_sites = len(plan.data.site_names())
    try:
        packing = rlwe_parameters(num_sites, plan.encoding.bits, plan.encoding.headroom)
        packing.site_limit(1.0 / num_sites)
    except CryptoError as error:
        raise PlanError(f"encoding.bits: {error}") from None
    return packing
