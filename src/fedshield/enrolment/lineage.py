"""The rosters that a roster follows, and who signed that it is exposed.

Rule R1 holds over all sums that a consortium ever made, so each roster lists how the sites were cut
into batches under every one before it. All of it is under the countersignatures. Whoever leaves one
out, or puts another in its place, is found by the ledgers of those who took part under it
(`ledger.history.not_continued`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast

from fedshield.enrolment.cards import Card
from fedshield.enrolment.exposure import Exposure, ExposureForm
from fedshield.enrolment.files import RosterError, check_identity, check_name
from fedshield.enrolment.forms import Form, Hex32, Listed, MaybeHex32, Text, Texts
from fedshield.ledger.history import Cut, History, Statement, chain, in_order
from fedshield.plan.data import MAX_SITES
from fedshield.protocol.wire import codec

Departure = Literal["signed", "announced"]
DEPARTURES: tuple[Departure, ...] = ("signed", "announced")
#: Rosters that one may follow.
MAX_EARLIER = 256


class Member(NamedTuple):
    """A site as it was then: its name, the first key of its card, hex (its name in a
    demonstration), and the key that it signed with, hex."""

    name: str
    site: str
    key: str


class Earlier(NamedTuple):
    """`roster`: SHA-256 of its content; `batches`: nothing for one with membership open."""

    roster: bytes
    batches: tuple[tuple[Member, ...], ...]

    def cut(self) -> Cut:
        return in_order([one.site for one in batch] for batch in self.batches)


@dataclass(frozen=True)
class Lineage:
    """`departure`: whether who goes signs then, or in advance with its countersignature;
    `consortium`: SHA-256 of the content of the first roster, nothing for that one itself;
    `earlier`: the oldest first; `exposures`: one for each step of a site that signed one.

    Raises `RosterError` for what no chain of rosters has."""

    departure: Departure = "signed"
    consortium: bytes = b""
    earlier: tuple[Earlier, ...] = ()
    exposures: tuple[Exposure, ...] = ()

    def __post_init__(self) -> None:
        if self.departure not in DEPARTURES:
            raise RosterError(
                f"--departure: expected {' or '.join(DEPARTURES)}, got "
                f"{str(self.departure)[:40]!r}; leave it out for signed"
            )
        if len(self.earlier) > MAX_EARLIER:
            raise RosterError(
                f"earlier: expected at most {MAX_EARLIER} rosters that one follows, got more; make "
                "the roster anew, for records that were in no sum"
            )
        digests = [one.roster for one in self.earlier]
        if bool(digests) != bool(self.consortium) or len({*digests}) < len(digests):
            raise RosterError(
                "earlier: expected the consortium's first roster and each one after it once, got "
                "others; ask for the file again"
            )
        if digests and digests[0] != self.consortium:
            raise RosterError(
                f"earlier: expected the consortium's first roster ({self.consortium.hex()[:16]}) "
                f"to come first, got {digests[0].hex()[:16]}: it was left out or moved; ask for "
                "the file again"
            )
        for one in self.earlier:
            sites = [member.site for batch in one.batches for member in batch]
            if len({*sites}) < len(sites) or not all(one.batches):
                raise RosterError(
                    f"earlier: expected each site in one batch of {one.roster.hex()[:16]}, got "
                    "another cut; ask for the file again"
                )
        steps = [(one.roster, one.card.first_public()) for one in self.exposures]
        if steps != sorted({*steps}):
            raise RosterError(
                "exposures: expected one for each step of a site, in order, got others; ask for "
                "the file again"
            )

    def __bool__(self) -> bool:
        return self != Lineage()

    def then(self, roster: bytes, batches: Sequence[Sequence[Member]]) -> Lineage:
        """Of a roster that follows this one's. `roster`: SHA-256 of the content of this one's."""
        last = Earlier(roster, tuple(tuple(batch) for batch in batches))
        return Lineage(
            *(self.departure, self.consortium or roster, (*self.earlier, last), self.exposures)
        )

    def with_exposures(self, more: Iterable[Exposure]) -> Lineage:
        known = {(one.roster, one.card.first_public()): one for one in (*self.exposures, *more)}
        exposures = tuple(known[step] for step in sorted(known))
        return Lineage(self.departure, self.consortium, self.earlier, exposures)

    def check_names(self, today: Sequence[Member]) -> None:
        """Raises `RosterError` for a site that is called two names: policies speak of names.
        `today`: the sites of the roster itself."""
        before = (member for one in self.earlier for batch in one.batches for member in batch)
        names: dict[str, str] = {}
        for member in (*before, *today):
            if names.setdefault(member.site, member.name) != member.name:
                raise RosterError(
                    f"earlier: expected one name of each site, got {names[member.site]} and "
                    f"{member.name} of one; ask for the file again"
                )

    def check_names_are_free(self, cards: Iterable[Card], demo: bool) -> None:
        """Raises `RosterError` for a card of a new site with a name that others had in these
        rosters, and it had not: people and policies speak of sites by name."""
        for card in cards:
            site, others = identity(card, demo), self.namesakes(card, demo)
            if others:
                raise RosterError(
                    "expected a name that no other site of the rosters before had, got "
                    f"{card.name} of {site[:16]}, which {', '.join(one[:16] for one in others)} "
                    "had; make its key under another name, or, if that site left and lost its key "
                    "since, run roster join --key-lost"
                )

    def namesakes(self, card: Card, demo: bool) -> frozenset[str]:
        """First keys that had the name of this card in the rosters before, unless its own had."""
        members = (m for one in self.earlier for batch in one.batches for m in batch)
        sites = frozenset(member.site for member in members if member.name == card.name)
        return frozenset() if identity(card, demo) in sites else sites

    def check_steps(self, today: Sequence[Sequence[Member]], demo: bool) -> None:
        """Raises `RosterError` unless each exposure is of a step that the rosters show, signed by
        the key that its site had there. `today`: the batches of the roster itself."""
        rosters = [*(one.batches for one in self.earlier), today]
        cuts = [in_order([member.site for member in batch] for batch in one) for one in rosters]
        places = {one.roster: at for at, one in enumerate(self.earlier)}
        for one in self.exposures:
            name = one.card.name
            if one.consortium != self.consortium or one.roster not in places:
                raise RosterError(
                    f"exposure of {name}: expected one for a roster that this one follows, got one "
                    f"for {one.roster.hex()[:16]}: it was signed in another consortium, or that "
                    f"roster was left out; ask {name} what it signed"
                )
            at = places[one.roster]
            batches = rosters[at + 1 if one.kind == "joining" else at]
            key = one.card.public.hex()
            site = next(
                (m.site for batch in batches for m in batch if (m.name, m.key) == (name, key)), ""
            )
            if site and site != identity(one.card, demo):
                site = ""
            if not site:
                raise RosterError(
                    f"exposure of {name}: expected one by the key that {name} had in the roster "
                    f"that it is for, got one by {key[:16]}; ask {name} what it signed"
                )
            shown = step(one.kind, site, cuts[: at + 2])
            if shown is None or (
                (one.before, one.after) != shown[:2] or one.following not in (b"", shown[2])
            ):
                raise RosterError(
                    f"exposure of {name}: expected one for the batches of this step, got one for "
                    f"others ({one.kind}, from {len(one.before)} sites to {len(one.after)}): it "
                    f"does not fit who goes and joins here; ask {name} to sign anew"
                )

    def history(self, today: Cut, demo: bool) -> History:
        """What ledgers are told. `today`: the batches of the roster itself."""
        cuts, at = chain([*(one.cut() for one in self.earlier), today])
        places = {one.roster: place for one, place in zip(self.earlier, at, strict=False)}
        signed: dict[int, frozenset[str]] = {}
        bound: dict[int, frozenset[str]] = {}
        statements: dict[int, tuple[Statement, ...]] = {}
        for one in self.exposures:
            place, site = places[one.roster], frozenset({identity(one.card, demo)})
            if one.exposes:
                signed[place] = signed.get(place, frozenset()) | site
            if one.following:
                bound[place] = bound.get(place, frozenset()) | site
            if not demo:
                statement = Statement(one.card.chain(), one.sha256().hex())
                statements[place] = (*statements.get(place, ()), statement)
        return History(
            cuts,
            signed,
            bound,
            statements,
            names={
                member.site: member.name
                for one in self.earlier
                for batch in one.batches
                for member in batch
            },
        )

    # -- as it is signed, and in a file -----------------------------------------------------

    def content(self) -> dict[str, codec.Value]:
        earlier: list[codec.Value] = [
            [one.roster, [[[*member] for member in batch] for batch in one.batches]]
            for one in self.earlier
        ]
        return {
            "consortium": self.consortium,
            "departure": self.departure,
            "earlier": earlier,
            "exposures": [one.content() for one in self.exposures],
        }

    def fields(self) -> dict[str, Any]:
        return {
            "departure": self.departure,
            "consortium": self.consortium.hex() or None,
            "earlier": [
                {
                    "roster": one.roster.hex(),
                    "batches": [{m.name: [m.site, m.key] for m in batch} for batch in one.batches],
                }
                for one in self.earlier
            ],
            "exposures": [one.fields() for one in self.exposures],
        }


def identity(card: Card, demo: bool) -> str:
    """Whom a ledger knows a card's site as (`protocol.roster.Roster.identity`)."""
    return card.name if demo else card.first_public().hex()


