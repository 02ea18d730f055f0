"""The report page: the right numbers, no reach outside, honest words for every scheme."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib
import pytest

from fedshield.errors import RunFolderError
from fedshield.report import figures, units, write_report

VALUES = 1_000_000
VOID = {"meta", "br", "link", "img", "input", "hr"}


class Page(HTMLParser):
    """A page as a test sees it: tags with attributes, text, and tables as rows of cells."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.cell: list[str] | None = None
        self.feed(text)
        self.close()
        assert self.open == [], "unclosed tags"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.cell = []

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"stray </{tag}>"
        assert self.open.pop() == tag, f"</{tag}> closes another tag"
        if tag in ("td", "th") and self.cell is not None:
            self.tables[-1][-1].append(" ".join("".join(self.cell).split()))
            self.cell = None

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "style":
            return
        self.words.append(data)
        if self.cell is not None:
            self.cell.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())

    def row(self, first: str) -> list[str]:
        """The first table row whose first cell is `first`, without that cell."""
        for table in self.tables:
            for row in table:
                if row and row[0] == first:
                    return row[1:]
        raise AssertionError(f"no row {first!r}")


def summary_of(
    sites: tuple[str, ...] = ("hospital", "bank"),
    scheme: str = "ckks",
    rounds: int = 2,
    planned: int | None = None,
) -> dict[str, Any]:
    turns = len(sites) * rounds
    first = {site: 4.0 + 0.1 * index for index, site in enumerate(sites)}
    last = {site: loss_at(index, rounds) for index, site in enumerate(sites)}
    return {
        "name": "A run",
        "scheme": scheme,
        "scheme_parameters": "N=4096",
        "security_bits": None if scheme == "plain" else 128,
        "rounds": rounds,
        "rounds_planned": rounds if planned is None else planned,
        "sites": list(sites),
        "model": {"name": "a-model", "sha256": "aa" * 32, "note": "dequantised from Q4_1"},
        "adapter": {"rank": 8, "alpha": 16, "targets": ["q_proj", "v_proj"], "train": "ab"},
        "trainable_values": VALUES,
        "upload_bytes": 2 * VALUES * turns,
        "download_bytes": 3_000_000,
        "plaintext_float32_upload_bytes": 4 * VALUES * turns,
        "paper_scheme_upload_bytes": 81 * VALUES * turns,
        "initial_heldout_loss": {"sites": first, "mean": sum(first.values()) / len(first)},
        "final_heldout_loss": {"sites": last, "mean": sum(last.values()) / len(last)},
        "wall_s": 75.0,
        "phase_s": {
            "train": 60.0,
            "prune": 0.0,
            "encode": 1.0,
            "encrypt": 6.0,
            "aggregate": 1.0,
            "open": 2.0,
            "evaluate": 30.0,
        },
        "plan_sha256": "bb" * 32,
        "adapter_sha256": "cc" * 32,
        "data": {
            site: {
                "source": "sample:medical",
                "train_rows": 1000,
                "heldout_rows": 50,
                "skipped_rows": index,
                "truncated_rows": 3 * index,
                "truncated_tokens": 40 * index,
            }
            for index, site in enumerate(sites)
        },
        "versions": {"fedshield": "0.1.0", "torch": "2.9.0"},
        "device": "cpu",
        "precision": "bfloat16",
        "started": "2025-01-01T10:00:00+00:00",
        "finished": "2025-01-01T10:01:15+00:00",
        "resumed": 0,
    }


def loss_at(index: int, number: int) -> float:
    return 4.0 + 0.1 * index - 0.5 * number


def metrics_of(sites: tuple[str, ...] = ("hospital", "bank"), rounds: int = 2) -> list[Any]:
    return [
        {
            "round": number,
            "site": site,
            "train_loss": 3.0,
            "heldout_loss_before": loss_at(index, number - 1),
            "heldout_loss_after": loss_at(index, number),
            "num_examples": 100,
            "learning_rate": 0.0005,
            "pruning_rate": 0.25,
            "pruned_values": 10,
            "clipped_values": 7,
            "upload_bytes": 2 * VALUES,
            "download_bytes": VALUES,
            "wall_s": {"train": 1.0},
        }
        for number in range(1, rounds + 1)
        for index, site in enumerate(sites)
    ]


