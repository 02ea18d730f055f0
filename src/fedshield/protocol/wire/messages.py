"""The messages, one dataclass each, with their canonical body.

Commands go from the coordinator to a site, replies the other way. A body is a map from field
name to value; types and fields are checked on arrival.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, Self, cast

from fedshield.errors import ProtocolError
from fedshield.protocol.wire import codec

# What a field annotation accepts on the wire, and how it is turned back.
_LIST_OF_BYTES = "tuple[bytes, ...]"
_MAP_OF_BYTES = "dict[str, bytes]"


@dataclass(frozen=True)
class Message:
    """Base: fields may be int, str, bytes, tuple[bytes, ...] or dict[str, bytes]."""

    kind: ClassVar[str] = ""

    def to_body(self) -> codec.Value:
        body: dict[str, codec.Value] = {}
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            body[item.name] = list(value) if isinstance(value, tuple) else value
        return body

    @classmethod
    def from_body(cls, body: codec.Value) -> Self:
        """Raises `ProtocolError` ('malformed') unless every field is there with its type."""
        fields = dataclasses.fields(cls)
        if not isinstance(body, dict) or set(body) != {item.name for item in fields}:
            raise ProtocolError("malformed", f"{cls.kind}: wrong fields")
        arguments: dict[str, Any] = {}
        for item in fields:
            value, wanted = body[item.name], str(item.type)
            if wanted == _LIST_OF_BYTES:
                good = isinstance(value, list) and all(isinstance(v, bytes) for v in value)
                arguments[item.name] = tuple(cast(list[bytes], value)) if good else None
            elif wanted == _MAP_OF_BYTES:
                good = isinstance(value, dict) and all(isinstance(v, bytes) for v in value.values())
                arguments[item.name] = value
            else:
                good = type(value).__name__ == wanted
                arguments[item.name] = value
            if not good:
                raise ProtocolError("malformed", f"{cls.kind}.{item.name}: expected {wanted}")
        return cls(**arguments)


# -- commands ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stand(Message):
    """Before a session: say where you stand. `ask`: 16 bytes that what follows is bound to."""

    kind = "stand"
    ask: bytes


@dataclass(frozen=True)
class Compare(Message):
    """Every site's signed `Standing`, where not all have the same base model: for operators."""

    kind = "compare"
    standings: dict[str, bytes]


@dataclass(frozen=True)
class Restart(Message):
    """The signed `Standing` of every site that takes part: begin from the round that follows."""

    kind = "restart"
    standings: dict[str, bytes]


@dataclass(frozen=True)
class Invite(Message):
    """Opens a session of a run: the agreed plan and the roster, whole."""

    kind = "invite"
    session: bytes
    plan: bytes
    roster: bytes


@dataclass(frozen=True)
class Begin(Message):
    """Every site's signed `Join`, so that all derive the same context."""

    kind = "begin"
    joins: dict[str, bytes]


@dataclass(frozen=True)
class MakeKey(Message):
    """To one site: make the run's keys."""

    kind = "make-key"


@dataclass(frozen=True)
class TakeKey(Message):
    """To each other site: the maker's signed `KeyBox` for it."""

    kind = "take-key"
    box: bytes


@dataclass(frozen=True)
class Attest(Message):
    """With membership batches, where sites were away: say by a keyed tag which rounds led to what
    you stand at."""

    kind = "attest"


@dataclass(frozen=True)
class GiveModel(Message):
    """To one site: hand over part `index` of the model that it stands at, sealed."""

    kind = "give-model"
    index: int


@dataclass(frozen=True)
class TakeModel(Message):
    """To a site that was away: `part`, the signed `ModelPart` of site `giver`, and with it what
    sites of the session stand at, as they signed it (`Attested`)."""

    kind = "take-model"
    giver: str
    part: bytes
    attested: dict[str, bytes]


@dataclass(frozen=True)
class Prepare(Message):
    """A sum begins: make an ephemeral key for it."""

    kind = "prepare"


