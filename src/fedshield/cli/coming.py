"""`fedshield roster leave` and `fedshield roster join`: who goes and comes, and what that shows of
them. With `--key` the site at risk signs it, and no roster is changed."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedshield.cli.roster_words import exposure_lines
from fedshield.cli.words import err_console, out_console
from fedshield.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fedshield.enrolment import SignedRoster
    from fedshield.enrolment.changes import Change
    from fedshield.enrolment.lineage import Earlier

RosterArgument = Annotated[Path, typer.Argument(metavar="ROSTER", help="The roster in force.")]
KeyOption = Annotated[
    Path | None,
    typer.Option(
        help="The key file of a site that goes or joins: sign that its updates can be had by "
        "subtraction. The roster is not changed."
    ),
]
ExposureOption = Annotated[
    list[Path] | None,
    typer.Option(help="What a site that goes or joins signed with --key; repeat it."),
]
OutOption = Annotated[
    Path | None,
    typer.Option(
        help="A new file for the changed roster, or with --key for what is signed; beside ROSTER, "
        "or NAME.going.json or NAME.joining.json, if left out."
    ),
]


def leave(
    path: RosterArgument,
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="All who go at once.")],
    key: KeyOption = None,
    exposure: ExposureOption = None,
    out: OutOption = None,
) -> None:
    """Take sites out of a roster. Fewer than c + 2 that go together are exposed by it, and each
    signs that (--key), unless the roster has it signed in advance (departure announced)."""
    from fedshield.enrolment.coming import without

    _run(path, lambda roster: without(roster, names), sorted(names), "leave", key, exposure, out)


def join(
    path: RosterArgument,
    cards: Annotated[
        list[Path], typer.Argument(metavar="CARD...", help="Cards of all who join at once.")
    ],
    batch: Annotated[
        list[str] | None,
        typer.Option(
            "--batch",
            help="With membership batches: a whole batch with a site that joins, a,b,c; in place "
            "of each of today's batches that shares a site with it. Repeat it.",
        ),
    ] = None,
    key: KeyOption = None,
    exposure: ExposureOption = None,
    out: OutOption = None,
) -> None:
    """Take sites into a roster. Fewer than c + 2 that join together are exposed by it, and each
    signs that (--key)."""
    from fedshield.enrolment import Card
    from fedshield.enrolment.coming import joined

    more = [Card.read(card) for card in cards]
    cells = tuple(tuple(name.strip() for name in one.split(",")) for one in batch or ())
    names = sorted(card.name for card in more)
    _run(path, lambda roster: joined(roster, more, cells), names, "join", key, exposure, out)


def _run(
    path: Path,
    step: Callable[[SignedRoster], SignedRoster],
    names: Sequence[str],
    verb: str,
    key: Path | None,
    exposure: list[Path] | None,
    out: Path | None,
) -> None:
    if key is not None:
        if exposure:
            raise UserError(
                "--exposure: expected none with --key, which signs one, got some; give it to the "
                "command without --key, at the coordinator"
            )
        _sign(path, step, key, out)
        return
    _change(path, step, names, verb, exposure or [], out)


def _sign(
    path: Path, step: Callable[[SignedRoster], SignedRoster], key: Path, out: Path | None
) -> None:
    """What the site at risk reads and signs. Raises `UserError`."""
    from fedshield.enrolment import KeyFile, SignedRoster
    from fedshield.enrolment.coming import exposure_of, following
    from fedshield.enrolment.files import write_new

    key_file = KeyFile.read(key)
    before = SignedRoster.read(path)
    after = step(following(before))
    signed = exposure_of(before, after, key_file)
    name, names = key_file.name, after.to_roster().history()
    _say("roster", f"{path}, fingerprint {before.fingerprint()}")
    _say("step", f"{name} {'joins' if signed.kind == 'joining' else 'goes'}")
    _say("batch before", names.calls(signed.before) or "none")
    _say("batch after", names.calls(signed.after) or "none")
    if signed.exposes:
        _say(
            "EXPOSED",
            f"{name}'s update of round r can be computed by whoever holds the sums before and "
            f"after: they are over the same sites but for {name}. Encryption does not hide it from "
            "them; with privacy.unit example its noise stays in it. This holds for every plan on "
            "these records, past ones too, and is not taken back, also if it comes back later",
        )
    else:
        _say(
            "hidden",
            f"{name} goes with enough others: no sums before and after show its update while at "
            f"most {after.rules().max_colluding} of the sites collude (c). The signature says that "
            "this roster, and no other, follows the one that it goes from",
        )
    if signed.kind == "going":
        _say("else", "without this signature the sites that stay do not go on without it")
    _ask(f"Type {name} to sign that:", name)
    if signed.following:
        _remember(key, after.lineage.earlier, signed.following)
    target = out or Path(f"{name}.{signed.kind}.json")
    write_new(target, signed.to_text(), 0o644)
    _say("signed", f"{target}  (send it to the coordinator)")


def _remember(key: Path, earlier: Sequence[Earlier], following: bytes) -> None:
    """Beside the key: of all rosters so far, the one that its site goes to. Two that follow them
    could leave it alone (`ledger.history`). Raises `UserError` where it signed for another."""
    from fedshield.enrolment.files import write_new
    from fedshield.enrolment.lineage import chain_digest

    before = chain_digest([one.cut() for one in earlier])
    place = key.with_name(f"{key.name}.{before.hex()[:16]}.gone")
    if not place.exists():
        write_new(place, following.hex() + "\n", 0o600)
    signed_for = place.read_text().strip()
    if signed_for != following.hex():
        raise UserError(
            f"{place}: expected the batches that this site signed to go to before "
            f"({signed_for[:16]}), got others ({following.hex()[:16]}): one roster only follows "
            "another; agree on the one that was signed for, or make a roster that follows it"
        )


def _change(
    path: Path,
    step: Callable[[SignedRoster], SignedRoster],
    names: Sequence[str],
    verb: str,
    exposures: Sequence[Path],
    out: Path | None,
) -> None:
    """Raises `UserError`."""
    from fedshield.cli.roster import write_change
    from fedshield.enrolment import SignedRoster, changes
    from fedshield.enrolment.differences import differences
    from fedshield.enrolment.exposure import Exposure

    signed = [Exposure.read(one) for one in exposures]

    def stepped(roster: SignedRoster) -> SignedRoster:
        after = step(roster)
        if not signed:
            return after
        return dataclasses.replace(after, lineage=after.lineage.with_exposures(signed))

    change: Change = changes.changed(path, stepped, out)
    change.roster.rules()
    for sentence in differences(SignedRoster.read(path), change.roster):
        _say("changes", sentence)
    for label, sentence in exposure_lines(change.roster):
        _say(label, sentence)
    _ask(f"Type {','.join(names)} to have them {verb}:", ",".join(names))
    write_change(change)
    _say("roster", f"{change.path}: {', '.join(change.roster.names())}")
    for note in change.notes():
        err_console.print(f"note: {note}", markup=False)


def _ask(question: str, wanted: str) -> None:
    given: str = typer.prompt(question, default="", show_default=False, prompt_suffix=" ")
    if given.strip() != wanted:
        raise UserError(f"expected {wanted}, got {given.strip()[:40]!r}; nothing was written")


def _say(label: str, text: str) -> None:
    out_console.print(f"{label:<13} {text}", markup=False)
