"""Write the known answers of a replaced key to tests/vectors/enrolment.json.

    python scripts/make_enrolment_vectors.py

Made from docs/roster.md and the encoding of docs/protocol.md alone, without this package: a card
with a chain of two replacements, a roster with that card in it, its countersignatures and a request
for a certificate. Run it only when the format changes on purpose.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import struct
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

VECTORS = Path(__file__).parents[1] / "tests" / "vectors" / "enrolment.json"
#: Party -> the seeds of its keys, the first key first: 32 bytes that count up from this number.
SEEDS = {"coordinator": [1], "bank": [2, 40, 80], "clinic": [3], "hospital": [4]}
DATES = ["2026-03-01", "2026-06-01", "2026-09-01"]


def encode(value: Any) -> bytes:
    if isinstance(value, int):
        return b"I" + struct.pack(">q", value)
    if isinstance(value, str):
        return b"S" + struct.pack(">I", len(value.encode())) + value.encode()
    if isinstance(value, bytes):
        return b"B" + struct.pack(">I", len(value)) + value
    return b"L" + struct.pack(">I", len(value)) + b"".join(map(encode, value))


def key(seed: int) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(bytes((seed + k) % 256 for k in range(32)))


def public(seed: int) -> bytes:
    form = (serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return key(seed).public_key().public_bytes(*form)


def party(name: str) -> tuple[list[Any], list[dict[str, str]]]:
    """The party as it is under signatures, and each statement of a replacement with its
    signature."""
    seeds, replaced, statements = SEEDS[name], [], []
    for number, (old, new) in enumerate(itertools.pairwise(seeds)):
        message = encode(
            [
                *("fedshield replacement 1", name, public(old), DATES[number]),
                *(public(new), DATES[number + 1]),
            ]
        )
        signature = key(old).sign(message)
        replaced.append([public(old), DATES[number], signature])
        statements.append({"statement": message.hex(), "signature": signature.hex()})
    fields = [name, public(seeds[-1]), DATES[len(seeds) - 1], *([replaced] if replaced else [])]
    return fields, statements


def main() -> None:
    sites = [party(name)[0] for name in ("bank", "clinic", "hospital")]
    rules = [3, 1, 2, 3, 3, "malicious", "fixed"]
    content = encode(
        [
            *("fedshield signed roster 2", 0, party("coordinator")[0], sites, rules, b""),
            [["rlwe"], 8, 0],
            2,
        ]
    )
    digest = hashlib.sha256(content).digest()
    salt = b"fedshield roster fingerprint 1"
    fingerprint = hashlib.scrypt(digest, salt=salt, n=2**15, r=8, p=1, dklen=16, maxmem=64 << 20)
    countersigned = {}
    for name in ("bank", "clinic", "hospital"):
        others = [other for other in ("bank", "clinic", "hospital") if other != name]
        message = encode(["fedshield countersignature 1", digest, name, others])
        countersigned[name] = key(SEEDS[name][-1]).sign(message).hex()
    tls = hashlib.sha256(b"a TLS public key").digest()
    request = encode(["fedshield certificate request 1", "ward-notes", "bank", tls])
    card_part = encode(["fedshield card 1", *party("bank")[0]])
    found = {
        "seeds": SEEDS,
        "dates": DATES,
        "replacements": party("bank")[1],
        "card_part": card_part.hex(),
        "card_signature": key(SEEDS["bank"][-1]).sign(card_part).hex(),
        "content": content.hex(),
        "content_sha256": digest.hex(),
        "fingerprint": fingerprint.hex(),
        "countersignatures": countersigned,
        "tls_key_sha256": tls.hex(),
        "request": request.hex(),
        "request_signature": key(SEEDS["bank"][-1]).sign(request).hex(),
    }
    VECTORS.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
