"""`fedshield bench crypto`: every scheme on the same work, each in a process of its own.

One row a scheme: bytes on the wire, values a second of one site's encoding and encrypting, of
adding at the coordinator and of opening, on one thread; whether the opened sum is the sum of
what was encoded, exactly; and the process's peak memory. The work: float32 updates of normal
values, one vector a site, equal weights. A site's blocks are added as they are made and dropped,
so that memory does not grow with the sites.
"""

from __future__ import annotations

import importlib.util
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from fedshield.crypto.rlwe.params import SECURITY_BITS, choose
from fedshield.errors import FedShieldError, UserError
from fedshield.types import Float32


class Case(NamedTuple):
    scheme: str
    parameters: str
    bits: int


CASES = (
    Case("plain", "float32", 32),
    Case("ckks", "paper", 22),
    Case("ckks", "lean", 22),
    Case("bfv", "n2048-54", 16),
    Case("rlwe", "", 16),
    Case("rlwe", "", 12),
    Case("rlwe", "", 8),
    Case("rlwe", "headroom", 4),
)
SCHEMES = tuple(dict.fromkeys(case.scheme for case in CASES))
MAX_SITES = 64
#: Seven standard deviations: nothing is clipped, the error is that of rounding.
CLIP = 0.07
GRID_BITS = 22
CONTEXT = b"fedshield bench, not for real use"[:32]
TAG_SEED = SITE_SECRET = CONTEXT
#: Contributors, weight and loss, as a round sends them.
RESERVED_BITS = (1, 31, 31)
RESERVED = (1, 1 << 29, 12345)
#: A whole round is repeated until this much time has passed, at most so often; medians count.
MEASURE_S = 3.0
MAX_ROUNDS = 15
#: Up to so many values of all sites are made once and kept; more are made anew for each use.
KEPT_VALUES = 50_000_000


def missing_peers() -> list[str]:
    """Notes on rows that cannot be measured here."""
    if importlib.util.find_spec("seal") is None:
        return ["row bfv is left out: it needs seal-python (pip install 'fedshield[bench]')"]
    return []


def chosen_cases(schemes: Sequence[str] | None = None, bits: int | None = None) -> list[int]:
    """Indices of the cases of these schemes (None: all) and bits. Raises `UserError` for a
    scheme that is not there and where nothing is left."""
    unknown = set(schemes or ()) - set(SCHEMES)
    found = [
        index
        for index, case in enumerate(CASES)
        if (schemes is None or case.scheme in schemes) and bits in (None, case.bits)
    ]
    if unknown or not found:
        raise UserError(
            f"bench: expected some of the schemes {', '.join(SCHEMES)}, each with its bits, got "
            f"{', '.join(schemes or SCHEMES)}" + ("" if bits is None else f" with {bits} bits")
        )
    return found


def crypto_rows(
    num_values: int, num_sites: int, schemes: Sequence[str] | None = None, bits: int | None = None
) -> Iterator[dict[str, Any]]:
    """A row for each case that was chosen and can be measured here, in the order of `CASES`."""
    if num_values < 1 or not 2 <= num_sites <= MAX_SITES:
        raise UserError(
            f"bench: expected at least 1 value and 2 to {MAX_SITES} sites, got {num_values} and "
            f"{num_sites}"
        )
    # One thread everywhere: what is compared is work, not cores.
    alone = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
    for index in chosen_cases(schemes, bits):
        if CASES[index].scheme == "bfv" and missing_peers():
            continue
        work = (index, num_values, num_sites)
        done = subprocess.run(
            [sys.executable, "-m", "fedshield.cli", "bench", "crypto-row", *map(str, work)],
            capture_output=True,
            text=True,
            env=os.environ | alone,
        )
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no word"])[-1]
            raise FedShieldError(f"bench: {CASES[index].scheme} failed: {last}")
        yield json.loads(done.stdout)


# -- measuring -----------------------------------------------------------------------------


class Work(ABC):
    """A scheme as the benchmark uses it, for updates of one length."""

    name: str
    security_bits: int | None = SECURITY_BITS
    #: What one step of an encoded value is worth.
    step = 1.0

    @abstractmethod
    def __init__(self, case: Case, num_values: int, num_sites: int) -> None: ...

    @abstractmethod
    def encode(self, site: int, update: Float32) -> Any:
        """The update as numbers that the scheme adds; valid until the next call."""

    @abstractmethod
    def encrypt(self, site: int, encoded: Any) -> Iterator[bytes]: ...

    @abstractmethod
    def adder(self) -> Any: ...

    @abstractmethod
    def open(self, blocks: list[bytes]) -> Any: ...


class Sums(NamedTuple):
    """Of one round: bytes of an upload, the opened sum, the sums of what the sites encoded and of
    what they had."""

    upload_bytes: int
    opened: Any
    encoded: Any
    truth: Any


#: Seconds of a round: of a site's encoding and encrypting, of all adding, of opening.
Times = tuple[float, float, float]


