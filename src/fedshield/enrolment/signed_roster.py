"""The roster that organisations review and countersign, and when a run may use it.

Under the signatures is its content: who takes part with which key, who may open what, the base
model's hash, the settings that a plan may have, how boxes are sealed (a session offers no less
than what every site signed), and which rosters it follows (`lineage`). A countersignature is over
the content's hash and the names of the sites whose fingerprint the signer compared over another
channel.

Signatures by keys inside the roster prove nothing against a coordinator that made up those
keys. What does is the fingerprint, compared between people, and each site finding its own key.
A key that a site did not confirm may be the coordinator's, so it counts towards c.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from fedshield.crypto.keys import SigningKey
from fedshield.crypto.public_keys import SEALING
from fedshield.enrolment.cards import Card, CardForm, KeyFile, check_parties
from fedshield.enrolment.exposure import Exposure
from fedshield.enrolment.files import RosterError, read_document, to_text
from fedshield.enrolment.forms import (
    Flag,
    Form,
    Hex64,
    Listed,
    MaybeHex32,
    TextLists,
    Texts,
    WholeNumber,
    at_most,
    missing_key,
    unknown_key,
)
from fedshield.enrolment.lineage import Lineage, LineageForm, Member, identity
from fedshield.enrolment.replacement import is_signed
from fedshield.enrolment.standing import Standing
from fedshield.enrolment.terms import Allowed, AllowedForm, Asked, AskedForm
from fedshield.errors import PlanError
from fedshield.ledger.history import Cut, in_order
from fedshield.plan import batches as batching
from fedshield.plan.batches import Batches
from fedshield.plan.data import MAX_SITES
from fedshield.plan.quorum import Rules
from fedshield.protocol.roster import COORDINATOR, Roster
from fedshield.protocol.wire import codec

MIN_SITES = 2
FINGERPRINT_BYTES = 16


@dataclass(frozen=True)
class Countersignature:
    """`confirmed`: the sites with whose operators this site compared the fingerprint; `announced`:
    in a roster with `departure: announced`, its signature over its `Exposure` if it ever goes."""

    confirmed: tuple[str, ...]
    signature: bytes
    announced: bytes = b""


@dataclass(frozen=True)
class SignedRoster:
    """The document. One that holds a signature which does not fit its content cannot be made:
    `RosterError`. Whether it may be used is another question: `check_ready`."""

    coordinator: Card
    sites: tuple[Card, ...] = ()
    asked: Asked = field(default_factory=Asked)
    allowed: Allowed = field(default_factory=Allowed)
    model_sha256: bytes = b""
    demo: bool = False
    sealing: int = SEALING
    countersignatures: dict[str, Countersignature] = field(default_factory=dict)
    #: As they were named; with membership batches and none named, the names in order are cut.
    named_batches: Batches = ()
    lineage: Lineage = field(default_factory=Lineage)

    def __post_init__(self) -> None:
        if self.coordinator.name != COORDINATOR:
            raise RosterError(
                f"--coordinator: expected a card named {COORDINATOR}, got one of "
                f"{self.coordinator.name}; make it with fedshield keygen {COORDINATOR}"
            )
        if len(self.sites) > MAX_SITES:
            raise RosterError(
                f"expected at most {MAX_SITES} sites, got {len(self.sites)}; leave some out"
            )
        if len(self.model_sha256) not in (0, 32):
            raise RosterError(
                f"--model-sha256: expected 32 bytes, got {len(self.model_sha256)}; leave it out "
                "for any model"
            )
        if self.sealing != SEALING:
            raise RosterError(
                f"sealing: expected {SEALING} (ML-KEM-768 and X25519), got "
                f"{str(self.sealing)[:20]}; all parties need the same version of FedShield: make "
                "the roster anew with it, and have every site sign it"
            )
        if self.named_batches and self.asked.membership != "batches":
            raise RosterError(
                f"--batch: expected none with membership {self.asked.membership}, got "
                f"{batching.in_words(self.named_batches)[:200]}; give --membership batches"
            )
        object.__setattr__(self, "named_batches", batching.in_order(self.named_batches))
        check_parties((self.coordinator, *self.sites))
        # The order of cards means nothing; one order makes one content.
        object.__setattr__(self, "sites", tuple(sorted(self.sites, key=lambda card: card.name)))
        if self.lineage.departure == "announced" and self.asked.membership == "open":
            raise RosterError(
                "--departure: expected signed with membership open, got announced: there each sum "
                "protects every training row by itself; leave it out"
            )
        self.lineage.check_names([self._member(name) for name in self.names()])
        if self.lineage.exposures:
            self.lineage.check_steps(self.members(), self.demo)
        for name, given in self.countersignatures.items():
            self._check_countersignature(name, given)

    def _check_countersignature(self, name: str, given: Countersignature) -> None:
        if name not in self.names():
            raise RosterError(
                f"countersignatures: expected only sites of the roster, got {name[:40]!r}; ask "
                "for the file again"
            )
        self._check_confirmed(f"countersignature of {name}", name, given.confirmed)
        message = _countersigned_part(self.content_sha256(), name, given.confirmed)
        if not is_signed(message, given.signature, self.card(name).public):
            raise RosterError(
                f"countersignature of {name}: expected one over this roster, got another: the "
                "roster was changed after it was signed, or the signature is forged; ask "
                f"{name} which roster it signed"
            )
        if bool(given.announced) != (self.lineage.departure == "announced"):
            raise RosterError(
                f"countersignature of {name}: expected its exposure signed in advance only with "
                "departure announced, got another; ask for the file again"
            )
        if given.announced:
            self.announced_exposure(name, given.announced)

    def announced_exposure(self, name: str, signature: bytes) -> Exposure:
        """What this site signed in advance of its going. Raises `RosterError` if it did not."""
        consortium, roster, batch = self._announcing(name)
        card = self.card(name)
        return Exposure("announced", card, consortium, roster, batch, (), b"", signature)

    def _announcing(self, name: str) -> tuple[bytes, bytes, tuple[str, ...]]:
        digest = self.content_sha256()
        site = identity(self.card(name), self.demo)
        batch = next(cell for cell in self.cut() if site in cell)
        return self.lineage.consortium or digest, digest, batch

    def _check_confirmed(self, where: str, signer: str, confirmed: Sequence[str]) -> None:
        others = [name for name in self.names() if name != signer]
        for name in confirmed:
            if name not in others:
                raise RosterError(
                    f"{where}: expected other sites of the roster ({', '.join(others)}), got "
                    f"{name[:40]!r}; name the sites with whose operators {signer} compared the "
                    "fingerprint"
                )
        if list(confirmed) != sorted(set(confirmed)):
            raise RosterError(
                f"{where}: expected each site once, in order of names, got another order; ask for "
                "the file again"
            )

    # -- content -----------------------------------------------------------------------------

    def names(self) -> tuple[str, ...]:
        return tuple(card.name for card in self.sites)

    def card(self, name: str) -> Card:
        """Raises `KeyError` for a name that is not in the roster."""
        return {card.name: card for card in (self.coordinator, *self.sites)}[name]

    def rules(self) -> Rules:
        """Raises `RosterError` where no round could run, or none could be protected."""
        if len(self.sites) < MIN_SITES:
            raise RosterError(
                f"expected a roster of at least {MIN_SITES} sites, got {len(self.sites)}; add "
                "cards: fedshield roster add ROSTER CARD..."
            )
        return self.asked.rules(len(self.sites))

    def batches(self) -> Batches:
        """The sites by batch, nothing where the rules have none. Raises `RosterError`."""
        rules = self.rules()
        if rules.membership != "batches":
            return ()
        found = self.named_batches or batching.cut(self.names(), rules.max_colluding)
        try:
            batching.check(found, self.names(), rules.max_colluding)
        except PlanError as error:
            text = str(error).removeprefix("batches: ")
            raise RosterError(f"--batch: {text}") from None
        return found

    def members(self) -> tuple[tuple[Member, ...], ...]:
        """The sites by batch, all in one where the rules have no batches; nothing with membership
        open, where nobody is always summed with anybody. Raises `RosterError`."""
        if self.rules().membership == "open":
            return ()
        cells = self.batches() or (self.names(),)
        return tuple(tuple(sorted(self._member(name) for name in cell)) for cell in cells)

    def cut(self) -> Cut:
        """The same by first keys, as ledgers know them."""
        return in_order([one.site for one in cell] for cell in self.members())

    def _member(self, name: str) -> Member:
        card = self.card(name)
        return Member(name, identity(card, self.demo), card.public.hex())

    def content(self) -> bytes:
        """What is signed and fingerprinted: `docs/roster.md` has it field by field."""
        rules = self.rules()
        numbers: list[codec.Value] = [
            *(rules.num_sites, rules.max_colluding),
            *(rules.threshold, rules.votes, rules.min_cohort, rules.server, rules.membership),
        ]
        allowed = self.allowed
        value: list[codec.Value] = [
            "fedshield signed roster 2",
            int(self.demo),
            self.coordinator.content(),
            [card.content() for card in self.sites],
            numbers,
            self.model_sha256,
            [[*sorted(allowed.schemes)], allowed.min_bits or 0, allowed.max_examples or 0],
            self.sealing,
        ]
        if batches := self.batches():
            value.append([[*batch] for batch in batches])
        if self.lineage:
            value.append(self.lineage.content())
        return codec.encode(value)

    def content_sha256(self) -> bytes:
        return hashlib.sha256(self.content()).digest()

    def fingerprint(self) -> str:
        """128 bits for people to compare: eight groups of four hexadecimal digits."""
        return _fingerprint(self.content_sha256())

    def check_fingerprint(self, expected: str) -> None:
        """Raises `RosterError` unless it is the one that people compared; spaces and dashes do
        not matter."""
        if re.sub(r"[\s-]", "", expected).lower() != self.fingerprint().replace(" ", ""):
            raise RosterError(
                f"--fingerprint: expected the one that you compared, {expected[:60]!r}, got "
                f"{self.fingerprint()}: this is another roster; do not sign it, and ask another "
                "site's operator"
            )

    # -- signing -----------------------------------------------------------------------------

    def followed(self) -> SignedRoster:
        """The roster that is to follow this one, with nothing changed yet and nobody's signature:
        it lists this one among those that it follows."""
        lineage = self.lineage.then(self.content_sha256(), self.members())
        return dataclasses.replace(self, lineage=lineage, countersignatures={})

    def with_cards(self, cards: Iterable[Card], batches: Batches = ()) -> SignedRoster:
        """With these sites too, and without any countersignature: each was over fewer sites.
        `batches`: more of them, beside those that were named. Where none are named, all sites are
        cut again, and a site whose batch changes refuses sums of its earlier records (R1). Raises
        `RosterError` for a name that another site of an earlier roster had."""
        cards = tuple(cards)
        self.lineage.check_names_are_free(cards, self.demo)
        return dataclasses.replace(
            self,
            sites=(*self.sites, *cards),
            named_batches=(*self.named_batches, *batches),
            countersignatures={},
        )

    def with_replacement(self, card: Card, *, key_lost: bool = False) -> SignedRoster:
        """With this card in place of its party's, and without any countersignature: each was over
        the old key. `key_lost`: the party cannot sign with its old key, and comes as a new one.

        Raises `RosterError` for a party that is not in the roster, for a card that the key in the
        roster did not sign, unless that is lost, and then for one with any key of the card there:
        a new party inherits nothing."""
        if card.name not in (COORDINATOR, *self.names()):
            raise RosterError(
                f"expected a card of a party of the roster (coordinator, {', '.join(self.names())})"
                f", got one of {card.name}; a new site is added by: fedshield roster add"
            )
        current = self.card(card.name)
        if card == current:
            raise RosterError(
                f"expected a new card of {card.name}, got the one that is in the roster; make one "
                f"with: fedshield keygen {card.name} --replaces {card.name}.key"
            )
        if current.follows(card):
            raise RosterError(
                f"expected a new card of {card.name}, got one that it replaced: whoever has that "
                f"old key could take part; make a new one with: fedshield keygen {card.name}"
            )
        if not card.follows(current) and not key_lost:
            raise RosterError(
                f"expected a card of {card.name} that the key in the roster "
                f"({current.public.hex()[:16]}) signed, got one that it did not; make it with "
                f"fedshield keygen {card.name} --replaces OLD.key, or give --key-lost if nobody "
                "has the old key any more"
            )
        if not card.follows(current) and not set(card.chain()).isdisjoint(current.chain()):
            raise RosterError(
                f"--key-lost: expected a card of {card.name} with new keys only, got one that goes "
                "another way from an old key; who has that one could come as this party: make it "
                f"without --replaces: fedshield keygen {card.name}"
            )
        coordinator = card if card.name == COORDINATOR else self.coordinator
        sites = tuple(card if site.name == card.name else site for site in self.sites)
        return dataclasses.replace(self, coordinator=coordinator, sites=sites, countersignatures={})

    def countersigned(self, key_file: KeyFile, confirmed: Iterable[str]) -> SignedRoster:
        """With this site's countersignature, in place of one that it gave before."""
        name = self.check_own(key_file.key, key_file.name)
        if name == COORDINATOR:
            raise RosterError(
                "--key: expected a site's key, got the coordinator's; its card is part of what "
                "the sites sign"
            )
        names = tuple(sorted(set(confirmed)))
        self._check_confirmed("--confirm", name, names)
        signature = key_file.key.sign(_countersigned_part(self.content_sha256(), name, names))
        announced = b""
        if self.lineage.departure == "announced":
            consortium, roster, batch = self._announcing(name)
            announced = Exposure.sign(
                key_file, "announced", consortium, roster, batch, ()
            ).signature
        return self._with_countersignatures({name: Countersignature(names, signature, announced)})

    def merged(self, other: SignedRoster) -> SignedRoster:
        """With the countersignatures of a copy too; of two by one site, that which confirms
        more. Raises `RosterError` for a copy of another roster."""
        if other.content() != self.content():
            raise RosterError(
                f"expected a copy of this roster ({self.fingerprint()}), got another "
                f"({other.fingerprint()}); ask the site which roster it signed"
            )
        better = {
            name: given
            for name, given in other.countersignatures.items()
            if name not in self.countersignatures
            or len(given.confirmed) > len(self.countersignatures[name].confirmed)
        }
        return self._with_countersignatures(better)

    def _with_countersignatures(self, more: dict[str, Countersignature]) -> SignedRoster:
        return dataclasses.replace(self, countersignatures={**self.countersignatures, **more})

    # -- use ---------------------------------------------------------------------------------

    def check_own(self, key: SigningKey, name: str | None = None) -> str:
        """The name under which this key is in the roster; `name`: what it must be. Raises
        `RosterError` where someone else's key stands in its place, or none."""
        found = [card.name for card in (self.coordinator, *self.sites) if card.public == key.public]
        if found and name in (None, found[0]):
            return found[0]
        if name in (COORDINATOR, *self.names()):
            got = f"another key under the name {name}"
        else:
            got = f"it under the name {found[0]}" if found else "a roster without it"
        raise RosterError(
            f"roster: expected your own key ({key.public.hex()[:16]}...) "
            + (f"under the name {name}, " if name else "in it, ")
            + f"got {got}: the card was exchanged on the way, or this is another roster or key; "
            "do not sign or run with it, and ask the coordinator and another site's operator"
        )

    def standing(self) -> Standing:
        unconfirmed = {
            name: tuple(
                other
                for other in self.names()
                if other != name and other not in self.countersignatures[name].confirmed
            )
            for name in self.names()
            if name in self.countersignatures
        }
        unsigned = tuple(name for name in self.names() if name not in self.countersignatures)
        return Standing(self.rules().max_colluding, unsigned, unconfirmed)

    def check_ready(self, own: SigningKey | None = None) -> Standing:
        """Every run calls this first, a party with its own key. Raises `RosterError` unless every
        site has signed, no site left more than c keys unconfirmed, and `own` is in it."""
        if own is not None:
            self.check_own(own)
        standing = self.standing()
        if not standing.ready:
            raise RosterError(
                "roster: expected one that is ready, got one that is not: "
                + "; ".join(standing.missing())
            )
        return standing

    def to_roster(self) -> Roster:
        """What a run binds into its messages."""
        return Roster(
            {card.name: card.public for card in self.sites},
            self.coordinator.public,
            self.rules(),
            self.demo,
            self.content_sha256(),
            # The keys of a demonstration are new in every session: its sites are known by name.
            {} if self.demo else {card.name: card.chain() for card in self.sites},
            self.batches(),
            self.lineage.history(self.cut(), self.demo),
        )

    # -- file --------------------------------------------------------------------------------

    def to_text(self) -> str:
        allowed = dataclasses.asdict(self.allowed) | {"schemes": sorted(self.allowed.schemes)}
        batches: dict[str, object] = {}
        if self.asked.membership == "batches":
            batches = {"batches": [[*batch] for batch in self.named_batches]}
        return to_text(
            "roster 2",
            {
                "demonstration": self.demo,
                "coordinator": self.coordinator.fields(),
                "sites": [card.fields() for card in self.sites],
                "rules": dataclasses.asdict(self.asked),
                "allowed": allowed,
                "model_sha256": self.model_sha256.hex() or None,
                "sealing": self.sealing,
                **batches,
                **({"lineage": self.lineage.fields()} if self.lineage else {}),
                "countersignatures": {
                    name: {
                        "confirmed": [*given.confirmed],
                        "signature": given.signature.hex(),
                        **({"announced": given.announced.hex()} if given.announced else {}),
                    }
                    for name, given in sorted(self.countersignatures.items())
                },
            },
        )

    @classmethod
    def read(cls, path: Path) -> SignedRoster:
        """Raises `RosterError` for anything but a roster whose every signature fits."""
        fields, _ = read_document(path, "roster 2")
        try:
            return RosterForm.parse(fields).roster()
        except RosterError as error:
            raise RosterError(f"{path}: {error}") from None


