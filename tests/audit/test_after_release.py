"""Membership and canaries where they are known to work: rows learnt by heart."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from audit_kit import make

from fedshield.audit import after_release, replay
from fedshield.audit.attacks import canaries, membership
from fedshield.audit.effort import Effort
from fedshield.seeds import SiteRandomness

#: Few rows, many passes: nine rows a site, thirty passes.
BY_HEART = {
    "training.optimizer": "adamw", "training.learning_rate": 0.02, "training.steps": 18,
    "training.batch_size": 8, "training.min_learning_rate": 0.02, "rounds": 2,
    "adapter.targets": "all-linear", "training.max_length": 192,
}  # fmt: skip


@pytest.fixture(scope="module")
def learnt() -> Any:
    plan = make(**BY_HEART)
    sites = {
        name: source.model_copy(update={"rows": 9}) for name, source in plan.data.sites.items()
    }
    plan = plan.model_copy(update={"data": plan.data.model_copy(update={"sites": sites})})
    plan = plan.with_base_dir(plan.base_dir)
    scene = replay.prepare(plan)
    invented = canaries.invent(plan, 1, (0, 2))
    staged = canaries.planted(scene, plan, invented)
    return plan, scene, staged, invented, replay.record(plan, staged).released.state


def test_rows_learnt_by_heart_are_told_from_others(learnt: Any) -> None:
    plan, _, staged, _, state = learnt
    inside = [row for data in staged.data.values() for row in data.train]
    outside = [row for data in staged.data.values() for row in data.heldout]
    start = staged.start(plan)

    def signals(rows: Any) -> Any:
        return membership.signals(
            membership.row_losses(staged.base, staged.host, state, rows),
            membership.row_losses(staged.base, staged.host, start, rows),
            [one.mean for one in membership.row_losses(staged.base, staged.host, start, rows)],
        )

    found = {one.signal: one for one in membership.told_apart(signals(inside), signals(outside))}
    assert tuple(found) == membership.SIGNALS
    assert found["base"].auc.low > 0.6
    # Under the base model, which has seen neither, nothing tells them apart.
    at_start = membership.row_losses(staged.base, staged.host, start, inside)
    others = membership.row_losses(staged.base, staged.host, start, outside)
    (loss, base, *_) = membership.told_apart(
        membership.signals(at_start, at_start), membership.signals(others, others)
    )
    assert base.auc.value == 0.5
    assert loss.auc.value < found["base"].auc.value


def test_losses_are_those_of_the_trainers_own_evaluation(learnt: Any) -> None:
    from fedshield.site.train import LocalTrainer

    plan, _, staged, _, state = learnt
    data = staged.data["bank"]
    pad = staged.base.tokenizer.pad_token_id
    randomness = SiteRandomness.of_demonstration(plan.seed, "bank")
    trainer = LocalTrainer("bank", plan, data, staged.host, pad, "cpu", randomness)
    rows = membership.row_losses(staged.base, staged.host, state, data.heldout)
    total = sum(-one.tokens.sum() for one in rows) / sum(one.tokens.size for one in rows)
    assert trainer.evaluate(state) == pytest.approx(total, rel=1e-4)


def test_a_planted_secret_is_exposed_and_one_never_seen_is_not(learnt: Any) -> None:
    plan, _, staged, invented, state = learnt
    never, twice = canaries.measure(staged, plan, state, invented, 127)
    assert (never.repeats, twice.repeats) == (0, 2)
    assert never.highest == twice.highest == 7.0
    assert twice.exposure.value > never.exposure.value + 1.5
    assert twice.exposure.low > canaries.UNSEEN
    assert never.extracted.value == 0


def test_rows_that_only_a_site_knows_are_said_to_be_unknown(learnt: Any) -> None:
    """Members are then all rows, of which the run took some."""
    plan, scene, _, _, state = learnt
    names = plan.data.site_names()
    known = {name: SiteRandomness.of_site(b"s" * 32, plan.sha256()) for name in names}
    effort = Effort(shadows=False)

    def notes(rounds: int, drew: dict[str, SiteRandomness]) -> set[str]:
        found = after_release.membership(plan, scene, effort, state, rounds, drew, {}, print)
        return {finding.note for finding in found}

    first, *others = names
    short = plan.model_copy(
        update={"training": plan.training.model_copy(update={"steps": 1, "batch_size": 1})}
    )
    plan = short
    assert notes(1, known) == {""}
    (told,) = notes(1, {first: known[first]})
    assert told.startswith(f"which rows the run took is known to {', '.join(others)} alone")
    # After a whole pass every row was taken, in whatever order.
    rows = max(len(data.train) for data in scene.data.values())
    assert notes(rows, {}) == {""}
    used = replay.trained_rows(plan, first, scene, known[first], 2)
    assert len(used) == 2
    assert used != replay.trained_rows(plan, first, scene, known[others[0]], 0)
    assert set(replay.trained_rows(plan, first, scene, None, 2)) == set(scene.data[first].train)


def test_canaries_that_do_not_fit_are_not_measured(learnt: Any) -> None:
    """With fewer rows the later ones would lie over the earlier, and 16 times be fewer."""
    plan, scene = learnt[0], learnt[1]
    rows = min(len(data.train) for data in scene.data.values())
    fits = canaries.invent(plan, 1, (0, rows))
    assert canaries.unfit(scene, plan, fits) == ""
    too_many = canaries.invent(plan, 1, (1, rows))
    assert f"and {rows + 1} would be planted; lower --canaries" in canaries.unfit(
        scene, plan, too_many
    )
    short = plan.model_copy(
        update={"training": plan.training.model_copy(update={"max_length": 40})}
    )
    skipped: dict[str, str] = {}
    effort = Effort(canaries=1, repeats=(0, 1))
    assert after_release.canaries(short, scene, effort, skipped, lambda _: None) == []
    assert "training.max_length cuts" in skipped["canaries"]


def test_canaries_take_the_place_of_rows_as_often_as_said(learnt: Any) -> None:
    _, scene, staged, invented, _ = learnt
    for site, data in staged.data.items():
        assert len(data.train) == len(scene.data[site].train)
        changed = [a for a, b in zip(data.train, scene.data[site].train, strict=True) if a != b]
        assert len(changed) == 2
        assert len(set(changed)) == 1
        (secret,) = [one.secret for one in invented if one.site == site and one.repeats]
        assert secret in staged.base.tokenizer.decode(changed[0].input_ids)


def test_members_are_rows_that_were_really_trained_on(staged: Any) -> None:
    found = staged()
    drew = {
        name: SiteRandomness.of_demonstration(found.plan.seed, name) for name in found.scene.data
    }
    members, others = after_release._rows(found.plan, found.scene, drew, None)
    used = {row for batch in found.recording.truth.batches.values() for row in batch}
    assert set(members) <= used
    assert len(members) == len(others) == 6
    assert not set(others) & used


def test_shadow_losses_are_of_adapters_that_did_not_see_the_row(
    staged: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = staged()
    trained: list[set[Any]] = []
    real = replay.record

    def watched(plan: Any, scene: Any, *rest: Any, **more: Any) -> Any:
        made = real(plan, scene, *rest, **more)
        trained.append({row for data in scene.data.values() for row in data.train})
        return made

    monkeypatch.setattr(after_release, "record", watched)
    rows = [row for data in found.scene.data.values() for row in (*data.train, *data.heldout)]
    losses = after_release._shadow_losses(found.plan, found.scene, rows, lambda _: None)
    assert set(losses) == set(rows)
    assert len(trained) == 2
    assert not trained[0] & trained[1]
    assert np.isfinite(list(losses.values())).all()


def test_share_a_has_no_one_adapter_to_attack(staged: Any) -> None:
    plan = make(**{"adapter.train": "share-a"})
    skipped: dict[str, str] = {}
    found = after_release.membership(plan, staged().scene, Effort(), None, None, {}, skipped, print)
    assert found == []
    assert "share-a" in skipped["membership"]