def chain_digest(cuts: Sequence[Cut]) -> bytes:
    """SHA-256 of the batches of rosters that follow each other (`ledger.history.chain`)."""
    chained, _ = chain(cuts)
    return hashlib.sha256(codec.encode([[[*cell] for cell in cut] for cut in chained])).digest()


def step(
    kind: str, site: str, cuts: Sequence[Cut]
) -> tuple[tuple[str, ...], tuple[str, ...], bytes] | None:
    """What a site that goes or joins with the last of some cuts signs.

    Args:
        kind: of the exposure.
        site: its first key, hex.
        cuts: of the rosters that follow each other, two or more.

    Returns:
        Its batch before and after, and for who goes now the SHA-256 of all cuts; None where it does
        neither.
    """
    *_, old, new = cuts
    members = [{one for batch in cut for one in batch} for cut in (old, new)]
    was, comes = (site in one for one in members)
    if kind == "joining" and comes and not was:
        batch = next(batch for batch in new if site in batch)
        return tuple(one for one in batch if one in members[0]), batch, b""
    if kind in ("going", "leaving", "announced") and was and not comes:
        batch = next(batch for batch in old if site in batch)
        if kind == "announced":
            return batch, (), b""
        stay = tuple(one for one in batch if one in members[1])
        return batch, stay, chain_digest(cuts)
    return None


