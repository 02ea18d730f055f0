"""The commands on audit logs: `fedshield log verify` and `fedshield log export`. They print, as
`cli` does, which registers them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedshield.cli.console import JsonOption, out_console, say
from fedshield.errors import FedShieldError

if TYPE_CHECKING:
    from fedshield.protocol.log.verify import Chain

log_app = typer.Typer(
    help="What every party wrote down of a run: checked, compared, exported.", no_args_is_help=True
)

RosterOption = Annotated[
    Path | None,
    typer.Option(help="A countersigned roster, or rosters.json of a run folder: whose keys count."),
]


@log_app.command("verify")
def verify(
    paths: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Logs of a run, or its folder.")
    ],
    roster: RosterOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check that logs are whole and signed, and that all tell the same. Exit status 1 if not."""
    from fedshield.protocol.log.verify import cross_check
    from fedshield.run import log_file

    files, given = [], roster
    for path in paths:
        if path.is_dir():
            files += log_file.logs_of(path)
            beside = path / log_file.ROSTERS_FILE
            given = beside if given is None and beside.exists() else given
        else:
            files.append(path)
    known = None if given is None else log_file.read_known_keys(given)
    chains = [log_file.read_log(path, known) for path in files]
    problems = [problem for chain in chains for problem in chain.problems]
    problems += cross_check(chains)
    limits = _limits(chains)
    if as_json:
        rows = [_as_json(chain) for chain in chains]
        found: dict[str, Any] = {"sound": not problems, "logs": rows, "problems": problems}
        out_console.print(json.dumps(found | {"limits": limits}, indent=1), markup=False)
    else:
        for chain in chains:
            say(chain.party or "?", _in_words(chain))
        for limit in limits:
            say("limit", limit)
        for problem in problems:
            say("PROBLEM", problem)
        if not problems:
            say("sound", f"{len(chains)} logs, whole, signed, and in agreement")
    if problems:
        raise FedShieldError(
            f"expected whole logs that agree, got {len(problems)} problems, the first: "
            f"{problems[0]}; ask that party for its own copy, and keep these files"
        )


@log_app.command("export")
def export(path: Annotated[Path, typer.Argument(metavar="FILE", help="A log.")]) -> None:
    """Print a log as a JSON list, up to the first line that is no entry; `verify` checks it."""
    from fedshield.run import log_file

    chain = log_file.read_log(path, None)
    lines = path.read_bytes().split(b"\n")[: len(chain.entries)]
    out_console.print(json.dumps([json.loads(line) for line in lines], indent=1), markup=False)
    if chain.problems:
        raise FedShieldError(f"{chain.problems[0]}; printed are the {len(lines)} entries before it")


def _in_words(chain: Chain) -> str:
    entries, opened = chain.entries, chain.opened()
    if not entries:
        return f"{chain.name}: no entry"
    sessions = len({entry.fact.session for entry in entries if entry.fact.session})
    keys = len({str(entry.fact.details.get("public_key")) for entry in opened})
    whose = "of the roster" if chain.key_checked else "that the log itself names"
    return (
        f"{chain.name}: {len(entries)} entries, {sessions} sessions, "
        f"{entries[0].time[:19]} to {entries[-1].time[:19]}, signed with {keys} "
        f"{'key' if keys == 1 else 'keys'} {whose}"
    )


def _limits(chains: list[Chain]) -> list[str]:
    """What the check cannot have shown, said with its result."""
    found = []
    if any(chain.demonstration for chain in chains):
        found.append(
            "a demonstration: one operator made every key for the session, so these logs show "
            "what that operator wrote, and that nobody else changed it since"
        )
    if not all(chain.key_checked for chain in chains):
        found.append(
            "no roster was given: a log rewritten whole under another key would pass; give --roster"
        )
    if len(chains) == 1:
        found.append("one log alone: entries cut off its end are not missed; give the others' too")
    return found


def _as_json(chain: Chain) -> dict[str, Any]:
    return {
        "file": chain.name,
        "party": chain.party,
        "entries": len(chain.entries),
        "demonstration": chain.demonstration,
        "keys_checked": chain.key_checked,
        "torn_bytes": chain.torn_bytes,
        "problems": list(chain.problems),
    }
