"""A lost ledger, rebuilt from what the other sites remember: `fedshield site ledger ask`, `answer`
and `recover` (`ledger.recovery` says what comes back and what does not)."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedshield.cli.words import out_console
from fedshield.errors import UserError

if TYPE_CHECKING:
    from fedshield.engines.flare.kit import Kit
    from fedshield.protocol.roster import Roster

KitOption = Annotated[Path, typer.Option(help="This site's folder.")]
ToOption = Annotated[Path, typer.Option("--to", metavar="FILE", help="The file to write.")]

MAX_BYTES = 256 * 1024 * 1024
#: In the kit, while the question stands.
QUESTION = "ledger.question.json"
NOT_KNOWN = (
    "of which records the sums were (they count for all of this site's), what this site sent (no "
    "round that was tried is repeated) and what it counted for (with weights by rows nothing more "
    "is summed)"
)


def ask(kit: KitOption, to: ToOption) -> None:
    """Ask the other sites for what they remember of this site's lost ledger. Each answers with
    `site ledger answer`; with all answers, `site ledger recover` rebuilds the ledger."""
    from fedshield.enrolment.files import write_new
    from fedshield.ledger import recovery

    here, roster = _site(kit)
    place = here.ledger_path()
    if place.exists():
        raise UserError(
            f"{place}: expected no ledger, got one; use it, or, where it is not the newest and no "
            "backup is, move it away first"
        )
    kept = kit / QUESTION
    if kept.exists():
        text = kept.read_text(encoding="utf-8")
    else:
        text = recovery.question(
            os.urandom(recovery.NONCE_BYTES), roster.identity(here.name), _sign(here)
        )
        write_new(kept, text, 0o600)
    write_new(to, text, 0o644)
    others = ", ".join(name for name in roster.names() if name != here.name)
    _say("written", f"{to}: the question; give it to {others}")
    _say("then", "fedshield site ledger answer QUESTION --to FILE, at each of them; all are needed")


def answer(
    path: Annotated[Path, typer.Argument(metavar="QUESTION", help="What the other site wrote.")],
    kit: KitOption,
    to: ToOption,
) -> None:
    """Tell another site, whose ledger was lost, of the sums that it was in with this one. No record
    is in it, and nothing of this site's own but keyed hashes that the other saw before."""
    from fedshield.enrolment.files import write_new
    from fedshield.ledger import recovery
    from fedshield.ledger.file import Ledger

    here, roster = _site(kit)
    nonce, about, signed = recovery.read_question(_text(path), str(path))
    names = {roster.identity(name): name for name in roster.names() if name != here.name}
    name = names.get(about)
    if name is None or not signed(roster.public(name)):
        raise UserError(
            f"{path}: expected a question that another site of the roster signed with its key of "
            "today, got none; ask for the file again"
        )
    with Ledger.open(here.ledger_path()) as ledger:
        found = recovery.told(ledger, nonce, roster.identity(here.name), about)
    write_new(to, recovery.write(found, _sign(here)), 0o644)
    sums = len({row.key for row in found.rows})
    _say("written", f"{to}: {sums:,} sums that {name} was in, of {len(found.rounds):,} plans")
    _say("then", f"give it to {name}, over a channel that the coordinator does not carry")


def recover(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="All others' answers.")],
    kit: KitOption,
) -> None:
    """Rebuild this site's lost ledger from the answers of all other sites of the roster."""
    from fedshield.ledger import recovery
    from fedshield.ledger.file import Ledger
    from fedshield.ledger.heads import place_beside
    from fedshield.runfolder import now

    here, roster = _site(kit)
    place, kept = here.ledger_path(), kit / QUESTION
    if not kept.exists():
        raise UserError(
            f"{kept}: expected this site's question, found none; begin with: fedshield site ledger "
            "ask"
        )
    nonce, about, _ = recovery.read_question(_text(kept), str(kept))
    missing = {roster.identity(name): name for name in roster.names() if name != here.name}
    answers = []
    for path in files:
        found, signed = recovery.read(_text(path), str(path))
        name = missing.get(found.teller)
        if name is None or not signed(roster.public(name)):
            raise UserError(
                f"{path}: expected the answer of another site of the roster, each once and signed "
                "with its key of today, got none; ask for the file again"
            )
        if (found.nonce, found.about) != (nonce, about):
            raise UserError(
                f"{path}: expected {name}'s answer to this site's question, got one to another; "
                f"have {name} answer this one"
            )
        del missing[found.teller]
        answers.append(found)
    if missing:
        raise UserError(
            f"expected the answers of all other sites, got none of {', '.join(missing.values())}: "
            "what a sum held is known for certain by an honest one only, and nobody knows which is"
        )
    rows, receipts = recovery.rebuilt(answers, roster.rules.max_colluding)
    if not rows:
        raise UserError(
            "expected sums that this site was in, got none from anyone: nothing was lost; remove "
            f"{kept}, and approve a plan"
        )
    _say("rebuilt", f"{len({row.key for row in rows}):,} sums, {len(receipts):,} results")
    _say("not known", NOT_KNOWN)
    given = typer.prompt(
        f"Type {here.name} to make this the ledger of its records:",
        default="",
        show_default=False,
        prompt_suffix=" ",
    ).strip()
    if given != here.name:
        raise UserError(f"expected {here.name}, got {given[:40]!r}; nothing was written")
    beside = place_beside(place)
    if beside.exists() and not place.exists():
        # Of the lost ledger: it cannot be told whether it is whole.
        os.replace(beside, beside.with_name(f"{beside.name}.lost.{now().replace(':', '')}"))
    Ledger.create(place, rows, receipts).close()
    kept.unlink()
    _say("written", f"{place}")
    _say(
        "then",
        f"every other site: fedshield site ledger forget {here.name} --kit KIT, for they remember "
        "the lost one; and here: approve the plan that goes on (fedshield site approve PLAN)",
    )


def _site(folder: Path) -> tuple[Kit, Roster]:
    from fedshield.engines.flare.kit import Kit
    from fedshield.engines.flare.provision import site_name
    from fedshield.enrolment import SignedRoster

    roster = SignedRoster.read(folder / "roster.json").to_roster()
    return Kit(folder, site_name(folder)), roster


def _sign(here: Kit) -> Callable[[bytes], bytes]:
    from fedshield.enrolment.cards import KeyFile

    return KeyFile.read(here.path / f"{here.name}.key").key.sign


def _text(path: Path) -> str:
    """Raises `UserError`."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
        if len(raw) > MAX_BYTES:
            raise UserError(
                f"{path}: expected at most {MAX_BYTES:,} bytes, got more; check the path"
            )
        return raw.decode()
    except UnicodeDecodeError:
        raise UserError(f"{path}: expected JSON, got something else; check the path") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path") from None


def _say(label: str, text: str) -> None:
    out_console.print(f"{label:<13} {text}", markup=False)