@dataclass(frozen=True)
class Train(Message):
    """With membership batches: train for the round that was prepared. Nothing leaves yet, so who is
    lost meanwhile binds nobody to a set of sites."""

    kind = "train"


@dataclass(frozen=True)
class Work(Message):
    """Contribute to this sum. `round_keys`: the signed `RoundKey` of every site in it."""

    kind = "work"
    round_keys: dict[str, bytes]


@dataclass(frozen=True)
class FetchShares(Message):
    """Send the sealed shares of the one-time key."""

    kind = "fetch-shares"


@dataclass(frozen=True)
class Hold(Message):
    """Every contributor's signed `Upload`, and its sealed share for this holder."""

    kind = "hold"
    uploads: dict[str, bytes]
    shares: dict[str, bytes]


@dataclass(frozen=True)
class Fetch(Message):
    """Send block `index` of the upload."""

    kind = "fetch"
    index: int


@dataclass(frozen=True)
class Announce(Message):
    """The aggregate to come: every contributor's signed `Upload`, and the blocks' digests."""

    kind = "announce"
    uploads: dict[str, bytes]
    block_digests: tuple[bytes, ...]


@dataclass(frozen=True)
class Deliver(Message):
    """Block `index` of the aggregate."""

    kind = "deliver"
    index: int
    block: bytes


@dataclass(frozen=True)
class Quorum(Message):
    """The signed `Vote`s for what was announced: answer with the share of the sum's key.

    `unheard`: the peers that have no good share of this site's, so that its answers to them bring
    the ML-KEM ciphertext (keys count, values are empty)."""

    kind = "quorum"
    votes: dict[str, bytes]
    unheard: dict[str, bytes] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class Open(Message):
    """Open what was delivered, and say by a receipt what it is; nothing is taken yet.

    `answers`: holder -> its share of the sum's key, sealed to this site; `tags`: holder -> its
    signed `AnswerTag`, the same for every site."""

    kind = "open"
    answers: dict[str, bytes]
    tags: dict[str, bytes]


@dataclass(frozen=True)
class Install(Message):
    """The certificate: signed `Receipt`s of enough sites that opened the same. Take the result."""

    kind = "install"
    receipts: dict[str, bytes]


@dataclass(frozen=True)
class Evaluate(Message):
    """Measure the global adapter on the site's own held-out rows. The result stays there."""

    kind = "evaluate"


@dataclass(frozen=True)
class MayGoOn(Message):
    """Say whether the plan's privacy leaves room for another round here."""

    kind = "may-go-on"


@dataclass(frozen=True)
class Finish(Message):
    """The session is over: forget its keys. `receipts`: of the last sum."""

    kind = "finish"
    receipts: dict[str, bytes]


# -- replies -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Standing(Message):
    """Where a site stands. `nonce`: fresh, so that no answer is taken for another; `rounds`:
    completed rounds that it can begin from, 8 bytes each, in order; `base_model`: SHA-256 of its
    base model."""

    kind = "standing"
    nonce: bytes
    rounds: tuple[bytes, ...]
    base_model: bytes


@dataclass(frozen=True)
class Join(Message):
    """A site's fresh nonce, its public keys for the session (ML-KEM-768 | X25519) and the round
    that it stands at.

    `num_examples` is zero unless the plan makes weights public. `version`: of what the site puts
    in, keyed: 32 bytes of its source records, 32 of its rows as the model reads them; `head`: its
    ledger's head, signed; `heads`: the last head that it saw of each other site, as that site
    signed it; `restart`: digest of the standings that it began from, empty in one process;
    `follows_from`: the place of the first roster of today's chain for which this site
    counts as one that goes on (`ledger.history`)."""

    kind = "join"
    nonce: bytes
    run_key: bytes
    completed_rounds: int
    num_examples: int
    version: bytes
    head: bytes
    heads: dict[str, bytes]
    restart: bytes
    follows_from: int


@dataclass(frozen=True)
class Ready(Message):
    """The site derived this context and is ready to go on from `completed_rounds`."""

    kind = "ready"
    context: bytes


