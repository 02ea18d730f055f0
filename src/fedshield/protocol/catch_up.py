"""The model of the last round, from a site that has it to one that was away (membership batches).

Who was away opened none of the sums, so it has no certificate of its own. What stands in for one:
c + 1 sites of the session sign, under its group key, a digest of their history: the result of each
round up to where they stand, and the sites that its sum was over, by their ledgers. One of them is
honest, and an honest site only stands at a result that it took with a certificate, or in this same
way. So batches that went on apart find out, wherever they stand. Model and history come from any
site and are believed by that digest alone. They cross sealed under the group key, which every site
of the session has and the coordinator has not.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedshield.errors import CryptoError, ProtocolError
from fedshield.ledger.entries import OpenedRound
from fedshield.protocol.contexts import read_signed
from fedshield.protocol.participant_sum import tag
from fedshield.protocol.roster import Roster
from fedshield.protocol.wire import codec, messages
from fedshield.protocol.wire.envelope import Binding
from fedshield.types import AdapterSpec, AdapterState, Float32

LABEL = b"fedshield standing model 2"
HISTORY = "fedshield history 1"
#: Of a model, in one message.
PART_BYTES = 4 << 20
SALT_BYTES = 32
OVERHEAD_BYTES = SALT_BYTES + 16
#: Vectors that all derive from earlier sums, at most; bytes of a name, a digest or a number beside.
MAX_VECTORS, ITEM_BYTES = 8, 96


class TakenModel(NamedTuple):
    """A whole model, its history and the tag of it that the sites `by` signed."""

    state: AdapterState
    shared: dict[str, Float32]
    history: tuple[OpenedRound, ...]
    tag: bytes
    by: tuple[str, ...]


class CatchUp:
    """What one site gives and takes of models in one session. `session`: its binding; `sites`:
    who is in it. Raises `ProtocolError` or `CryptoError` for what may not be believed."""

    def __init__(
        self,
        name: str,
        roster: Roster,
        session: Binding,
        group_key: bytes,
        sites: Collection[str],
    ) -> None:
        self._name = name
        self._roster = roster
        self._session = session
        self._group_key = group_key
        self._sites = sites
        self._arrived: list[bytes] = []
        self._count = 0

    def tag(self, history: Sequence[OpenedRound]) -> bytes:
        """That a site stands after these rounds, to whoever has the group key."""
        return tag(self._group_key, self._session, b"standing", history_sha256(history))

    def give(
        self,
        index: int,
        state: AdapterState,
        shared: Mapping[str, Float32],
        history: Sequence[OpenedRound],
    ) -> messages.ModelPart:
        round_number, found = len(history), parts(pack(state, shared, history))
        if not 0 <= index < len(found):
            raise ProtocolError("size", f"part {index} of {len(found)} was asked for")
        place = about(self._session.context, self._name, round_number, index, len(found))
        box = seal(found[index], self._group_key, place)
        return messages.ModelPart(round_number, index, len(found), box)

    def take(
        self, command: messages.TakeModel, spec: AdapterSpec, own: Sequence[OpenedRound]
    ) -> TakenModel | None:
        """One part. With the last the model, whose history is the attested one; None before. `own`:
        this site's history."""
        by, attested = self._attested(command.attested, len(own))
        number, giver, at = attested.completed_rounds, command.giver, len(self._arrived)
        part = read_signed(command.part, messages.ModelPart, self._session, giver, self._roster)
        self._count = part.count if not at else self._count
        if (part.completed_rounds, part.index, part.count) != (number, at, self._count):
            raise ProtocolError("repeated", f"expected part {at} of round {number}'s model")
        most = max_parts(spec, number, len(self._roster.sites))
        if not 0 < part.count <= most or len(part.box) > PART_BYTES + OVERHEAD_BYTES:
            raise ProtocolError(
                "size",
                f"expected at most {most} parts of {PART_BYTES} bytes of this adapter's model, got "
                f"{part.count}, one of {len(part.box)}",
            )
        place = about(self._session.context, giver, number, part.index, part.count)
        self._arrived.append(unseal(part.box, self._group_key, place))
        if len(self._arrived) < part.count:
            return None
        whole, self._arrived = b"".join(self._arrived), []
        state, shared, history = unpack(whole, spec)
        if len(history) != number or not hmac.compare_digest(self.tag(history), attested.tag):
            raise ProtocolError("disagree", "the model that was given is not the attested one")
        if history[: len(own)] != tuple(own):
            raise ProtocolError(
                "disagree",
                f"expected sites that took this site's results up to round {len(own)}, got others: "
                "the batches went on apart; compare adapter_sha256 of their reports",
            )
        return TakenModel(state, shared, history, attested.tag, by)

    def _attested(
        self, attested: Mapping[str, bytes], here: int
    ) -> tuple[tuple[str, ...], messages.Attested]:
        """What c + 1 other sites of this session signed, and who. One of them is honest: it stands
        at what it took with a certificate."""
        strangers = sorted(set(attested) - set(self._sites))
        if strangers:
            raise ProtocolError("not-in-set", f"{strangers[0]!r:.60} is not in this session")
        said = {
            site: read_signed(data, messages.Attested, self._session, site, self._roster)
            for site, data in sorted(attested.items())
            if site != self._name
        }
        least = self._roster.rules.max_colluding + 1
        if len(said) < least:
            raise ProtocolError(
                "cohort", f"expected {least} sites that attest to a model, got {len(said)}"
            )
        if len({(one.completed_rounds, one.tag) for one in said.values()}) != 1:
            raise ProtocolError("disagree", f"{', '.join(said)} do not stand at the same model")
        one = next(iter(said.values()))
        if one.completed_rounds <= here:
            raise ProtocolError("round", f"round {one.completed_rounds} is not after this site's")
        return tuple(said), one