def write_run(
    folder: Path,
    summary: dict[str, Any] | None = None,
    metrics: list[Any] | None = None,
    answers: list[Any] | None = None,
    plan: str = "name: A run\n",
) -> Path:
    summary = summary_of() if summary is None else summary
    metrics = metrics_of() if metrics is None else metrics
    folder.mkdir(exist_ok=True)
    (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    lines = "".join(json.dumps(row) + "\n" for row in metrics)
    (folder / "metrics.jsonl").write_text(lines, encoding="utf-8")
    (folder / "plan.yaml").write_text(plan, encoding="utf-8")
    if answers is not None:
        (folder / "answers.json").write_text(json.dumps(answers), encoding="utf-8")
    return folder


def page_of(folder: Path) -> Page:
    text = write_report(folder).read_text(encoding="utf-8")
    assert_self_contained(text)
    assert "None" not in re.sub(r"None: the coordinator", "", Page(text).text)
    assert not re.search(r"\bnan\b|\binf\b", text, re.IGNORECASE)
    return Page(text)


def assert_self_contained(text: str) -> None:
    page = Page(text)
    assert "http:" not in text
    assert "https:" not in text
    assert not {"script", "link", "img", "iframe", "object", "embed", "base", "form"} & {
        tag for tag, _ in page.tags
    }
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on"), f"{tag} has a handler"
            assert name not in ("src", "srcset", "action", "data")
            if name in ("href", "xlink:href"):
                assert value is not None
                assert value.startswith("#")
                assert value[1:] in ids
    for target in re.findall(r"url\(([^)]*)\)", text):
        assert target.startswith("#")
        assert target[1:] in ids
    assert "@import" not in text


def test_the_page_shows_the_numbers_of_the_run(tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path, answers=[{"prompt": "Q?", "base": "a", "tuned": "b"}]))
    text = page.text
    assert "2 sites (hospital, bank) fine-tuned a-model (dequantised from Q4_1)" in text
    assert "in 2 rounds" in text
    assert "4.050 → 3.050" in text
    assert "lower by 1.000 (−25 %)" in text
    assert "8.00 MB" in text
    assert "50 % of plain float32 (16.0 MB)" in text
    assert "2.5 % of the paper's (324 MB, counted)" in text
    assert "1 min 15 s" in text
    assert "incomplete" not in text
    assert page.row("hospital")[:4] == ["4.000", "3.000", "−1.000", "−25.0 %"]
    assert page.row("Mean, as recorded")[:3] == ["4.050", "3.050", "−1.000"]
    assert page.row("This run") == ["2.00 MB", "8.00 MB", "2.00 B", "50 %"]
    assert page.row("Plain float32") == ["4.00 MB", "16.0 MB", "4.00 B", "–"]
    assert page.row("The paper's, counted") == ["81.0 MB", "324 MB", "–", "20 times"]
    assert page.row("train") == ["local training at the sites", "1 min 0 s", "60.0 %"]
    assert "Encoding, encrypting, adding and opening took 10.0 s, 10.0 %" in text
    assert page.row("2")[:5] == ["2", "200", "5.00e−4", "3.000", "3.050"]
    assert "1 row was skipped and not used." in text
    assert "3 rows were longer than the plan's limit and truncated; 40 tokens were cut off." in text
    for told in ("aa" * 32, "bb" * 32, "cc" * 32, "fedshield run plan.yaml", "2.9.0", "bfloat16"):
        assert told in text
    assert 'fedshield generate RUN "..."' in text
    assert "fedshield export RUN --merge OUT" in text
    assert "name: A run" in text


