"""Where a run is taken up, and which site's base model is another one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from fakes import Wire
from fedshield.crypto.keys import SigningKey
from fedshield.errors import RoundFailed
from fedshield.plan.load import parse_plan
from fedshield.plan.schema import Plan
from fedshield.protocol.restart import SiteRestart, Standing
from fedshield.protocol.roster import Roster
from fedshield.run.flare import lineup

BASE, OTHER, THIRD = "a" * 64, "b" * 64, "c" * 64


def plan(num_sites: int, membership: str = "") -> Plan:
    """From four sites on, one may be lost."""
    sites = {f"s{number}": {"source": "sample:maths"} for number in range(num_sites)}
    raw: dict[str, Any] = {"data": {"sites": sites}}
    if membership:
        raw["scheme"] = {"membership": membership}
    elif num_sites > 3:
        raw["scheme"] = {"membership": "open"}
        raw["privacy"] = {"unit": "example", "clip_norm": 1.0, "noise_multiplier": 1.0}
        raw["adapter"] = {"dropout": 0.0}
    return parse_plan(raw, base_dir=Path())


@dataclass
class Sites:
    """Sites that keep these rounds, of these base models. `failed`: who does not answer, and its
    code; `replies`: bytes that come from a site in place of its answer to a method; `stands`: where
    each was made to stand; `told`: the base models that each was told of."""

    kept: Mapping[str, list[int]]
    failed: Mapping[str, str] = field(default_factory=dict)
    models: Mapping[str, str] = field(default_factory=dict)
    replies: dict[tuple[str, str], bytes] = field(default_factory=dict)
    stands: dict[str, int] = field(default_factory=dict)
    told: dict[str, dict[str, str]] = field(default_factory=dict)

    def line_up(self, of: Plan) -> tuple[int, dict[str, str]]:
        coordinator = SigningKey()
        keys = {name: SigningKey() for name in of.data.site_names()}
        public = {name: key.public for name, key in keys.items()}
        roster = Roster(public, coordinator.public, of.rules(), demo=False)
        doors = {
            name: self.door(name, of, roster, keys[name])
            for name in of.data.site_names()
            if name not in self.failed
        }
        self.wire = Wire(doors, to_coordinator=self.said, away=self.failed)
        return lineup.line_up(of, roster, self.wire, coordinator.sign)

    def said(self, site: str, method: str, data: bytes) -> bytes:
        return self.replies.get((site, method), data)

    def door(self, name: str, of: Plan, roster: Roster, key: SigningKey) -> SiteRestart:
        def told(models: Mapping[str, bytes]) -> None:
            self.told[name] = {site: digest.hex() for site, digest in models.items()}

        base = bytes.fromhex(self.models.get(name, BASE))
        return SiteRestart(
            name,
            of.sha256(),
            roster,
            key.sign,
            lambda: Standing(frozenset(self.kept[name]), base),
            lambda number, _: self.stands.__setitem__(name, number),
            told,
        )


@pytest.mark.parametrize("said", [b"", b"[" * 4000, bytes(100_000)])
def test_what_one_site_says_stops_no_other(said: bytes) -> None:
    """A colluding site may say anything; it is out, by name, and the others go on."""
    sites = Sites({f"s{number}": [0] for number in range(4)})
    sites.replies["s3", "stand"] = said
    completed, lost = sites.line_up(plan(4))
    assert completed == 0
    assert list(lost) == ["s3"]
    assert "its answer was refused" in lost["s3"]
    assert sites.stands == {"s0": 0, "s1": 0, "s2": 0}


@pytest.mark.parametrize(
    ("kept", "begins"),
    [
        ({"s0": [0], "s1": [0], "s2": [0]}, 0),
        ({"s0": [0, 4, 5], "s1": [0, 4, 5], "s2": [0, 4, 5]}, 5),
        # One was killed before it kept round 5: the others go back.
        ({"s0": [0, 4, 5], "s1": [0, 4, 5], "s2": [0, 3, 4]}, 4),
    ],
)
def test_a_run_goes_on_from_the_last_round_that_enough_sites_keep(
    kept: dict[str, list[int]], begins: int
) -> None:
    sites = Sites(kept)
    assert sites.line_up(plan(3)) == (begins, {})
    assert sites.stands == dict.fromkeys(kept, begins)
    assert not sites.told


def test_of_four_sites_three_are_enough() -> None:
    kept = {"s0": [0, 2], "s1": [0, 2], "s2": [0, 1, 2], "s3": [0, 1]}
    sites = Sites(kept)
    assert sites.line_up(plan(4)) == (2, {"s3": "round"})
    assert sites.stands == {"s0": 2, "s1": 2, "s2": 2}
    lost = Sites(kept, {"s3": "deadline"})
    assert lost.line_up(plan(4)) == (2, {"s3": "deadline"})


def test_too_few_sites_are_named_with_what_became_of_them() -> None:
    sites = Sites({"s0": [0], "s1": [0], "s2": [0]}, {"s2": "refused"})
    sites.replies["s1", "stand"] = b"nonsense"
    with pytest.raises(RoundFailed, match=r"expected 3 sites .* got 1: s1 \(its answer .*s2 \(ref"):
        sites.line_up(plan(3))
    assert not sites.stands


def test_of_four_sites_the_one_with_another_base_model_is_named_and_left_out() -> None:
    sites = Sites({f"s{number}": [0] for number in range(4)}, models={"s2": OTHER})
    completed, lost = sites.line_up(plan(4))
    assert (completed, sites.stands) == (0, {"s0": 0, "s1": 0, "s3": 0})
    assert lost == {"s2": f"another base model ({OTHER[:16]}, not {BASE[:16]})"}
    all_say = {"s0": BASE, "s1": BASE, "s2": OTHER, "s3": BASE}
    assert sites.told == dict.fromkeys(all_say, all_say)


def test_a_run_that_cannot_do_without_the_odd_site_stops_and_names_it() -> None:
    sites = Sites({"s0": [0], "s1": [0], "s2": [0]}, models={"s1": OTHER})
    with pytest.raises(RoundFailed) as stopped:
        sites.line_up(plan(3))
    said = str(stopped.value)
    assert f"s0, s2: {BASE[:16]}; s1: {OTHER[:16]}" in said
    assert "s1 must take the base model of the others" in said
    assert not sites.stands
    assert set(sites.told) == {"s0", "s1", "s2"}


def test_without_a_majority_nobody_is_called_odd() -> None:
    sites = Sites({"s0": [0], "s1": [0], "s2": [0]}, models={"s1": OTHER, "s2": THIRD})
    with pytest.raises(RoundFailed, match="the operators must agree on one"):
        sites.line_up(plan(3))


def test_where_no_round_is_common_what_each_keeps_is_said() -> None:
    sites = Sites({"s0": [3, 4], "s1": [0, 1], "s2": [0, 1]})
    with pytest.raises(RoundFailed, match=r"a round that 3 sites can .* s0 \[3, 4\]; s1 \[0, 1\]"):
        sites.line_up(plan(3))
    assert not sites.stands


def test_a_site_that_is_gone_when_models_are_compared_takes_no_part() -> None:
    sites = Sites({f"s{number}": [0] for number in range(4)}, models={"s2": OTHER})
    sites.replies["s3", "compare"] = b"late"
    with pytest.raises(
        RoundFailed, match=r"expected 3 sites that are ready, got 2: s2 \(another base.*, s3 \("
    ):
        sites.line_up(plan(4))
    assert not sites.stands


def test_with_batches_who_was_away_begins_further_back() -> None:
    """It takes the model in the session, where any other site would be lost."""
    kept = {f"s{number}": [0, 6, 7] for number in range(3)}
    kept |= {"s3": [0, 3, 4], "s4": [0, 4], "s5": [0, 4, 8]}
    sites = Sites(kept)
    assert sites.line_up(plan(6, "batches")) == (7, {})
    assert sites.stands == {"s0": 7, "s1": 7, "s2": 7, "s3": 4, "s4": 4, "s5": 4}