def history_sha256(history: Sequence[OpenedRound]) -> bytes:
    """Of the rounds in order. It differs wherever two histories do."""
    rounds: list[codec.Value] = [
        [bytes.fromhex(one.result), _sha256(codec.encode([*one.sites]))] for one in history
    ]
    return _sha256(codec.encode([HISTORY, rounds]))


def pack(
    state: AdapterState, shared: Mapping[str, Float32], history: Sequence[OpenedRound]
) -> bytes:
    """An adapter, what all sites derived from earlier sums, and the rounds that led there."""
    vectors: dict[str, codec.Value] = {name: _bytes(vector) for name, vector in shared.items()}
    sets = list(dict.fromkeys(one.sites for one in history))
    rounds: list[codec.Value] = [
        [bytes.fromhex(one.result), sets.index(one.sites)] for one in history
    ]
    return codec.encode([_bytes(state.values), vectors, [[*one] for one in sets], rounds])


def unpack(
    data: bytes, spec: AdapterSpec
) -> tuple[AdapterState, dict[str, Float32], tuple[OpenedRound, ...]]:
    """Raises `ProtocolError` ('malformed') for anything but what `pack` makes of this adapter."""
    value = codec.decode(data)
    if not (isinstance(value, list) and len(value) == 4 and isinstance(value[1], dict)):
        raise ProtocolError("malformed", "expected an adapter, vectors and rounds, got another")
    values = _vector("adapter", value[0])
    if values.size != spec.num_values:
        raise ProtocolError(
            "size", f"expected an adapter of {spec.num_values} values, got {values.size}"
        )
    shared = {name: _vector(name, vector) for name, vector in value[1].items()}
    for name, vector in shared.items():
        if vector.size not in (spec.num_values, len(spec.tensors)):
            raise ProtocolError("size", f"{name:.60}: a vector of {vector.size} values")
    return AdapterState(values, spec), shared, _rounds(value[2], value[3])


def _rounds(sets: codec.Value, rounds: codec.Value) -> tuple[OpenedRound, ...]:
    if not (isinstance(sets, list) and isinstance(rounds, list)):
        raise ProtocolError("malformed", "expected rounds and sets of sites, got others")
    over: list[tuple[str, ...]] = []
    for sites in sets:
        names = [site for site in sites if isinstance(site, str)] if isinstance(sites, list) else []
        if not names or names != sites or names != sorted(set(names)):
            raise ProtocolError("malformed", "expected names of sites in order, got others")
        over.append(tuple(names))
    found: list[OpenedRound] = []
    for one in rounds:
        result, place = one if isinstance(one, list) and len(one) == 2 else (None, None)
        if not (
            isinstance(result, bytes)
            and len(result) == hashlib.sha256().digest_size
            and isinstance(place, int)
            and 0 <= place < len(over)
        ):
            raise ProtocolError("malformed", "expected rounds with results and sites, got others")
        found.append(OpenedRound(result.hex(), over[place]))
    return tuple(found)


def max_parts(spec: AdapterSpec, rounds: int, sites: int) -> int:
    """The most parts that a model after so many rounds can have."""
    model = (1 + MAX_VECTORS) * (4 * spec.num_values + ITEM_BYTES)
    return -(-(model + rounds * (sites + 2) * ITEM_BYTES) // PART_BYTES)


def parts(data: bytes) -> Sequence[bytes]:
    return [data[at : at + PART_BYTES] for at in range(0, len(data), PART_BYTES)]


def seal(part: bytes, group_key: bytes, about: bytes) -> bytes:
    """`about`: session, giver, round and place of the part: it opens as nothing else."""
    # No two contents have one key, even where the generator repeats (a cloned machine).
    salt = hmac.digest(group_key, os.urandom(32) + _sha256(about) + _sha256(part), "sha256")
    return salt + ChaCha20Poly1305(_key(group_key, salt, about)).encrypt(bytes(12), part, about)


def unseal(box: bytes, group_key: bytes, about: bytes) -> bytes:
    """Raises `CryptoError` for a box that was changed, or made for another place."""
    salt, sealed = box[:SALT_BYTES], box[SALT_BYTES:]
    try:
        return ChaCha20Poly1305(_key(group_key, salt, about)).decrypt(bytes(12), sealed, about)
    except (InvalidTag, ValueError):
        raise CryptoError(
            "expected a part of a model sealed in this session, got another"
        ) from None


def about(context: bytes, giver: str, round_number: int, index: int, count: int) -> bytes:
    return codec.encode([LABEL, context, giver, round_number, index, count])


def _key(group_key: bytes, salt: bytes, info: bytes) -> bytes:
    return HKDF(hashes.SHA256(), 32, salt, info).derive(group_key)


def _sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def _bytes(vector: Float32) -> bytes:
    return vector.astype("<f4", copy=False).tobytes()


def _vector(name: str, data: codec.Value) -> Float32:
    if not isinstance(data, bytes) or len(data) % 4:
        raise ProtocolError("malformed", f"{name:.60}: expected float32 values, got another")
    found = np.frombuffer(data, "<f4").astype(np.float32)
    if not np.isfinite(found).all():
        raise ProtocolError("malformed", f"{name:.60}: expected finite values, got others")
    return found