def test_the_table_of_rounds_has_a_number_in_every_cell(tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path))
    (rounds,) = [table for table in page.tables if table[0][0] == "Round"]
    assert len(rounds) == 3
    assert "not recorded" not in [cell for row in rounds for cell in row]


def test_in_print_nothing_is_folded_dark_or_torn(tmp_path: Path) -> None:
    text = write_report(write_run(tmp_path)).read_text(encoding="utf-8")
    style = text[: text.index("</style>")]
    # The later rule counts: a reader's dark screen makes no dark paper.
    assert style.index("prefers-color-scheme: dark") < style.index("@media print {\n  :root {")
    paper = style[style.index("@page") :]
    assert "details::details-content { content-visibility: visible; display: block; }" in paper
    unknown = paper[paper.index("@supports not selector(details::details-content)") :]
    assert "details:not([open]) summary::after { content: " in unknown
    (whole,) = [line for line in paper.splitlines() if line.endswith("{ break-inside: avoid; }")]
    for part in ("table:not(.long)", " tr,", "figure", ".card", ".answer", ".facts > div"):
        assert part in whole
    # More rows than fit on a page: the table is begun where it stands, and its head repeated.
    for rounds, long in ((20, False), (21, True)):
        run = summary_of(rounds=rounds), metrics_of(rounds=rounds)
        page = page_of(write_run(tmp_path / str(rounds), *run))
        (kinds,) = [a["class"] for tag, a in page.tags if "dense" in (a.get("class") or "")]
        assert ("long" in (kinds or "").split()) == long


def test_figures_and_tables_can_be_read_aloud(tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path))
    drawings = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert len(drawings) == 6  # three figures, each for a wide page and for a phone
    for attributes in drawings:
        assert attributes["role"] == "img"
        assert attributes["aria-label"]
    assert any("hospital: 4.000 to 3.000" in (d["aria-label"] or "") for d in drawings)
    for tag, attributes in page.tags:
        if tag == "th":
            assert attributes.get("scope") in ("row", "col")


def test_two_writes_give_the_same_bytes(tmp_path: Path) -> None:
    answers = [{"prompt": "Q?", "base": "a", "tuned": "b"}]
    first = write_report(write_run(tmp_path / "one", answers=answers)).read_bytes()
    assert write_report(tmp_path / "one").read_bytes() == first
    with matplotlib.rc_context({"lines.linewidth": 9.0, "svg.fonttype": "path", "font.size": 30}):
        assert write_report(write_run(tmp_path / "two", answers=answers)).read_bytes() == first
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == [
        "answers.json",
        "metrics.jsonl",
        "plan.yaml",
        "report.html",
        "summary.json",
    ]


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    evil = '<script>alert("1")</script>'
    sites = (evil, '"><img src=x onerror=alert(1)>', "a $\\frac{1}{0}$ -->", "日本\x07\n]]>")
    summary = summary_of(sites)
    summary["name"] = evil
    summary["device"] = evil
    summary["versions"] = {evil: evil}
    summary["scheme_parameters"] = evil
    summary["phase_s"][evil] = 1000.0
    page = page_of(
        write_run(
            tmp_path,
            summary,
            metrics_of(sites),
            [{"prompt": evil, "base": "</p></main>" + evil, "tuned": "half \ud800 a letter"}],
            plan=f"name: {evil}\n# </code></pre></details>\n",
        )
    )
    assert page.text.count("alert(") > 8
    assert evil in page.text


def test_an_unknown_scheme_is_called_unprotected_and_escaped(tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path, summary_of(scheme="<b>rot13</b>")))
    assert "treat it as unprotected" in page.text
    assert "'<b>rot13</b>'" in page.text


