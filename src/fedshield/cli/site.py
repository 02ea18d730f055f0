"""The commands of one site: `fedshield site check`. They print, as `cli` does, which registers
them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated

import typer

from fedshield.cli.words import JsonOption, out_console, print_notes
from fedshield.errors import UserError

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
    import dataclasses

    from fedshield.enrolment import Policy, SignedRoster
    from fedshield.planfile import load_plan

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
        if loaded.scheme.name != "rlwe":  # the whole roster's sum, whatever was agreed for rlwe
            known = dataclasses.replace(known, rules=loaded.rules())
    here = None if site is None else rules.local_plan(loaded, site)
    found = rules.violations(loaded, known, model_sha256)
    unchecked = [
        *(["the base model's SHA-256"] if rules.model_sha256 and model_sha256 is None else []),
        *(["the roster"] if roster is None else []),
    ]
    if as_json:
        text = json.dumps(
            {
                "accepted": not found,
                "violations": found,
                "not_checked": unchecked,
                "policy_sha256": rules.sha256(),
                "plan_sha256": loaded.sha256(),
            },
            indent=1,
        )
        out_console.print(text, markup=False)
    else:
        _say("policy", f"{policy} ({rules.sha256()[:16]})")
        for line in found:
            _say("refused", line)
        if here is not None and site is not None:
            source = here.data.sites[site]
            _say("data", f"{source.source} (the policy's, whatever the plan says)")
            _say("model", f"{here.model.name} on {here.speed.device}")
            print_notes(rules.not_used(loaded, site))
        if unchecked:
            _say("not checked", ", ".join(unchecked))
        if not found:
            _say("accepted", f"{loaded.name}, plan hash {loaded.sha256()}")
    rules.check(loaded, known, model_sha256)


def _say(label: str, text: str) -> None:
    out_console.print(f"{label:<13} {text}", markup=False)
