"""The commands of enrolment: `fedshield keygen` and `fedshield roster ...`. They print, as
`cli` does, which registers them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedshield.cli.coming import join, leave
from fedshield.cli.console import err_console, must_type, out_console, say
from fedshield.cli.roster_view import (
    as_json,
    changes_of,
    exposure_lines,
    list_names,
    note_left,
    show,
)
from fedshield.errors import UserError

if TYPE_CHECKING:
    from fedshield.enrolment import Allowed, Asked, SignedRoster
    from fedshield.enrolment.changes import Change

roster_app = typer.Typer(
    help="Who takes part, with which key and under which rules: made, reviewed, countersigned.",
    no_args_is_help=True,
)
roster_app.command("leave")(leave)
roster_app.command("join")(join)

RosterArgument = Annotated[Path, typer.Argument(metavar="ROSTER", help="A roster file.")]
ColludingOption = Annotated[
    int | None, typer.Option(help="c: sites that may collude with the coordinator.")
]
ThresholdOption = Annotated[int | None, typer.Option(help="T: answers that open a sum.")]
VotesOption = Annotated[
    int | None,
    typer.Option(
        help="Q: matching votes before any site answers. Left out: T, and at least c + 2 where a "
        "sum is over all sites; none with --server semi-honest."
    ),
]
CohortOption = Annotated[int | None, typer.Option(help="Least number of contributors of a sum.")]
ServerOption = Annotated[
    str, typer.Option(help="What the coordinator is taken for: malicious or semi-honest.")
]
MembershipOption = Annotated[
    str,
    typer.Option(
        help="Which sets of sites are summed: fixed (all), batches (whole batches; the others go "
        "on where one is away), or open (any of at least min_cohort; only for plans with "
        "privacy.unit example)."
    ),
]
BatchOption = Annotated[
    list[str] | None,
    typer.Option(
        "--batch",
        help="With membership batches: a,b,c that are always summed together, at least c + 2 of "
        "them; repeat it. Left out: the sites in order of names, cut as evenly as can be.",
    ),
]
DepartureOption = Annotated[
    str,
    typer.Option(
        help="signed: who goes alone signs then that its updates can be had by subtraction; "
        "announced: every site signs that now, so that the others can go on without it."
    ),
]
SchemeOption = Annotated[
    list[str] | None,
    typer.Option("--allow-scheme", help="A scheme that plans may use; rlwe if left out."),
]
BitsOption = Annotated[int | None, typer.Option(help="Least bits of a value (encoding.bits).")]
ExamplesOption = Annotated[
    int | None, typer.Option(help="What a site's example count is capped at.")
]


OutOption = Annotated[
    Path | None, typer.Option(help="A new file for the changed roster; where it goes if left out.")
]


BeforeOption = Annotated[
    Path | None,
    typer.Option(
        metavar="ROSTER",
        help="The roster that it is to follow, to see what changes; roster.json beside a "
        "roster.next.json if left out.",
    ),
]


def keygen(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The site's name, or coordinator.")],
    out: Annotated[Path, typer.Option(help="The folder for both files.")] = Path(),
    replaces: Annotated[
        Path | None,
        typer.Option(metavar="OLD.key", help="The party's old key file, which signs the new key."),
    ] = None,
) -> None:
    """Make a party's keys: NAME.key, which stays, and NAME.card.json, which everyone may see."""
    from fedshield.enrolment import keygen as make

    key_path, card_path = make(name, out, replaces)
    say("key", f"{key_path}  (private: it stays here; keep a copy where only you can read it)")
    say("card", f"{card_path}  (public: send it to the coordinator)")


@roster_app.command("init")
def init(
    coordinator: Annotated[Path, typer.Option(help="The coordinator's card.")],
    out: Annotated[Path, typer.Option(help="The roster file to make.")],
    max_colluding: ColludingOption = None,
    threshold: ThresholdOption = None,
    votes: VotesOption = None,
    min_cohort: CohortOption = None,
    server: ServerOption = "malicious",
    membership: MembershipOption = "fixed",
    batch: BatchOption = None,
    departure: DepartureOption = "signed",
    model_sha256: Annotated[
        str | None, typer.Option(help="SHA-256 of the base model; any model if left out.")
    ] = None,
    allow_scheme: SchemeOption = None,
    min_bits: BitsOption = None,
    max_examples: ExamplesOption = None,
) -> None:
    """Start a roster: the coordinator's card and the rules. Sites come with `roster add`."""
    from fedshield.enrolment import Card, SignedRoster
    from fedshield.enrolment.files import write_new
    from fedshield.enrolment.lineage import Lineage

    asked = _asked(max_colluding, threshold, votes, min_cohort, server, membership)
    allowed = _allowed(allow_scheme, min_bits, max_examples)
    roster = SignedRoster(
        Card.read(coordinator),
        asked=asked,
        allowed=allowed,
        model_sha256=_digest(model_sha256),
        named_batches=_batches(batch),
        lineage=Lineage(departure=departure),  # type: ignore[arg-type]  # checked there
    )
    write_new(out, roster.to_text(), 0o644)
    say("roster", f"{out}: no sites yet; add cards: fedshield roster add {out} CARD...")