class EarlierForm(Form):
    """A roster that was followed. `batches`: name -> the site and its key."""

    roster: Hex32
    batches: Listed[dict[str, Texts]]

    def earlier(self, where: str) -> Earlier:
        """`where`: the keys to this roster. Raises `RosterError`."""
        where = f"{where}.batches"
        batches = self.batches[: MAX_SITES + 1]
        return Earlier(
            bytes.fromhex(self.roster),
            tuple(
                tuple(sorted(_member(name, keys, where) for name, keys in batch.items()))
                for batch in batches
            ),
        )


class LineageForm(Form):
    """The rosters that a roster follows, in its file."""

    departure: Text
    consortium: MaybeHex32
    earlier: Listed[EarlierForm]
    exposures: Listed[ExposureForm]

    def lineage(self) -> Lineage:
        """Raises `RosterError`."""
        rosters = self.earlier[: MAX_EARLIER + 1]
        statements = self.exposures[: (MAX_EARLIER + 1) * MAX_SITES]
        return Lineage(
            cast(Departure, self.departure),  # which it checks
            bytes.fromhex(self.consortium or ""),
            tuple(form.earlier(f"earlier.{at}") for at, form in enumerate(rosters)),
            tuple(form.exposure(f"exposures.{at}.") for at, form in enumerate(statements)),
        )


NO_LINEAGE = LineageForm(departure="signed", consortium=None, earlier=(), exposures=())


def _member(name: str, keys: tuple[str, ...], where: str) -> Member:
    check_name(name, where)
    if len(keys) != 2:
        raise RosterError(
            f"{where}: expected two keys of {name}, got {len(keys)}; ask for the file again"
        )
    for key in keys:
        check_identity(key, where)
    return Member(name, *keys)
