"""Keys and sealed boxes: a box opens for one receiver, purpose, run and sender, or not at all."""

from __future__ import annotations

import json
import logging
import os
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
from hypothesis import given, settings
from hypothesis import strategies as st

from fedshield.crypto.adders import CkksAdder
from fedshield.crypto.ckks import CkksScheme
from fedshield.crypto.keys import RunKey, SigningKey
from fedshield.crypto.public_keys import PUBLIC_KEY_BYTES, PublicKey
from fedshield.crypto.scheme import CKKS
from fedshield.crypto.seal import CIPHERTEXT_BYTES, OVERHEAD_BYTES, Channel, encapsulate, receive
from fedshield.errors import CryptoError
from fedshield.protocol.run_keys import RunKeys

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "seal.json").read_text())
SENDER, RECEIVER, OTHER = (RunKey(os.urandom(32)) for _ in range(3))
CONTEXT = bytes(range(32))
NAMES = ("bank", "hospital")
PURPOSE = "run keys"
SECRET = b"thirty-two secret bytes, exactly"
ABOUT = b"an upload"
FIRST = CIPHERTEXT_BYTES + OVERHEAD_BYTES

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


def channel(
    sender: RunKey = SENDER,
    receiver: PublicKey = RECEIVER.public,
    context: bytes = CONTEXT,
    names: tuple[str, str] = NAMES,
) -> Channel:
    return encapsulate(sender, receiver, context=context, names=names)


CHANNEL = channel()


def first(secret: bytes = SECRET, through: Channel = CHANNEL, **bound: Any) -> bytes:
    """ciphertext | box, as it travels."""
    return through.ciphertext + through.seal(secret, bound.pop("purpose", PURPOSE), **bound)


def opened(
    data: bytes,
    key: RunKey = RECEIVER,
    peer: PublicKey = SENDER.public,
    *,
    context: bytes = CONTEXT,
    names: tuple[str, str] = NAMES,
    purpose: str = PURPOSE,
    associated: bytes = b"",
) -> bytes:
    theirs, box = receive(data, key, peer, context=context, names=names)
    return theirs.unseal(box, purpose, associated=associated)


def test_round_trip() -> None:
    for secret in (SECRET, b"", bytes(5000)):
        assert opened(first(secret)) == secret
        assert len(CHANNEL.seal(secret, PURPOSE)) == len(secret) + OVERHEAD_BYTES
        assert len(first(secret)) == len(secret) + OVERHEAD_BYTES + 1088
    assert (OVERHEAD_BYTES, CIPHERTEXT_BYTES, PUBLIC_KEY_BYTES) == (48, 1088, 1184 + 32)


def test_a_channel_carries_further_boxes_without_another_ciphertext() -> None:
    """The answer goes through the share's channel, under its own purpose."""
    theirs, box = receive(first(purpose="share"), RECEIVER, SENDER.public, **{
        "context": CONTEXT, "names": NAMES,
    })  # fmt: skip
    assert theirs.unseal(box, "share") == SECRET
    answer = CHANNEL.seal(b"an answer", "answer")
    assert theirs.unseal(answer, "answer") == b"an answer"
    for other, purpose in ((answer, "share"), (box, "answer")):
        with pytest.raises(CryptoError, match="does not open"):
            theirs.unseal(other, purpose)


def test_both_ends_hold_the_same() -> None:
    theirs, _ = receive(first(), RECEIVER, SENDER.public, context=CONTEXT, names=NAMES)
    assert theirs == CHANNEL
    assert len(theirs.secret) == 64


def test_two_seals_of_one_secret_differ_everywhere() -> None:
    """A fresh salt, hence a fresh key each time: the fixed nonce never meets a key twice."""
    one, other = CHANNEL.seal(SECRET, PURPOSE), CHANNEL.seal(SECRET, PURPOSE)
    assert one[:32] != other[:32]
    same = sum(a == b for a, b in zip(one[32:], other[32:], strict=True))
    assert same < 12


def test_two_channels_share_nothing() -> None:
    one, other = channel(), channel()
    assert one.ciphertext != other.ciphertext
    assert one.secret[:32] != other.secret[:32]
    with pytest.raises(CryptoError, match="does not open"):
        opened(one.ciphertext + other.seal(SECRET, PURPOSE))


def salted(secret: bytes = SECRET, salt_key: bytes = bytes(32), **changed: Any) -> bytes:
    kept = {"context": CONTEXT, "names": NAMES} | changed
    through = replace(CHANNEL, context=kept["context"], names=kept["names"])
    return through.seal(
        secret,
        changed.get("purpose", PURPOSE),
        salt_key=salt_key,
        associated=changed.get("associated", ABOUT),
    )


