"""The model of the last round, from a site that has it to one that was away (membership batches).

Who was away opened none of the sums, so it has no certificate of its own. What stands in for one:
c + 1 sites of the session sign, under its group key, the digest of what they stand at. One of them
is honest, and an honest site only stands at a result that it took with a certificate, or in this
same way. The model itself comes from any site and is believed by that digest alone. It crosses
sealed under the group key, which every site of the session has and the coordinator has not.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedshield.errors import CryptoError, ProtocolError
from fedshield.protocol import codec, messages
from fedshield.protocol.envelope import Binding
from fedshield.protocol.muster import MAX_PARTS
from fedshield.protocol.roster import Roster
from fedshield.protocol.session import read_signed
from fedshield.protocol.summation import tag
from fedshield.types import AdapterSpec, AdapterState, Float32

LABEL = b"fedshield standing model 1"
#: Of a model, in one message.
PART_BYTES = 4 << 20
SALT_BYTES = 32


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

    def tag(self, round_number: int, result: str) -> bytes:
        """That a site took this result in this round, to whoever has the group key."""
        value = f"{round_number} {result}".encode()
        return tag(self._group_key, self._session, b"standing", value)

    def give(
        self, index: int, round_number: int, state: AdapterState, shared: Mapping[str, Float32]
    ) -> messages.ModelPart:
        found = parts(pack(state, shared))
        if not 0 <= index < len(found):
            raise ProtocolError("size", f"part {index} of {len(found)} was asked for")
        place = about(self._session.context, self._name, round_number, index, len(found))
        box = seal(found[index], self._group_key, place)
        return messages.ModelPart(round_number, index, len(found), box)

    def take(
        self, command: messages.TakeModel, spec: AdapterSpec, standing: tuple[int, str]
    ) -> tuple[int, bytes, AdapterState, dict[str, Float32]] | None:
        """One part. With the last: the round, the tag that its result must have, and the model;
        None before. `standing`: the round and the result that this site stands at."""
        number, wanted = self._attested(command.attested, standing)
        giver, at = command.giver, len(self._arrived)
        part = read_signed(command.part, messages.ModelPart, self._session, giver, self._roster)
        if (part.completed_rounds, part.index) != (number, at) or part.count > MAX_PARTS:
            raise ProtocolError("repeated", f"expected part {at} of round {number}'s model")
        place = about(self._session.context, giver, number, part.index, part.count)
        self._arrived.append(unseal(part.box, self._group_key, place))
        if len(self._arrived) < part.count:
            return None
        whole, self._arrived = b"".join(self._arrived), []
        return number, wanted, *unpack(whole, spec)

    def _attested(
        self, attested: Mapping[str, bytes], standing: tuple[int, str]
    ) -> tuple[int, bytes]:
        """The round and the tag that c + 1 other sites of this session signed. One of them is
        honest: it stands at what it took with a certificate."""
        said = {
            site: read_signed(data, messages.Attested, self._session, site, self._roster)
            for site, data in sorted(attested.items())
            if site != self._name and site in self._sites
        }
        least = self._roster.rules.max_colluding + 1
        if len(said) < least:
            raise ProtocolError(
                "cohort", f"expected {least} sites that attest to a model, got {len(said)}"
            )
        if len({(one.completed_rounds, one.tag) for one in said.values()}) != 1:
            raise ProtocolError("disagree", f"{', '.join(said)} do not stand at the same model")
        here, result = standing
        known = {one.tags[str(here)] for one in said.values() if str(here) in one.tags}
        if here and known != {self.tag(here, result)}:
            raise ProtocolError(
                "disagree",
                f"expected sites that took this site's result of round {here}, got others: the "
                "batches went on apart; compare adapter_sha256 of their reports",
            )
        one = next(iter(said.values()))
        if one.completed_rounds <= here:
            raise ProtocolError("round", f"round {one.completed_rounds} is not after this site's")
        return one.completed_rounds, one.tag


def pack(state: AdapterState, shared: Mapping[str, Float32]) -> bytes:
    """An adapter and what all sites derived from earlier sums, as bytes."""
    vectors: dict[str, codec.Value] = {name: _bytes(vector) for name, vector in shared.items()}
    return codec.encode([_bytes(state.values), vectors])


def unpack(data: bytes, spec: AdapterSpec) -> tuple[AdapterState, dict[str, Float32]]:
    """Raises `ProtocolError` ('malformed') for anything but what `pack` makes of this adapter."""
    value = codec.decode(data)
    if not (isinstance(value, list) and len(value) == 2 and isinstance(value[1], dict)):
        raise ProtocolError("malformed", "expected an adapter and shared vectors, got another")
    values = _vector("adapter", value[0])
    if values.size != spec.num_values:
        raise ProtocolError(
            "size", f"expected an adapter of {spec.num_values} values, got {values.size}"
        )
    shared = {name: _vector(name, vector) for name, vector in value[1].items()}
    for name, vector in shared.items():
        if vector.size not in (spec.num_values, len(spec.tensors)):
            raise ProtocolError("size", f"{name:.60}: a vector of {vector.size} values")
    return AdapterState(values, spec), shared


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
