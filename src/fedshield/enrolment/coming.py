"""Sites that go and join: the roster after it, and what the one at risk signs of it.

Nobody else's approval stands in for that signature. Without it the rosters still can be made and
signed, and the ledgers of all sites then refuse their sums (R1), unless all policies expose the
site, or all sums are under `privacy.unit: example`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence

from fedshield.enrolment.cards import Card, KeyFile
from fedshield.enrolment.exposure import Exposure
from fedshield.enrolment.files import RosterError
from fedshield.enrolment.lineage import identity, step
from fedshield.enrolment.signed_roster import SignedRoster
from fedshield.ledger.history import short_atoms
from fedshield.plan.batches import Batches


def following(roster: SignedRoster) -> SignedRoster:
    """What a change is made of: the roster that is to follow one that anyone signed, itself if
    nobody did."""
    return roster.followed() if roster.countersignatures else roster


def without(roster: SignedRoster, names: Collection[str]) -> SignedRoster:
    """Without these sites, the others in the batches that they are in. Raises `RosterError` for a
    name that is no site's, and where those who stay are too few."""
    for name in names:
        if name not in roster.names():
            raise RosterError(
                f"expected a site of the roster ({', '.join(roster.names())}), got {name[:40]!r}"
            )
    stay = tuple(card for card in roster.sites if card.name not in names)
    cells = [tuple(name for name in cell if name not in names) for cell in roster.batches()]
    return _with_sites(roster, stay, tuple(cell for cell in cells if cell))


def joined(
    roster: SignedRoster, cards: Sequence[Card], batches: Batches = (), *, key_lost: bool = False
) -> SignedRoster:
    """With these sites too.

    Args:
        roster: of today.
        cards: of the sites that join.
        batches: with membership batches, those that they are in, whole: in place of each of today's
            that shares a site with one.
        key_lost: they left before, under keys that are lost since, and have their names back (R1
            asks that all keys of one name count as exposed).

    Raises:
        RosterError: also for a name that another site of an earlier roster had: people and policies
            speak of sites by name.
    """
    if not key_lost:
        roster.lineage.check_names_are_free(cards, roster.demo)
    elif new := [card for card in cards if not roster.lineage.namesakes(card, roster.demo)]:
        raise RosterError(
            f"--key-lost: expected a site that was in a roster before under another key, got "
            f"{new[0].name}, a name that nobody had; leave out --key-lost"
        )
    before = roster.batches()
    if before and not batches:
        raise RosterError(
            "--batch: expected the batch of each site that joins, whole, got none; name a batch "
            f"of c + 2 = {roster.rules().max_colluding + 2} new sites, or one of today's "
            "with the new site in it: --batch a,b,c,new"
        )
    named = {name for batch in batches for name in batch}
    cells = tuple(cell for cell in before if named.isdisjoint(cell))
    after = _with_sites(roster, (*roster.sites, *cards), (*cells, *batches))
    after.batches()
    return after


def _with_sites(roster: SignedRoster, sites: tuple[Card, ...], batches: Batches) -> SignedRoster:
    # The line's c never falls, and what was asked for of more sites cannot be had of fewer.
    asked = dataclasses.replace(roster.asked, max_colluding=roster.rules().max_colluding)
    if asked.membership == "fixed":
        asked = dataclasses.replace(asked, min_cohort=None, threshold=None, votes=None)
    return dataclasses.replace(
        roster, sites=sites, asked=asked, named_batches=batches, countersignatures={}
    )


def exposure_of(
    before: SignedRoster, after: SignedRoster, key_file: KeyFile, *, bound: bool = False
) -> Exposure:
    """What this site signs if one roster follows another: it goes, or joins.

    Args:
        before: the roster that is followed.
        after: the one that follows it.
        key_file: of the site that signs.
        bound: its ledger remembers that it goes to `after`, and so it may say that it does.

    Raises:
        RosterError: for a site that does neither, or where nobody needs to sign: before any sum,
            with membership open, and where enough others go with it and it is not `bound`.
    """
    card = key_file.card()
    if not after.lineage.earlier:
        raise RosterError(
            "expected a roster that a signed one goes before, got the first one: no sum was made "
            "under it, so nobody is exposed by who goes or joins"
        )
    for roster in (before, after):
        if roster.rules().membership == "open":
            raise RosterError(
                "expected membership fixed or batches, got open: there each sum protects every "
                "training row by itself, and no exposure is signed"
            )
    site, demo = identity(card, after.demo), after.demo
    cuts = [*(one.cut() for one in after.lineage.earlier), after.cut()]
    hidden = site not in _singled_out(after)
    for kind in ("leaving" if hidden else "going", "joining"):
        batches = step(kind, site, cuts)
        if batches is not None:
            if kind == "leaving" and not bound:
                raise RosterError(
                    f"expected that who goes is exposed by it, to sign that, got {card.name}, who "
                    "goes hidden by others; it need not sign, or it signs where it goes, with its "
                    "ledger (--kit), if too few sites stay"
                )
            where = (after.lineage.consortium, after.lineage.earlier[-1].roster)
            return Exposure.sign(key_file, kind, *where, *batches[:2], batches[2] if bound else b"")
    raise RosterError(
        f"--key: expected the key of a site that goes or joins here, got {card.name}'s"
        + ("" if demo else f" ({site[:16]})")
        + "; give the roster, the names and the key of that site"
    )


def with_announced(before: SignedRoster, after: SignedRoster) -> SignedRoster:
    """With what each site that goes signed in advance, in a roster with departure announced."""
    if before.lineage.departure != "announced" or not before.countersignatures:
        return after
    stay = {identity(card, after.demo) for card in after.sites}
    signed = [
        before.announced_exposure(name, given.announced)
        for name, given in before.countersignatures.items()
        if identity(before.card(name), before.demo) not in stay
    ]
    return dataclasses.replace(after, lineage=after.lineage.with_exposures(signed))


def single_sites(roster: SignedRoster) -> tuple[tuple[str, str], ...]:
    """Whom sums under this roster and those before it would single out, (name, how) each: `how` is
    'signed' for who signed it, else ''. Of records that were in sums under all of them."""
    history = roster.to_roster().history()
    told = _singled_out(roster)
    return tuple(sorted((history.call(site), how) for site, how in told.items()))


def _singled_out(roster: SignedRoster) -> dict[str, str]:
    """`single_sites`, by the identity of each."""
    history, c = roster.to_roster().history(), roster.rules().max_colluding
    alone = {site for atom in short_atoms(history.cuts, history.open(), c) for site in atom}
    return dict.fromkeys(alone, "") | dict.fromkeys(history.open(), "signed")
