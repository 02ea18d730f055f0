"""Sealed boxes while a generator repeats or is known, and their known answers."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fakes import RepeatingPublicKey
from fedshield.crypto import seal as seal_module
from fedshield.crypto.keys import RunKey
from fedshield.crypto.public_keys import PublicKey
from fedshield.crypto.seal import encapsulate, receive
from fedshield.errors import CryptoError
from reference import seal as reference

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "seal.json").read_text())
RECEIVER = RunKey(os.urandom(32))
CONTEXT = bytes(range(32))
NAMES = ("bank", "hospital")
PURPOSE = "run keys"
SECRET = b"thirty-two secret bytes, exactly"


def opened(data: bytes, sender: PublicKey) -> bytes:
    theirs, box = receive(data, RECEIVER, sender, context=CONTEXT, names=NAMES)
    return theirs.unseal(box, PURPOSE)


def test_repeated_randomness_gives_no_repeated_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cloned machine, whose every draw repeats, encapsulation among them: two contents go under
    two keys, and the same content in the same box."""
    monkeypatch.setattr(os, "urandom", lambda size: b"\7" * size)
    monkeypatch.setattr(seal_module, "MLKEM768PublicKey", RepeatingPublicKey)
    mine, clone = RunKey(bytes(32)), RunKey(bytes(32))
    assert mine.public == clone.public
    one, other = (encapsulate(key, RECEIVER.public, context=CONTEXT, names=NAMES)
                  for key in (mine, clone))  # fmt: skip
    assert one == other
    boxes = [
        one.seal(b"one", PURPOSE),
        other.seal(b"two", PURPOSE),
        other.seal(b"one", PURPOSE),
    ]
    assert boxes[0][:32] != boxes[1][:32]
    assert one._key(PURPOSE, boxes[0][:32]) != one._key(PURPOSE, boxes[1][:32])
    assert boxes[0] == boxes[2]
    assert opened(one.ciphertext + boxes[1], mine.public) == b"two"


def test_a_predictable_generator_leaves_x25519(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who knows every random byte knows the ML-KEM secret, and neither private key: those need the
    site's own secret as well."""
    monkeypatch.setattr(os, "urandom", lambda size: b"\7" * size)
    monkeypatch.setattr(seal_module, "MLKEM768PublicKey", RepeatingPublicKey)
    sender, receiver = RunKey(b"s" * 32), RunKey(b"r" * 32)
    through = encapsulate(sender, receiver.public, context=CONTEXT, names=NAMES)
    known, ciphertext = RepeatingPublicKey(receiver.public.mlkem).encapsulate()
    assert (through.secret[:32], through.ciphertext) == (known, ciphertext)
    for secret in (b"", bytes(32)):
        guessed = reference.Keys.derived(b"\7" * 64, secret)
        for key in (sender, receiver):
            assert guessed.x25519_public != key.public.x25519
            assert guessed.mlkem_public != key.public.mlkem
    box = through.seal(SECRET, PURPOSE)
    with pytest.raises(CryptoError, match="does not open"):
        replace(through, secret=known + bytes(32)).unseal(box, PURPOSE)


def test_private_halves_come_from_randomness_and_the_sites_secret(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Either changes both halves; the derivation is that of the reference."""
    found = set()
    for random in (b"\1" * 64, b"\2" * 64):
        monkeypatch.setattr(os, "urandom", lambda size, random=random: random[:size])
        for secret in (b"s" * 32, b"t" * 32):
            public = RunKey(secret).public
            assert public.to_bytes() == reference.Keys.derived(random, secret).public
            found |= set(public)
    assert len(found) == 8


# -- known answers ---------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(len(VECTORS["boxes"])))
def test_known_answers(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """tests/vectors/seal.json, made by scripts/make_seal_vectors.py from reference/seal.py alone:
    the receiver opens it, and a sender that encapsulates the same message makes it."""
    keys: dict[str, RunKey] = {}
    for name, each in VECTORS["keys"].items():
        random = bytes.fromhex(each["random"])
        monkeypatch.setattr(os, "urandom", lambda size, random=random: random[:size])
        keys[name] = RunKey(bytes.fromhex(each["site_secret"]))
        assert keys[name].mlkem.private_bytes_raw().hex() == each["mlkem_seed"]
        assert keys[name].x25519.private_bytes_raw().hex() == each["x25519_private"]
        assert keys[name].public.to_bytes().hex() == each["public"]
    vector = VECTORS["boxes"][number]
    sender, receiver = (keys[name] for name in vector["names"])
    raw = {name: bytes.fromhex(vector[name]) for name in (
        "context", "associated", "salt_key", "content", "message", "ciphertext", "box"
    )}  # fmt: skip
    bound: dict[str, Any] = {"context": raw["context"], "names": tuple(vector["names"])}
    theirs, box = receive(raw["ciphertext"] + raw["box"], receiver, sender.public, **bound)
    assert theirs.secret.hex() == vector["mlkem_secret"] + vector["x25519_secret"]
    assert theirs._key(vector["purpose"], box[:32]).hex() == vector["key"]
    content = theirs.unseal(box, vector["purpose"], associated=raw["associated"])
    assert content == raw["content"]
    monkeypatch.setattr(RepeatingPublicKey, "message", raw["message"])
    monkeypatch.setattr(seal_module, "MLKEM768PublicKey", RepeatingPublicKey)
    ours = encapsulate(sender, receiver.public, **bound)
    assert ours == theirs
    assert raw["box"] == ours.seal(
        content, vector["purpose"], associated=raw["associated"], salt_key=raw["salt_key"]
    )
