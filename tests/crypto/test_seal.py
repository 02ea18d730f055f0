"""Keys and sealed boxes: a box opens for one receiver, purpose, run and sender, or not at all."""

from __future__ import annotations

import logging
import pickle
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey

from fedshield.crypto.adders import CkksAdder
from fedshield.crypto.ckks import CkksScheme
from fedshield.crypto.keys import RunKey, SigningKey
from fedshield.crypto.scheme import CKKS
from fedshield.crypto.seal import OVERHEAD_BYTES, seal, unseal
from fedshield.errors import CryptoError
from fedshield.protocol.run_keys import RunKeys

SENDER, RECEIVER, OTHER = RunKey(), RunKey(), RunKey()
BOUND: dict[str, Any] = {
    "purpose": "run keys",
    "context": bytes(range(32)),
    "names": ("bank", "hospital"),
}
SECRET = b"thirty-two secret bytes, exactly"

# Points of small order on Curve25519: a shared secret with one of these is all zero.
LOW_ORDER = [
    bytes(32),
    (1).to_bytes(32, "little"),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
    (2**255 - 19 - 1).to_bytes(32, "little"),
    (2**255 - 19).to_bytes(32, "little"),
    (2**255 - 19 + 1).to_bytes(32, "little"),
]


def boxed(secret: bytes = SECRET) -> bytes:
    return seal(secret, SENDER, RECEIVER.public, **BOUND)


def test_round_trip() -> None:
    assert unseal(boxed(), RECEIVER, SENDER.public, **BOUND) == SECRET
    assert unseal(boxed(b""), RECEIVER, SENDER.public, **BOUND) == b""
    assert len(boxed()) == len(SECRET) + OVERHEAD_BYTES


def test_two_seals_of_one_secret_differ_everywhere() -> None:
    """A fresh salt, hence a fresh key each time: the fixed nonce never meets a key twice."""
    one, other = boxed(), boxed()
    assert one[:32] != other[:32]
    same = sum(a == b for a, b in zip(one[32:], other[32:], strict=True))
    assert same < 12


def salted(secret: bytes = SECRET, salt_key: bytes = bytes(32), **changed: Any) -> bytes:
    bound = {**BOUND, "associated": b"an upload", **changed}
    return seal(secret, SENDER, RECEIVER.public, salt_key=salt_key, **bound)


def test_a_derived_salt_repeats_for_the_same_box_only() -> None:
    """A cloned machine, whose random bytes repeat, seals equal contents in equal boxes; any other
    content, receiver, purpose, context or thing spoken of has another salt, and so another key."""
    box = salted()
    assert salted() == box
    assert unseal(box, RECEIVER, SENDER.public, **BOUND, associated=b"an upload") == SECRET
    others = [
        salted(SECRET + b"!"),
        salted(SECRET[:-1]),
        salted(b""),
        salted(salt_key=b"\x01" * 32),
        salted(purpose="run key"),
        salted(context=bytes(32)),
        salted(names=("bank", "clinic")),
        salted(names=("bankh", "ospital")),
        salted(associated=b"another"),
        salted(associated=b""),
    ]
    salts = {one[:32] for one in (box, *others)}
    assert len(salts) == 1 + len(others)


def test_what_a_box_speaks_of_is_bound_to_it() -> None:
    box = salted()
    for other in (b"", b"an uploaf", b"an upload "):
        with pytest.raises(CryptoError, match="does not open"):
            unseal(box, RECEIVER, SENDER.public, **BOUND, associated=other)
    with pytest.raises(CryptoError, match="does not open"):
        unseal(box, RECEIVER, SENDER.public, **BOUND)
    assert unseal(boxed(), RECEIVER, SENDER.public, **BOUND, associated=b"") == SECRET
    assert b"an upload" not in box


@pytest.mark.parametrize(
    "changed",
    [
        {"purpose": "run key"},
        {"purpose": ""},
        {"context": bytes(32)},
        {"context": b""},
        {"names": ("clinic", "hospital")},
        {"names": ("bank", "clinic")},
        {"names": ("hospital", "bank")},
        {"names": ("bankh", "ospital")},
    ],
)
def test_bound_to_purpose_context_and_names(changed: dict[str, Any]) -> None:
    with pytest.raises(CryptoError, match="does not open"):
        unseal(boxed(), RECEIVER, SENDER.public, **{**BOUND, **changed})


