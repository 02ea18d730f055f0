"""The table of other choices: each row is what `estimate` says of the plan that takes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fedshield.choices import BITS, TRAIN, choices, paper_bytes
from fedshield.cli.entry import app
from fedshield.cost import estimate
from fedshield.planfile import load_plan, parse_plan

EXAMPLES = Path(__file__).parent.parent / "examples"


def raw(**changes: Any) -> dict[str, Any]:
    """Four sites of unequal size, five rounds, masks from the first."""
    return {
        "name": "choices",
        "rounds": 5,
        "model": {"name": "tiny-llama"},
        "adapter": {"rank": 4, "alpha": 8, "targets": "all-linear"},
        "data": {
            "heldout_rows": 2,
            "sites": {
                name: {"source": "sample:finance", "rows": 6} for name in ("a", "b", "c", "dd")
            },
        },
        "pruning": {"initial_rate": 0.3, "target_rate": 0.9, "start_round": 1},
        **changes,
    }


@pytest.mark.parametrize("name", ["rlwe", "ckks", "plain"])
def test_every_row_is_the_plan_that_takes_it(tmp_path: Path, name: str) -> None:
    given = raw(scheme={"name": name})
    found = list(choices(parse_plan(given, base_dir=tmp_path)))
    assert [(one.train, one.bits) for one in found] == [(t, b) for t in TRAIN for b in BITS]
    for one in found:
        taken = raw(
            adapter=given["adapter"] | {"train": one.train},
            encoding={"bits": one.bits, "headroom": one.headroom},
        )
        cost = estimate(parse_plan(taken, base_dir=tmp_path))
        assert one.headroom == (one.bits < 8)
        assert one.values == cost.exchanged_values[-1]
        mean = sum(cost.upload_bytes_per_site_round) / cost.rounds
        assert one.upload_bytes == pytest.approx(mean, abs=1)


def test_the_papers_own_bytes() -> None:
    """Llama-2-7B at rank 32: 16,777,216 values in 4,096 ciphertexts of 331,400 bytes."""
    plan, _ = load_plan(EXAMPLES / "paper.yaml")
    assert paper_bytes(plan) == 4096 * 331_400
    core = [one for one in choices(plan) if (one.train, one.bits) == ("core", 4)]
    assert core[0].of_paper == pytest.approx(4096 * 331_400 / core[0].upload_bytes, rel=1e-3)
    assert core[0].of_paper > 1000


def test_the_quickstart_sends_less_than_a_thousandth_of_the_papers_bytes() -> None:
    """All that its sites send, set-up included, against the ciphertexts alone of A and B of q and v
    at the same rank in the paper's set."""
    plan, _ = load_plan(EXAMPLES / "quickstart.yaml", ["speed.device=cpu"])
    paper = paper_bytes(plan)
    values = 30 * 32 * ((576 + 576) + (576 + 192))
    assert paper is not None
    assert paper / values == pytest.approx(81.2, rel=0.01)
    assert estimate(plan).total_upload_bytes * 1000 < paper * 3 * plan.rounds


def test_what_cannot_be_has_no_row(tmp_path: Path) -> None:
    """`core` at a rank above a layer's size; few bits shared by many sites."""
    given = raw(adapter={"rank": 48, "alpha": 8, "targets": "all-linear"})
    found = list(choices(parse_plan(given, base_dir=tmp_path)))
    assert {one.train for one in found} == set(TRAIN) - {"core"}
    names = {f"s{at}": {"source": "sample:finance", "rows": 6} for at in range(40)}
    many = parse_plan(raw(data={"heldout_rows": 2, "sites": names}), base_dir=tmp_path)
    assert 8 not in {one.bits for one in choices(many)}


def test_the_command_prints_them(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(json.dumps(raw()))
    said = CliRunner().invoke(app, ["plan", str(path)])
    assert said.exit_code == 0, said.output
    assert all(train in said.output for train in TRAIN)
    assert "2 bit" in said.output
    told = json.loads(CliRunner().invoke(app, ["plan", str(path), "--json"]).output)
    assert len(told["choices"]) == len(TRAIN) * len(BITS)
    assert set(told["choices"][0]) == {
        "train", "bits", "headroom", "values", "upload_bytes", "of_paper",
    }  # fmt: skip