def test_a_derived_salt_repeats_for_the_same_box_only() -> None:
    """A cloned machine, whose random bytes repeat, seals equal contents in equal boxes; any other
    content, receiver, purpose, context or thing spoken of has another salt, and so another key."""
    box = salted()
    assert salted() == box
    assert opened(CHANNEL.ciphertext + box, associated=ABOUT) == SECRET
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
    data = first(associated=ABOUT)
    assert opened(data, associated=ABOUT) == SECRET
    for other in (b"", b"an uploaf", b"an upload "):
        with pytest.raises(CryptoError, match="does not open"):
            opened(data, associated=other)
    assert ABOUT not in data


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
        opened(first(), **changed)


TEXT = st.text(max_size=6)


@settings(deadline=None, max_examples=200)
@given(
    bound=st.tuples(TEXT, st.binary(max_size=6), TEXT, TEXT, st.binary(max_size=6)),
    other=st.tuples(TEXT, st.binary(max_size=6), TEXT, TEXT, st.binary(max_size=6)),
    secret=st.binary(max_size=40),
)
def test_a_box_opens_exactly_where_everything_is_the_same(
    bound: Any, other: Any, secret: bytes
) -> None:
    """Purpose, context, both names and what it speaks of, of every length: nothing runs into its
    neighbour."""
    purpose, context, *names, about = bound
    data = first(
        secret, channel(context=context, names=tuple(names)), purpose=purpose, associated=about
    )
    assert opened(
        data, context=context, names=tuple(names), purpose=purpose, associated=about
    ) == secret  # fmt: skip
    for changed in {other, *(bound[:at] + other[at : at + 1] + bound[at + 1 :] for at in range(5))}:
        purpose, context, *names, about = changed
        given_to = {"context": context, "names": tuple(names), "purpose": purpose}
        if changed == bound:
            assert opened(data, **given_to, associated=about) == secret
        else:
            with pytest.raises(CryptoError, match="does not open"):
                opened(data, **given_to, associated=about)


def mixed(mlkem: RunKey, x25519: RunKey) -> RunKey:
    """A key of two keys' halves."""
    key = RunKey.__new__(RunKey)
    key.mlkem, key.x25519 = mlkem.mlkem, x25519.x25519
    key.public = PublicKey(mlkem.public.mlkem, x25519.public.x25519)
    return key


@pytest.mark.parametrize(
    ("key", "peer"),
    [
        (OTHER, SENDER.public),
        (mixed(RECEIVER, OTHER), SENDER.public),
        (mixed(OTHER, RECEIVER), SENDER.public),
        (RECEIVER, OTHER.public),
        (RECEIVER, PublicKey(SENDER.public.mlkem, OTHER.public.x25519)),
        (SENDER, RECEIVER.public),  # the sender's own key pair: the roles are in the key too
        (RECEIVER, RECEIVER.public),
    ],
    ids=[
        *("other receiver", "ML-KEM key alone", "X25519 key alone", "other sender"),
        *("other sender's X25519", "roles swapped", "receiver to itself"),
    ],
)
def test_opens_for_the_receiver_from_the_sender_only(key: RunKey, peer: PublicKey) -> None:
    """Who has one of the receiver's two private keys opens nothing: that is what both are for."""
    with pytest.raises(CryptoError, match="does not open"):
        opened(first(), key, peer)


@pytest.mark.parametrize("known", [slice(0, 32), slice(32, 64)], ids=["ML-KEM", "X25519"])
def test_one_of_the_two_secrets_opens_nothing(known: slice) -> None:
    """As after a break of the other: all else is public."""
    box = CHANNEL.seal(SECRET, PURPOSE)
    half = bytearray(64)
    half[known] = CHANNEL.secret[known]
    for secret in (bytes(half), CHANNEL.secret[known], CHANNEL.secret[known] * 2):
        with pytest.raises(CryptoError, match="does not open"):
            replace(CHANNEL, secret=secret).unseal(box, PURPOSE)


def test_a_box_cannot_be_sent_back_to_its_maker() -> None:
    """Sender and receiver share one X25519 secret: the direction must be bound as well."""
    with pytest.raises(CryptoError, match="does not open"):
        opened(first(), SENDER, RECEIVER.public, names=("hospital", "bank"))
    back = replace(CHANNEL, names=("hospital", "bank"))
    with pytest.raises(CryptoError, match="does not open"):
        back.unseal(CHANNEL.seal(SECRET, PURPOSE), PURPOSE)


