"""A lost ledger, rebuilt upon an older copy from what the other sites remember: `fedshield site
ledger ask`, `answer` and `recover` (`recovery.rebuild` says what comes back and what does not)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedshield.cli.console import must_type, say
from fedshield.errors import UserError

if TYPE_CHECKING:
    from fedshield.recovery.rebuild import Rebuilt
    from fedshield.run.known_sites import Member

KitOption = Annotated[Path, typer.Option(help="This site's folder.")]
ToOption = Annotated[Path, typer.Option("--to", metavar="FILE", help="The file to write.")]

ONLY_IF = (
    "Do it only if {name}'s operator told you, over a channel that the coordinator does not carry, "
    "that {name}'s ledger was lost. The answer tells of the sums that {name} was in: plans, runs, "
    "members, results, keyed digests. Nothing that this site checks changes by it."
)
ENDED = (
    "plan {plan}, if it is not finished, cannot go on: with membership batches the total that its "
    "weights are shares of, and the rounds that this site took by the word of others, are in this "
    "site's ledger alone, and lines of it were lost; agree on another plan"
)
NO_COPY = (
    "--older: expected an older copy of the ledger, got none: without one its record key is lost, "
    "so what this site puts in would look changed to all others, and another site's change would "
    "pass; look for any backup, however old (of a damaged ledger the file itself will do), or use "
    "records that were in no sum, at every site, and here a new kit with a new key (fedshield site "
    "request)"
)


def ask(kit: KitOption, to: ToOption) -> None:
    """Ask the other sites for what they remember of this site's lost ledger. Each answers with
    `site ledger answer`; with all answers and an older copy, `site ledger recover` rebuilds it."""
    from fedshield.enrolment.files import write_new
    from fedshield.recovery.letters import Question
    from fedshield.recovery.question import StandingQuestion

    member = _member(kit)
    with StandingQuestion.of(member.kit.ledger_path(), make=True) as standing:
        standing.add(member.own)
        question = Question(standing.nonce, member.own).signed(member.key.sign)
        write_new(to, question.to_text(), 0o644)
    others = ", ".join(sorted(name for name, _ in member.others.values()))
    say("written", f"{to}: the question; give it to {others}")
    say("then", "fedshield site ledger answer QUESTION --to FILE, at each of them; all are needed")


def answer(
    path: Annotated[Path, typer.Argument(metavar="QUESTION", help="What the other site wrote.")],
    kit: KitOption,
    to: ToOption,
) -> None:
    """Tell another site, whose ledger was lost, of the sums that it was in with this one. No record
    is in it, and nothing of this site's own but the head of its ledger."""
    from fedshield.enrolment.files import write_new
    from fedshield.ledger.entries import Answered
    from fedshield.ledger.file import Ledger
    from fedshield.ledger.heads import place_beside
    from fedshield.protocol.statements import sign_head
    from fedshield.recovery.letters import Answer, Question, rows_about
    from fedshield.run.folder import now

    member = _member(kit)
    question = Question.read(path)
    name, keys = member.others.get(question.about, ("", ()))
    in_roster = name in member.roster.sites and member.roster.identity(name) == question.about
    if keys and not in_roster and question.is_signed(keys[-1]):
        raise UserError(
            f"{path}: expected the question of a site of today's roster, got one of {name}, which "
            "is not in it: a site that left, or whose place was taken under another key, is not "
            "told, for nobody vouches for that key any more; its ledger cannot be rebuilt"
        )
    if not in_roster or not question.is_signed(keys[-1]):
        raise UserError(
            f"{path}: expected a question that another site of the roster signed with its key of "
            "today, got none; ask for the file again"
        )
    say("only if", ONLY_IF.format(name=name))
    must_type(f"Type {name} to tell it of its sums:", name, "nothing was told")
    place = member.kit.ledger_path()
    answered = Answer(question.nonce, member.own, question.about, b"", {}, (), ())
    if place.exists() or place_beside(place).exists() or member.kit.runs():
        with Ledger.open(place) as ledger:
            rows, results = rows_about(ledger, question.about)
            ledger.add_answered(Answered(question.about, question.nonce.hex(), now()))
            head = sign_head(ledger.head, member.key.sign)
            roster = {member.roster.identity(site) for site in member.roster.names()}
            kept = {
                site: statement for site, (_, statement) in ledger.peers.items() if site in roster
            }
        answered = Answer(question.nonce, member.own, question.about, head, kept, rows, results)
    write_new(to, answered.signed(member.key.sign).to_text(), 0o600)
    sums = len({row.key for row in answered.rows})
    say("written", f"{to}: tells of {sums:,} sums that {name} was in, and of "
         f"{len(answered.results):,} results")  # fmt: skip
    say("then", f"give it to {name}, over a channel that the coordinator does not carry")