@pytest.mark.parametrize(
    ("scheme", "told"),
    [
        (
            "plain",
            [
                "Protection: None: the coordinator could read every update",
                "no protection of one site's update",
                "not encrypted",
            ],
        ),
        (
            "ckks",
            [
                "any one site together with the coordinator could read the updates of every site",
                "Every site, however, holds the one key of a session",
                "semi-honest",
                "a malicious one could return one site's ciphertext as 'the sum'",
                "openings carry no CKKS noise",
            ],
        ),
        (
            "rlwe",
            [
                "only the sum over one agreed set of sites is meant to be opened",
                "no more sites than the roster declares collude",
                "not something that this run measured",
                "no outside review",
                "post-quantum",
                "Sums over many rounds, very small groups",
            ],
        ),
    ],
)
def test_each_scheme_states_its_limits(tmp_path: Path, scheme: str, told: list[str]) -> None:
    sites = ("a", "b", "c")
    page = page_of(write_run(tmp_path, summary_of(sites, scheme), metrics_of(sites)))
    for words in told:
        assert words in page.text
    for words in (
        "no differential privacy",
        "membership inference",
        "which sites take part, when, how large their messages are",
        "whoever controls that machine sees everything",
    ):
        assert words in page.text
    parties = [
        table for table in page.tables if table[0] == ["Party", "Could read", "Could not read"]
    ]
    assert [row[0] for row in parties[0][1:]] == [
        "The coordinator alone",
        "One site",
        "One site together with the coordinator",
        "Anyone who holds the adapter",
    ]
    warned = any("banner warn" in (attributes.get("class") or "") for _, attributes in page.tags)
    assert warned == (scheme == "plain")


@pytest.mark.parametrize("scheme", ["plain", "ckks", "rlwe"])
@pytest.mark.parametrize(
    ("unit", "what"), [("example", "one training row"), ("site", "one site's whole contribution")]
)
def test_what_differential_privacy_bounds_and_what_not(
    tmp_path: Path, scheme: str, unit: str, what: str
) -> None:
    sites = ("a", "b", "c")
    summary = summary_of(sites, scheme)
    summary["privacy"] = {
        "unit": unit,
        "epsilon": 3.14159,
        "delta": 1e-6,
        "mechanism": "some noise",
        "noise_multiplier": 1.25,
        "clip_norm": 0.5,
        "uploads": 2,
    }
    rows = [row | {"epsilon": 1.5 + row["round"]} for row in metrics_of(sites)]
    page = page_of(write_run(tmp_path, summary, rows))
    assert "no differential privacy" not in page.text
    assert f"tells about {what} (epsilon 3.14 at delta 1e-06, for each {unit})" in page.text
    assert f"What depends on {what}, beyond epsilon 3.14 at delta 1e-06" in page.text
    assert "not many rows or sites together" in page.text
    assert "noise multiplier 1.25, clip norm 0.5, 2 uploads counted" in page.text
    (rounds,) = (table for table in page.tables if "Epsilon" in table[0])
    assert [row[-1] for row in rounds[1:]] == ["2.5", "3.5"]
    assert "; epsilon of all rounds so far, of the site that has spent most" in page.text


def test_plain_never_speaks_of_encrypting(tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path, summary_of(scheme="plain")))
    assert page.row("encrypt")[0] == "writing updates as readable bytes, not encrypted"
    assert "encrypting" not in page.text.lower()


def test_an_incomplete_run_says_so(tmp_path: Path) -> None:
    metrics = metrics_of(rounds=3)[:-1]  # round 3 of 5 was cut off after one of two sites
    page = page_of(write_run(tmp_path, summary_of(rounds=2, planned=5), metrics))
    assert "This run is incomplete. It completed 2 of 5 planned rounds." in page.text
    assert "in 2 of 5 planned rounds" in page.text
    assert "1 row in metrics.jsonl belongs to no completed round and is left out here." in page.text
    assert "the plan lists no prompts, or the run stopped" in page.text


def test_a_run_without_a_completed_round(tmp_path: Path) -> None:
    summary = summary_of(rounds=0, planned=3)
    summary["final_heldout_loss"] = {}
    page = page_of(write_run(tmp_path, summary, []))
    assert "It completed 0 of 3 planned rounds. No sum of updates was opened" in page.text
    assert page.row("hospital")[:3] == ["4.000", "not recorded", "not recorded"]