class CountersignatureForm(Form):
    """A countersignature in a roster's file."""

    confirmed: Texts
    signature: Hex64
    announced: Hex64 = ""

    def countersignature(self) -> Countersignature:
        signature, announced = bytes.fromhex(self.signature), bytes.fromhex(self.announced)
        return Countersignature(self.confirmed, signature, announced)


class RosterForm(Form):
    """A roster's file."""

    demonstration: Flag
    coordinator: CardForm
    sites: Annotated[Listed[CardForm], at_most(MAX_SITES)]
    rules: AskedForm
    allowed: AllowedForm
    model_sha256: MaybeHex32
    sealing: WholeNumber
    batches: TextLists = ()
    lineage: LineageForm = LineageForm(
        departure="signed", consortium=None, earlier=(), exposures=()
    )
    countersignatures: dict[str, CountersignatureForm]

    def roster(self) -> SignedRoster:
        """Raises `RosterError` for one with a signature that does not fit."""
        asked = self.rules.asked()
        batched = asked.membership == "batches"
        if batched and "batches" not in self.model_fields_set:
            raise missing_key(["batches"], "a list of lists of texts")
        if not batched and "batches" in self.model_fields_set:
            raise unknown_key(["batches"])
        return SignedRoster(
            self.coordinator.card(),
            tuple(form.card() for form in self.sites),
            asked,
            self.allowed.allowed(),
            bytes.fromhex(self.model_sha256 or ""),
            self.demonstration,
            self.sealing,
            {name: form.countersignature() for name, form in self.countersignatures.items()},
            self.batches,
            self.lineage.lineage(),
        )


def _countersigned_part(content_sha256: bytes, name: str, confirmed: Sequence[str]) -> bytes:
    return codec.encode(["fedshield countersignature 1", content_sha256, name, [*confirmed]])


@functools.lru_cache(maxsize=16)
def _fingerprint(content_sha256: bytes) -> str:
    """Slow on purpose. The coordinator writes the roster, so it could look for two of them with
    one fingerprint, each with another site's key exchanged: 2^64 trials on 128 bits, which is
    within reach of plain SHA-256 and not of scrypt at 32 MiB and a tenth of a second each."""
    salt = b"fedshield roster fingerprint 1"
    derived = Scrypt(salt=salt, length=FINGERPRINT_BYTES, n=2**15, r=8, p=1).derive(content_sha256)
    return " ".join(derived.hex()[at : at + 4] for at in range(0, 2 * FINGERPRINT_BYTES, 4))
