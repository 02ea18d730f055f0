"""What a site's operator sees and does of the site's ledger: `fedshield site ledger show` and
`forget`; `cli.recovery` has what is done with one that was lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedshield.cli.console import JsonOption, must_type, out_console, say
from fedshield.errors import UserError

if TYPE_CHECKING:
    from fedshield.ledger.file import Ledger

ledger_app = typer.Typer(
    help="What this site remembers of every sum of its records, and of the other sites' ledgers.",
    no_args_is_help=True,
)
KitOption = Annotated[Path, typer.Option(help="This site's folder.")]

GIVEN_UP = (
    "By what {name} signed last this site knows again a {name} that was restored from a backup, or "
    "of which two copies run. Once it is forgotten, this site takes whatever {name}'s key of today "
    "signs next. If {name}'s ledger is an older one then, {name} can enter sums that it was in "
    "before, with other numbers: sums can give {name}'s update away, what was spent of its privacy "
    "is not counted, and there is one site fewer among which this one's update is hidden."
)
ONLY_IF = (
    "Do it only if {name}'s operator told you, over a channel that the coordinator does not carry, "
    "that {name}'s ledger is whole and that its key was stolen, and after that key was replaced in "
    "the roster: with it the same could be signed again. Every other site that remembers it has to "
    "do the same."
)


@ledger_app.command("show")
def show(kit: KitOption, as_json: JsonOption = False) -> None:
    """Show how long this site's ledger is, which plans were approved, which sums it holds, and what
    it remembers of the other sites. No record, and no key of them, is shown."""
    path, _, names = _place(kit)
    from fedshield.ledger.file import Ledger

    with Ledger.open(path) as ledger:
        found = _summary(ledger, names) | {"ledger": str(path)}
    if as_json:
        out_console.print(json.dumps(found, indent=1), markup=False)
        return
    say("ledger", f"{path}: {found['lines']:,} lines, the last {found['digest'][:16]}")
    for plan in found["plans"]:
        approved = "not approved here"
        if plan["roster"]:
            approved = f"approved under roster {plan['roster'][:16]} for {plan['rounds']:,} rounds"
        if plan["roster"] and not plan["approved"]:
            approved += " before this ledger was rebuilt, not since: approve it again"
        say(
            "plan",
            f"{plan['plan'][:16]}: {approved}; sums entered: {plan['sums']:,}, in "
            f"{plan['rows']:,} tries; results signed: {plan['results']:,}",
        )
    for one in found["sites"]:
        head = one["head"]
        ended = (
            "no head remembered"
            if head is None
            else f"its ledger had {head['length']:,} lines, the last {head['digest'][:16]}"
        )
        keys = f"; key {len(one['keys'])}, {one['keys'][-1][:16]}" if one["keys"] else ""
        say(one["name"], ended + keys)
    for gone in found["forgotten"]:
        say(
            "forgotten",
            f"{gone['name']}, {gone['length']:,} lines, the last {gone['head'][:16]}, "
            f"at {gone['when']}",
        )
    for told in found["answered"]:
        say("answered", f"{told['name']}, whose ledger was lost, at {told['when']}")
    for lost in found["recoveries"]:
        say(
            "rebuilt",
            f"after line {lost['after']:,}, at line {lost['line']:,}, at {lost['when']}: the lines "
            "between are left out",
        )


@ledger_app.command("forget")
def forget(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The other site, as in the roster.")],
    kit: KitOption,
) -> None:
    """Forget what another site signed of its ledger last, after you talked with its operator: where
    a stolen key signed it, that site is refused for ever. Its keys stay remembered."""
    path, own, names = _place(kit)
    from fedshield.ledger.file import Ledger
    from fedshield.run.folder import now

    identity = next((one for one, known in names.items() if known == name), None)
    others = ", ".join(sorted(set(names.values()) - {own}))
    if identity is None or name == own:
        raise UserError(f"expected another site of the roster ({others}), got {name[:40]!r}")
    with Ledger.open(path) as ledger:
        if identity not in ledger.peers:
            raise UserError(
                f"{path}: expected a remembered head of {name}, found none; there is nothing to "
                "forget"
            )
        head = ledger.peers[identity][0]
        say(name, f"signed a ledger of {head.length:,} lines, the last {head.digest[:16]}")
        say("given up", GIVEN_UP.format(name=name))
        say("only if", ONLY_IF.format(name=name))
        must_type(
            f"Type {name} to forget that it signed {head.length} lines:",
            name,
            "nothing was forgotten",
        )
        gone = ledger.forget_peer(identity, now())
        line = ledger.head.length
    say(
        "forgotten",
        f"that {name} signed {gone.length:,} lines; line {line:,} of {path} says so. This site "
        f"takes what {name} signs next",
    )


def _place(folder: Path) -> tuple[Path, str, dict[str, str]]:
    """Where the kit's ledger is, the site's own name, and by each site's identity its name in the
    kit's roster. Raises `UserError`."""
    from fedshield.enrolment import SignedRoster
    from fedshield.ledger.heads import place_beside
    from fedshield.run.flare.kit import Kit
    from fedshield.run.flare.provision import site_name

    kit = Kit(folder, site_name(folder))
    path = kit.ledger_path()
    if not (path.exists() or place_beside(path).exists() or kit.runs()):
        raise UserError(
            f"{path}: expected a ledger, found none: it is made when the first plan is approved "
            "(fedshield site approve)"
        )
    roster = SignedRoster.read(folder / "roster.json").to_roster()
    return path, kit.name, {roster.identity(name): name for name in roster.names()}


def _summary(ledger: Ledger, names: dict[str, str]) -> dict[str, Any]:
    """`names`: of sites by identity; one that is not in it is called by its first key."""

    def named(identity: str) -> str:
        return names.get(identity, identity[:16])

    plans = dict.fromkeys((*ledger.past_approvals, *(row.plan for row in ledger.rows)))
    others = sorted({*ledger.peers, *ledger.chains}, key=named)
    return {
        "lines": ledger.head.length,
        "digest": ledger.head.digest,
        "plans": [_plan(ledger, plan) for plan in plans],
        "sites": [{"name": named(one), **_site(ledger, one)} for one in others],
        "forgotten": [{"name": named(one.site), **one._asdict()} for one in ledger.forgotten],
        "answered": [{"name": named(one.site), **one._asdict()} for one in ledger.answered],
        "recoveries": [one._asdict() for one in ledger.recoveries],
    }


def _site(ledger: Ledger, identity: str) -> dict[str, Any]:
    head = ledger.peers[identity][0] if identity in ledger.peers else None
    return {
        "identity": identity,
        "keys": [*ledger.chains.get(identity, ())],
        "head": None if head is None else head._asdict(),
    }


def _plan(ledger: Ledger, plan: str) -> dict[str, Any]:
    rows = [row for row in ledger.rows if row.plan == plan]
    approval = ledger.past_approvals.get(plan)
    return {
        "plan": plan,
        "approved": plan in ledger.approvals,
        "roster": None if approval is None else approval.roster,
        "rounds": None if approval is None else approval.rounds,
        "sums": len({row.key for row in rows}),
        "rows": len(rows),
        "results": len(ledger.results(plan)),
    }
