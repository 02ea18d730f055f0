"""Each party's verdict says what its number shows, and of a failed attack that it shows nothing."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

import pytest

from fedshield.audit import page, statements
from fedshield.audit.findings import Audit, Finding
from fedshield.audit.stats import Measure
from fedshield.audit.verdicts import NO_EVIDENCE, NOTHING_FOUND, READS, Verdict, verdicts

GUESS, CHANCE = 0.30, 0.25


def share(setting: str, party: str, value: float, chance: float = CHANCE) -> Finding:
    measure = Measure(value, max(0.0, value - 0.03), min(1.0, value + 0.03), 300, chance)
    return Finding("tokens", setting, party, statements.SHARE, measure)


def opened(setting: str, party: str, hits: int, tries: int) -> Finding:
    measure = Measure(hits / tries, 0.0, 1.0, tries)
    return Finding("opening", setting, party, statements.OPEN, measure)


def after_release(attack: str, what: str, value: float, low: float, chance: float) -> Finding:
    measure = Measure(value, low, 1.0, 100, chance)
    return Finding(attack, "any", "holder of the released adapter", what, measure)


def audit_of(*findings: Finding, scheme: str = "rlwe", sites: int = 3, **more: Any) -> Audit:
    settings = {"planned_rounds": 1, "pruning": ["none"]} | more.pop("settings", {})
    guess = Finding(
        "tokens",
        "any",
        statements.WITHOUT_A_VIEW,
        statements.SHARE,
        Measure(GUESS, 0.28, 0.32, 300, CHANCE),
        note="guessed by how frequent tokens are in the built-in public samples",
    )
    given = {"colluding": 1, "threshold": 2} | more
    return Audit(
        name="x", plan_sha256="0" * 64, run_scheme=scheme, model={"name": "m", "sha256": "0" * 64},
        sites=tuple("abcdef"[:sites]), rounds=1, settings=settings, findings=(guess, *findings),
        **given,
    )  # fmt: skip


def of(audit: Audit, party: str) -> Verdict:
    (verdict,) = (row for row in verdicts(audit) if row.party == party)
    return verdict


@pytest.mark.parametrize(
    ("clear", "hidden", "tone", "said"),
    [
        (0.9, 0.25, NOTHING_FOUND, "as from random numbers"),
        (0.9, 0.15, NO_EVIDENCE, "worse than guessing"),
        (0.9, 0.40, READS, "find out why"),
        # Where the attack does not beat a guess in the clear, its failure shows nothing.
        (0.32, 0.25, NO_EVIDENCE, "does not work here in the clear"),
        (0.10, 0.25, NO_EVIDENCE, "does not work here in the clear"),
    ],
)
def test_what_the_coordinator_sees_of_ciphertexts(
    clear: float, hidden: float, tone: str, said: str
) -> None:
    audit = audit_of(share("plain", "server", clear), share("rlwe", "server", hidden))
    verdict = of(audit, "The coordinator")
    assert verdict.tone == tone
    assert said in verdict.text
    assert ("No evidence" in verdict.title) == (tone == NO_EVIDENCE)
    assert "protected" not in verdict.title.lower()


def test_ciphertexts_that_tell_the_silo_are_more_than_chance() -> None:
    def named(value: float) -> Finding:
        measure = Measure(value, value - 0.05, value + 0.05, 40, chance=0.5)
        return Finding("properties", "rlwe", "server", statements.SILO, measure)

    tokens = share("plain", "server", 0.9), share("rlwe", "server", 0.25)
    told = of(audit_of(*tokens, named(0.8)), "The coordinator")
    assert (told.title, told.tone) == ("More than chance", READS)
    assert "named the site of 80\N{NO-BREAK SPACE}% (75 to 85\N{NO-BREAK SPACE}%)" in told.text
    assert of(audit_of(*tokens, named(0.5)), "The coordinator").tone == NOTHING_FOUND


def test_without_the_control_there_is_no_evidence() -> None:
    verdict = of(audit_of(share("rlwe", "server", 0.25)), "The coordinator")
    assert verdict.tone == NO_EVIDENCE
    assert "not tried without protection" in verdict.text


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0.8, "a guess names 30\N{NO-BREAK SPACE}%."),
        (0.31, "no better than guessing, which is no evidence"),
        (0.1, "worse than guessing, which is no evidence"),
    ],
)
def test_plain_and_open_sums_are_read_whatever_the_attack_made_of_them(
    value: float, said: str
) -> None:
    plain = of(audit_of(share("plain", "server", value), scheme="plain"), "The coordinator")
    assert (plain.title, plain.tone) == ("Reads every update", READS)
    total = share("rlwe", "server, of the sum", value)
    audit = audit_of(total, settings={"open_to": "server"})
    summed = of(audit, "The coordinator")
    assert (summed.title, summed.tone) == ("Reads every sum", READS)
    alone = of(audit_of(share("rlwe", "any one site, alone", value)), "Any one other site")
    for verdict in (plain, summed, alone):
        assert said in verdict.text


def test_who_opens_single_updates() -> None:
    closed = audit_of(
        opened("rlwe", "server with 1 site", 0, 4), opened("rlwe", "server with 2 sites", 2, 2)
    )
    verdict = of(closed, "The coordinator with 1 site")
    assert (verdict.title, verdict.tone) == ("Opened no single update", NOTHING_FOUND)
    assert "0 of 4" in verdict.text
    assert "With 2 sites, which is beyond the promise, 2 of 2." in verdict.text
    broken = of(audit_of(opened("rlwe", "server with 1 site", 1, 4)), "The coordinator with 1 site")
    assert (broken.title, broken.tone) == ("Opens single updates", READS)
    nothing = audit_of(opened("rlwe", "server with 1 site", 0, 4), colluding=0)
    assert of(nothing, "The coordinator with 1 site").tone == NO_EVIDENCE
    ckks = audit_of(opened("ckks", "server with 1 site", 4, 4), scheme="ckks")
    assert of(ckks, "The coordinator with any one site").title == "Reads every update"


def test_with_two_sites_each_reads_the_other() -> None:
    audit = audit_of(opened("rlwe", "server with 1 site", 0, 2), sites=2, colluding=0)
    assert of(audit, "The other site").title == "Reads the other's update"
    assert of(audit, "The coordinator with 1 site").title == "Reads the other's update"


@pytest.mark.parametrize(("low", "tone"), [(0.48, NO_EVIDENCE), (0.6, READS)])
def test_the_holder_of_the_adapter(low: float, tone: str) -> None:
    audit = audit_of(
        after_release("membership", "AUC, loss", 0.4, 0.3, 0.5),
        after_release("membership", "AUC, shadow", 0.7, low, 0.5),
        after_release("canaries", "exposure, secrets 16 times", 3.0, 4 * (low - 0.2), 1.44),
    )
    members, secrets = verdicts(audit)[-2:]
    assert (members.tone, secrets.tone) == (tone, tone)
    assert "best of 2 signals, chosen after the fact" in members.text
    assert "no differential privacy bounds it" in members.text
    text = " ".join(statements.not_protected(audit))
    assert text.count("no evidence either way") == (2 if tone == NO_EVIDENCE else 0)
    private = audit_of(
        after_release("membership", "AUC, loss", 0.7, low, 0.5),
        privacy={"unit": "site", "epsilon": 3.5, "delta": 1e-5, "uploads": 1, "mechanism": "noise",
                 "noise_multiplier": 1.0, "clip_norm": 1.0, "neighbours": "sites"},
    )  # fmt: skip
    assert verdicts(private)[-1].text.endswith("for each site, by epsilon 3.5 at delta 1e-05.")


@pytest.mark.parametrize(("unit", "more"), [("example", ", and not what many rows"), ("site", "")])
def test_a_bound_for_each_row_is_none_for_a_secret_of_many(unit: str, more: str) -> None:
    audit = audit_of(
        after_release("canaries", "exposure, secrets 16 times", 3.0, 2.0, 1.44),
        privacy={"unit": unit, "epsilon": 3.5, "delta": 1e-5},
    )
    text = verdicts(audit)[-1].text
    assert f"for each {unit}, by epsilon 3.5 at delta 1e-05{more}" in text
    assert text.endswith(" have in common." if more else "1e-05.")


@pytest.mark.parametrize(("low", "tone"), [(2.0, NO_EVIDENCE), (2.3, READS)])
def test_repeated_secrets_show_only_beyond_secrets_that_were_planted_nowhere(
    low: float, tone: str
) -> None:
    """A handful of secrets that no row has may have more than the 1.44 bits that they have on
    average: what was planted must beat what was not, measured the same way."""
    audit = audit_of(
        after_release("canaries", "exposure, secrets 0 times in a site's rows", 2.15, 0.9, 1.44),
        after_release("canaries", "exposure, secrets 16 times in a site's rows", 3.4, low, 1.44),
    )
    verdict = verdicts(audit)[-1]
    assert verdict.tone == tone
    assert "Secrets that no row has: 2.15 [0.90, 1.00], chance 1.44." in verdict.text
    assert ("no evidence that none are kept" in verdict.text) == (tone == NO_EVIDENCE)
    (line,) = [text for text in statements.not_protected(audit) if "repeated secrets" in text]
    assert "Secrets that no row has: 2.15" in line
    assert ("no evidence either way" in line) == (tone == NO_EVIDENCE)


class Shape(HTMLParser):
    """Which tags stand inside which, and the order of headings and verdicts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[tuple[str, str]] = []
        self.tables_unfolded = 0
        self.unlabelled = 0
        self.order: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "table" and "details" not in [name for name, _ in self.open]:
            self.tables_unfolded += 1
        if tag == "td" and not given.get("data-label"):
            self.unlabelled += 1
        if tag == "ul" and given.get("class") == "verdicts":
            self.order.append("verdicts")
        if tag == "h2":
            self.order.append(str(given.get("id")))
        if tag == "details":
            self.order.append("details")
        if tag not in ("meta", "br"):
            self.open.append((tag, ""))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag


def test_the_page_begins_with_verdicts_and_folds_its_tables() -> None:
    audit = audit_of(
        share("plain", "server", 0.9),
        share("rlwe", "server", 0.25),
        history=("This was a demonstration.",),
    )
    text = page.render(audit)
    shape = Shape(text)
    assert shape.order[:3] == ["verdicts", "not", "how"]
    assert shape.tables_unfolded == 0
    # On a phone each cell stands on a line of its own, with its column's name.
    assert shape.unlabelled == 0
    assert re.search(
        r"@media \(max-width: 46rem\).*td::before \{ content: attr\(data-label\)", text, re.S
    )
    assert "Of the run itself: This was a demonstration." in text
    assert "Nothing was measured of any party" in page.render(audit_of(sites=1))
