"""Sites that lie to the coordinator: their replies are refused, and the model before it stays."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from next_session import BAD, SCHEMES, goes_on

from fedshield.errors import RoundFailed
from fedshield.protocol.wire import envelope


def lying(federation: Any, changes: dict[str, Any], liar: str = BAD) -> None:
    """Let the liar's replies be changed, by method, and signed again by the liar."""

    def to_coordinator(site: str, name: str, data: bytes) -> bytes:
        if site != liar or name not in changes:
            return data
        kind, binding, sender, body = federation.opened(data)
        changed = changes[name](body)
        if isinstance(changed, bytes):
            return changed
        return envelope.seal(kind, binding, sender, changed, federation.keys[liar].sign)

    federation.wire.to_coordinator = to_coordinator


#: Scheme(s), message, what the liar makes of its answer, and why the round fails.
LIES: list[tuple[str, str, Any, str]] = [
    ("plain ckks", "fetch", lambda body: body | {"data": body["data"][:-1]}, "not the one it ann"),
    ("plain ckks", "fetch", lambda body: body | {"data": b""}, "clinic: block 0 is not the one"),
    ("rlwe", "fetch", lambda body: body | {"data": body["data"][:-1]}, r"from clinic \(digest\)"),
    (
        "rlwe",
        "fetch",
        lambda body: body | {"data": b""},
        r"fetch: no answer from clinic \(digest\)",
    ),
    ("plain ckks rlwe", "fetch", lambda body: {"index": 0}, "malformed"),
    ("plain ckks rlwe", "fetch", lambda body: b"garbage", "size"),
    ("plain ckks rlwe", "fetch", lambda body: b"FSHD\x01" + bytes(100), "signature"),
    ("plain ckks", "announce", lambda body: {"more": 1}, "malformed"),
    ("plain ckks", "quorum", lambda body: {"boxes": {}}, "malformed"),
    (
        "plain ckks rlwe",
        "open",
        lambda body: body | {"model_tag": bytes(32)},
        "opened different sums",
    ),
    ("plain ckks", "open", lambda body: b"x" * 200, "signature"),
    ("plain ckks rlwe", "prepare", lambda body: body | {"key": b"short"}, "refused: size: clinic"),
    ("plain ckks rlwe", "prepare", lambda body: body | {"model_tag": b""}, "refused: size: clinic"),
    ("plain ckks rlwe", "prepare", lambda body: {"key": bytes(32)}, "malformed"),
    ("plain ckks rlwe", "prepare", lambda body: b"garbage" * 30, "signature"),
    ("plain ckks rlwe", "prepare", lambda body: body | {"model_tag": bytes(32)}, "work: no answer"),
    ("plain ckks rlwe", "work", lambda body: body | {"layout_tag": bytes(32)}, "another key or"),
    ("plain ckks rlwe", "work", lambda body: body | {"key_id": b"?" * 16}, "another key or layout"),
    ("plain ckks rlwe", "work", lambda body: body | {"block_digests": []}, "number of blocks"),
    ("plain ckks rlwe", "work", lambda body: body | {"block_digests": [b"x"] * 9}, "of blocks"),
    ("plain ckks rlwe", "work", lambda body: b"garbage" * 30, "signature"),
    ("rlwe", "fetch-shares", lambda body: {"boxes": 3}, "malformed"),
    ("rlwe", "fetch-shares", lambda body: b"garbage" * 30, "signature"),
]


@pytest.mark.parametrize(
    ("scheme", "method", "change", "why"),
    [(scheme, *rest) for schemes, *rest in LIES for scheme in schemes.split()],
)
def test_replies_that_the_coordinator_refuses(
    federation: Any, scheme: str, method: str, change: Any, why: str
) -> None:
    ours = federation(scheme).run(1)
    before = ours.states()
    lying(ours, {method: change})
    with pytest.raises(RoundFailed, match=why):
        ours.coordinator.round(2)
    if method != "open":
        assert ours.states() == before
        goes_on(ours, 2)


