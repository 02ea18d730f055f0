"""The commands of one site: `fedshield site check` and `approve`. They print, as `cli` does, which
registers them."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedshield.cli.console import (
    JsonOption,
    must_type,
    out_console,
    print_notes,
    say,
    typed,
)
from fedshield.cli.data import print_row
from fedshield.errors import UserError

if TYPE_CHECKING:
    from fedshield.ledger.file import Ledger
    from fedshield.run.flare.kit import Kit

site_app = typer.Typer(
    help="What this site allows: its own policy, which no plan can loosen.", no_args_is_help=True
)


@site_app.command("check")
def check(
    plan: Annotated[Path, typer.Argument(metavar="PLAN", help="A plan (YAML).")],
    policy: Annotated[Path, typer.Option(help="This site's policy file.")],
    roster: Annotated[Path | None, typer.Option(help="The run's roster.")] = None,
    site: Annotated[
        str | None, typer.Option(help="This site's name: checks its paths too.")
    ] = None,
    model_sha256: Annotated[
        str | None, typer.Option(help="SHA-256 of the base model; not checked if left out.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Check a plan against this site's policy. Exit status 2 if the site would refuse it."""
    from fedshield.enrolment import Policy, SignedRoster
    from fedshield.ledger.file import LedgerError
    from fedshield.ledger.inspection import inspected, runs_kept
    from fedshield.plan.load import load_plan

    if model_sha256 is not None and re.fullmatch(r"[0-9a-f]{64}", model_sha256) is None:
        raise UserError(
            f"--model-sha256: expected 64 digits of 0-9 and a-f, got {model_sha256[:80]!r}"
        )
    rules = Policy.read(policy)
    loaded, notes = load_plan(plan)
    print_notes(notes)
    known = None
    if roster is not None:
        signed = SignedRoster.read(roster)
        known = signed.to_roster()
        if not loaded.scheme.traits.one_time_keys:
            # The whole roster's sum, whatever was agreed for rlwe.
            known = dataclasses.replace(known, rules=loaded.rules())
    here = None if site is None else rules.local_plan(loaded, site)
    found = rules.violations(loaded, known, model_sha256)
    lost: LedgerError | None = None
    ledger = "not checked"
    if here is not None:
        try:
            ledger = inspected(rules.ledger_place(), runs_kept(policy.parent))
        except LedgerError as error:
            lost, ledger = error, str(error)
    unchecked = [
        *(["the base model's SHA-256"] if rules.model_sha256 and model_sha256 is None else []),
        *(["the roster"] if roster is None else []),
        *(["the ledger (--site)"] if site is None else []),
    ]
    if as_json:
        text = json.dumps(
            {
                "accepted": not found and lost is None,
                "violations": found,
                "ledger": ledger,
                "not_checked": unchecked,
                "policy_sha256": rules.sha256(),
                "plan_sha256": loaded.sha256(),
            },
            indent=1,
        )
        out_console.print(text, markup=False)
    else:
        say("policy", f"{policy} ({rules.sha256()[:16]})")
        for line in found:
            say("refused", line)
        if here is not None and site is not None:
            source = here.data.sites[site]
            say("data", f"{source.source} (the policy's, whatever the plan says)")
            say("model", f"{here.model.name} on {here.speed.device}")
            say("ledger", ledger)
            print_notes(rules.not_used(loaded, site))
        if unchecked:
            say("not checked", ", ".join(unchecked))
        if not found and lost is None:
            say("accepted", f"{loaded.name}, plan hash {loaded.sha256()}")
    rules.check(loaded, known, model_sha256)
    if lost is not None:
        raise lost


@site_app.command("approve")
def approve(
    path: Annotated[Path, typer.Argument(metavar="PLAN", help="The plan (YAML), as agreed.")],
    kit: Annotated[Path, typer.Option(help="This site's folder.")],
    exposed: Annotated[
        bool,
        typer.Option(
            help="Let this site's updates be had by subtraction, where its roster or policy says "
            "that they can be: it asks for the site's name."
        ),
    ] = False,
) -> None:
    """Read what a plan would do with this site's records, and approve it: nothing of an unapproved
    plan is read or sent. Shows eight lines and three rows, and asks for the number of sites."""
    from fedshield.plan.load import load_plan
    from fedshield.run.approval import propose
    from fedshield.run.flare.kit import Kit
    from fedshield.run.flare.provision import site_name

    name = site_name(kit)
    here = Kit(kit, name)
    plan, notes = load_plan(path)
    print_notes(notes)
    with _ledger(here) as ledger:
        proposal = propose(here, plan, ledger, exposed=exposed)
        for row in proposal.rows:
            print_row(row)
        for number, (label, text) in enumerate(proposal.lines, 1):
            mark = "*" if label in proposal.changed else " "
            out_console.print(f"{number}{mark} {label:<15} {text}", markup=False)
        if proposal.changed:
            out_console.print("*  differs from the plan that was approved last", markup=False)
        if proposal.refusals:
            raise UserError(f"{proposal.refusals[0]} (this site's ledger; nothing was approved)")
        for warning in proposal.warnings:
            say("warning", warning)
        must_type(
            f"Type the number of sites that are summed, this one with them, to approve "
            f"{plan.name}:",
            str(proposal.num_sites),
            "nothing was approved",
        )
        if exposed and not proposal.exposed:
            say("not exposed", "--exposed was not needed: no sum shows this site alone (R1)")
        if exposed and proposal.exposed:
            _expose(name)
        approval = proposal.approval
        if proposal.part and _consents(name):
            approval = dataclasses.replace(approval, part=proposal.part)
        ledger.approve(approval)
    say("approved", f"{plan.name}, plan hash {approval.plan}, roster {approval.roster[:16]}")


def _ledger(kit: Kit) -> Ledger:
    """This site's ledger; made with the first approval, if nothing here has ever been in a run.
    Raises `LedgerError`."""
    from fedshield.ledger.file import Ledger, LedgerError
    from fedshield.ledger.heads import RESTORE

    path = kit.ledger_path()
    if path.exists():
        return Ledger.open(path)
    if runs := kit.runs():
        raise LedgerError(
            f"{path}: expected the ledger of these records, found none though this kit has been "
            f"in runs ({runs[0]}); {RESTORE} (if all were of a version without ledgers: make a new "
            "kit, for records that were in none of them)"
        )
    return Ledger.create(path)


def _consents(name: str) -> bool:
    """Whether the operator lets out what only this site changed (R3). An empty answer is no
    consent, and the plan is approved all the same. Raises `UserError` for any other."""
    say(
        "warning",
        "what this site puts in is not what it put in in an earlier sum. Where every site changes "
        "its own, that needs no consent, and nobody can tell how much each changed: if theirs is "
        "little, the difference of two sums is mostly this site's. If the others keep theirs, what "
        "changed here alone can be seen by subtracting two sums",
    )
    given = typed(f"Type {name} to consent to that, or leave it empty to refuse such sums:")
    if given not in ("", name):
        raise UserError(f"expected {name} or nothing, got {given[:40]!r}; nothing was approved")
    if not given:
        say("consent", "without consent this site refuses sums where others kept their part (R3)")
    return bool(given)


def _expose(name: str) -> None:
    """Raises `UserError` for any answer but the site's name."""
    say(
        "EXPOSED",
        f"{name} went or came where others stayed, or its policy exposes it: {name}'s update of "
        "each round can be computed by whoever holds the sums before and after, as if it were not "
        "encrypted, and so can its count of rows where weights are private. No later plan takes "
        "that back",
    )
    must_type(f"Type {name} to let its updates be seen:", name, "nothing was approved")
