"""What a party's own monitoring reads."""

from __future__ import annotations

import re
from pathlib import Path

from fedshield.run import prometheus
from fedshield.run.progress import Progress
from fedshield.run.summary import PHASES

SAMPLE = re.compile(r'(\w+)\{(\w+="[^"]*")(,\w+="[^"]*")*\} [-+.e0-9]+')


def row(number: int, up: int, train_s: float) -> dict[str, object]:
    wall_s = dict.fromkeys(PHASES, 0.0) | {"train": train_s}
    return {
        "round": number,
        "upload_bytes": up,
        "download_bytes": 2 * up,
        "wall_s": wall_s,
        "train_loss": None if number == 2 else 3.5,
        "heldout_loss_after": 2.5,
    }


def test_a_site_counts_rounds_bytes_and_seconds(tmp_path: Path) -> None:
    outside = {"round": 0, "upload_bytes": 5, "download_bytes": 7}
    rows = [outside, row(1, 100, 1.5), row(2, 200, 2.5)]
    prometheus.write(tmp_path, prometheus.of_site("a-run", "north", rows))
    lines = (tmp_path / "metrics.prom").read_text().splitlines()
    who = 'run="a-run",party="north"'
    assert f"fedshield_rounds_completed{{{who}}} 2" in lines
    assert f"fedshield_upload_bytes_total{{{who}}} 305" in lines
    assert f"fedshield_download_bytes_total{{{who}}} 607" in lines
    assert f'fedshield_phase_seconds_total{{{who},phase="train"}} 4' in lines
    assert all(line.startswith("# ") or SAMPLE.fullmatch(line) for line in lines)
    # Its own, of the last round; a round in which no row was drawn has no training loss.
    assert f"fedshield_heldout_loss{{{who}}} 2.5" in lines
    assert not any(line.startswith("fedshield_train_loss") for line in lines)


def test_where_a_party_stands_is_told_with_the_time_left() -> None:
    standing = Progress(4, 20, "training and encrypting", 0.0, left_s=90.5)
    text = prometheus.text(prometheus.of_site("a-run", "north", [row(3, 1, 1.0)], standing))
    who = 'run="a-run",party="north"'
    assert f"fedshield_round{{{who}}} 4\n" in text
    assert f'fedshield_phase{{{who},phase="training and encrypting"}} 1\n' in text
    assert f"fedshield_left_seconds{{{who}}} 90.5\n" in text
    assert f"fedshield_train_loss{{{who}}} 3.5\n" in text
    # The coordinator knows no loss.
    assert "loss" not in prometheus.text(prometheus.of_coordinator("a-run", [], standing))


def test_the_coordinator_counts_who_was_lost_and_how_it_ended() -> None:
    entries = [
        {"status": "running", "lost": {"west": "deadline"}},
        {"round": 1, "aggregate_s": 0.1, "round_s": 3.25, "lost": {}},
        {"status": "failed", "reason": "no more"},
    ]
    found = {
        (name, labels.get("how", "")): value
        for name, labels, value in prometheus.of_coordinator("a-run", entries)
    }
    assert found == {
        ("fedshield_rounds_completed", ""): 1,
        ("fedshield_sites_lost", ""): 1,
        ("fedshield_round_seconds", ""): 3.25,
        ("fedshield_run_ended", "finished"): 0,
        ("fedshield_run_ended", "failed"): 1,
    }
    assert dict.fromkeys(prometheus.of_coordinator("a-run", ())[0][1]) == {
        "run": None,
        "party": None,
    }


def test_labels_are_quoted() -> None:
    text = prometheus.text([("fedshield_sites_lost", {"run": 'a"b\\c\nd'}, 0)])
    assert text.splitlines()[-1] == 'fedshield_sites_lost{run="a\\"b\\\\c\\nd"} 0'
