"""`fedshield bench crypto`: every scheme on the same work, each in a process of its own.

One row a scheme: bytes on the wire, values a second of one site's encoding and encrypting, of
adding at the coordinator and of opening, on one thread; whether the opened sum is the sum of
what was encoded, exactly; and the process's peak memory. The work: float32 updates of normal
values, one vector a site, equal weights.
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
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from fedshield.crypto.rlwe.params import SECURITY_BITS, choose
from fedshield.errors import FedShieldError, UserError
from fedshield.types import Float32, Float64

CASES = (
    ("plain", "float32", 32),
    ("ckks", "paper", 22),
    ("ckks", "lean", 22),
    ("bfv", "n2048-54", 16),
    ("rlwe", "", 16),
    ("rlwe", "", 12),
    ("rlwe", "", 8),
)
CLIP = 0.05
GRID_BITS = 22
CONTEXT = b"fedshield bench, not for real use"[:32]
TAG_SEED = SITE_SECRET = CONTEXT
#: A count, a weight and two metrics, as a round sends them.
RESERVED_BITS = (16, 30, 30, 40)
RESERVED = (800, 1 << 29, 12345, 678)
#: A site's vector is encrypted this often at the least; the median counts.
REPEATS = 3

#: Encode and encrypt a site's values; returns blocks and the encoded values.
Encrypt = Callable[[int, Float32], tuple[list[bytes], Any]]


def missing_peers() -> list[str]:
    """Notes on rows that cannot be measured here."""
    if importlib.util.find_spec("seal") is None:
        return ["row bfv is left out: it needs seal-python (pip install 'fedshield[bench]')"]
    return []


def crypto_rows(num_values: int, num_sites: int) -> Iterator[dict[str, Any]]:
    """A row for each case that can be measured here, in the order of `CASES`."""
    if num_values < 1 or not 2 <= num_sites <= 64:
        raise UserError(
            f"bench: expected at least 1 value and 2 to 64 sites, got {num_values} and {num_sites}"
        )
    # One thread everywhere: what is compared is work, not cores.
    alone = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
    for index, (scheme, _, _) in enumerate(CASES):
        if scheme == "bfv" and missing_peers():
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
            raise FedShieldError(f"bench: {scheme} failed: {last}")
        yield json.loads(done.stdout)


def measure(index: int, num_values: int, num_sites: int) -> dict[str, Any]:
    """One row, measured in this process."""
    scheme, parameters, bits = CASES[index]
    updates = [
        np.random.default_rng(site).normal(0, 0.01, num_values).astype(np.float32)
        for site in range(num_sites)
    ]
    make = {"plain": _plain, "ckks": _ckks, "bfv": _bfv, "rlwe": _rlwe}[scheme]
    name, security_bits, encrypt, add, open_sum, step = make(
        parameters, bits, num_values, num_sites
    )
    # Once unmeasured: compilation, tables, caches.
    small = updates[0][: min(num_values, 20_000)]
    encrypt(0, small)
    seconds: list[float] = []
    uploads: list[list[bytes]] = []
    encoded: list[Any] = []
    # The repeats come first: a one-time key serves the last vector of its site.
    for site in [*([0] * max(0, REPEATS - num_sites)), *range(num_sites)]:
        started = time.perf_counter()
        blocks, values = encrypt(site, updates[site])
        seconds.append(time.perf_counter() - started)
        if len(seconds) > max(0, REPEATS - num_sites):
            uploads.append(blocks)
            encoded.append(values)
    started = time.perf_counter()
    total = [add([upload[place] for upload in uploads]) for place in range(len(uploads[0]))]
    add_s = time.perf_counter() - started
    opening: list[float] = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        opened = open_sum(total)
        opening.append(time.perf_counter() - started)
    upload_bytes = sum(map(len, uploads[0]))
    exact = bool(
        np.array_equal(opened, np.sum(encoded, axis=0, dtype=np.result_type(encoded[0], np.int64)))
    )
    truth = np.sum([update.astype(np.float64) for update in updates], axis=0)
    error = np.abs(np.asarray(opened, dtype=np.float64) * step - truth)
    return {
        "scheme": scheme,
        "parameters": name,
        "security_bits": security_bits,
        "bits": bits,
        "values": num_values,
        "sites": num_sites,
        "bytes_per_value": upload_bytes / num_values,
        "expansion_vs_float32": upload_bytes / (4 * num_values),
        "encode_encrypt_values_per_s": num_values / statistics.median(seconds),
        "add_values_per_s": num_values * num_sites / add_s,
        "open_values_per_s": num_values / statistics.median(opening),
        "max_abs_error": float(error.max()),
        "exact": exact,
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


# -- the schemes ---------------------------------------------------------------------------

_Made = tuple[
    str,
    int | None,
    Encrypt,
    Callable[[Sequence[bytes]], bytes],
    Callable[[list[bytes]], Any],
    float,
]


def _added(make_adder: Callable[[], Any]) -> Callable[[Sequence[bytes]], bytes]:
    adder = make_adder()

    def add(blocks: Sequence[bytes]) -> bytes:
        total: object | None = None
        for block in blocks:
            total = adder.add(total, block)
        return bytes(adder.result(total))

    return add


def _plain(_: str, bits: int, num_values: int, num_sites: int) -> _Made:
    from fedshield.crypto.adders import PlainAdder
    from fedshield.crypto.plain import PlainScheme

    scheme = PlainScheme()

    def encrypt(_: int, update: Float32) -> tuple[list[bytes], Float64]:
        slots = update.astype(np.float64)
        return list(scheme.encrypt(slots)), slots

    return (
        "float32", None, encrypt, _added(PlainAdder),
        lambda blocks: scheme.open(blocks, num_values), 1.0,
    )  # fmt: skip


def _ckks(parameters: str, bits: int, num_values: int, num_sites: int) -> _Made:
    from fedshield.crypto.adders import CkksAdder
    from fedshield.crypto.ckks import CkksScheme

    scheme = CkksScheme.generate(parameters, GRID_BITS)

    def encrypt(_: int, update: Float32) -> tuple[list[bytes], Float64]:
        slots = np.rint(update.astype(np.float64) * 2.0**GRID_BITS) * 2.0**-GRID_BITS
        return list(scheme.encrypt(slots)), slots

    return (
        parameters, scheme.parameters.security_bits, encrypt,
        _added(lambda: CkksAdder(scheme.parameters, scheme.public)),
        lambda blocks: scheme.open(blocks, num_values), 1.0,
    )  # fmt: skip


def _rlwe(_: str, bits: int, num_values: int, num_sites: int) -> _Made:
    from fedshield.crypto.rlwe import scheme
    from fedshield.crypto.rlwe.adder import RlweAdder
    from fedshield.crypto.rlwe.layout import RlweLayout
    from fedshield.quantise import quantise

    p = choose(num_sites, bits, num_values)
    limit = p.site_limit(1.0 / num_sites)
    keys: dict[int, scheme.OneTimeKey] = {}
    layouts: dict[int, RlweLayout] = {}

    def encrypt(site: int, update: Float32) -> tuple[list[bytes], Any]:
        layout = layouts.setdefault(update.size, RlweLayout(p, update.size, RESERVED_BITS))
        values, _ = quantise(update, limit / CLIP, limit, site)
        keys[site] = scheme.one_time_key(values, RESERVED, CONTEXT, CONTEXT, SITE_SECRET)
        return list(scheme.encrypt(values, RESERVED, keys[site], CONTEXT, layout, TAG_SEED)), values

    def open_sum(blocks: list[bytes]) -> Any:
        key_sum = np.sum([key.secret() for key in keys.values()], axis=0)
        return scheme.open_sum(
            blocks, key_sum, num_sites, CONTEXT, layouts[num_values], TAG_SEED
        ).values

    return p.name, SECURITY_BITS, encrypt, _added(lambda: RlweAdder(p)), open_sum, CLIP / limit


def _bfv(parameters: str, bits: int, num_values: int, num_sites: int) -> _Made:
    """SEAL BFV, two balanced 16-bit digits a slot that share their range over the sites, as in
    rlwe; uncompressed, because compression gains nothing on it."""
    import seal

    from fedshield.crypto.rlwe import kernels
    from fedshield.quantise import quantise

    degree, radix, digits = 2048, (1 << bits) - 1, 2
    setting = seal.EncryptionParameters(seal.scheme_type.bfv)
    setting.set_poly_modulus_degree(degree)
    setting.set_coeff_modulus(seal.CoeffModulus.Create(degree, [54]))
    setting.set_plain_modulus(seal.PlainModulus.Batching(degree, 34))
    context = seal.SEALContext(setting)
    keys = seal.KeyGenerator(context)
    encryptor = seal.Encryptor(context, keys.create_public_key())
    decryptor = seal.Decryptor(context, keys.secret_key())
    evaluator, encoder = seal.Evaluator(context), seal.BatchEncoder(context)
    limit = ((radix - 1) // 2) // num_sites

    def encrypt(site: int, update: Float32) -> tuple[list[bytes], Any]:
        values, _ = quantise(update, limit / CLIP, limit, site)
        slots = np.empty(-(-values.size // digits), dtype=np.int64)
        kernels.pack_digits(values, radix, digits, slots)
        blocks = [
            encryptor.encrypt(encoder.encode(slots[at : at + degree])).to_string(
                seal.compr_mode_type.none
            )
            for at in range(0, slots.size, degree)
        ]
        return blocks, values

    def load(raw: bytes) -> Any:
        found = seal.Ciphertext()
        found.load_bytes(context, raw)
        return found

    def add(blocks: Sequence[bytes]) -> bytes:
        total = load(blocks[0])
        for block in blocks[1:]:
            evaluator.add_inplace(total, load(block))
        return bytes(total.to_string(seal.compr_mode_type.none))

    def open_sum(blocks: list[bytes]) -> Any:
        slots = np.concatenate(
            [np.asarray(encoder.decode(decryptor.decrypt(load(block)))) for block in blocks]
        )
        out = np.empty(num_values, dtype=np.int64)
        kernels.unpack_digits(np.ascontiguousarray(slots, dtype=np.int64), radix, digits, out)
        return out

    return parameters, SECURITY_BITS, encrypt, add, open_sum, CLIP / limit