def measure(index: int, num_values: int, num_sites: int) -> dict[str, Any]:
    """One row, measured in this process."""
    case = CASES[index]
    make = _WORK[case.scheme]
    # Once unmeasured: compilation, tables, caches.
    small = min(num_values, 20_000)
    _round(make(case, small, 2), _Updates(small, 2))
    work, updates = make(case, num_values, num_sites), _Updates(num_values, num_sites)
    times: list[Times] = []
    begun = time.perf_counter()
    while not times or (time.perf_counter() - begun < MEASURE_S and len(times) < MAX_ROUNDS):
        found, sums = _round(work, updates)
        times.append(found)
    error = np.asarray(sums.opened, dtype=np.float64) * work.step
    error -= sums.truth
    encrypt_s, add_s, open_s = (statistics.median(each) for each in zip(*times, strict=True))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "scheme": case.scheme,
        "parameters": work.name,
        "security_bits": work.security_bits,
        "bits": case.bits,
        "values": num_values,
        "sites": num_sites,
        "rounds": len(times),
        "bytes_per_value": sums.upload_bytes / num_values,
        "expansion_vs_float32": sums.upload_bytes / (4 * num_values),
        "encode_encrypt_values_per_s": num_values / encrypt_s,
        "add_values_per_s": num_values * num_sites / add_s,
        "open_values_per_s": num_values / open_s,
        "max_abs_error": max(float(error.max()), -float(error.min())),
        "exact": bool(np.array_equal(sums.opened, sums.encoded)),
        "peak_rss_bytes": peak * (1 if sys.platform == "darwin" else 1024),
    }


class _Updates:
    """float32, (num_values,), of each site."""

    def __init__(self, num_values: int, num_sites: int) -> None:
        self.num_values, self.num_sites = num_values, num_sites
        self._kept: dict[int, Float32] = {}

    def of(self, site: int) -> Float32:
        if site in self._kept:
            return self._kept[site]
        made = np.random.default_rng(site).standard_normal(self.num_values, dtype=np.float32)
        made *= np.float32(0.01)
        if self.num_values * self.num_sites <= KEPT_VALUES:
            self._kept[site] = made
        return made


def _round(work: Work, updates: _Updates) -> tuple[Times, Sums]:
    """Every site encodes, encrypts and is added; then the sum is opened."""
    clock = time.perf_counter
    adder, totals = work.adder(), list[Any]()
    encrypt_s: list[float] = []
    add_s, upload_bytes = 0.0, 0
    truth: Any = 0.0
    encoded_sum: Any = 0
    for site in range(updates.num_sites):
        update = updates.of(site)
        truth = truth + update.astype(np.float64) if site == 0 else np.add(truth, update, out=truth)
        started = clock()
        encoded = work.encode(site, update)
        blocks = work.encrypt(site, encoded)
        spent, upload_bytes = clock() - started, 0
        for place in range(sys.maxsize):
            started = clock()
            block = next(blocks, None)
            made = clock()
            spent += made - started
            if block is None:
                break
            if site == 0:
                totals.append(None)
            totals[place] = adder.add(totals[place], block)
            add_s += clock() - made
            upload_bytes += len(block)
        encrypt_s.append(spent)
        if site == 0:
            encoded_sum = encoded.astype(np.int64 if encoded.dtype.kind == "i" else np.float64)
        else:
            encoded_sum += encoded
    started = clock()
    summed = [bytes(adder.result(total)) for total in totals]
    add_s += clock() - started
    totals.clear()
    started = clock()
    opened = work.open(summed)
    open_s = clock() - started
    times = statistics.median(encrypt_s), add_s, open_s
    return times, Sums(upload_bytes, opened, encoded_sum, truth)


# -- the schemes ---------------------------------------------------------------------------


class _Plain(Work):
    name, security_bits = "float32", None
    _scheme: Any

    def __init__(self, case: Case, num_values: int, num_sites: int) -> None:
        from fedshield.crypto.plain import PlainScheme

        self._scheme, self._num_values = PlainScheme(), num_values

    def encode(self, site: int, update: Float32) -> Any:
        return update.astype(np.float64)

    def encrypt(self, site: int, encoded: Any) -> Iterator[bytes]:
        blocks: Iterator[bytes] = self._scheme.encrypt(encoded)
        return blocks

    def adder(self) -> Any:
        from fedshield.crypto.adders import PlainAdder

        return PlainAdder()

    def open(self, blocks: list[bytes]) -> Any:
        return self._scheme.open(blocks, self._num_values)


class _Ckks(_Plain):
    def __init__(self, case: Case, num_values: int, num_sites: int) -> None:
        from fedshield.crypto.ckks import CkksScheme

        self._scheme, self._num_values = CkksScheme.generate(case.parameters, GRID_BITS), num_values
        self.name, self.security_bits = case.parameters, self._scheme.parameters.security_bits

    def encode(self, site: int, update: Float32) -> Any:
        return np.rint(update.astype(np.float64) * 2.0**GRID_BITS) * 2.0**-GRID_BITS

    def adder(self) -> Any:
        from fedshield.crypto.adders import CkksAdder

        return CkksAdder(self._scheme.parameters, self._scheme.public)