def test_every_changed_bit_is_noticed() -> None:
    """Of the ciphertext, the salt and the box."""
    data = first()
    for at in range(len(data) * 8):
        changed = bytearray(data)
        changed[at // 8] ^= 1 << at % 8
        with pytest.raises(CryptoError, match="does not open"):
            opened(bytes(changed))


def test_the_key_is_bound_to_the_ciphertext_itself() -> None:
    """Not to its secret alone: if two ciphertexts gave one secret, their keys would differ."""
    box = CHANNEL.seal(SECRET, PURPOSE)
    for ciphertext in (bytes(CIPHERTEXT_BYTES), CHANNEL.ciphertext[:-1], b""):
        with pytest.raises(CryptoError, match="does not open"):
            replace(CHANNEL, ciphertext=ciphertext).unseal(box, PURPOSE)


@pytest.mark.parametrize("which", [0, 1, 2])
def test_the_key_is_bound_to_every_public_key(which: int) -> None:
    keys = list(CHANNEL.keys)
    keys[which] = bytes(len(keys[which]))
    with pytest.raises(CryptoError, match="does not open"):
        replace(CHANNEL, keys=tuple(keys)).unseal(CHANNEL.seal(SECRET, PURPOSE), PURPOSE)


def test_cut_and_lengthened_boxes() -> None:
    data = first()
    for length in (*range(0, FIRST, 37), *range(FIRST, len(data))):
        with pytest.raises(CryptoError):
            opened(data[:length])
    with pytest.raises(CryptoError, match=f"expected at least {FIRST} bytes, got {FIRST - 1}"):
        opened(data[: FIRST - 1])
    with pytest.raises(CryptoError, match="does not open"):
        opened(data + b"\0")
    for length in range(OVERHEAD_BYTES):
        with pytest.raises(CryptoError, match=f"at least {OVERHEAD_BYTES} bytes"):
            CHANNEL.unseal(bytes(length), PURPOSE)


@pytest.mark.parametrize("x25519", [*LOW_ORDER, b"", bytes(31)], ids=lambda p: p.hex()[:8])
def test_unusable_x25519_keys_are_refused(x25519: bytes) -> None:
    """With a point of small order anyone would know that shared secret."""
    peer = PublicKey(SENDER.public.mlkem, x25519)
    with pytest.raises(CryptoError, match="low order"):
        peer.check()
    with pytest.raises(CryptoError, match="unusable"):
        encapsulate(SENDER, peer, context=CONTEXT, names=NAMES)
    with pytest.raises(CryptoError, match="unusable"):
        opened(first(), peer=peer)


@pytest.mark.parametrize("mlkem", [b"", bytes(1183), b"\xff" * 1184], ids=len)
def test_unusable_mlkem_keys_are_refused(mlkem: bytes) -> None:
    """FIPS 203, section 7.2; coefficient by coefficient in test_mlkem.py."""
    peer = PublicKey(mlkem, RECEIVER.public.x25519)
    with pytest.raises(CryptoError, match="not reduced"):
        peer.check()
    with pytest.raises(CryptoError, match="unusable"):
        encapsulate(SENDER, peer, context=CONTEXT, names=NAMES)


def test_a_public_key_travels_whole() -> None:
    raw = RECEIVER.public.to_bytes()
    assert raw == RECEIVER.public.mlkem + RECEIVER.public.x25519
    assert PublicKey.from_bytes(raw) == RECEIVER.public
    PublicKey.from_bytes(raw).check()
    for other in (raw[:-1], raw + b"\0", b""):
        with pytest.raises(CryptoError, match=f"expected 1216 bytes, got {len(other)}"):
            PublicKey.from_bytes(other)


def test_public_halves_are_what_they_say() -> None:
    theirs = X25519PublicKey.from_public_bytes(RECEIVER.public.x25519)
    shared = SENDER.x25519.exchange(theirs)
    assert shared == RECEIVER.x25519.exchange(
        X25519PublicKey.from_public_bytes(SENDER.public.x25519)
    )
    fresh = [RunKey(bytes(32)).public for _ in range(20)]
    assert len({half for public in fresh for half in public}) == 40
    assert len({SigningKey().public for _ in range(20)}) == 20


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
        secret = os.urandom(32)
        key = RunKey(secret)
        for hidden in (key.x25519.private_bytes_raw(), key.mlkem.private_bytes_raw(), secret):
            self.assert_hidden(hidden, key)
        assert key.public.x25519.hex()[:16] in repr(key)

    def test_channel(self) -> None:
        self.assert_hidden(CHANNEL.secret, CHANNEL)
        assert "hospital" in repr(CHANNEL)

    def test_scheme_adder_and_run_keys(self) -> None:
        scheme = CkksScheme.generate("lean", 22)
        keys = RunKeys(scheme, bytes(range(100, 132)))
        adder = CkksAdder(CKKS["lean"], scheme.public)
        self.assert_hidden(scheme.secret(), scheme, keys, adder)
        self.assert_hidden(keys.group_key, scheme, keys, adder)
        assert scheme.key_id.hex()[:8] in repr(keys)

    @pytest.mark.parametrize("key", [SigningKey(), RunKey(bytes(32))])
    def test_keys_cannot_be_pickled(self, key: object) -> None:
        with pytest.raises(TypeError):
            pickle.dumps(key)
