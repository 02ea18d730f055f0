"""Where a run is taken up, and which site's base model is another one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fedshield.engines.flare import lineup
from fedshield.engines.standing import Standing
from fedshield.errors import RoundFailed
from fedshield.plan import Plan
from fedshield.planfile import parse_plan
from fedshield.protocol.sites import Replies

BASE, OTHER, THIRD = "a" * 16, "b" * 16, "c" * 16


def plan(num_sites: int) -> Plan:
    """From four sites on, one may be lost."""
    sites = {f"s{number}": {"source": "sample:maths"} for number in range(num_sites)}
    raw: dict[str, Any] = {"data": {"sites": sites}}
    if num_sites > 3:
        raw["scheme"] = {"membership": "open"}
        raw["privacy"] = {"unit": "example", "clip_norm": 1.0, "noise_multiplier": 1.0}
        raw["adapter"] = {"dropout": 0.0}
    return parse_plan(raw, base_dir=Path())


class Sites:
    """Sites that keep these rounds, of these base models."""

    def __init__(
        self,
        kept: dict[str, list[int]],
        failed: dict[str, str] | None = None,
        models: dict[str, str] | None = None,
    ) -> None:
        digests = dict.fromkeys(kept, BASE) | (models or {})
        said = {
            site: Standing(frozenset(rounds), digests[site]).to_bytes()
            for site, rounds in kept.items()
        }
        self.said = Replies(said, failed or {})
        self.opened: tuple[int, list[str]] | None = None
        self.told: dict[str, str] | None = None

    def stand(self) -> Replies:
        return self.said

    def open(self, completed_rounds: int, sites: list[str]) -> Replies:
        self.opened = (completed_rounds, list(sites))
        return Replies(dict.fromkeys(sites, b""), {})

    def tell_models(self, digests: dict[str, str]) -> None:
        self.told = dict(digests)


def line_up(num_sites: int, sites: Sites) -> tuple[int, dict[str, str]]:
    return lineup.line_up(plan(num_sites), sites)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"[" * 4000,
        b'{"rounds": [' + b"1, " * 100_000 + b"1]}",
        b'{"rounds": [true], "base_model": "aaaaaaaaaaaaaaaa"}',
        b'{"rounds": [0], "base_model": "<script>"}',
    ],
)
def test_what_one_site_says_stops_no_other(said: bytes) -> None:
    """A colluding site may say anything; it is out, by name, and the others go on."""
    sites = Sites({f"s{number}": [0] for number in range(4)})
    sites.said.ok["s3"] = said
    completed, lost = line_up(4, sites)
    assert (completed, lost) == (0, {"s3": "malformed"})
    assert sites.opened == (0, ["s0", "s1", "s2"])


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
    assert line_up(3, sites) == (begins, {})
    assert sites.opened == (begins, ["s0", "s1", "s2"])
    assert sites.told is None


def test_of_four_sites_three_are_enough() -> None:
    kept = {"s0": [0, 2], "s1": [0, 2], "s2": [0, 1, 2], "s3": [0, 1]}
    assert line_up(4, Sites(kept))[0] == 2
    lost = Sites({site: kept[site] for site in ("s0", "s1", "s2")}, {"s3": "deadline"})
    assert line_up(4, lost) == (2, {"s3": "deadline"})


def test_too_few_sites_are_named_with_what_became_of_them() -> None:
    sites = Sites({"s0": [0], "s1": [0]}, {"s2": "refused"})
    sites.said = Replies(dict(sites.said.ok) | {"s1": b"nonsense"}, sites.said.failed)
    with pytest.raises(RoundFailed, match=r"expected 3 sites .* got 1: s1 \(malformed\), s2 \(ref"):
        line_up(3, sites)
    assert sites.opened is None


def test_of_four_sites_the_one_with_another_base_model_is_named_and_left_out() -> None:
    sites = Sites({f"s{number}": [0] for number in range(4)}, models={"s2": OTHER})
    completed, lost = line_up(4, sites)
    assert (completed, sites.opened) == (0, (0, ["s0", "s1", "s3"]))
    assert lost == {"s2": f"another base model ({OTHER}, not {BASE})"}
    assert sites.told == {"s0": BASE, "s1": BASE, "s2": OTHER, "s3": BASE}


def test_a_run_that_cannot_do_without_the_odd_site_stops_and_names_it() -> None:
    sites = Sites({"s0": [0], "s1": [0], "s2": [0]}, models={"s1": OTHER})
    with pytest.raises(RoundFailed) as stopped:
        line_up(3, sites)
    said = str(stopped.value)
    assert f"s0, s2: {BASE}; s1: {OTHER}" in said
    assert "s1 must take the base model of the others" in said
    assert sites.opened is None
    assert sites.told is not None


def test_without_a_majority_nobody_is_called_odd() -> None:
    sites = Sites({"s0": [0], "s1": [0], "s2": [0]}, models={"s1": OTHER, "s2": THIRD})
    with pytest.raises(RoundFailed, match="the operators must agree on one"):
        line_up(3, sites)


@pytest.mark.parametrize(
    "said",
    [
        *("nothing", "[0]", "{}", '{"rounds": [0]}'),
        *('{"rounds": [1.5], "base_model": "' + BASE + '"}',),
        *('{"rounds": ["0"], "base_model": "' + BASE + '"}',),
        *('{"rounds": [true], "base_model": "' + BASE + '"}',),
        *('{"rounds": [0], "base_model": "short"}', '{"rounds": [0], "base_model": 7}'),
        *('{"rounds": [0], "base_model": "' + BASE + '", "more": 1}',),
        *('{"rounds": [0], "base_model": "' + BASE.upper() + '"}',),
    ],
)
def test_what_no_site_of_ours_says_is_malformed(said: str) -> None:
    assert Standing.from_bytes(said.encode()) is None


def test_what_a_site_says_is_read_back() -> None:
    standing = Standing(frozenset({0, 3, 4}), BASE)
    read: Any = Standing.from_bytes(standing.to_bytes())
    assert read == standing
