"""Who goes or joins alone is in some sums and not in others. Each story first succeeds against
sites without the rule, to the digit that quantisation leaves, and then ends in a refusal (R1).

Full batches: a site's update is the same in both plans, as it nearly is in any training."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from consortium import Consortium, raw_plan

from fedshield.cli import app
from fedshield.enrolment import SignedRoster
from fedshield.enrolment.coming import exposure_of, joined, with_announced, without
from fedshield.enrolment.exposure import Exposure
from fedshield.enrolment.lineage import Lineage
from fedshield.enrolment.terms import Asked
from fedshield.errors import RoundFailed, UserError
from fedshield.ledger import rules

THREE = ("alpha", "beta", "mallory")
FOUR = (*THREE, "victim")
SEVEN = ("alpha", "beta", "delta", "gamma", "late", "mallory", "victim")


@pytest.fixture
def three(tmp_path: Path) -> Iterator[Consortium]:
    made = Consortium(tmp_path / "three", THREE)
    made.enrol("victim")
    yield made
    made.close()


@pytest.fixture
def without_the_rule(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    with monkeypatch.context() as patch:
        patch.setattr(rules, "_together", lambda *_: "")
        yield patch


def plan_of(names: tuple[str, ...]) -> dict[str, Any]:
    training = raw_plan()["training"] | {"steps": 1, "batch_size": 32, "optimizer": "sgd"}
    scheme = {"name": "rlwe", "weights": "equal", "max_colluding": 1}
    changes = {"training": training, "scheme": scheme, "encoding": {"bits": 12}}
    raw = raw_plan(names, name=f"of-{len(names)}", **changes)
    raw["data"]["min_examples"] = 8
    for source in raw["data"]["sites"].values():
        source["rows"] = 32
    return raw


def run_of(consortium: Consortium, *, exposed: tuple[str, ...] = ()) -> np.ndarray[Any, Any]:
    """One round of today's sites under a plan of their own; what mallory opened, as a sum."""
    names = consortium.names
    raw, run = plan_of(names), f"of-{len(names)}"
    consortium.approve(raw, exposed=exposed)
    consortium.session(raw, run).run(1, 1)
    consortium.close()
    opened: np.ndarray[Any, Any] = consortium.opened[run, 1][0] * len(names)
    return opened


def refused(consortium: Consortium, run: str = "refused") -> tuple[str, str]:
    """Who refuses a round of today's sites first, and the line."""
    raw = plan_of(consortium.names) | {"seed": 9, "name": run}
    consortium.approve(raw, exposed=consortium.names)
    session = consortium.session(raw, run)
    with pytest.raises(RoundFailed):
        session.run(1, 1)
    # As long as one honest site refuses, nothing is opened.
    assert (run, 1) not in consortium.opened
    name = min(site for site, code in session.link.codes.items() if code == "rule")
    line = consortium.last_error(name, run)
    consortium.close()
    return name, line


def likeness(consortium: Consortium, difference: np.ndarray[Any, Any], run: str) -> float:
    """Cosine between what came out by subtraction and what the victim encoded in `run`."""
    digits, _ = consortium.truth[run, 1]
    truth = digits[: len(difference)].astype(float)
    norms = float(np.linalg.norm(truth) * np.linalg.norm(difference))
    return float(truth @ difference) / norms


def going(consortium: Consortium, names: tuple[str, ...], *signers: str) -> SignedRoster:
    """The next roster without `names`, put in force; `signers` signed their exposure."""
    now = consortium.roster()
    after = without(now.followed(), names)
    signed = [exposure_of(now, after, consortium.keys[name]) for name in signers]
    after = dataclasses.replace(after, lineage=after.lineage.with_exposures(signed))
    return consortium.put_in_force(with_announced(now, after))


def joining(consortium: Consortium, names: tuple[str, ...], *signers: str) -> SignedRoster:
    now = consortium.roster()
    after = joined(now.followed(), [consortium.keys[name].card() for name in names])
    signed = [exposure_of(now, after, consortium.keys[name]) for name in signers]
    after = dataclasses.replace(after, lineage=after.lineage.with_exposures(signed))
    return consortium.put_in_force(after)


