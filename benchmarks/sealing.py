"""What sealing costs a site in a sum: microseconds of each step, and bytes.

    python benchmarks/sealing.py                    # medians of 2,000 of each step
    python benchmarks/sealing.py --repeats 200

Prints two tables in Markdown: each step, and the same with X25519 alone (what version 1 of sealing
did) where there is one; and for K sites what a site does and sends in one sum. A share of three
sites' sum is sealed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable

from cryptography.hazmat.backends.openssl import backend
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedshield.crypto.keys import RunKey
from fedshield.crypto.public_keys import MLKEM_BYTES
from fedshield.crypto.scheme import rlwe_parameters
from fedshield.crypto.seal import CIPHERTEXT_BYTES, encapsulate, receive
from fedshield.crypto.shares import ShareShape

CONTEXT, NAMES, SALT_KEY = bytes(32), ("bank", "clinic"), bytes(32)
#: Reserved integers and tags of a round.
NUM_RESIDUES = 5


def median_us(step: Callable[[], object], repeats: int) -> float:
    taken: list[float] = []
    for _ in range(repeats):
        started = time.perf_counter()
        step()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken) * 1e6


def steps(share: bytes) -> dict[str, tuple[Callable[[], object], Callable[[], object] | None]]:
    """Step -> it, and the same with X25519 alone."""
    bank, clinic = RunKey(os.urandom(32)), RunKey(os.urandom(32))
    sender = encapsulate(bank, clinic.public, context=CONTEXT, names=NAMES)
    box = sender.ciphertext + sender.seal(share, "share", salt_key=SALT_KEY)
    receiver, _ = receive(box, clinic, bank.public, context=CONTEXT, names=NAMES)
    answer = sender.seal(share, "answer", salt_key=SALT_KEY)

    def seal_share() -> bytes:
        channel = encapsulate(bank, clinic.public, context=CONTEXT, names=NAMES)
        return channel.ciphertext + channel.seal(share, "share", salt_key=SALT_KEY)

    def open_share() -> bytes:
        channel, inner = receive(box, clinic, bank.public, context=CONTEXT, names=NAMES)
        return channel.unseal(inner, "share")

    private, info = X25519PrivateKey.generate(), bytes(200)
    peer = clinic.public.x25519

    def old_key() -> ChaCha20Poly1305:
        secret = private.exchange(X25519PublicKey.from_public_bytes(peer))
        derived = HKDF(algorithm=SHA256(), length=32, salt=SALT_KEY, info=info).derive(secret)
        return ChaCha20Poly1305(derived)

    sealed = old_key().encrypt(bytes(12), share, b"")

    def old_seal() -> bytes:
        return old_key().encrypt(bytes(12), share, b"")

    def old_open() -> bytes:
        return old_key().decrypt(bytes(12), sealed, b"")

    def old_pair() -> bytes:
        return X25519PrivateKey.generate().public_key().public_bytes_raw()

    return {
        "make the keys of a sum": (lambda: RunKey(SALT_KEY), old_pair),
        "check a peer's key": (clinic.public.check, None),
        "seal a share (encapsulates)": (seal_share, old_seal),
        "open a share (decapsulates)": (open_share, old_open),
        "seal an answer": (lambda: sender.seal(share, "answer", salt_key=SALT_KEY), old_seal),
        "open an answer": (lambda: receiver.unseal(answer, "answer"), old_open),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=2000)
    repeats = parser.parse_args().repeats
    packing = rlwe_parameters(3, 16, False)
    share = os.urandom(ShareShape(2, 3, NUM_RESIDUES, packing.q).num_bytes)
    print(f"{backend.openssl_version_text()}; a share of {len(share)} bytes; one thread\n")
    print("| step | us | us, X25519 alone |\n|---|---|---|")
    now: list[float] = []
    before: list[float] = []
    for name, (step, old) in steps(share).items():
        now.append(median_us(step, repeats))
        before.append(median_us(old, repeats) if old else 0.0)
        print(f"| {name} | {now[-1]:.0f} | {f'{before[-1]:.0f}' if old else ''} |")
    print("\n| sites | ms | ms, X25519 alone | bytes sent more than with X25519 alone |")
    print("|---|---|---|---|")
    for sites in (3, 10, 64):
        peers = sites - 1
        more = MLKEM_BYTES + CIPHERTEXT_BYTES * peers
        # The keys once, everything else for each peer.
        spent = ((each[0] + sum(each[1:]) * peers) / 1e3 for each in (now, before))
        print("| {} | {:.1f} | {:.1f} | {:,} |".format(sites, *spent, more))


if __name__ == "__main__":
    main()
