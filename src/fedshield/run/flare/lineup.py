"""The coordinator's part of what comes before a session (`protocol.restart`)."""

from __future__ import annotations

import os
from collections.abc import Mapping

from fedshield.errors import ProtocolError, RoundFailed
from fedshield.plan.schema import Plan
from fedshield.protocol.caller import Caller
from fedshield.protocol.contexts import least_sites
from fedshield.protocol.restart import (
    ASK_BYTES,
    Standing,
    alike,
    begins_at,
    restart_binding,
    unasked,
)
from fedshield.protocol.roster import Roster
from fedshield.protocol.transport import Sites
from fedshield.protocol.wire import messages
from fedshield.protocol.wire.envelope import Sign

#: Hex digits of a base model's SHA-256 that are shown.
SHOWN = 16


def line_up(plan: Plan, roster: Roster, sites: Sites, sign: Sign) -> tuple[int, dict[str, str]]:
    """Have all sites stand at the last round that enough of them keep: that round, and why sites
    are not among them. Raises `RoundFailed` if too few are ready or have the same base model."""
    calls = Caller(roster, sites, sign)
    ask = os.urandom(ASK_BYTES)
    calls.binding = unasked()
    answers = restart_binding(plan.sha256(), roster, ask)
    replies = calls.gather(calls.everyone(messages.Stand(ask)), messages.Standing, answers)
    calls.binding = answers
    standings: dict[str, Standing] = {}
    for site, (_, message) in replies.items():
        try:
            standings[site] = Standing.from_message(message)
        except ProtocolError as error:
            calls.drop({site: f"its answer was refused: {error}"}, "stand")
    needed = least_sites(roster.rules)
    raw = {site: replies[site][0] for site in standings}
    same = alike(standings)
    if len(same) < len(standings):
        compare = messages.Compare(raw)
        calls.gather(dict.fromkeys(standings, compare), messages.Done)
        calls.drop(_odd(standings, same, needed), "compare")
        same = {site: one for site, one in same.items() if site in calls.active}
    begins = begins_at(roster.rules, same)
    if not begins:
        lost = ", ".join(f"{site} ({calls.why(site)})" for site in sorted(calls.lost))
        if len(same) < needed:
            raise RoundFailed(f"expected {needed} sites that are ready, got {len(same)}: {lost}")
        kept = "; ".join(f"{site} {sorted(one.rounds)}" for site, one in sorted(same.items()))
        raise RoundFailed(f"expected a round that {needed} sites can begin from, got {kept}")
    calls.drop(dict.fromkeys(set(same) - set(begins), "round"), "restart")
    # All of the same base: what a site begins from follows from what it is shown.
    restart = messages.Restart({site: raw[site] for site in same})
    calls.gather(dict.fromkeys(begins, restart), messages.Done)
    return max(begins.values()), {site: calls.why(site) for site in calls.lost}


def _odd(
    standings: Mapping[str, Standing], same: Mapping[str, Standing], needed: int
) -> dict[str, str]:
    """Sites whose base model is not the one of `needed` others: site -> in words. Raises
    `RoundFailed` if no base model has so many."""
    digests = {site: one.base_model.hex()[:SHOWN] for site, one in standings.items()}
    odd = sorted(set(standings) - set(same))
    common = digests[min(same)]
    if len(same) < needed:
        who = {
            digest: sorted(site for site in digests if digests[site] == digest)
            for digest in set(digests.values())
        }
        in_words = "; ".join(f"{', '.join(who[digest])}: {digest}" for digest in sorted(who))
        majority = 2 * len(same) > len(digests)
        advice = (
            f"{', '.join(odd)} must take the base model of the others"
            if majority
            else "the operators must agree on one"
        )
        raise RoundFailed(
            f"expected one base model at every site, got {len(who)} (SHA-256 begins with: "
            f"{in_words}); {advice}, then go on"
        )
    return {site: f"another base model ({digests[site]}, not {common})" for site in odd}