@pytest.mark.parametrize(
    ("key", "peer"),
    [
        (OTHER, SENDER.public),
        (RECEIVER, OTHER.public),
        (SENDER, RECEIVER.public),  # the sender's own key pair: the roles are in the key too
        (RECEIVER, RECEIVER.public),
    ],
    ids=["other receiver", "other sender", "roles swapped", "receiver to itself"],
)
def test_opens_for_the_receiver_from_the_sender_only(key: RunKey, peer: bytes) -> None:
    with pytest.raises(CryptoError, match="does not open"):
        unseal(boxed(), key, peer, **BOUND)


def test_a_box_cannot_be_sent_back_to_its_maker() -> None:
    """Sender and receiver share one X25519 secret: the direction must be bound as well."""
    with pytest.raises(CryptoError, match="does not open"):
        unseal(boxed(), SENDER, RECEIVER.public, **{**BOUND, "names": ("hospital", "bank")})


def test_every_changed_bit_is_noticed() -> None:
    box = boxed()
    for at in range(len(box) * 8):
        changed = bytearray(box)
        changed[at // 8] ^= 1 << at % 8
        with pytest.raises(CryptoError, match="does not open"):
            unseal(bytes(changed), RECEIVER, SENDER.public, **BOUND)


def test_cut_and_lengthened_boxes() -> None:
    box = boxed()
    for length in range(len(box)):
        with pytest.raises(CryptoError):
            unseal(box[:length], RECEIVER, SENDER.public, **BOUND)
    with pytest.raises(CryptoError, match="does not open"):
        unseal(box + b"\0", RECEIVER, SENDER.public, **BOUND)


@pytest.mark.parametrize("peer", [*LOW_ORDER, b"", bytes(31), bytes(33)], ids=lambda p: p.hex()[:8])
def test_unusable_peer_keys_are_refused(peer: bytes) -> None:
    """With a point of small order anyone would know the shared secret."""
    with pytest.raises(CryptoError, match="unusable"):
        seal(SECRET, SENDER, peer, **BOUND)
    with pytest.raises(CryptoError, match="unusable"):
        unseal(boxed(), RECEIVER, peer, **BOUND)


def test_public_halves_are_what_they_say() -> None:
    shared = SENDER.private.exchange(X25519PublicKey.from_public_bytes(RECEIVER.public))
    assert shared == RECEIVER.private.exchange(X25519PublicKey.from_public_bytes(SENDER.public))
    assert (
        len({RunKey().public for _ in range(20)} | {SigningKey().public for _ in range(20)}) == 40
    )


class TestNothingSecretIsShown:
    """Whatever prints, logs or formats these objects shows public halves and ids only."""

    def shown(self, *things: object) -> str:
        record = logging.LogRecord("x", 0, "", 0, "%s %r", (things, list(things)), None)
        parts = [record.getMessage()]
        for thing in things:
            parts += [repr(thing), str(thing), f"{thing}", f"{thing!a}", repr({"k": thing})]
        return " ".join(parts)

    def assert_hidden(self, secret: bytes, *things: object) -> None:
        text = self.shown(*things)
        assert len(secret) >= 32
        for start in range(0, len(secret) - 7, 8):
            part = secret[start : start + 8]
            assert part.hex() not in text
            assert repr(part)[2:-1] not in text

    def test_signing_key(self) -> None:
        key = SigningKey()
        self.assert_hidden(key._private.private_bytes_raw(), key)
        assert key.public.hex()[:16] in repr(key)

    def test_run_key(self) -> None:
        key = RunKey()
        self.assert_hidden(key.private.private_bytes_raw(), key)
        assert key.public.hex()[:16] in repr(key)

    def test_scheme_adder_and_run_keys(self) -> None:
        scheme = CkksScheme.generate("lean", 22)
        keys = RunKeys(scheme, bytes(range(100, 132)))
        adder = CkksAdder(CKKS["lean"], scheme.public)
        self.assert_hidden(scheme.secret(), scheme, keys, adder)
        self.assert_hidden(keys.group_key, scheme, keys, adder)
        assert scheme.key_id.hex()[:8] in repr(keys)

    @pytest.mark.parametrize("key", [SigningKey(), RunKey()])
    def test_keys_cannot_be_pickled(self, key: object) -> None:
        with pytest.raises(TypeError):
            pickle.dumps(key)


def test_repeated_randomness_gives_no_repeated_salt(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cloned machine seals two contents under two keys."""
    monkeypatch.setattr("fedshield.crypto.seal.os.urandom", lambda size: b"\7" * size)
    mine, peer = RunKey(), RunKey()
    made = [
        seal(content, mine, peer.public, purpose="test", context=bytes(32), names=("a", "b"))
        for content in (b"one", b"two", b"one")
    ]
    assert made[0][:32] != made[1][:32]
    assert made[0] == made[2]
