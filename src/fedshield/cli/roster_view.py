"""How `fedshield roster verify` shows a roster: in words, and as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedshield.cli.console import err_console, say

if TYPE_CHECKING:
    from fedshield.enrolment import Card, SignedRoster, Standing

COMPARE = (
    "Read the fingerprint to every other site's operator, and hear theirs, over a channel that "
    "the coordinator does not carry: in person, or by telephone at a number you had before. "
    "Signatures within the roster prove nothing against a coordinator that exchanged the cards. "
    "Confirm only sites whose operator had the same fingerprint and found their own card."
)


def show(
    path: Path,
    roster: SignedRoster,
    standing: Standing,
    own: str | None,
    changes: tuple[str, ...] | None,
) -> None:
    rules = roster.rules()
    if roster.demo:
        say("", "DEMONSTRATION: one operator made every key, so it protects nobody")
    say("roster", str(path))
    say("fingerprint", roster.fingerprint())
    say("", COMPARE)
    say("rules", rules.in_words())
    say(
        "",
        f"The line: up to {rules.max_colluding} (c) colluding sites, unconfirmed keys among "
        f"them, learn sums only; {rules.max_colluding + 1} (c+1) with the coordinator can open "
        "single updates.",
    )
    for number, batch in enumerate(roster.batches(), 1):
        say(f"batch {number}", f"{', '.join(batch)}: always summed together")
    say("coordinator", f"taken for {rules.server}")
    say("allowed", roster.allowed.in_words())
    say("base model", roster.model_sha256.hex() or "any (no --model-sha256 was given)")
    say("sealing", f"ML-KEM-768 and X25519 (version {roster.sealing}); no session offers less")
    for label, sentence in exposure_lines(roster):
        say(label, sentence)
    for card in (roster.coordinator, *roster.sites):
        say(
            card.name,
            f"key {card.public.hex()}, made {card.created}{_replaced(card)}"
            f"{_signed(roster, card.name)}",
        )
    for sentence in changes or ():
        say("changed", sentence)
    if changes is None and any(card.replaces for card in (roster.coordinator, *roster.sites)):
        say("changed", "not compared: give --before ROSTER, the one that you signed before")
    mine = "not checked: give --key KEYFILE to see that yours is in it"
    say("own card", mine if own is None else f"{own}, with your key")
    say("state", standing.in_words())
    for sentence in standing.missing():
        say("missing", sentence)


def exposure_lines(roster: SignedRoster) -> tuple[tuple[str, str], ...]:
    """Which rosters it follows, and who can be singled out by sums under them: label and sentence.
    Nothing for a first roster whose departures are signed when they come."""
    from fedshield.enrolment.coming import single_sites

    told: list[tuple[str, str]] = []
    if roster.lineage.departure == "announced":
        told.append(
            (
                "departure",
                "announced: who signs this roster signs that its updates can be had by "
                "subtraction if it ever goes; nobody asks it again",
            )
        )
    earlier = roster.lineage.earlier
    if earlier:
        digests = ", ".join(one.roster.hex()[:16] for one in earlier)
        told.append(("follows", f"{len(earlier)} rosters, the oldest first: {digests}"))
    c = roster.rules().max_colluding
    for name, how in single_sites(roster):
        if how:
            told.append(
                (
                    "EXPOSED",
                    f"{name} signed that its update of round r can be computed by whoever holds "
                    "the sums before and after it went or came",
                )
            )
        else:
            told.append(
                (
                    "not hidden",
                    f"{name} is in the same sums as fewer than {c + 1} others (c + 1), over all "
                    "these rosters, and did not sign that it is exposed: every site refuses sums "
                    "under this roster (R1), unless each one's policy has "
                    f"exposes: [{name}], or all sums are under privacy.unit: example",
                )
            )
    return tuple(told)


def _signed(roster: SignedRoster, name: str) -> str:
    if name == roster.coordinator.name:
        return ""
    given = roster.countersignatures.get(name)
    return "; not signed" if given is None else f"; signed, confirms {list_names(given.confirmed)}"


def _replaced(card: Card) -> str:
    if not card.replaces:
        return ""
    keys = ", ".join(f"{old.public.hex()[:16]} ({old.created})" for old in card.replaces)
    return f"; replaces {keys}, signed by each in turn"


def as_json(
    roster: SignedRoster, standing: Standing, own: str | None, changes: tuple[str, ...] | None
) -> dict[str, Any]:
    from fedshield.enrolment.coming import single_sites

    rules = roster.rules()
    return {
        "fingerprint": roster.fingerprint(),
        "content_sha256": roster.content_sha256().hex(),
        "demonstration": roster.demo,
        "own_card": own,
        "rules": {
            "num_sites": rules.num_sites,
            "max_colluding": rules.max_colluding,
            "threshold": rules.threshold,
            "votes": rules.votes,
            "min_cohort": rules.min_cohort,
            "server": rules.server,
            "membership": rules.membership,
            "batches": [[*batch] for batch in roster.batches()],
            "in_words": rules.in_words(),
        },
        "allowed": {
            "schemes": sorted(roster.allowed.schemes),
            "min_bits": roster.allowed.min_bits,
            "max_examples": roster.allowed.max_examples,
        },
        "model_sha256": roster.model_sha256.hex() or None,
        "sealing": roster.sealing,
        "departure": roster.lineage.departure,
        "follows": [one.roster.hex() for one in roster.lineage.earlier],
        "exposed": [name for name, how in single_sites(roster) if how],
        "not_hidden": [name for name, how in single_sites(roster) if not how],
        "coordinator": {
            "public_key": roster.coordinator.public.hex(),
            "created": roster.coordinator.created,
            "replaces": [old.fields() for old in roster.coordinator.replaces],
        },
        "sites": {
            card.name: {
                "public_key": card.public.hex(),
                "created": card.created,
                "replaces": [old.fields() for old in card.replaces],
                "signed": card.name in roster.countersignatures,
                "unconfirmed": [*standing.unconfirmed[card.name]]
                if card.name in standing.unconfirmed
                else None,
            }
            for card in roster.sites
        },
        "changes": None if changes is None else [*changes],
        "ready": standing.ready,
        "state": standing.in_words(),
        "unconfirmed_at_worst": standing.worst,
        "missing": [*standing.missing()],
    }


def changes_of(path: Path, roster: SignedRoster, before: Path | None) -> tuple[str, ...] | None:
    """What it changes of the roster before it; None where none is given or beside it."""
    from fedshield.enrolment import SignedRoster
    from fedshield.enrolment.changes import previous_path
    from fedshield.enrolment.differences import differences

    previous = before or previous_path(path)
    return None if previous is None else differences(SignedRoster.read(previous), roster)


def note_left(copy: Path, roster: SignedRoster, other: SignedRoster) -> None:
    """A site's confirmations in a copy that its signature here, which confirms as many or more,
    leaves out."""
    for name, given in other.countersignatures.items():
        known = roster.countersignatures.get(name)
        if known is None or len(given.confirmed) > len(known.confirmed):
            known, given = given, known or given
        left = sorted(set(given.confirmed) - set(known.confirmed))
        if left:
            err_console.print(
                f"note: {copy}: {name} signed twice, and the signature that is kept confirms "
                f"{list_names(known.confirmed)} and not {', '.join(left)}; it can sign once more "
                "with all of them",
                markup=False,
            )


def list_names(names: list[str] | tuple[str, ...]) -> str:
    return ", ".join(names) or "nobody"