def test_without_the_rule_subtraction_shows_who_left(
    consortium: Consortium, without_the_rule: pytest.MonkeyPatch
) -> None:
    before = run_of(consortium)
    going(consortium, ("victim",))
    assert likeness(consortium, before, "of-4") < 0.95  # a sum alone is not that like it
    assert likeness(consortium, before - run_of(consortium), "of-4") > 0.98


def test_who_leaves_alone_stops_the_others(consortium: Consortium) -> None:
    run_of(consortium)
    going(consortium, ("victim",))
    name, line = refused(consortium)
    assert name == "alpha"
    assert line.count("R1: expected every site to be in the same sums as 2 others (c + 1)") == 1
    assert "got fewer for victim" in line


def test_who_signed_that_it_is_exposed_may_leave(consortium: Consortium) -> None:
    before = run_of(consortium)
    going(consortium, ("victim",), "victim")
    # It signed for exactly this, and this is what it means.
    assert likeness(consortium, before - run_of(consortium), "of-4") > 0.98


def test_departure_announced_lets_the_others_go_on(tmp_path: Path) -> None:
    consortium = Consortium(tmp_path / "consortium", lineage=Lineage(departure="announced"))
    run_of(consortium)
    after = going(consortium, ("victim",))
    assert [(one.kind, one.card.name) for one in after.lineage.exposures] == [
        ("announced", "victim")
    ]
    run_of(consortium)


def test_all_policies_can_expose_who_is_lost(consortium: Consortium) -> None:
    run_of(consortium)
    going(consortium, ("victim",))
    raw = plan_of(consortium.names)
    path = consortium.root / "beta" / "beta.policy.yaml"
    kept = path.read_text()
    consortium.exposes("victim")
    path.write_text(kept)
    consortium.approve(raw, "alpha", "mallory")
    # One of those who stay does not, and that is enough.
    consortium.approve(raw, "beta")
    session = consortium.session(raw, "of-3")
    with pytest.raises(RoundFailed):
        session.run(1, 1)
    assert "got fewer for victim" in consortium.last_error("beta", "of-3")
    consortium.close()
    path.write_text(f"{kept}exposes: [victim]\n")
    consortium.session(raw, "of-3").run(1, 1)
    assert ("of-3", 1) in consortium.opened


def test_without_the_rule_subtraction_shows_who_joined(
    three: Consortium, without_the_rule: pytest.MonkeyPatch
) -> None:
    before = run_of(three)
    joining(three, ("victim",))
    assert likeness(three, run_of(three) - before, "of-4") > 0.98


def test_who_joins_alone_signs_and_approves_it(three: Consortium) -> None:
    run_of(three)
    roster = three.roster()
    joining(three, ("victim",))
    assert "got fewer for victim" in refused(three)[1]
    three.put_in_force(roster)
    joining(three, ("victim",), "victim")
    # The statement is not enough: its operator also says so for each plan.
    raw = plan_of(three.names) | {"seed": 8}
    three.approve(raw)
    with pytest.raises(RoundFailed):
        three.session(raw, "unsaid").run(1, 1)
    assert "R1: expected this site's consent" in three.last_error("victim", "unsaid")
    three.close()
    run_of(three, exposed=("victim",))


@pytest.fixture
def seven(tmp_path: Path) -> Iterator[Consortium]:
    """c = 1. Sites without a body of records of their own have the finance texts."""
    made = Consortium(tmp_path / "seven", SEVEN, Asked(max_colluding=1))
    yield made
    made.close()


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    left: list[str] = []
    monkeypatch.setattr(typer, "prompt", lambda *_, **__: left.pop(0))
    return left


def leave(consortium: Consortium, names: tuple[str, ...], signer: str, out: str) -> None:
    """`fedshield roster leave --kit`, at the site that goes."""
    kit = consortium.root / signer
    where = consortium.root / out
    main = ["roster", "leave", str(kit / "roster.json"), *names, "--kit", str(kit)]
    app([*main, "--out", str(where)], standalone_mode=False)


def split(consortium: Consortium, stay: tuple[str, ...], *signed: Path) -> SignedRoster:
    """A roster that follows the first one with some of its sites, put in force at them."""
    now = SignedRoster.read(consortium.root / "first.json")
    after = without(now.followed(), [name for name in SEVEN if name not in stay])
    exposures = [Exposure.read(path) for path in signed]
    after = dataclasses.replace(after, lineage=after.lineage.with_exposures(exposures))
    return consortium.put_in_force(after)


