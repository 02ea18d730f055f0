"""Texts put in order: on one row whose update has as many dimensions as the row has tokens."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from audit_kit import make
from torch import nn

from fedshield.audit import on_updates, replay
from fedshield.audit.attacks import openings, order
from fedshield.audit.effort import changed
from fedshield.data.public import public_rows
from fedshield.errors import ModelError
from fedshield.model.chat import Tokens

ASKED = ("dose {} of x?", "pay Bob {}?", "7 less {}?")
ANSWER = ("no, 2 mg", "declined", "minus 8")


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """`told('plain')`: three sites with short rows, as many tokens as an update has dimensions;
    two rounds under that scheme, recorded."""
    folder = tmp_path_factory.mktemp("rows")
    sites = {}
    for name, asked, answer in zip(("bank", "hospital", "school"), ASKED, ANSWER, strict=True):
        rows = [{"prompt": asked.format(number), "response": answer} for number in range(8)]
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        sites[name] = {"source": str(path)}
    adapter = {"adapter.rank": 20, "adapter.targets": ["q_proj", "k_proj", "v_proj"]}
    plan = changed(make(**adapter), {"data.heldout_rows": 2, "data.sites": sites})
    scene = replay.prepare(plan)

    def give(scheme: str) -> Any:
        mine = changed(plan, {"scheme.name": scheme})
        return mine, scene, replay.record(mine, scene)

    return give


def reads(told: Any, scheme: str) -> list[on_updates.Read]:
    plan, scene, recording = told(scheme)
    seen = openings.by_server(recording.server, plan, scene.start(plan)).seen
    attacker = on_updates.Attacker(plan, scene, ["tokens"], {})
    return [attacker.read(one, recording) for one in seen if one.round_number == 2]


def test_in_the_clear_the_server_reads_a_row_word_for_word(told: Any) -> None:
    found = reads(told, "plain")
    assert [one.read for one in found] == [1, 1, 1]
    assert all(one.given_2 < 0.7 < one.rouge_2 for one in found)
    named = dict(on_updates.summed_up(found))
    assert named["rows that are read word for word"].num_trials == 3
    assert named["ROUGE-2 of the text, over tokens"].value > 0.9


def test_what_the_server_has_under_rlwe_is_not_read(told: Any) -> None:
    """Random numbers span everything: there is nothing to put in order. The score is what the
    template gives anyone, and a pair or two of the tokens named by chance."""
    for one in reads(told, "rlwe"):
        assert one.read == 0
        assert one.given_2 <= one.rouge_2 < 0.7


def test_the_template_is_read_off_public_rows() -> None:
    rows = [
        Tokens((1, 2, 30, 5, 6, 40, 9), (-100,) * 5 + (40, 9), 0),
        Tokens((1, 2, 31, 32, 5, 6, 41, 9), (-100,) * 6 + (41, 9), 0),
        Tokens((1, 2, 33, 5, 6, 42), (-100,) * 5 + (42,), 3),  # cut: its end is not the template's
    ]
    template = order.Template.of(rows)
    assert template == order.Template((1, 2), (5, 6), (9,))
    assert template.next((1, 2, 30)) == (5, 6)
    assert template.next((1, 2, 30, 5, 6, 40)) == (9,)


def test_a_layer_without_a_gradient_tells_nothing(told: Any) -> None:
    """In the first round B is zero, so A has no gradient in any layer."""
    plan, scene, recording = told("plain")
    public = public_rows(scene.base.tokenizer, plan.seed, plan.training.max_length)
    reader = order.Reader(scene.base, scene.host, public)
    seen = openings.by_server(recording.server, plan, scene.start(plan)).seen
    (first,) = (one for one in seen if (one.round_number, one.sites) == (1, ("bank",)))
    assert reader.read(first, range(3, 200), 1, 60) == ()


def test_models_of_another_kind_are_refused_in_one_line(told: Any) -> None:
    plan, scene, _ = told("plain")
    base = dataclasses.replace(scene.base, model=nn.Sequential(nn.Linear(2, 2)))
    public = public_rows(scene.base.tokenizer, plan.seed, plan.training.max_length)
    with pytest.raises(ModelError, match="expected a model of the Llama kind"):
        order.Reader(base, scene.host, public)
