"""What both sides compute alike: contexts, and the checks of messages that all must agree on.

Nothing here holds a key of any kind but the public ones in the roster.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Collection
from typing import TypeVar

from fedshield.crypto.public_keys import PUBLIC_KEY_BYTES, PublicKey
from fedshield.errors import CryptoError, ProtocolError
from fedshield.ledger.rows import HALF_BYTES
from fedshield.plan import batches
from fedshield.plan.quorum import Rules
from fedshield.protocol.roster import Roster
from fedshield.protocol.wire import codec, envelope, messages
from fedshield.protocol.wire.envelope import Binding

_M = TypeVar("_M", bound=messages.Message)

SETUP, WEIGHTS, ROUND = "setup", "weights", "round"
NONCE_BYTES = DIGEST_BYTES = 32
VERSION_BYTES = 2 * HALF_BYTES


def setup_context(plan_sha256: str, roster: Roster, session: bytes) -> bytes:
    """The context before every site's nonce is known: plan, roster and the coordinator's id
    of this session."""
    return envelope.run_context("setup", bytes.fromhex(plan_sha256), roster.sha256(), session)


def session_context(setup: Binding, joins: dict[str, messages.Join]) -> bytes:
    """The context of everything after `begin`: fresh, because every site's nonce is in it, and
    bound to every site's public keys."""
    parts: list[bytes] = [setup.context]
    for site in sorted(joins):
        join = joins[site]
        parts += [site.encode(), join.nonce, join.run_key, codec.encode(join.num_examples)]
        heads: dict[str, codec.Value] = dict(join.heads)
        parts += [join.version, join.head, codec.encode(heads), codec.encode(join.follows_from)]
    return envelope.run_context("session", *parts)


def read_signed(data: bytes, kind: type[_M], binding: Binding, site: str, roster: Roster) -> _M:
    """A message that `site` must have signed for `binding`. Raises `ProtocolError`."""
    return kind.from_body(envelope.unseal(data, kind.kind, binding, site, roster.public(site)))


def read_joins(
    raw: dict[str, bytes], binding: Binding, roster: Roster, least: int, *, public: bool
) -> dict[str, messages.Join]:
    """The signed `Join`s of at least `least` roster sites, checked. `public`: whether the plan has
    sites tell what they count for. Raises `ProtocolError`."""
    if len(raw) < least:
        raise ProtocolError("cohort", f"expected at least {least} sites in a session, {len(raw)}")
    joins: dict[str, messages.Join] = {}
    for site, data in sorted(raw.items()):
        join = read_signed(data, messages.Join, binding, site, roster)
        if len(join.nonce) != NONCE_BYTES:
            raise ProtocolError("size", f"{site}: the nonce is {NONCE_BYTES} bytes")
        if len(join.version) != VERSION_BYTES:
            raise ProtocolError("size", f"{site}: version is {VERSION_BYTES} bytes")
        if len(join.restart) not in (0, DIGEST_BYTES):
            raise ProtocolError("size", f"{site}: restart is {DIGEST_BYTES} bytes, or none")
        _check_public_key(site, "run key", join.run_key)
        if min(join.num_examples, join.completed_rounds, join.follows_from) < 0:
            raise ProtocolError("malformed", f"{site}: negative counts")
        if bool(join.num_examples) != public:
            raise ProtocolError(
                "malformed",
                f"{site}: expected {'a' if public else 'no'} count with these weights, got "
                f"{join.num_examples}",
            )
        joins[site] = join
    if len({join.nonce for join in joins.values()}) != len(joins):
        raise ProtocolError("repeated", "two sites sent the same nonce")
    _check_distinct("run key", {site: join.run_key for site, join in joins.items()})
    return joins


def read_round_keys(
    raw: dict[str, bytes], binding: Binding, roster: Roster, least: int
) -> dict[str, messages.RoundKey]:
    """The signed `RoundKey`s of at least `least` sites, checked. Raises `ProtocolError`."""
    if len(raw) < least:
        raise ProtocolError("cohort", f"expected at least {least} sites in a round, got {len(raw)}")
    keys: dict[str, messages.RoundKey] = {}
    for site, data in sorted(raw.items()):
        keys[site] = read_signed(data, messages.RoundKey, binding, site, roster)
        check_round_key(site, keys[site])
    check_distinct(keys)
    return keys


def check_round_key(site: str, key: messages.RoundKey) -> None:
    """Raises `ProtocolError` for a key that nothing could be sealed to."""
    if len(key.model_tag) != 32:
        raise ProtocolError("size", f"{site}: the model tag is 32 bytes")
    _check_public_key(site, "round key", key.key)