def test_two_rosters_that_follow_one(seven: Consortium, typed: list[str]) -> None:
    """Four go here and three there: with c + 2 each, and mallory in both. The three sums are the
    victim's update; without the rule it is had to the digit (tests/ledger/test_history.py)."""
    (seven.root / "first.json").write_text(seven.roster().to_text())
    run_of(seven)
    here, there = ("alpha", "beta", "mallory"), ("gamma", "delta", "late", "mallory")
    split(seven, there)
    _, line = refused(seven)
    assert "R1: expected at least 5 of the 7 sites of the roster before to go on" in line
    # Who goes signs where to, and its ledger remembers: so it can be of one quorum only.
    going = tuple(site for site in SEVEN if site not in there)
    typed[:] = ["alpha"]
    leave(seven, going, "alpha", "alpha.leaving.json")
    split(seven, there, seven.root / "alpha.leaving.json")
    run_of(seven)
    split(seven, here)
    for run in ("here", "again"):
        assert "R1: expected" in refused(seven, run)[1]
    kit, first = seven.root / "alpha", seven.root / "first.json"
    (kit / "roster.json").write_text(first.read_text())
    with pytest.raises(UserError, match="got some that went on under another"):
        leave(seven, ("alpha", "delta", "victim"), "alpha", "again.json")


def test_who_comes_back_is_still_exposed(consortium: Consortium) -> None:
    run_of(consortium)
    going(consortium, ("victim",), "victim")
    run_of(consortium)
    joining(consortium, ("victim",))
    raw = plan_of(consortium.names) | {"seed": 8}
    consortium.approve(raw, exposed=("victim",))
    consortium.session(raw, "again").run(1, 1)
    assert ("again", 1) in consortium.opened


def test_who_signed_where_it_went_comes_back(consortium: Consortium, typed: list[str]) -> None:
    """Its ledger remembers where it went, before its own exposure is in any roster."""
    run_of(consortium)
    now = consortium.roster()
    typed[:] = ["victim"]
    leave(consortium, ("victim",), "victim", "victim.going.json")
    after = without(now.followed(), ("victim",))
    signed = [Exposure.read(consortium.root / "victim.going.json")]
    after = dataclasses.replace(after, lineage=after.lineage.with_exposures(signed))
    consortium.put_in_force(after)
    run_of(consortium)
    joining(consortium, ("victim",))
    raw = plan_of(consortium.names) | {"seed": 8}
    consortium.approve(raw, exposed=("victim",))
    consortium.session(raw, "again").run(1, 1)
    assert ("again", 1) in consortium.opened


def test_a_roster_that_leaves_out_one_that_it_follows(three: Consortium) -> None:
    """The coordinator makes the roster anew, as if there had been no sums."""
    run_of(three)
    roster = joining(three, ("victim",))
    three.put_in_force(dataclasses.replace(roster, lineage=Lineage(), countersignatures={}))
    name, line = refused(three)
    assert name == "alpha"
    assert "R1: expected the batch that these records were summed in before" in line


def test_two_sites_that_are_shown_different_rosters_meet_in_no_session(
    consortium: Consortium,
) -> None:
    """Alpha is shown one with the victim's exposure, beta one without: the charter is in every
    message."""
    run_of(consortium)
    now = consortium.roster()
    going(consortium, ("victim",), "victim")
    shown = without(now.followed(), ("victim",))
    for name in shown.names():
        others = [other for other in shown.names() if other != name]
        shown = shown.countersigned(consortium.keys[name], others)
    (consortium.root / "beta" / "roster.json").write_text(shown.to_text())
    raw = plan_of(consortium.names)
    consortium.approve(raw, "alpha", "mallory")
    consortium.approve(raw, "beta")
    with pytest.raises(RoundFailed, match="invite: no answer from beta"):
        consortium.session(raw, "two").run(1, 1)
    assert "the coordinator's roster is not the one agreed here" in consortium.last_error(
        "beta", "two"
    )
    assert ("two", 1) not in consortium.opened