def test_no_answers_means_no_prompts_in_the_plan(tmp_path: Path) -> None:
    assert "The plan lists no prompts" in page_of(write_run(tmp_path)).text


def test_answers_stand_side_by_side(tmp_path: Path) -> None:
    answers = [{"prompt": "What?", "base": "line 1\nline 2", "tuned": ""}]
    text = page_of(write_run(tmp_path, answers=answers)).text
    assert re.search(r"Prompt\s*What\? Before: base model\s*line 1 line 2 After", text)
    assert re.search(r"After: with the adapter\s*\(empty answer\)", text)
    assert "not a measurement" in text


def test_an_answer_that_did_not_end_is_said_to_be_cut(tmp_path: Path) -> None:
    answer = {"prompt": "Q?", "base": "on and on", "tuned": "ok", "max_new_tokens": 24}
    text = page_of(write_run(tmp_path, answers=[answer | {"cut": ["base"]}])).text
    assert re.search(r"on and on\s*cut at 24 tokens", text)
    assert text.count("cut at") == 1


@pytest.mark.parametrize(("count", "rounds"), [(1, 1), (1, 3), (2, 1), (16, 2), (40, 30)])
def test_any_number_of_sites_and_rounds(tmp_path: Path, count: int, rounds: int) -> None:
    sites = tuple(f"site-{index:02}" for index in range(count))
    page = page_of(
        write_run(tmp_path, summary_of(sites, "ckks", rounds), metrics_of(sites, rounds))
    )
    for site in sites:
        assert page.row(site)
    assert ("nothing to add to" in page.text) == (count == 1)
    assert ("by subtracting its own" in page.text) == (count == 2)
    warned = any("banner warn" in (attributes.get("class") or "") for _, attributes in page.tags)
    assert warned == (count <= 2)
    assert any("Mean, as recorded" in row for table in page.tables for row in table) == (count > 1)


def test_sites_with_the_same_loss_are_all_labelled(tmp_path: Path) -> None:
    summary = summary_of()
    metrics = [{**row, "heldout_loss_after": 2.0} for row in metrics_of()]
    text = write_report(write_run(tmp_path, summary, metrics)).read_text(encoding="utf-8")
    for site in ("hospital", "bank", "mean"):
        assert text.count(f">{site}  2.000<") == 2


def test_losses_that_are_not_numbers_are_not_recorded(tmp_path: Path) -> None:
    summary = summary_of()
    summary["final_heldout_loss"] = {"sites": {"hospital": math.nan, "bank": 3.1}, "mean": math.nan}
    metrics = metrics_of()
    for row in metrics:
        if row["site"] == "hospital":
            row["heldout_loss_after"] = math.nan
            row["train_loss"] = math.inf
    page = page_of(write_run(tmp_path, summary, metrics))
    assert page.row("hospital")[:4] == ["4.000", "not recorded", "not recorded", "not recorded"]
    assert page.row("bank")[:3] == ["4.100", "3.100", "−1.000"]
    assert page.row("1")[3:5] == ["not recorded", "not recorded"]


def test_a_loss_that_rose_is_said_to_have_risen(tmp_path: Path) -> None:
    summary = summary_of()
    summary["final_heldout_loss"] = {"sites": {"hospital": 4.5, "bank": 3.1}, "mean": 4.1}
    text = page_of(write_run(tmp_path, summary)).text
    assert "higher by 0.050 (+1 %)" in text
    assert "The loss rose at: hospital." in text


def test_only_what_is_there_is_told(tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path, {}, [], []))
    assert "No times by phase were recorded." in page.text
    assert "Skipped rows: not recorded for every site." in page.text
    assert "No held-out loss was recorded" in page.text
    for key in summary_of():
        summary = summary_of()
        del summary[key]
        page_of(write_run(tmp_path, summary))