@roster_app.command("add")
def add(
    path: RosterArgument,
    cards: Annotated[list[Path], typer.Argument(metavar="CARD...", help="Sites' cards.")],
    batch: BatchOption = None,
    out: OutOption = None,
) -> None:
    """Add sites' cards. A roster that anyone signed stays as it is: the new one, which all sign
    again, is made beside it."""
    from fedshield.enrolment import Card, changes

    more = [Card.read(card) for card in cards]
    change = changes.changed(path, lambda roster: roster.with_cards(more, _batches(batch)), out)
    change.write()
    _tell(change)


@roster_app.command("replace")
def replace(
    path: RosterArgument,
    card: Annotated[Path, typer.Argument(metavar="CARD", help="The party's new card.")],
    key_lost: Annotated[
        bool, typer.Option(help="Nobody has the old key any more: the card comes as a new site's.")
    ] = False,
    out: OutOption = None,
) -> None:
    """Replace a party's card by one that its old key signed (`keygen --replaces`). A roster that
    anyone signed stays as it is: the new one, which all sign again, is made beside it."""
    from fedshield.enrolment import Card, changes

    new = Card.read(card)
    linked: list[bool] = []

    def with_replacement(roster: SignedRoster) -> SignedRoster:
        after = roster.with_replacement(new, key_lost=key_lost)
        linked.append(new.follows(roster.card(new.name)))
        return after

    change = changes.changed(path, with_replacement, out)
    change.write()
    _tell(change)
    if not linked[0]:
        _note(
            f"no key of the roster signed the new card of {new.name}: it may be anyone's until its "
            "operator has read the fingerprint to you, as for a new site"
        )