def check_distinct(keys: dict[str, messages.RoundKey]) -> None:
    """Raises `ProtocolError` if two sites have one key, ML-KEM or X25519."""
    _check_distinct("round key", {site: key.key for site, key in keys.items()})


def _check_public_key(site: str, what: str, raw: bytes) -> None:
    if len(raw) != PUBLIC_KEY_BYTES:
        raise ProtocolError("size", f"{site}: the {what} is {PUBLIC_KEY_BYTES} bytes")
    try:
        PublicKey.from_bytes(raw).check()
    except CryptoError as error:
        raise ProtocolError("malformed", f"{site}: the {what}: {error}") from None


def _check_distinct(what: str, keys: dict[str, bytes]) -> None:
    """Each half alone: who has another's ML-KEM key beside an X25519 key of its own has not sent
    the same bytes, and what is sealed to it could still be half opened by the other."""
    read = [PublicKey.from_bytes(raw) for raw in keys.values()]
    for half in zip(*read, strict=True):
        if len(set(half)) != len(keys):
            raise ProtocolError("repeated", f"two sites sent the same {what}")


def round_context(session: Binding, keys: dict[str, messages.RoundKey]) -> bytes:
    """The context of one sum: bound to the session, round, phase and every ephemeral key, ML-KEM
    and X25519."""
    parts: list[bytes] = [
        session.context,
        codec.encode(session.round_number),
        session.phase.encode(),
    ]
    for site in sorted(keys):
        parts += [site.encode(), keys[site].key, keys[site].model_tag]
    return envelope.run_context("round", *parts)


def read_uploads(
    raw: dict[str, bytes], binding: Binding, roster: Roster
) -> dict[str, messages.Upload]:
    """The contributors' signed `Upload`s, checked. Raises `ProtocolError`."""
    return {
        site: read_signed(data, messages.Upload, binding, site, roster)
        for site, data in sorted(raw.items())
    }


def least_sites(rules: Rules) -> int:
    """How many sites must be there for a sum to be worth beginning."""
    return max(rules.min_cohort, rules.threshold, rules.votes)


def check_whole(roster: Roster, present: Collection[str]) -> None:
    """With membership batches: raises `ProtocolError` ('cohort') unless these are whole batches."""
    if roster.rules.membership != "batches":
        return
    out = batches.sitting_out(roster.batches, present)
    if out:
        raise ProtocolError("cohort", next(f"{site}: {why}" for site, why in out.items()))


def least_opened(rules: Rules, present: int | None = None) -> int:
    """How many sites must have opened the same sum before any takes it: with a threshold as many
    as make a certificate, without one all. `present`: how many sites the sum is over, which with
    membership batches may be fewer than the roster's: any two certificates of one sum then share an
    honest site of that sum."""
    if rules.membership == "batches" and present is not None:
        rules = dataclasses.replace(rules, num_sites=present)
    return rules.certificate if rules.threshold else rules.num_sites


def upload_digest(upload: messages.Upload) -> bytes:
    """H(upload): over the key id, the layout tag, every block's digest and the ledger's head. What
    a sealed share is bound to, so the shares themselves are not in it."""
    value: list[codec.Value] = [
        upload.key_id,
        upload.layout_tag,
        list(upload.block_digests),
        upload.head,
    ]
    return hashlib.sha256(codec.encode(value)).digest()


def shares_digest(upload: messages.Upload) -> bytes:
    """H(sealed shares) of one dealer."""
    shares: dict[str, codec.Value] = dict(upload.share_digests)
    return hashlib.sha256(codec.encode(shares)).digest()


def upload_record(upload: messages.Upload) -> bytes:
    """What a site journals: the whole message."""
    return hashlib.sha256(upload_digest(upload) + shares_digest(upload)).digest()


def contributors_digest(uploads: dict[str, messages.Upload]) -> bytes:
    """Digest of U: the list of (site, H(upload), H(sealed shares)), by name."""
    value: list[codec.Value] = [
        [site, upload_digest(uploads[site]), shares_digest(uploads[site])]
        for site in sorted(uploads)
    ]
    return hashlib.sha256(codec.encode(value)).digest()


def aggregate_digest(block_digests: tuple[bytes, ...]) -> bytes:
    """H(aggregate), from its blocks' digests."""
    return hashlib.sha256(codec.encode(list(block_digests))).digest()