def test_the_later_row_of_a_repeated_round_counts(tmp_path: Path) -> None:
    metrics = metrics_of()
    repeated = [{**row, "train_loss": 1.25} for row in metrics[:2]]
    page = page_of(write_run(tmp_path, metrics=[*metrics, *repeated]))
    assert page.row("1")[3] == "1.250"


def test_a_metrics_file_cut_short_is_read_up_to_there(tmp_path: Path) -> None:
    write_run(tmp_path)
    with (tmp_path / "metrics.jsonl").open("a", encoding="utf-8") as stream:
        stream.write('{"round": 3, "si')
    assert page_of(tmp_path).row("2")
    with (tmp_path / "metrics.jsonl").open("a", encoding="utf-8") as stream:
        stream.write("\n{}\n")
    with pytest.raises(RunFolderError, match=r"metrics\.jsonl: .* line 5"):
        write_report(tmp_path)


@pytest.mark.parametrize("name", ["summary.json", "metrics.jsonl", "plan.yaml"])
def test_a_missing_file_is_named_and_the_old_report_kept(tmp_path: Path, name: str) -> None:
    before = write_report(write_run(tmp_path)).read_bytes()
    (tmp_path / name).unlink()
    with pytest.raises(RunFolderError, match=re.escape(name)) as caught:
        write_report(tmp_path)
    assert str(tmp_path) not in str(caught.value)
    assert (tmp_path / "report.html").read_bytes() == before


@pytest.mark.parametrize(("name", "text"), [("summary.json", "[]"), ("answers.json", "{}")])
def test_a_file_of_the_wrong_shape_is_named(tmp_path: Path, name: str, text: str) -> None:
    write_run(tmp_path, answers=[])
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(RunFolderError, match=re.escape(name)):
        write_report(tmp_path)


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        ([], []),
        ([50.0], [50.0]),
        ([50.0, 50.0], [45.0, 55.0]),
        ([0.0, 1.0], [0.0, 10.0]),
        ([99.0, 100.0], [90.0, 100.0]),
        ([10.0, 50.0, 52.0], [10.0, 46.0, 56.0]),
    ],
)
def test_labels_move_apart_and_stay_inside(places: list[float], expected: list[float]) -> None:
    assert figures.spread(places, 10.0, 100.0) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (999_499, "999 kB"),
        (999_500, "1.00 MB"),
        (12_345_678, "12.3 MB"),
        (1_360_000_000, "1.36 GB"),
        (5e15, "5,000 TB"),
        (None, "not recorded"),
        (math.nan, "not recorded"),
        (True, "not recorded"),
    ],
)
def test_bytes_in_human_units(size: Any, words: str) -> None:
    assert units.human_bytes(size).replace(units.SPACE, " ") == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"),
        (0.0042, "4.2 ms"),
        (9.994, "9.99 s"),
        (59.97, "1 min 0 s"),
        (75, "1 min 15 s"),
        (3599.6, "1 h 0 min"),
        (7300, "2 h 2 min"),
        (None, "not recorded"),
    ],
)
def test_seconds_in_human_units(seconds: Any, words: str) -> None:
    assert units.human_seconds(seconds).replace(units.SPACE, " ") == words


@pytest.mark.parametrize(
    ("part", "whole", "words"),
    [(53, 100, "53 % of"), (4, 4, "100 % of"), (81, 4, "20 times"), (1, 0, "not recorded")],
)
def test_ratios(part: float, whole: float, words: str) -> None:
    assert units.ratio(part, whole).replace(units.SPACE, " ") == words


@pytest.mark.parametrize(("engine", "at_once"), [("inprocess", False), ("flare", True)])
def test_sites_that_took_turns_are_not_said_to_work_at_the_same_time(
    tmp_path: Path, engine: str, at_once: bool
) -> None:
    page = page_of(write_run(tmp_path, summary_of() | {"engine": engine}))
    assert ("where sites work at the same time" in page.text) == at_once
    assert "by waiting and writing" in page.text
