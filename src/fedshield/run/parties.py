"""The parties of a run in one process: a demonstration roster with fresh keys, or an enrolled
one, whose key files one operator holds here."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fedshield.crypto.keys import SiteKey
from fedshield.enrolment import KeyFile, RosterError, SignedRoster
from fedshield.plan.quorum import Rules
from fedshield.plan.schema import Plan
from fedshield.protocol.roster import COORDINATOR, Roster
from fedshield.seeds import SiteRandomness


@dataclass(frozen=True)
class Members:
    """The roster and everyone's keys. `example_cap`: most examples that a site counts for; `keys`:
    the folder of the key files, None in a demonstration."""

    roster: Roster
    sites: Mapping[str, SiteKey] = field(repr=False)
    coordinator: SiteKey = field(repr=False)
    example_cap: int | None = None
    keys: Path | None = None


@dataclass(frozen=True)
class Enrolment:
    """Where an enrolled roster and the key files are."""

    roster: Path
    keys: Path


def demonstration(plan: Plan) -> Members:
    """Fresh keys in memory, for one session. The roster says that it is a demonstration."""
    sites = {name: SiteKey() for name in plan.data.site_names()}
    coordinator = SiteKey()
    public = {name: key.public for name, key in sites.items()}
    return Members(Roster(public, coordinator.public, plan.rules(), demo=True), sites, coordinator)


def enrolled(plan: Plan, where: Enrolment, base_model_sha256: str) -> Members:
    """The parties of a roster that is ready, if the plan is one that it allows.

    Raises `RosterError` for a roster that is not ready or is not this plan's, a key file that is
    missing or too widely readable, and a key that is not the roster's.
    """
    signed = SignedRoster.read(where.roster)
    signed.check_ready()
    check_roster(plan, signed, base_model_sha256, where.roster)
    keys: dict[str, SiteKey] = {}
    for name in (*signed.names(), COORDINATOR):
        key = KeyFile.read(where.keys / f"{name}.key").key
        signed.check_own(key, name)
        keys[name] = key
    coordinator = keys.pop(COORDINATOR)
    cap = signed.allowed.max_examples
    return Members(roster_of(plan, signed), keys, coordinator, cap, where.keys)


def randomness_of(plan: Plan, roster: Roster, name: str, key: SiteKey) -> SiteRandomness:
    """What a site's training draws from. Under a demonstration's roster, whose keys may be made for
    one session, it is the plan's seed, so that a run repeats; else the site's own secret."""
    if roster.demo:
        return SiteRandomness.of_demonstration(plan.seed, name)
    return SiteRandomness.of_site(key.secret, plan.sha256())


def roster_of(plan: Plan, signed: SignedRoster) -> Roster:
    """What a run of this plan binds into its messages."""
    return dataclasses.replace(signed.to_roster(), rules=plan.rules())


def check_roster(
    plan: Plan, signed: SignedRoster, base_model_sha256: str | None, path: Path
) -> None:
    """Raises `RosterError` unless the plan is one that the roster allows. `base_model_sha256`:
    None where the model is not here (the coordinator); `path`: what the error names."""
    names = plan.data.site_names()
    if signed.names() != names:
        raise RosterError(
            f"{path}: expected the plan's sites ({', '.join(names)}), got "
            f"{', '.join(signed.names())}; use the plan's roster"
        )
    allowed = signed.allowed
    if plan.scheme.name not in allowed.schemes:
        raise RosterError(
            f"{path}: expected a scheme that it allows ({', '.join(allowed.schemes)}), "
            f"the plan says {plan.scheme.name}; change scheme.name"
        )
    # Without a threshold the plan's rule is the whole roster, whatever was agreed for rlwe.
    if plan.scheme.traits.one_time_keys and signed.rules() != plan.rules():
        raise RosterError(
            f"{path}: expected the plan's quorums ({_numbers(plan.rules())}), got "
            f"{_numbers(signed.rules())}; set scheme.max_colluding, threshold, votes, min_cohort, "
            "server and membership alike in both"
        )
    if allowed.min_bits is not None and plan.encoding.bits < allowed.min_bits:
        raise RosterError(
            f"{path}: expected at least {allowed.min_bits} bits a value, the plan says "
            f"{plan.encoding.bits}; change encoding.bits"
        )
    agreed = signed.model_sha256.hex()
    if base_model_sha256 is not None and agreed and agreed != base_model_sha256:
        raise RosterError(
            f"{path}: expected the base model {signed.model_sha256.hex()[:16]}, the "
            f"plan's is {base_model_sha256[:16]}; use the model that was agreed"
        )


def _numbers(rules: Rules) -> str:
    return (
        f"c={rules.max_colluding} T={rules.threshold} Q={rules.votes} "
        f"min_cohort={rules.min_cohort} {rules.server} {rules.membership}"
    )
