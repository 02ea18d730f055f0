"""What a run's protection was, in words: its scheme's, with what settings and sites do to it.

An unknown scheme is described as unprotected, never the other way round.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fedshield.report import units
from fedshield.report.facts import Facts, exposed_words, who_ran
from fedshield.report.schemes import (
    ADAPTER,
    COUNTS_OF_TWO,
    COUNTS_PUBLIC,
    HOLDER,
    METADATA,
    OWN_ADAPTERS,
    SCHEMES,
    SITES_CAN_SPOIL,
    Protection,
    Sight,
)


def describe(facts: Facts) -> Protection:
    """The words for the scheme of a run, with what its own settings and its number of sites do to
    it."""
    known = SCHEMES.get(facts.scheme)
    base = _unknown(facts.scheme) if known is None else known
    if known is not None and facts.scheme == "rlwe":
        base = _with_quorums(base, facts)
    base = _with_few_sites(base, facts)
    base = replace(base, limits=(*_of_this_run(facts), *base.limits))
    return base if not facts.privacy else _with_privacy(base, facts.privacy)


def _unknown(scheme: str) -> Protection:
    return Protection(
        title="Unknown scheme: treat as unprotected",
        protected=False,
        sentence="This report knows no description of the scheme: treat it as unprotected.",
        paragraph=(
            f"The run names the scheme '{scheme}', which this version of the report cannot "
            "describe. Nothing is claimed about it: treat the updates as readable."
        ),
        limits=(METADATA, SITES_CAN_SPOIL, ADAPTER),
        sights=(HOLDER,),
    )


def _of_this_run(facts: Facts) -> tuple[str, ...]:
    """The limits that a run's parties and settings add to its scheme's."""
    limits = [who_ran(facts)] if facts.one_machine else []
    limits += exposed_words(facts)
    if facts.weights == "public":
        limits.append(COUNTS_PUBLIC)
    elif facts.weights == "private" and len(facts.sites) == 2:
        limits.append(COUNTS_OF_TWO)
    if facts.train == "share-a":
        limits.append(OWN_ADAPTERS)
    return tuple(limits)


def _with_few_sites(base: Protection, facts: Facts) -> Protection:
    """What a sum over one or two sites does to any scheme."""
    num_sites = len(facts.sites)
    if num_sites == 1:
        small = "With one site there is nothing to add to: the opened sum is that site's update."
    elif num_sites == 2:
        small = (
            "With two sites, each can work out the other's update by subtracting its own from "
            "the sum; no aggregation scheme prevents that."
        )
    elif facts.fewest is not None and facts.fewest <= 2 < num_sites:
        small = (
            "At least one sum of this run was over two sites only: there each could work out the "
            "other's update by subtracting its own."
        )
    else:
        return base
    return replace(
        base,
        protected=False,
        sentence=f"{base.sentence} {small}",
        limits=(small, *base.limits),
        sights=tuple(_of_few(sight, num_sites) for sight in base.sights),
    )


def _of_few(sight: Sight, num_sites: int) -> Sight:
    if sight.party not in ("One site", "One site together with the coordinator"):
        return sight
    if num_sites == 1:
        return replace(sight, could_not="Nothing: there is no other site.")
    of_whom = "the other site's update"
    if num_sites > 2:
        of_whom = "of a sum over two sites the other's update"
    return replace(
        sight,
        could=f"{sight.could} From that, {of_whom}: the sum less its own.",
        could_not="Training rows as such: they are not sent. What updates reveal of them is open.",
    )


def _with_privacy(base: Protection, privacy: Mapping[str, Any]) -> Protection:
    """The same where outputs were noised: what is bounded, and what still is not."""
    bound = privacy_words(privacy)
    unit = {"example": "training row", "site": "site's whole contribution"}.get(
        str(privacy.get("unit")), "unit"
    )
    limits = tuple(
        f"Differential privacy bounds what the released adapter tells about one {unit} ({bound}), "
        "and nothing more: not many rows or sites together, and not the losses and counts of this "
        "report, which are exact and for the operator."
        if limit == ADAPTER
        else limit
        for limit in base.limits
    )
    sights = tuple(
        replace(sight, could_not=f"What depends on one {unit}, beyond {bound}.")
        if sight == HOLDER
        else sight
        for sight in base.sights
    )
    return replace(base, limits=limits, sights=sights)


def privacy_words(privacy: Mapping[str, Any]) -> str:
    """Epsilon and delta of a run, in words."""
    epsilon, delta = (units.number(privacy.get(key)) for key in ("epsilon", "delta"))
    if epsilon is None or delta is None:
        return units.ABSENT
    return f"epsilon {epsilon:.3g} at delta {delta:g}, for each {privacy.get('unit')}"


def _with_quorums(base: Protection, facts: Facts) -> Protection:
    """The threshold scheme with the numbers of this run."""
    quorums, limits, sights = facts.quorums_in_words, base.limits, base.sights
    if facts.max_colluding == 0:
        sights = tuple(
            replace(
                sight,
                could_not="Nothing is promised: the roster tolerates no site that helps the "
                "coordinator (c=0).",
            )
            if sight.party == "One site together with the coordinator"
            else sight
            for sight in sights
        )
    if facts.open_to == "server":
        limits = (
            "The plan opens to the server: the coordinator receives the shares of each sum, and "
            "can open it.",
            *limits,
        )
        sights = tuple(
            replace(
                sight,
                could=f"The opened sum of every round. {sight.could}",
                could_not="A single site's update.",
            )
            if sight.party == "The coordinator alone"
            else sight
            for sight in sights
        )
    if facts.membership == "batches":
        limits = (
            "Sums are over whole batches of sites (membership batches): the coordinator sees which "
            "batch was away, and the difference of two sums can be the sum of a single batch, of "
            "at least c + 2 sites. Batches that the coordinator keeps apart can each go on with a "
            "model of their own, unless a sum takes more than half the sites."
            + (
                " The sites of a sum learn what they count for together, so each batch's total."
                if facts.weights == "private"
                else ""
            ),
            *limits,
        )
    if facts.membership == "open":
        limits = (
            "Sums may be over fewer than all sites (membership open): a site's own update, noised "
            "for each training row, can be had as the difference of two sums. What it shows of a "
            "row is bounded by epsilon; what it shows of the site as a whole is not.",
            *limits,
        )
        seeing = {"One site", "One site together with the coordinator"}
        if facts.open_to == "server":
            seeing.add("The coordinator alone")
        sights = tuple(
            replace(
                sight,
                could=f"{sight.could} From sums over different sets: their difference.",
                could_not="In one sum: " + sight.could_not[0].lower() + sight.could_not[1:],
            )
            if sight.party in seeing
            else sight
            for sight in sights
        )
    paragraph = f"{base.paragraph} Quorums of this run: {quorums}" if quorums else base.paragraph
    return replace(base, paragraph=paragraph, limits=limits, sights=sights)


def who_is_described(facts: Facts) -> str:
    """What the table of parties is true of."""
    text = "The table states the design of the scheme; this page did not test it. "
    if facts.one_machine:
        text += (
            "It describes separate parties. In this run all shared one machine, and whoever "
            "controls that machine sees everything. "
        )
    elif not facts.parties:
        text += (
            "It describes separate parties: where all sites of a run share one machine, whoever "
            "controls that machine sees everything. "
        )
    whose = f"this site ({facts.own_site})" if facts.own_site else "each site"
    return f"{text}This page itself holds losses and counts of {whose}."
