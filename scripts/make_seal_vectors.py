"""Write known answers for sealed boxes to tests/vectors/seal.json.

    python scripts/make_seal_vectors.py

Made by tests/reference/seal.py from fixed random bytes, without this package. Run it only
when the format changes on purpose: a change of that file is a change of protocol.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1] / "tests"
sys.path.insert(0, str(TESTS))

from reference import mlkem, seal  # noqa: E402

OUT = TESTS / "vectors" / "seal.json"
SITES = ("bank", "clinic")


def fixed(label: str, size: int = 32) -> bytes:
    return hashlib.shake_128(b"fedshield seal vectors " + label.encode()).digest(size)


def main() -> None:
    keys: dict[str, seal.Keys] = {}
    told: dict[str, Any] = {}
    for site in SITES:
        random, secret = fixed(f"random {site}", 64), fixed(f"site secret {site}")
        keys[site] = seal.Keys.derived(random, secret)
        told[site] = {
            "random": random.hex(),
            "site_secret": secret.hex(),
            "mlkem_seed": keys[site].mlkem_seed.hex(),
            "x25519_private": keys[site].x25519_private.hex(),
            "public": keys[site].public.hex(),
        }
    boxes: list[dict[str, Any]] = []
    for purpose, content, associated, names in (
        ("run keys", fixed("content"), b"", ("bank", "clinic")),
        ("share", fixed("share", 100), fixed("upload"), ("bank", "clinic")),
        ("answer", fixed("share", 100), fixed("sum", 64), ("clinic", "bank")),
        ("share", b"", b"", ("clinic", "bank")),
    ):
        sender, receiver = (keys[name] for name in names)
        message, salt_key = fixed(f"message {purpose}"), fixed(f"salt key {purpose}")
        context = fixed("context")
        made = seal.sealed(
            sender,
            receiver,
            message,
            content,
            purpose=purpose,
            context=context,
            names=names,
            associated=associated,
            salt_key=salt_key,
        )
        secret = mlkem.encapsulate(receiver.mlkem_public, message)[0]
        boxes.append(
            {
                "names": names,
                "purpose": purpose,
                "context": context.hex(),
                "associated": associated.hex(),
                "content": content.hex(),
                "message": message.hex(),
                "salt_key": salt_key.hex(),
                "mlkem_secret": secret.hex(),
                "x25519_secret": sender.exchange(receiver.x25519_public).hex(),
                "ciphertext": made.ciphertext.hex(),
                "info_sha256": hashlib.sha256(made.info).hexdigest(),
                "key": made.key.hex(),
                "box": made.box.hex(),
            }
        )
    OUT.write_text(json.dumps({"keys": told, "boxes": boxes}, indent=1) + "\n", encoding="utf-8")
    print(OUT.name)


if __name__ == "__main__":
    main()