@dataclass(frozen=True)
class KeyOffer(Message):
    """Public material for the coordinator, and one signed `KeyBox` per other site."""

    kind = "key-offer"
    public: bytes
    boxes: dict[str, bytes]


@dataclass(frozen=True)
class KeyBox(Message):
    """The run's keys, sealed to one site. `box`: ML-KEM ciphertext | sealed keys."""

    kind = "key-box"
    receiver: str
    key_id: bytes
    box: bytes


@dataclass(frozen=True)
class Attested(Message):
    """The round that a site stands at. `tag`: keyed, of the results of all rounds up to it and of
    the sites that each was over, as its ledger has them."""

    kind = "attested"
    completed_rounds: int
    tag: bytes


@dataclass(frozen=True)
class Taken(Message):
    """Where a site that was away stands after a part of a model. `tag`: what was attested to, once
    it took the model; empty before."""

    kind = "taken"
    completed_rounds: int
    tag: bytes


@dataclass(frozen=True)
class ModelPart(Message):
    """Part `index` of `count` of a site's model after `completed_rounds`, sealed under the group
    key of the session."""

    kind = "model-part"
    completed_rounds: int
    index: int
    count: int
    box: bytes


@dataclass(frozen=True)
class RoundKey(Message):
    """A site's ephemeral public keys for one sum (ML-KEM-768 | X25519), a keyed tag of the model
    that it starts from, and the only set that it may still open from there (empty if any)."""

    kind = "round-key"
    key: bytes
    model_tag: bytes
    bound: dict[str, bytes]


@dataclass(frozen=True)
class Upload(Message):
    """What a site will hand over: journalled by the site before it is sent.

    `share_digests`: holder -> SHA-256 of the sealed share for it; `head`: of the site's ledger,
    signed, which holds this sum's row: every site has seen it before any votes."""

    kind = "upload"
    key_id: bytes
    layout_tag: bytes
    block_digests: tuple[bytes, ...]
    share_digests: dict[str, bytes]
    head: bytes


@dataclass(frozen=True)
class Shares(Message):
    """Sealed shares of a site's one-time key: holder -> ML-KEM ciphertext | box."""

    kind = "shares"
    boxes: dict[str, bytes]


@dataclass(frozen=True)
class Held(Message):
    """Whose shares this holder has, and a complaint for each that it lacks (dealer -> code)."""

    kind = "held"
    complaints: dict[str, bytes]


@dataclass(frozen=True)
class Vote(Message):
    """For opening one sum: digests of the contributing set and of the aggregate. `head`: of the
    site's ledger, signed, which holds this sum's row."""

    kind = "vote"
    contributors: bytes
    aggregate: bytes
    head: bytes

    @property
    def about(self) -> bytes:
        """What must match between votes: the set and the aggregate."""
        return self.contributors + self.aggregate


@dataclass(frozen=True)
class Answer(Message):
    """The share of the sum's key: sealed to each peer, or in the clear where the plan opens to
    the server (`share`). `tag`: the signed `AnswerTag` of that share; all three are empty where
    there is no share. Only boxes for who is `unheard` have a ciphertext in front."""

    kind = "answer"
    boxes: dict[str, bytes]
    share: bytes
    tag: bytes


@dataclass(frozen=True)
class AnswerTag(Message):
    """HMAC of a holder's share of the sum's key, under the group key: one for all its peers, so
    that it cannot answer two of them differently unseen."""

    kind = "answer-tag"
    tag: bytes


@dataclass(frozen=True)
class Block(Message):
    kind = "block"
    index: int
    data: bytes


@dataclass(frozen=True)
class Receipt(Message):
    """A keyed tag of what was opened: equal at all sites, and nothing to the coordinator. `head`:
    of the site's ledger, signed, which holds this receipt: whoever takes the result has seen it."""

    kind = "receipt"
    model_tag: bytes
    head: bytes


@dataclass(frozen=True)
class Done(Message):
    kind = "done"


@dataclass(frozen=True)
class GoesOn(Message):
    """Whether there is room for another round (1) or not (0)."""

    kind = "goes-on"
    room: int