@pytest.mark.parametrize("half", [slice(None), slice(0, 1184), slice(1184, None)])
@SCHEMES
def test_a_round_key_that_is_another_sites_is_refused(
    federation: Any, scheme: str, half: slice
) -> None:
    """Else both would hold what is sealed to one of them, or a half of it."""
    ours = federation(scheme).run(1)
    banks: list[bytes] = []

    def to_coordinator(site: str, name: str, data: bytes) -> bytes:
        kind, binding, sender, body = ours.opened(data)
        if name == "prepare" and site == "bank":
            banks.append(body["key"])
        if name == "prepare" and site == BAD:
            copied = bytearray(body["key"])
            copied[half] = banks[-1][half]
            body = body | {"key": bytes(copied)}
            return envelope.seal(kind, binding, sender, body, ours.keys[BAD].sign)
        return data

    ours.wire.to_coordinator = to_coordinator
    with pytest.raises(RoundFailed, match="refused: repeated: two sites sent the same round key"):
        ours.coordinator.round(2)
    goes_on(ours, 2)


@pytest.mark.parametrize(
    ("scheme", "liar", "method", "change", "why"),
    [
        *(
            (scheme, BAD, "invite", change, why)
            for scheme in ("plain", "ckks", "rlwe")
            for change, why in (
                (lambda body: body | {"nonce": b"short"}, "refused: size: clinic"),
                (lambda body: body | {"run_key": b""}, "refused: size: clinic"),
                (lambda body: body | {"num_examples": -1}, "refused: malformed: clinic: negative"),
                (lambda body: b"garbage" * 30, r"invite: no answer from clinic .*signature"),
            )
        ),
        *(
            (scheme, BAD, "begin", lambda body: {"context": bytes(32)}, r"clinic \(context\)")
            for scheme in ("plain", "ckks", "rlwe")
        ),
        ("ckks", "bank", "make-key", lambda body: body | {"public": b"no context"}, "public cont"),
    ],
)
def test_set_up_replies_that_the_coordinator_refuses(
    federation: Any, scheme: str, liar: str, method: str, change: Any, why: str
) -> None:
    ours = federation(scheme)
    lying(ours, {method: change}, liar)
    with pytest.raises(RoundFailed, match=why):
        ours.coordinator.start()


@SCHEMES
def test_a_maker_that_leaves_a_site_without_a_key(federation: Any, scheme: str) -> None:
    ours = federation(scheme)
    without = {"make-key": lambda body: body | {"boxes": {"clinic": body["boxes"]["clinic"]}}}
    lying(ours, without, "bank")
    with pytest.raises(RoundFailed, match="bank did not make a key for every site"):
        ours.coordinator.start()


def test_a_maker_that_sends_its_secret_to_the_coordinator(federation: Any) -> None:
    """Whatever a faulty site does: the coordinator does not take a secret key into its hands."""
    ours = federation("ckks")
    bank = ours.participants["bank"]
    lying(ours, {"make-key": lambda body: body | {"public": bank._keys.scheme.secret()}}, "bank")
    with pytest.raises(RoundFailed, match="secret key"):
        ours.coordinator.start()
    assert ours.coordinator._adder is None


@pytest.mark.parametrize(
    ("scheme", "junk", "why"),
    [
        ("ckks", b"\x01\x00\x05\x00\x00\x00junk!", "ciphertext"),
        ("ckks", b"junk", "block: expected"),
        ("plain", np.full(551, np.nan, dtype="<f4").tobytes(), "plain block: expected finite"),
        ("plain", bytes(4 * 550), "plain block: expected"),
        ("rlwe", b"junk", "rlwe chunk: expected 1 to"),
        ("rlwe", b"", "rlwe chunk: expected 1 to"),
    ],
)
def test_an_upload_that_cannot_be_added_names_its_site(
    federation: Any, scheme: str, junk: bytes, why: str
) -> None:
    """Announced and handed over in good order, but not what can be summed."""
    ours = federation(scheme).run(1)
    before = ours.states()
    cipher = ours.participants[BAD]._cipher
    real = cipher.encrypt
    if cipher.one_time:
        cipher.encrypt = lambda *given: replace(real(*given), blocks=(junk,))
    else:
        cipher.encrypt = lambda encoded: (junk,)
    with pytest.raises(RoundFailed, match=f"^clinic: {why}"):
        ours.coordinator.round(2)
    assert ours.states() == before
    goes_on(ours, 2)
