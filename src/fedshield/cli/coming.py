"""`fedshield roster leave` and `fedshield roster join`: who goes and comes, and what that shows of
them. With `--key` the site at risk signs it, and no roster is changed."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedshield.cli.console import err_console, must_type, say
from fedshield.cli.roster_view import changes_of, exposure_lines
from fedshield.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fedshield.enrolment import KeyFile, SignedRoster
    from fedshield.enrolment.changes import Change
    from fedshield.ledger.file import Ledger

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
    kit: Annotated[
        Path | None,
        typer.Option(
            help="In place of --key, the folder of a site that goes: it signs where it goes too, "
            "its ledger remembers that, and it counts as one of those who go on."
        ),
    ] = None,
    exposure: ExposureOption = None,
    out: OutOption = None,
) -> None:
    """Take sites out of a roster. Fewer than c + 2 that go together are exposed by it, and each
    signs that (--key or --kit), unless the roster has it signed in advance (departure
    announced)."""
    from fedshield.enrolment.coming import without

    def step(roster: SignedRoster) -> SignedRoster:
        return without(roster, names)

    if kit is None:
        _run(path, step, sorted(names), "leave", key, exposure, out)
        return
    if key is not None or exposure:
        raise UserError(
            "--kit: expected it alone, got --key or --exposure too; it has the site's key and its "
            "ledger"
        )
    from fedshield.enrolment import KeyFile
    from fedshield.ledger.file import Ledger
    from fedshield.run.flare.kit import Kit
    from fedshield.run.flare.provision import site_name

    own = Kit(kit, site_name(kit))
    key_file = KeyFile.read(kit / f"{own.name}.key")
    with Ledger.open(own.ledger_path()) as ledger:
        _sign(path, step, key_file, ledger, out)


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
    key_lost: Annotated[
        bool,
        typer.Option(
            "--key-lost",
            help="They left before, under keys that are lost since, and have their names back: "
            "all keys of such a name have to count as exposed, by signature or by every policy.",
        ),
    ] = False,
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

    def step(roster: SignedRoster) -> SignedRoster:
        return joined(roster, more, cells, key_lost=key_lost)

    _run(path, step, names, "join", key, exposure, out)


def _run(
    path: Path,
    step: Callable[[SignedRoster], SignedRoster],
    names: Sequence[str],
    verb: str,
    key: Path | None,
    exposure: list[Path] | None,
    out: Path | None,
) -> None:
    from fedshield.enrolment import KeyFile

    if key is not None:
        if exposure:
            raise UserError(
                "--exposure: expected none with --key, which signs one, got some; give it to the "
                "command without --key, at the coordinator"
            )
        _sign(path, step, KeyFile.read(key), None, out)
        return
    _change(path, step, names, verb, exposure or [], out)


def _sign(
    path: Path,
    step: Callable[[SignedRoster], SignedRoster],
    key_file: KeyFile,
    ledger: Ledger | None,
    out: Path | None,
) -> None:
    """What the site at risk reads and signs. `ledger`: its own, if it signs where it goes too.
    Raises `UserError`."""
    from fedshield.enrolment import SignedRoster
    from fedshield.enrolment.coming import exposure_of, following
    from fedshield.enrolment.files import write_new
    from fedshield.enrolment.lineage import identity

    before = SignedRoster.read(path)
    after = step(following(before))
    remember = None if ledger is None else _remember(ledger, after)
    signed = exposure_of(before, after, key_file, bound=remember is not None)
    name, names = key_file.name, after.to_roster().history()
    site = identity(key_file.card(), after.demo)
    say("roster", f"{path}, fingerprint {before.fingerprint()}")
    say("step", f"{name} {'joins' if signed.kind == 'joining' else 'goes'}")
    say("batch before", names.calls(signed.before) or "none")
    say("batch after", names.calls(signed.after) or "none")
    if signed.exposes:
        say(
            "EXPOSED",
            f"{name}'s update of round r can be computed by whoever holds the sums before and "
            f"after, alone or with the sites that go or come with {name}. Encryption does not hide "
            "it from them; with privacy.unit example its noise stays in it. This holds for every "
            "plan on these records, past ones too, and is not taken back, also if it comes back "
            "later",
        )
    else:
        say(
            "hidden",
            f"{name} goes with enough others: no sums before and after show its update while at "
            f"most {after.rules().max_colluding} of the sites collude (c)",
        )
    if remember is not None:
        say(
            "remembered",
            f"{name}'s ledger goes on under this roster and no other: it counts as one of those "
            "who go on with it",
        )
    elif ledger is not None:
        say("remembered", "nothing: this ledger was rebuilt, so it counts as nobody who goes on")
    if signed.kind == "going" and not before.to_roster().history().exposed() & {site}:
        say(
            "else",
            "without this signature the sites that stay refuse this roster, unless the policy of "
            f"each exposes {name}",
        )
    must_type(f"Type {name} to sign that:", name, "nothing was written")
    target = out or Path(f"{name}.{signed.kind}.json")
    if target.exists():
        raise UserError(f"{target}: expected no file there yet, got one; give another with --out")
    if remember is not None:
        remember()  # before anybody can have the signature
    write_new(target, signed.to_text(), 0o644)
    say("signed", f"{target}  (send it to the coordinator)")


def _remember(ledger: Ledger, after: SignedRoster) -> Callable[[], None] | None:
    """What writes into the ledger of a site that goes where it goes; None for a rebuilt one, which
    may have gone elsewhere before. Raises `UserError` where it went on under another roster."""
    from fedshield.ledger.history import goes

    if ledger.recoveries:
        return None
    try:
        entered = goes(ledger.entered, ledger.rows, after.to_roster().history())
    except LookupError:
        raise UserError(
            "--kit: expected records that go on under this roster, got some that went on under "
            "another, or that this site signed for: one roster only follows another; ask for a "
            "roster that follows that one"
        ) from None
    return lambda: ledger.add_entered(entered)


def _change(
    path: Path,
    step: Callable[[SignedRoster], SignedRoster],
    names: Sequence[str],
    verb: str,
    exposures: Sequence[Path],
    out: Path | None,
) -> None:
    """Raises `UserError`."""
    from fedshield.enrolment import changes
    from fedshield.enrolment.exposure import Exposure

    signed = [Exposure.read(one) for one in exposures]

    def stepped(roster: SignedRoster) -> SignedRoster:
        after = step(roster)
        if not signed:
            return after
        return dataclasses.replace(after, lineage=after.lineage.with_exposures(signed))

    change: Change = changes.changed(path, stepped, out)
    change.roster.rules()
    for sentence in changes_of(path, change.roster, path) or ():
        say("changes", sentence)
    for label, sentence in exposure_lines(change.roster):
        say(label, sentence)
    must_type(
        f"Type {','.join(names)} to have them {verb}:", ",".join(names), "nothing was written"
    )
    change.write()
    say("roster", f"{change.path}: {', '.join(change.roster.names())}")
    for note in change.notes():
        err_console.print(f"note: {note}", markup=False)
