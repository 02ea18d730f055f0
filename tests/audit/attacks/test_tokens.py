"""Token recovery on mixtures that are known, and on this project's own updates."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedshield.audit import on_updates
from fedshield.audit.attacks import dictionary, openings, tokens
from fedshield.audit.stats import Measure
from fedshield.errors import ModelError

V, D = 400, 64


def mixture(present: np.ndarray[Any, Any], rows: int, seed: int = 0) -> dictionary.Mixture:
    generator = np.random.default_rng(seed)
    atoms = generator.normal(size=(V, D)).astype(np.float32)
    parts = generator.normal(size=(rows, present.size))
    return dictionary.whiten(atoms).mixture(parts @ atoms[present].astype(np.float64))


def some(count: int, seed: int = 1) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).permutation(V)[:count]


@pytest.mark.parametrize("count", [5, 16, 20, 30])
def test_tokens_are_found_exactly_also_beyond_the_rank(count: int) -> None:
    """16 rows: up to 16 tokens are in their span (DAGER); up to about (64 + 16) / 2 are still the
    only sparse explanation."""
    present = some(count)
    found = tokens.recover([mixture(present, 16)], 60)
    assert set(found.tokens) == set(present.tolist())
    assert found.complete


def test_what_cannot_be_told_is_not_claimed() -> None:
    generator = np.random.default_rng(3)
    atoms = generator.normal(size=(V, D)).astype(np.float32)
    noise = dictionary.whiten(atoms).mixture(generator.normal(size=(16, D)))
    found = tokens.recover([noise], 200)
    assert not found.complete


def test_tokens_come_out_of_two_dictionaries_of_few_dimensions() -> None:
    """The first step: B's rows only, in as many dimensions as the rank, for q and for v."""
    generator = np.random.default_rng(5)
    present = some(10)
    parts = []
    for _ in range(2):
        atoms = generator.normal(size=(V, 16)).astype(np.float32)
        mixed = generator.normal(size=(40, present.size)) @ atoms[present].astype(np.float64)
        parts.append(dictionary.whiten(atoms).mixture(mixed))
    found = tokens.recover(parts, 30)
    assert set(found.tokens) == set(present.tolist())
    assert found.complete


def test_no_update_gives_no_token() -> None:
    assert tokens.recover([], 10).tokens == ()


def test_rouge_counts_runs_with_repeats() -> None:
    wanted = [1, 2, 1, 2, 3]
    assert tokens.rouge(wanted, wanted, 2) == 1.0
    assert tokens.rouge(wanted, [1, 2, 3], 1) == pytest.approx(3 / 5)
    assert tokens.rouge(wanted, [1, 2, 3], 2) == pytest.approx(2 / 4)
    assert tokens.rouge([1], [1], 2) == 0.0


# -- own updates ------------------------------------------------------------------------------


def reads(found: Any, seen: Any) -> list[on_updates.Read]:
    attacker = on_updates.Attacker(found.plan, found.scene, ["tokens"], {})
    return [attacker.read(one, found.recording) for one in seen]


def test_at_batch_one_and_one_step_the_server_recovers_every_token_in_the_clear(
    staged: Any,
) -> None:
    """Round 2, where B is no longer zero. Rank 16 on q and v: 32 dimensions; the rows have 24 to
    26 different tokens, more than a span check could tell."""
    found = staged()
    start = found.scene.start(found.plan)
    seen = openings.by_server(found.recording.server, found.plan, start).seen
    for one in reads(found, [one for one in seen if one.round_number == 2]):
        assert one.hits == one.present >= 24
        assert one.complete
    # In round 1 the update has 16 dimensions for each layer: most tokens stay hidden.
    first = reads(found, [one for one in seen if one.round_number == 1])
    assert sum(one.hits for one in first) < 0.6 * sum(one.present for one in first)


@pytest.mark.parametrize("scheme", ["ckks", "rlwe"])
def test_the_same_attack_is_at_chance_on_what_the_server_has_when_encrypted(
    staged: Any, scheme: str
) -> None:
    found = staged(**{"scheme.name": scheme})
    start = found.scene.start(found.plan)
    seen = openings.by_server(found.recording.server, found.plan, start).seen
    drawn = [openings.at_random(one, number) for number, one in enumerate(seen)]
    numbers = dict(on_updates.summed_up(reads(found, seen), reads(found, drawn)))
    named, curve = list(numbers.values())[:2]
    # Keys are fresh in every run, so a 95 % interval would miss chance in one run of twenty.
    assert around(named), named
    assert around(curve), curve
    assert named.value < 0.35


def around(found: Measure) -> bool:
    """Whether chance is within two and a half times the 95 % interval: five standard errors."""
    assert found.chance is not None
    below, above = found.value - found.low, found.high - found.value
    return found.value - 2.5 * below <= found.chance <= found.value + 2.5 * above


def test_one_site_with_the_server_recovers_every_token_under_ckks(staged: Any) -> None:
    found = staged(**{"scheme.name": "ckks"})
    view = found.recording.coalition(["bank"])
    seen = openings.by_coalition(view, found.plan, found.recording.roster).seen
    for one in reads(found, [one for one in seen if one.round_number == 2]):
        assert one.hits >= 0.9 * one.present


def test_core_adapters_show_tokens_in_the_first_round(staged: Any) -> None:
    """R's gradient is there from the first step; the rank bounds what it shows."""
    found = staged(**{"adapter.train": "core"})
    start = found.scene.start(found.plan)
    seen = openings.by_server(found.recording.server, found.plan, start).seen
    numbers = dict(on_updates.summed_up(reads(found, [seen[0], seen[1], seen[2]])))
    curve = list(numbers.values())[1]
    assert curve.low > 0.5


def test_models_of_another_kind_are_refused_in_one_line(staged: Any) -> None:
    import dataclasses

    from torch import nn

    found = staged()
    base = dataclasses.replace(found.scene.base, model=nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(ModelError, match="expected a model of the Llama kind"):
        dictionary.token_inputs(base)