def recover(
    files: Annotated[list[Path], typer.Argument(metavar="ANSWER...", help="All sites' answers.")],
    kit: Annotated[
        list[Path], typer.Option(help="This site's folder; every one on these records.")
    ],
    older: Annotated[
        Path | None, typer.Option(help="An older copy of the ledger, or a damaged one.")
    ] = None,
    plan: Annotated[
        list[Path] | None, typer.Option(help="A plan that was run, if no run folder has it.")
    ] = None,
) -> None:
    """Rebuild this site's lost ledger: an older copy of it, and what all other sites answered."""
    from fedshield.ledger.file import Ledger
    from fedshield.recovery.letters import Answer
    from fedshield.recovery.question import StandingQuestion
    from fedshield.run.recover import draft

    if older is None:
        raise UserError(NO_COPY)
    members = [_member(folder) for folder in kit]
    place, name = members[0].kit.ledger_path(), members[0].kit.name
    for member in members[1:]:
        if member.kit.ledger_path().resolve() != place.resolve():
            raise UserError(
                f"{member.kit.path}: expected a kit whose ledger is {place}, got one with another; "
                "recover each ledger by itself"
            )
    with StandingQuestion.of(place, make=False) as standing:
        copy = Ledger.prefix(older)
        with copy[0] as ledger:
            answers = [(path, Answer.read(path)) for path in files]
            found = draft(members, standing, copy, answers, plan or ())
            say("older copy", f"{older}: {ledger.head.length:,} lines that follow, the last "
                 f"{ledger.head.digest[:16]}")  # fmt: skip
            names = {first: one for member in members for first, (one, _) in member.others.items()}
            _tell(found.rebuilt, names)
            for ended in found.ended:
                say("ended", ENDED.format(plan=ended[:12]))
            for note in found.notes:
                say("note", note)
            must_type(
                f"Type {name} to make this the ledger of its records:", name, "nothing was made"
            )
            found.write(standing)
    say("written", f"{place}: goes on at line {found.line:,}")
    say("then", "back it up; no approval of before stands: approve each plan again")


def _tell(found: Rebuilt, names: dict[str, str]) -> None:
    """What the operator has to know before it is written."""
    sums = {row.key for row in found.rows if row.content == "" and row.phase != "lost"}
    say(
        "rebuilt", f"{len(sums):,} sums that the copy does not have, {len(found.results):,} results"
    )
    for told, *who in found.doubtful:
        own, heard, silent = (", ".join(names.get(one, one[:16]) for one in some) for some in who)
        by = [f"by {own}"] * bool(own) + [f"heard in a recovery by {heard}"] * bool(heard)
        by += [f"not by {silent}"] * bool(silent)
        say(
            "told by some",
            f"{told.phase} {told.round_number} of plan {told.plan[:12]}, over {len(told.sites)} "
            f"sites: {'; '.join(by)}: it counts, and if it is a lie, a sum with other sites "
            "refuses all later ones; ask them",
        )
    for plan in found.unbounded:
        say(
            "epsilon",
            f"infinite: what the rounds of plan {plan} spent is not known; give its file (--plan), "
            "with the records as they were then",
        )
    for plan in found.uncounted:
        say(
            "counts",
            f"not known for plan {plan[:12]}: its weights were by rows, so nothing more is summed "
            "with these records; give its file (--plan), with the records as they were then",
        )
    for plan in found.stopped:
        say(
            "stopped",
            f"plan {plan[:12]} cannot go on: it would have to repeat a sum that this site was in, "
            "and what this site sent then is lost; agree on another plan",
        )


def _member(folder: Path) -> Member:
    from fedshield.run.flare.kit import Kit
    from fedshield.run.flare.provision import site_name
    from fedshield.run.known_sites import Member

    return Member.of(Kit(folder, site_name(folder)))
