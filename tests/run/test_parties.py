"""What a site's training draws from: its own secret, or in a demonstration the plan's seed."""

from __future__ import annotations

from pathlib import Path

from fedshield.crypto.keys import SiteKey
from fedshield.plan.load import parse_plan
from fedshield.protocol.roster import Roster
from fedshield.run.parties import demonstration, randomness_of
from fedshield.seeds import SiteRandomness

SITES = {name: {"source": "sample:finance"} for name in ("bank", "clinic", "hospital")}
PLAN = parse_plan({"data": {"sites": SITES}}, base_dir=Path())


def test_an_enrolled_site_draws_from_its_own_secret() -> None:
    keys = {name: SiteKey(secret=name[:1].encode() * 32) for name in SITES}
    public = {name: key.public for name, key in keys.items()}
    roster = Roster(public, SiteKey().public, PLAN.rules(), demo=False)
    drawn = {name: randomness_of(PLAN, roster, name, keys[name]) for name in SITES}
    assert drawn["bank"] == SiteRandomness.of_site(b"b" * 32, PLAN.sha256())
    assert len({one.key for one in drawn.values()}) == 3
    # Another signing key over the same secret is the same site's; another plan is another run.
    again = SiteKey(secret=b"b" * 32)
    assert randomness_of(PLAN, roster, "bank", again) == drawn["bank"]
    other = PLAN.model_copy(update={"rounds": PLAN.rounds + 1})
    assert randomness_of(other, roster, "bank", keys["bank"]) != drawn["bank"]


def test_a_demonstration_repeats_in_the_next_session() -> None:
    first, second = demonstration(PLAN), demonstration(PLAN)
    for name in SITES:
        assert first.sites[name].secret != second.sites[name].secret
        drawn = {
            randomness_of(PLAN, members.roster, name, members.sites[name]).key
            for members in (first, second)
        }
        assert drawn == {SiteRandomness.of_demonstration(PLAN.seed, name).key}
