"""Keys: fresh ones differ, long-term ones come back from their bytes, none shows itself."""

from __future__ import annotations

import pickle
from collections.abc import Callable

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fedshield.crypto.keys import RunKey, SigningKey, SiteKey
from fedshield.errors import CryptoError

RAW = bytes(range(64))


def test_a_fresh_key_signs_and_no_other_does() -> None:
    key, other = SigningKey(), SigningKey()
    assert key.public != other.public
    public = Ed25519PublicKey.from_public_bytes(key.public)
    public.verify(key.sign(b"message"), b"message")
    with pytest.raises(InvalidSignature):
        public.verify(other.sign(b"message"), b"message")


def test_a_seed_gives_the_key_of_the_standard() -> None:
    """RFC 8032, section 7.1, test 1."""
    seed = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
    key = SigningKey(seed)
    assert key.public.hex() == "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
    assert key.sign(b"").hex().startswith("e5564300c360ac729086e2cc806e828a84877f1eb8e5d974")


def test_a_site_key_comes_back_from_its_bytes() -> None:
    key = SiteKey.from_bytes(RAW)
    assert key.to_bytes() == RAW
    assert key.secret == RAW[32:]
    assert key.public == SigningKey(RAW[:32]).public
    assert isinstance(key, SigningKey)


def test_fresh_site_keys_share_nothing() -> None:
    keys = [SiteKey() for _ in range(4)]
    assert len({key.public for key in keys}) == len({key.secret for key in keys}) == 4
    again = SiteKey.from_bytes(keys[0].to_bytes())
    assert (again.public, again.secret) == (keys[0].public, keys[0].secret)
    assert keys[0].secret not in keys[0].to_bytes()[:32]


@pytest.mark.parametrize("size", [0, 32, 63, 65])
def test_another_length_is_refused(size: int) -> None:
    with pytest.raises(CryptoError, match=f"expected 64 bytes, got {size}"):
        SiteKey.from_bytes(bytes(size))


def test_no_part_can_be_of_another_length() -> None:
    with pytest.raises(CryptoError, match="signing key: expected 32 bytes, got 0"):
        SigningKey(b"")
    with pytest.raises(CryptoError, match="site secret: expected 32 bytes, got 0"):
        SiteKey(bytes(32), b"")


def test_no_key_shows_itself() -> None:
    key = SiteKey.from_bytes(RAW)
    for shown in (repr(key), str(key), f"{key}", repr([key])):
        assert shown.strip("[]") == f"SiteKey(public={key.public.hex()[:16]})"
    assert repr(SigningKey(RAW[:32])).startswith("SigningKey(public=")
    assert repr(RunKey(RAW[:32])).startswith("RunKey(x25519=")


@pytest.mark.parametrize("make", [SigningKey, SiteKey, lambda: RunKey(RAW[:32])])
def test_a_key_is_not_pickled(make: Callable[[], object]) -> None:
    with pytest.raises(TypeError):
        pickle.dumps(make())