class _Rlwe(Work):
    def __init__(self, case: Case, num_values: int, num_sites: int) -> None:
        from fedshield.crypto.rlwe import scheme
        from fedshield.crypto.rlwe.layout import RlweLayout

        p = choose(num_sites, case.bits, num_values, headroom=case.parameters == "headroom")
        self._scheme, self._layout = scheme, RlweLayout(p, num_values, RESERVED_BITS)
        self._limit = p.site_limit(1.0 / num_sites)
        self._digits = np.empty(num_values, np.int16)
        self._keys: dict[int, Any] = {}
        self._residues: dict[int, tuple[int, ...]] = {}
        self.name, self.step = p.name, CLIP / self._limit

    def encode(self, site: int, update: Float32) -> Any:
        from fedshield.update.quantise import quantise

        return quantise(update, self._limit / CLIP, self._limit, site, out=self._digits)[0]

    def encrypt(self, site: int, encoded: Any) -> Iterator[bytes]:
        key = self._scheme.one_time_key(encoded, RESERVED, CONTEXT, CONTEXT, SITE_SECRET)
        made = self._scheme.Encryption(encoded, RESERVED, key, CONTEXT, self._layout, TAG_SEED)
        self._keys[site] = key
        yield from made.chunks()
        self._residues[site] = made.residues()

    def adder(self) -> Any:
        from fedshield.crypto.rlwe.adder import RlweAdder

        return RlweAdder(self._layout.parameters)

    def open(self, blocks: list[bytes]) -> Any:
        key_sum = np.sum([key.secret() for key in self._keys.values()], axis=0)
        q = self._layout.parameters.q
        residues = tuple(sum(column) % q for column in zip(*self._residues.values(), strict=True))
        given = (key_sum, residues, len(self._keys), CONTEXT, self._layout, TAG_SEED)
        return self._scheme.open_sum(blocks, *given).values


class _Bfv(Work):
    """SEAL BFV, two balanced 16-bit digits a slot that share their range over the sites, as in
    rlwe; uncompressed, because compression gains nothing on it."""

    degree, digits = 2048, 2

    def __init__(self, case: Case, num_values: int, num_sites: int) -> None:
        import seal

        self._seal, self._num_values, self.name = seal, num_values, case.parameters
        setting = seal.EncryptionParameters(seal.scheme_type.bfv)
        setting.set_poly_modulus_degree(self.degree)
        setting.set_coeff_modulus(seal.CoeffModulus.Create(self.degree, [54]))
        setting.set_plain_modulus(seal.PlainModulus.Batching(self.degree, 34))
        self._context = seal.SEALContext(setting)
        keys = seal.KeyGenerator(self._context)
        self._encryptor = seal.Encryptor(self._context, keys.create_public_key())
        self._decryptor = seal.Decryptor(self._context, keys.secret_key())
        self._evaluator = seal.Evaluator(self._context)
        self._encoder = seal.BatchEncoder(self._context)
        self._radix = (1 << case.bits) - 1
        self._limit = (self._radix - 1) // 2 // num_sites
        self._stride = -(-num_values // self.digits)
        self.step = CLIP / self._limit

    def encode(self, site: int, update: Float32) -> Any:
        from fedshield.update.quantise import quantise

        return quantise(update, self._limit / CLIP, self._limit, site)[0]

    def encrypt(self, site: int, encoded: Any) -> Iterator[bytes]:
        from fedshield.crypto.rlwe import kernels

        packed = np.empty(self._stride)
        kernels.pack_digits(encoded, self._stride, 0, self._radix, self.digits, packed)
        slots = packed.astype(np.int64)
        for at in range(0, slots.size, self.degree):
            made = self._encryptor.encrypt(self._encoder.encode(slots[at : at + self.degree]))
            yield made.to_string(self._seal.compr_mode_type.none)

    def adder(self) -> Any:
        return self

    def add(self, total: Any, block: bytes) -> Any:
        loaded = self._load(block)
        if total is None:
            return loaded
        self._evaluator.add_inplace(total, loaded)
        return total

    def result(self, total: Any) -> bytes:
        return bytes(total.to_string(self._seal.compr_mode_type.none))

    def _load(self, raw: bytes) -> Any:
        found = self._seal.Ciphertext()
        found.load_bytes(self._context, raw)
        return found

    def open(self, blocks: list[bytes]) -> Any:
        from fedshield.crypto.rlwe import kernels

        opened = (self._decryptor.decrypt(self._load(block)) for block in blocks)
        slots = np.concatenate([np.asarray(self._encoder.decode(one)) for one in opened])
        out = np.empty(self._num_values, dtype=np.int64)
        packed = slots[: self._stride].astype(np.float64)
        kernels.unpack_digits(packed, self._stride, 0, self._radix, self.digits, out)
        return out


_WORK: dict[str, type[Work]] = {"plain": _Plain, "ckks": _Ckks, "bfv": _Bfv, "rlwe": _Rlwe}
