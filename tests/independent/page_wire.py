"""docs/protocol.md, sections 1 to 5: encoding, envelope, contexts and messages, from the page
alone. Nothing here imports fedshield."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

#: What stands at the beginning of what is hashed, keyed or derived, where all sites must find the
#: same. A test changes each by one byte.
LABELS = {
    "envelope": b"FSHD\x01",
    "context": b"fedshield context 1",
    "setup": b"setup",
    "restart": b"restart",
    "session": b"session",
    "sum": b"round",
    "head": b"fedshield ledger head 1",
    "seal": b"fedshield seal 2",
    "run keys": b"run keys",
    "share": b"share",
    "answer": b"answer",
    "stream": b"fedshield stream 2",
    "matrix": b"matrix",
    "tag": b"fedshield tag 1",
    "tag stream": b"tag",
    "layout": b"fedshield layout 1",
    "layout tag": b"layout",
    "model tag": b"model",
    "answer tag": b"answer",
    "receipt tag": b"receipt",
    "shared memory": b"fedshield shared memory 1",
    "standing": b"fedshield standing 1",
    "seed": b"fedshield seed 1",
    "factors": b"fedshield core factors 1",
}
SIGNATURE, NONCE, DIGEST = 64, 32, 32
NOTHING = bytes(32)
LARGEST = 64 * 1024 * 1024

TEXT, INTEGER, BYTES, LIST, MAP = str, int, bytes, list, dict
#: Section 5: message -> field -> type of its value. A list holds bytes, a map bytes under names.
MESSAGES: dict[str, dict[str, type]] = {
    "stand": {"ask": BYTES},
    "compare": {"standings": MAP},
    "restart": {"standings": MAP},
    "may-go-on": {},
    "standing": {"nonce": BYTES, "rounds": LIST, "base_model": BYTES},
    "goes-on": {"room": INTEGER},
    "invite": {"session": BYTES, "plan": BYTES, "roster": BYTES},
    "begin": {"joins": MAP},
    "make-key": {},
    "take-key": {"box": BYTES},
    "prepare": {},
    "work": {"round_keys": MAP},
    "fetch": {"index": INTEGER},
    "fetch-shares": {},
    "hold": {"uploads": MAP, "shares": MAP},
    "announce": {"uploads": MAP, "block_digests": LIST},
    "quorum": {"votes": MAP, "unheard": MAP},
    "deliver": {"index": INTEGER, "block": BYTES},
    "open": {"answers": MAP, "tags": MAP},
    "install": {"receipts": MAP},
    "evaluate": {},
    "finish": {"receipts": MAP},
    "join": {
        "nonce": BYTES,
        "run_key": BYTES,
        "completed_rounds": INTEGER,
        "num_examples": INTEGER,
        "version": BYTES,
        "head": BYTES,
        "heads": MAP,
        "restart": BYTES,
        "follows_from": INTEGER,
    },
    "ready": {"context": BYTES},
    "key-offer": {"public": BYTES, "boxes": MAP},
    "key-box": {"receiver": TEXT, "key_id": BYTES, "box": BYTES},
    "round-key": {"key": BYTES, "model_tag": BYTES, "bound": MAP},
    "upload": {
        "key_id": BYTES,
        "layout_tag": BYTES,
        "block_digests": LIST,
        "share_digests": MAP,
        "head": BYTES,
    },
    "block": {"index": INTEGER, "data": BYTES},
    "shares": {"boxes": MAP},
    "held": {"complaints": MAP},
    "vote": {"contributors": BYTES, "aggregate": BYTES, "head": BYTES},
    "answer": {"boxes": MAP, "share": BYTES, "tag": BYTES},
    "answer-tag": {"tag": BYTES},
    "receipt": {"model_tag": BYTES, "head": BYTES},
    "done": {},
}


class Refused(Exception):
    """What this site does not go along with: a code of section 9, and for its own operator why."""

    @property
    def code(self) -> str:
        return str(self).partition(":")[0]


# -- section 1 -------------------------------------------------------------------------------


def encode(value: Any) -> bytes:
    if isinstance(value, int):
        return b"I" + struct.pack(">q", value)
    if isinstance(value, str):
        return b"S" + sized(value.encode())
    if isinstance(value, bytes):
        return b"B" + sized(value)
    if isinstance(value, list):
        return b"L" + struct.pack(">I", len(value)) + b"".join(map(encode, value))
    pairs = sorted(value.items(), key=lambda pair: pair[0].encode())
    return (
        b"M"
        + struct.pack(">I", len(pairs))
        + b"".join(encode(key) + encode(one) for key, one in pairs)
    )


def sized(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data


def decode(data: bytes) -> Any:
    value, end = _decode(data, 0, 0)
    if end != len(data):
        raise Refused("malformed: bytes after the value")
    return value


def _decode(data: bytes, at: int, depth: int) -> tuple[Any, int]:
    tag, at = data[at : at + 1], at + 1
    size = 8 if tag == b"I" else 4
    if depth > 8 or tag not in (b"I", b"S", b"B", b"L", b"M") or at + size > len(data):
        raise Refused("malformed: not a value")
    if tag == b"I":
        return struct.unpack_from(">q", data, at)[0], at + 8
    (count,) = struct.unpack_from(">I", data, at)
    at += 4
    if count > len(data) - at or (tag in (b"L", b"M") and count > 2**20):
        raise Refused("malformed: a count that cannot fit")
    if tag in (b"S", b"B"):
        raw = data[at : at + count]
        try:
            return (raw.decode() if tag == b"S" else raw), at + count
        except UnicodeDecodeError:
            raise Refused("malformed: text is not UTF-8") from None
    items: list[Any] = []
    keys: list[str] = []
    for _ in range(count):
        if tag == b"M":
            key, at = _decode(data, at, depth + 1)
            if not isinstance(key, str) or (keys and key.encode() <= keys[-1].encode()):
                raise Refused("malformed: keys are texts in ascending order")
            keys.append(key)
        item, at = _decode(data, at, depth + 1)
        items.append(item)
    return (dict(zip(keys, items, strict=True)) if tag == b"M" else items), at


# -- section 2 -------------------------------------------------------------------------------


class Binding:
    """What a message belongs to: context (32 bytes), round, phase."""

    def __init__(self, context: bytes, round_number: int, phase: str) -> None:
        self.context, self.round_number, self.phase = context, round_number, phase


def seal(
    kind: str, binding: Binding, sender: str, body: Mapping[str, Any], key: Ed25519PrivateKey
) -> bytes:
    """A signed message."""
    check_body(kind, body)
    value = [kind, binding.context, binding.round_number, binding.phase, sender, dict(body)]
    message = LABELS["envelope"] + encode(value)
    return message + key.sign(message)


def unseal(data: bytes, kind: str, binding: Binding, sender: str, public: bytes) -> dict[str, Any]:
    """The body of a message that must be this one."""
    if not len(LABELS["envelope"]) + SIGNATURE <= len(data) <= LARGEST:
        raise Refused("size")
    message = data[:-SIGNATURE]
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(data[-SIGNATURE:], message)
    except InvalidSignature:
        raise Refused(f"signature: {kind} is not signed by {sender}") from None
    if not message.startswith(LABELS["envelope"]):
        raise Refused("version")
    value = decode(message[len(LABELS["envelope"]) :])
    if not (isinstance(value, list) and len(value) == 6):
        raise Refused("malformed: not an envelope")
    wanted = [kind, binding.context, binding.round_number, binding.phase, sender]
    for got, one, code in zip(
        value, wanted, ("kind", "context", "round", "round", "sender"), strict=False
    ):
        if got != one:
            raise Refused(f"{code}: {kind} from {sender} is for something else")
    check_body(kind, value[5])
    body: dict[str, Any] = value[5]
    return body


def check_body(kind: str, body: Any) -> None:
    fields = MESSAGES[kind]
    if not isinstance(body, dict | Mapping) or set(body) != set(fields):
        raise Refused(f"malformed: {kind}: wrong fields")
    for name, wanted in fields.items():
        value = body[name]
        items = value if wanted is LIST else value.values() if wanted is MAP else ()
        if type(value) is not wanted or not all(type(item) is bytes for item in items):
            raise Refused(f"malformed: {kind}.{name}: expected {wanted.__name__}")


# -- section 3 and the digests of section 4 --------------------------------------------------


def sha256(*parts: bytes) -> bytes:
    return hashlib.sha256(b"".join(parts)).digest()


def hashed(label: str, *parts: bytes) -> bytes:
    """H(label, parts...) of section 3. `label`: a key of LABELS."""
    return sha256(encode([LABELS["context"].decode(), LABELS[label].decode(), *parts]))


def setup_context(plan_sha256: bytes, roster: bytes, session: bytes) -> bytes:
    return hashed("setup", plan_sha256, sha256(roster), session)


def session_context(setup: bytes, joins: Mapping[str, Mapping[str, Any]]) -> bytes:
    parts = [setup]
    for site in sorted(joins):
        join = joins[site]
        parts += [site.encode(), join["nonce"], join["run_key"], encode(join["num_examples"])]
        parts += [join["version"], join["head"], encode(join["heads"])]
        parts += [encode(join["follows_from"])]
    return hashed("session", *parts)


def sum_context(session: Binding, keys: Mapping[str, Mapping[str, Any]]) -> bytes:
    parts = [session.context, encode(session.round_number), session.phase.encode()]
    for site in sorted(keys):
        parts += [site.encode(), keys[site]["key"], keys[site]["model_tag"]]
    return hashed("sum", *parts)


def upload_digest(upload: Mapping[str, Any]) -> bytes:
    names = ("key_id", "layout_tag", "block_digests", "head")
    return sha256(encode([upload[name] for name in names]))


def shares_digest(upload: Mapping[str, Any]) -> bytes:
    return sha256(encode(upload["share_digests"]))


def upload_record(upload: Mapping[str, Any]) -> bytes:
    return sha256(upload_digest(upload), shares_digest(upload))


def contributors_digest(uploads: Mapping[str, Mapping[str, Any]]) -> bytes:
    return sha256(
        encode(
            [
                [site, upload_digest(uploads[site]), shares_digest(uploads[site])]
                for site in sorted(uploads)
            ]
        )
    )


def aggregate_digest(block_digests: list[bytes]) -> bytes:
    return sha256(encode(block_digests))
