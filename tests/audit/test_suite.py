"""Audits of plans that are not the usual one: two sites, differential privacy, rounds of no row."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from audit_kit import SITES, make

from fedshield.audit import (
    after_release,
    on_updates,
    page,
    replay,
    statements,
    suite,
)
from fedshield.audit.attacks import properties
from fedshield.audit.findings import SETTINGS, Audit
from fedshield.errors import PlanError
from fedshield.plan.privacy import PrivacyPlan
from fedshield.seeds import SiteRandomness

EXAMPLE = {
    "privacy": {"unit": "example", "clip_norm": 1.0, "noise_multiplier": 1.0, "delta": 1e-5},
    "training.batch_size": 4,
}
SITE = {
    "scheme": {"name": "rlwe", "weights": "equal"},
    "privacy": {"unit": "site", "clip_norm": 1.0, "noise_multiplier": 1.0, "delta": 1e-5},
}
TWO = {site: {"source": f"sample:{site}", "rows": 60} for site in ("finance", "maths")}


def parties(found: Audit, what: str) -> set[tuple[str, str]]:
    return {(one.setting, one.party) for one in found.findings if one.what.startswith(what)}


def test_two_sites_are_audited_under_rlwe_with_what_two_sites_can_promise() -> None:
    found = suite.audit(make(**{"data.sites": TWO, "scheme.name": "ckks"}), ["tokens"])
    assert (found.colluding, found.sites) == (0, ("finance", "maths"))
    assert ("rlwe", "server with 1 site") in parties(found, statements.SHARE)
    rows = {(row.scheme, row.party): row for row in statements.who_learns_what(found)}
    helped = rows["rlwe", "server with 1 site"]
    assert "beyond the promise" in helped.learns
    assert "c = 0 promises nothing" in helped.assumption
    assert "The other site's update" in rows["every scheme", on_updates.ONE_SITE].learns
    assert any("With two sites the sum less" in text for text in statements.not_protected(found))
    # Alone it names what the server names in the clear: there is nobody to hide among.
    clear = statements.find(found, "plain", "server", statements.SHARE)
    alone = statements.find(found, "rlwe", on_updates.ONE_SITE, statements.SHARE)
    assert clear is not None
    assert alone is not None
    assert alone.measure.low > (alone.measure.chance or 0) + 0.1
    assert abs(alone.measure.value - clear.measure.value) < 0.2


def test_a_scheme_that_the_plan_cannot_have_is_told_before_anything_runs() -> None:
    skipped: dict[str, str] = {}
    plan = make(**{"encoding.bits": 16, "scheme": {"name": "ckks", "weights": "private"}})
    assert [one.key for one, _ in suite._settings(plan, skipped)] == ["plain", "ckks", "rlwe"]
    assert skipped == {"pruned": "the plan prunes nothing"}

    def refused(raw: Any, changes: Any) -> Any:
        if changes.get("scheme.name") == "rlwe":
            raise PlanError("scheme.name: expected another")
        return raw

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(suite, "changed", refused)
        assert [one.key for one, _ in suite._settings(plan, skipped)] == ["plain", "ckks"]
    assert skipped["rlwe"] == "scheme.name: expected another"


def test_the_noise_of_rows_is_taken_out_where_nothing_protects_and_measured_alone() -> None:
    found = suite.audit(make(**EXAMPLE), ["tokens"])
    clear = statements.find(found, "plain", "server", statements.SHARE)
    noised = statements.find(found, "noised", "server", statements.SHARE)
    assert clear is not None
    assert noised is not None
    assert clear.measure.low > max(noised.measure.high, noised.measure.chance or 0)
    assert noised.measure.low <= (noised.measure.chance or 0) + 0.05
    assert found.privacy["unit"] == "example"
    assert 0 < found.privacy["epsilon"] < 20
    assert found.privacy["uploads"] == 2
    text = page.render(found)
    assert "No differential privacy" not in text
    assert "differential privacy and ckks" in text
    assert "differential privacy alone" in text
    assert f"epsilon {found.privacy['epsilon']:.4g} at delta 1e-05 after 2 rounds" in text


def test_rows_that_were_drawn_are_what_an_update_is_scored_against(staged: Any) -> None:
    found = staged(**EXAMPLE)
    trained = {name: set(data.train) for name, data in found.scene.data.items()}
    batches = found.recording.truth.batches
    assert batches
    for (site, _), rows in batches.items():
        assert set(rows) <= trained[site]
    # Members are all rows that could have been drawn.
    drew = SiteRandomness.of_demonstration(found.plan.seed, "bank")
    assert set(replay.trained_rows(found.plan, "bank", found.scene, drew)) == trained["bank"]


def test_updates_of_no_row_are_left_out_and_told(staged: Any) -> None:
    found = staged()
    some = dict(found.recording.truth.batches)
    some.pop(("bank", 1))
    recording = dataclasses.replace(found.recording, truth=replay.Truth(some))
    skipped: dict[str, str] = {}
    attacker = on_updates.Attacker(found.plan, found.scene, ["tokens"], skipped)
    whole = attacker.attack(SETTINGS[0], found.recording)
    less = attacker.attack(SETTINGS[0], recording)
    assert less[0].measure.num_trials < whole[0].measure.num_trials
    assert less[0].note == "updates left out because no row was drawn: 1"
    assert skipped == {}
    nothing = dataclasses.replace(found.recording, truth=replay.Truth({}))
    assert attacker.attack(SETTINGS[0], nothing) == []
    assert attacker.from_public_text(nothing) == []
    assert skipped == {"plain, server": "updates left out because no row was drawn: 6"}


def test_a_guess_says_whose_rows_are_of_the_kind_that_it_was_made_from(staged: Any) -> None:
    """Token counts of the samples are a better guess of sites whose rows are samples too."""
    found = staged()
    alike = ", from which the rows of bank, hospital, school are as well"
    own = {"bank": dataclasses.replace(found.scene.data["bank"], source="notes.jsonl")}
    for scene, more in ((found.scene, alike), (dataclasses.replace(found.scene, data=own), "")):
        attacker = on_updates.Attacker(found.plan, scene, ["tokens"], {})
        (guess, *_) = attacker.from_public_text(found.recording)
        start = "guessed by how frequent tokens are in the built-in public samples"
        assert guess.note == start + more


def test_the_noise_of_sites_is_only_measured_where_it_is_added() -> None:
    plan = make(**SITE)
    skipped: dict[str, str] = {}
    assert [one.key for one, _ in suite._settings(plan, skipped)] == ["plain", "rlwe"]
    assert {"noised", "ckks", "pruned"} == set(skipped)
    assert "rlwe only" in skipped["ckks"]
    assert after_release.in_the_clear(plan) == plan
    assert after_release.in_the_clear(make(**EXAMPLE)).privacy.unit == "example"


def test_a_recording_ends_with_the_budget(staged: Any) -> None:
    found = staged()
    free = make(**EXAMPLE)
    one_round = suite._promised(make(**EXAMPLE, rounds=1), found.scene)
    assert one_round is not None
    limited = {**EXAMPLE["privacy"], "max_epsilon": one_round["epsilon"] * 1.01}
    plan = make(**EXAMPLE | {"privacy": limited})
    told: list[str] = []
    recording = replay.record(plan, found.scene, say=told.append)
    assert set(recording.server.aggregates()) == {1}
    assert told[-1] == (
        "plain: ended before round 2: bank, hospital, school would exceed the plan's epsilon"
    )
    promised = suite._promised(plan, found.scene)
    assert promised is not None
    assert promised["uploads"] == 1
    assert suite._promised(free, found.scene)["uploads"] == 2  # type: ignore[index]


def test_an_attacker_adds_no_noise_to_updates_of_its_own(staged: Any) -> None:
    found = staged(**EXAMPLE)
    free = found.plan.model_copy(update={"privacy": PrivacyPlan()})
    start = found.scene.start(found.plan)
    text = {name: found.scene.data[name].heldout for name in SITES}
    made, same = (
        properties.learn(found.scene, plan, start, 1, text) for plan in (found.plan, free)
    )
    for name in SITES:
        np.testing.assert_array_equal(made.updates[name], same.updates[name])


def test_a_server_that_opens_the_sum_is_said_to_and_attacked() -> None:
    opened = {"name": "rlwe", "open_to": "server", "server": "semi-honest"}
    found = suite.audit(make(scheme=opened), ["tokens"])
    assert ("rlwe", on_updates.SERVER_SUM) in parties(found, statements.SHARE)
    rows = {(row.scheme, row.party): row for row in statements.who_learns_what(found)}
    server = rows["rlwe", "server"]
    assert "not even the sum" not in server.learns
    assert server.assumption.startswith("It follows the protocol, as `server: semi-honest`")
    assert "tokens named" in rows["rlwe", on_updates.SERVER_SUM].evidence
    total = statements.find(found, "rlwe", on_updates.SERVER_SUM, statements.SHARE)
    assert total is not None
    assert total.measure.low > (total.measure.chance or 0)
    assert any("which the plan opens to it" in text for text in statements.not_protected(found))