@roster_app.command("sign")
def sign(
    path: RosterArgument,
    key: Annotated[Path, typer.Option(help="This site's key file.")],
    confirm: Annotated[
        list[str] | None,
        typer.Option(help="Sites whose operator had this fingerprint too; a,b or repeated."),
    ] = None,
    fingerprint: Annotated[
        str | None, typer.Option(help="The fingerprint that you compared: signs no other roster.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="A new file for the signed roster, instead of in place.")
    ] = None,
    before: BeforeOption = None,
) -> None:
    """Countersign a roster that you reviewed, naming the sites whose fingerprint you compared."""
    from fedshield.enrolment import KeyFile, SignedRoster
    from fedshield.enrolment.changes import rewrite
    from fedshield.enrolment.files import write_new

    key_file = KeyFile.read(key)
    confirmed = _names(confirm or [])
    unsigned = SignedRoster.read(path)
    changes = changes_of(path, unsigned, before)
    if fingerprint is not None:
        unsigned.check_fingerprint(fingerprint)
    unsigned.check_own(key_file.key, key_file.name)
    _read_exposures(unsigned, key_file.name)
    roster = unsigned.countersigned(key_file, confirmed)
    if out is None:
        rewrite(path, roster)
    else:
        write_new(out, roster.to_text(), 0o644)
    earlier = unsigned.countersignatures.get(key_file.name)
    withdrawn = sorted(set(earlier.confirmed) - set(confirmed)) if earlier is not None else []
    if withdrawn:
        _note(
            f"{key_file.name} had confirmed {', '.join(withdrawn)} before and does not any more in "
            "this file (a copy with the earlier signature still says so); name all of them with "
            "--confirm to keep them"
        )
    say("roster", str(out or path))
    say("fingerprint", roster.fingerprint())
    for sentence in changes or ():
        say("changed", sentence)
    say("signed by", f"{key_file.name}, which confirms {list_names(sorted(set(confirmed)))}")
    left = roster.standing().unconfirmed[key_file.name]
    if left:
        c = roster.rules().max_colluding
        _note(
            f"{', '.join(left)} not confirmed: a key that you did not confirm may be anyone's and "
            f"counts towards c={c}; compare the fingerprint with them too (fedshield roster verify "
            "says how) and sign again with --confirm"
        )


def _read_exposures(roster: SignedRoster, name: str) -> None:
    """What a roster that follows others shows of single sites, before it is signed. Raises
    `UserError` where who signs does not type its name though that exposes it."""
    for label, sentence in exposure_lines(roster):
        say(label, sentence)
    if roster.lineage.departure != "announced":
        return
    must_type(
        f"Type {name} to sign in advance that {name} is exposed if it goes:",
        name,
        "nothing was signed",
    )


@roster_app.command("merge")
def merge(
    path: RosterArgument,
    copies: Annotated[list[Path], typer.Argument(metavar="COPY...", help="Signed copies of it.")],
) -> None:
    """Take over the countersignatures of copies that sites signed and sent back."""
    from fedshield.enrolment import RosterError, SignedRoster
    from fedshield.enrolment.changes import rewrite

    roster = SignedRoster.read(path)
    for copy in copies:
        other = SignedRoster.read(copy)
        note_left(copy, roster, other)
        try:
            roster = roster.merged(other)
        except RosterError as error:
            raise RosterError(f"{copy}: {error}") from None
    rewrite(path, roster)
    standing = roster.standing()
    say("roster", str(path))
    say("signed by", list_names(sorted(roster.countersignatures)))
    if standing.unsigned:
        say("not yet by", list_names(standing.unsigned))


@roster_app.command("verify")
def verify(
    path: RosterArgument,
    key: Annotated[
        Path | None, typer.Option(help="Your key file: checks that your own card is in it.")
    ] = None,
    json_wanted: Annotated[
        bool, typer.Option("--json", help="Print JSON and nothing else.")
    ] = False,
    before: BeforeOption = None,
) -> None:
    """Check every signature; show the fingerprint to compare, the rules, who signed, what is
    missing. Exit status 2 as long as no run may use it."""
    from fedshield.enrolment import KeyFile, RosterError, SignedRoster

    key_file = None if key is None else KeyFile.read(key)
    roster = SignedRoster.read(path)
    own = None if key_file is None else roster.check_own(key_file.key, key_file.name)
    changes = changes_of(path, roster, before)
    standing = roster.standing()
    if json_wanted:
        text = json.dumps(as_json(roster, standing, own, changes), indent=1)
        out_console.print(text, markup=False)
    else:
        show(path, roster, standing, own, changes)
    if not standing.ready:
        raise RosterError(f"{path}: not ready: {'; '.join(standing.missing())}")


@roster_app.command("demo")
def demo(
    sites: Annotated[str, typer.Option(help="Names of the sites: a,b,c")],
    out: Annotated[Path, typer.Option(help="The folder to make.")],
    max_colluding: ColludingOption = None,
    threshold: ThresholdOption = None,
    votes: VotesOption = None,
    min_cohort: CohortOption = None,
    server: ServerOption = "malicious",
    membership: MembershipOption = "fixed",
    batch: BatchOption = None,
    allow_scheme: SchemeOption = None,
    min_bits: BitsOption = None,
    max_examples: ExamplesOption = None,
) -> None:
    """A demonstration: all keys by one operator, and a roster that says so. Protects nobody."""
    from fedshield.enrolment import write_demonstration

    asked = _asked(max_colluding, threshold, votes, min_cohort, server, membership)
    allowed = _allowed(allow_scheme, min_bits, max_examples)
    roster = write_demonstration(out, _names([sites]), asked, allowed, _batches(batch))
    say("roster", f"{out / 'roster.json'}: {', '.join(roster.names())}, all signed")
    say("keys", f"{out}: one key file and one card for each, and for the coordinator")
    _note("a DEMONSTRATION: one operator made every key, so it protects nobody")


# -- what is said ---------------------------------------------------------------------------


def _tell(change: Change) -> None:
    from fedshield.enrolment import RosterError
    from fedshield.plan.batches import in_words

    for note in change.notes():
        _note(note)
    say("roster", f"{change.path}: with the sites {', '.join(change.roster.names())}")
    try:
        if batches := change.roster.batches():
            say("batches", in_words(batches))
    except RosterError as error:
        _note(f"not usable yet: {error}")


def _note(text: str) -> None:
    err_console.print(f"note: {text}", markup=False)


# -- what is given ---------------------------------------------------------------------------


def _asked(
    max_colluding: int | None,
    threshold: int | None,
    votes: int | None,
    min_cohort: int | None,
    server: str,
    membership: str,
) -> Asked:
    from fedshield.enrolment import Asked

    return Asked(max_colluding, threshold, votes, min_cohort, server, membership)  # type: ignore[arg-type]


def _allowed(schemes: list[str] | None, min_bits: int | None, max_examples: int | None) -> Allowed:
    from fedshield.enrolment import Allowed

    return Allowed(tuple(_names(schemes or ["rlwe"])), min_bits, max_examples)


def _batches(given: list[str] | None) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(_names([one])) for one in given or ())


def _names(given: list[str]) -> list[str]:
    return [name.strip() for text in given for name in text.split(",")]


def _digest(text: str | None) -> bytes:
    if text is None:
        return b""
    try:
        digest = bytes.fromhex(text)
    except ValueError:
        digest = b""
    if len(digest) != 32:
        raise UserError(
            f"--model-sha256: expected 64 digits of 0-9 and a-f, got {text[:80]!r}; leave it out "
            "for any model"
        )
    return digest
