"""Where the sites of a run stand before a session: the round they keep, and their base model.

What a site says here is not signed. It decides from which round a session begins, which the signed
joins then confirm, and it names a site whose copy of the base model is another one. That name is
for the operators; the protocol itself binds the base model in what is signed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from fedshield.engines.standing import Standing
from fedshield.errors import RoundFailed
from fedshield.protocol.session import least_sites

if TYPE_CHECKING:
    from fedshield.engines.flare.link import FlareSites
    from fedshield.plan import Plan


def line_up(plan: Plan, sites: FlareSites) -> tuple[int, dict[str, str]]:
    """Have all sites stand at the last round that enough of them keep: that round, and why sites
    are not among them. Raises `RoundFailed` if too few are ready or have the same base model."""
    replies = sites.stand()
    lost = dict(replies.failed)
    standings: dict[str, Standing] = {}
    for site, data in replies.ok.items():
        standing = Standing.from_bytes(data)
        if standing is None:
            lost[site] = "malformed"
        else:
            standings[site] = standing
    needed = least_sites(plan.rules())
    odd = _other_base_models(standings, sites, needed)
    lost |= odd
    kept = {site: standing.rounds for site, standing in standings.items() if site not in odd}
    common = [
        number
        for number in frozenset().union(*kept.values())
        if sum(number in rounds for rounds in kept.values()) >= needed
    ]
    if not common:
        raise RoundFailed(
            f"expected {needed} sites that are ready, got {len(kept)}: "
            + (", ".join(f"{site} ({why})" for site, why in sorted(lost.items())) or "none called")
        )
    completed = max(common)
    starts = dict.fromkeys(kept, completed)
    if plan.scheme.membership == "batches":
        # Who was away stands further back, and takes the model in the session.
        earlier = {
            site: [one for one in rounds if one <= completed] for site, rounds in kept.items()
        }
        starts = {site: max(rounds) for site, rounds in earlier.items() if rounds}
        lost |= dict.fromkeys(set(kept) - set(starts), "round")
    for number in sorted(set(starts.values()), reverse=True):
        opened = sites.open(number, sorted(site for site in starts if starts[site] == number))
        lost |= opened.failed
    return completed, lost


def _other_base_models(
    standings: Mapping[str, Standing], sites: FlareSites, needed: int
) -> dict[str, str]:
    """Sites whose base model is not the one of `needed` others: site -> in words. Raises
    `RoundFailed` if no base model has so many."""
    digests = {site: standing.base_model for site, standing in standings.items()}
    if len(set(digests.values())) < 2:
        return {}
    sites.tell_models(digests)
    who = {
        digest: sorted(site for site in digests if digests[site] == digest)
        for digest in set(digests.values())
    }
    common = max(who, key=lambda digest: (len(who[digest]), digest))
    in_words = "; ".join(f"{', '.join(who[digest])}: {digest}" for digest in sorted(who))
    odd = sorted(site for site in digests if site not in who[common])
    if len(who[common]) < needed:
        majority = 2 * len(who[common]) > len(digests)
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
