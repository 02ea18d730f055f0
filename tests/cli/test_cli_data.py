"""`fedshield data`: rows as the model will see them, without weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedshield.cli.commands import app
from fedshield.cli.data import print_row
from fedshield.data.preview import Piece, ShownRow
from fedshield.errors import UserError
from fedshield.model.builtin import tiny

ROWS = [
    {"prompt": f"Bed {n}?", "response": f"Bed {n} is free.", "category": "beds"} for n in range(6)
]
LONG = {"prompt": "Bed 9?", "response": "x" * 300}


def plan_in(folder: Path, **changes: Any) -> Path:
    """A plan whose model folder holds a tokenizer and no weights."""
    tiny.tokenizer().save_pretrained(folder / "model")
    rows = [LONG, *ROWS]
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    plan = {
        "model": {"name": "model"},
        "data": {"heldout_rows": 2, "sites": {"ward": {"source": "a.jsonl"}}},
        "training": {"max_length": 96},
        "scheme": {"name": "plain"},
        **changes,
    }
    path = folder / "plan.yaml"
    path.write_text(yaml.safe_dump(plan))
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    app(["data", *arguments], standalone_mode=False)
    return capsys.readouterr().out


def test_rows_are_shown_with_loss_and_cut_marked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = run(capsys, str(plan_in(tmp_path)), "--site", "ward", "--rows", "2")
    head = "<|im_start|>user\nBed 9?<|im_end|>\n<|im_start|>assistant\n"
    tokens = len(tiny.tokenizer()(head)["input_ids"])
    room = 96 - tokens
    total = tokens + 300 + len("E\n")
    assert (
        f"a.jsonl:1: 96 tokens, {room} with loss, {total - 96} more are cut\n"
        f"{head}[loss: {'x' * room}][cut: {'x' * (300 - room)}<|im_end|>\n]\n"
    ) in out
    assert "a.jsonl:2: " in out
    assert "a.jsonl:3: " not in out
    assert "[loss: Bed 0 is free.<|im_end|>\n]" in out
    assert "a.jsonl:6, held out: " in out
    assert "rows           5 to train on, 2 held out\n" in out
    assert f"cut            1 rows, {total - 96} tokens\n" in out
    assert "note           column `category` not used (6 rows)\n" in out


def test_json_has_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = json.loads(
        run(capsys, str(plan_in(tmp_path)), "--site", "ward", "--rows", "1", "--json")
    )
    assert shown["counts"]["train_rows"] == 5
    assert shown["notes"] == ["column `category` not used (6 rows)"]
    first, heldout = shown["rows"]
    assert (first["where"], first["part"], first["tokens"]) == ("a.jsonl:1", "train", 96)
    assert heldout["part"] == "heldout"
    text = "".join(piece["text"] for piece in first["pieces"])
    assert text.endswith("x" * 300 + "<|im_end|>\n")
    assert [piece["loss"] for piece in heldout["pieces"]] == [False, True]
    assert shown["longest"] == first["tokens"] + first["tokens_cut"]


def test_at_a_hospital_the_kits_policy_says_where_data_and_model_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = plan_in(tmp_path, model={"name": "elsewhere"})
    kit = tmp_path / "kit"
    kit.mkdir()
    policy = {"data_path": "../own.jsonl", "ledger_path": "ledger", "model_path": "../model"}
    (kit / "ward.policy.yaml").write_text(yaml.safe_dump(policy))
    own = [{"prompt": f"Own {n}?", "response": "Yes."} for n in range(4)]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in own))
    out = run(capsys, str(plan), "--site", "ward", "--kit", str(kit))
    assert "own.jsonl:1: " in out
    assert "Own 0?" in out
    (kit / "ward.policy.yaml").unlink()
    with pytest.raises(UserError, match=r"expected ward\.policy\.yaml in"):
        run(capsys, str(plan), "--site", "ward", "--kit", str(kit))


def test_a_site_of_a_pool_and_one_that_is_not_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = {"split": "iid", "num_sites": 2, "pool": [{"source": "a.jsonl"}], "heldout_rows": 1}
    plan = str(plan_in(tmp_path, data=data))
    out = run(capsys, plan, "--site", "site-2", "--rows", "0")
    assert "a.jsonl (iid 2 of 2)" in out
    with pytest.raises(UserError, match="--site: expected one of site-1, site-2, got 'ward'"):
        run(capsys, plan, "--site", "ward")


def test_a_row_of_data_does_not_act_on_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """`site approve` shows three before the lines that its operator decides by."""
    acting = "\x1b[8mhidden\x1b(0\x9b2K\u202e"
    pieces = (
        Piece(f"a{acting}", False, False),
        Piece(f"b{acting}", True, False),
        Piece(f"c{acting}", False, True),
    )
    print_row(ShownRow(f"rows.jsonl:1{acting}", "train", 3, 1, 1, pieces))
    out = capsys.readouterr().out
    assert not {"\x1b", "\x9b", "\u202e"} & set(out)
    assert out.count("hidden") == 4
