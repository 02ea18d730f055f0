"""One verdict for each party of the plan as it is, in plain words with the number behind it.

No verdict says 'protected': an attack that finds nothing shows that this attack found nothing, and
one that does no better than a guess where nothing is hidden shows not even that.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedshield.audit import statements
from fedshield.audit.findings import Audit
from fedshield.audit.on_updates import ONE_SITE, SERVER, SERVER_SUM
from fedshield.audit.stats import Measure
from fedshield.report.units import SPACE

#: How a verdict is shown: it reads something; an attack that works found nothing; it shows nothing.
READS, NOTHING_FOUND, NO_EVIDENCE = "reads", "nothing-found", "no-evidence"
HOLDER = "Whoever has the released adapter"


@dataclass(frozen=True)
class Verdict:
    """`title`: three or four words; `text`: a few sentences; `tone`: one of the three above."""

    party: str
    title: str
    text: str
    tone: str


def verdicts(audit: Audit) -> list[Verdict]:
    """Those whose numbers were measured, and those that need none; of the plan's own scheme."""
    rows = [_coordinator(audit), _other_site(audit)]
    if audit.run_scheme != "plain":
        rows.append(_helped(audit))
    return [row for row in (*rows, _membership(audit), _secrets(audit)) if row is not None]


def floor(audit: Audit, measure: Measure) -> float:
    """What a guess gives: the same attack on random numbers, or how frequent tokens are."""
    guess = statements.find(audit, "any", statements.WITHOUT_A_VIEW, statements.SHARE)
    return max(measure.chance or 0.0, guess.measure.value if guess else 0.0)


def works_in_the_clear(audit: Audit) -> bool | None:
    """Whether the token attack beats a guess where nothing is hidden; None if not tried."""
    clear = statements.find(audit, "plain", SERVER, statements.SHARE)
    return None if clear is None else clear.measure.low > floor(audit, clear.measure)


def tokens_named(audit: Audit, measure: Measure) -> str:
    """What a view that is readable told of its texts, or that it is no evidence."""
    guess = floor(audit, measure)
    named = f"The token attack named {percent(measure)} of the text's tokens; a guess names "
    named += f"{100 * guess:.0f}{SPACE}%"
    if measure.low > guess:
        return f"{named}."
    than = "does worse than" if measure.high < guess else "does no better than"
    return (
        f"{named}. So here the attack {than} guessing, which is no evidence that nothing can be "
        "read."
    )


def percent(measure: Measure) -> str:
    """'45 % (40 to 50 %)': a share with its interval."""
    low, high = (100 * value for value in (measure.low, measure.high))
    return f"{100 * measure.value:.0f}{SPACE}% ({low:.0f} to {high:.0f}{SPACE}%)"


# -- the coordinator -------------------------------------------------------------------------


def _coordinator(audit: Audit) -> Verdict | None:
    who = "The coordinator"
    if audit.run_scheme == "plain":
        in_clear = ("noised", "pruned", "plain")
        seen = next(
            filter(None, (statements.find(audit, s, SERVER, statements.SHARE) for s in in_clear)),
            None,
        )
        told = "" if seen is None else f" {tokens_named(audit, seen.measure)}"
        text = f"Nothing is hidden from it under the scheme plain.{told}"
        return Verdict(who, "Reads every update", text, READS)
    if audit.settings.get("open_to") == "server" and audit.run_scheme == "rlwe":
        total = statements.find(audit, "rlwe", SERVER_SUM, statements.SHARE)
        told = "" if total is None else f" {tokens_named(audit, total.measure)}"
        text = f"The plan opens the sum of all updates to it, no single one.{told}"
        return Verdict(who, "Reads every sum", text, READS)
    seen = statements.find(audit, audit.run_scheme, SERVER, statements.SHARE)
    if seen is None:
        return None
    return _from_ciphertexts(audit, who, seen.measure)


def _from_ciphertexts(audit: Audit, who: str, measure: Measure) -> Verdict:
    """Of the token attack, and of the one that names the silo of an update."""
    verdict = _from_tokens(audit, who, measure)
    silo = statements.find(audit, audit.run_scheme, SERVER, statements.SILO)
    if silo is None or not silo.measure.beats_chance:
        return verdict
    text = (
        f"{verdict.text} The silo attack named the site of {percent(silo.measure)} of the updates, "
        f"chance is {100 * (silo.measure.chance or 0.0):.0f}{SPACE}%. Encryption should leave no "
        "difference: find out why."
    )
    return Verdict(who, "More than chance", text, READS)


def _from_tokens(audit: Audit, who: str, measure: Measure) -> Verdict:
    rests = "That it reads no update rests on ring-LWE encryption and the assumptions below."
    named, chance = percent(measure), measure.chance or 0.0
    clear = statements.find(audit, "plain", SERVER, statements.SHARE)
    if measure.beats_chance:
        text = (
            f"From what it sees the token attack named {named} of the text's tokens, from random "
            f"numbers {100 * chance:.0f}{SPACE}%. Encryption should leave no difference: find out "
            "why."
        )
        return Verdict(who, "More than chance", text, READS)
    if clear is None or not works_in_the_clear(audit):
        control = "It was not tried without protection"
        if clear is not None:
            control = (
                f"Without protection it names {percent(clear.measure)}, a guess "
                f"{100 * floor(audit, clear.measure):.0f}{SPACE}%: it does not work here in the "
                "clear either"
            )
        text = f"The token attack named {named} of the text's tokens. {control}. {rests}"
        return Verdict(who, "No evidence either way", text, NO_EVIDENCE)
    assert clear is not None
    if measure.high < chance:
        text = (
            f"The token attack named {named} of the text's tokens, less than from random numbers "
            f"({100 * chance:.0f}{SPACE}%): worse than guessing. {rests}"
        )
        return Verdict(who, "No evidence either way", text, NO_EVIDENCE)
    text = (
        f"The token attack named {named} of the text's tokens, as from random numbers "
        f"({100 * chance:.0f}{SPACE}%); without protection {percent(clear.measure)}. {rests}"
    )
    return Verdict(who, "This attack found nothing", text, NOTHING_FOUND)


# -- sites -------------------------------------------------------------------------------------


def _other_site(audit: Audit) -> Verdict | None:
    if len(audit.sites) < 2:
        return None
    alone = statements.find(audit, "rlwe", ONE_SITE, statements.SHARE)
    told = "" if alone is None else f" {tokens_named(audit, alone.measure)}"
    if len(audit.sites) == 2:
        text = f"With two sites, the sum less its own is the other's, in every round.{told}"
        return Verdict("The other site", "Reads the other's update", text, READS)
    text = (
        "Every site opens every sum: that is what training together is. It has the others' mean "
        f"update, without whose it is.{told}"
    )
    return Verdict("Any one other site", "Reads the sum of the others", text, READS)


def _helped(audit: Audit) -> Verdict | None:
    if audit.run_scheme == "ckks":
        opened = statements.find(audit, "ckks", statements.with_sites(1), statements.OPEN)
        if opened is None:
            return None
        text = f"Every site holds the key. It opened {_of(opened.measure)} single updates."
        return Verdict("The coordinator with any one site", "Reads every update", text, READS)
    count = max(1, audit.colluding)
    opened = statements.find(audit, "rlwe", statements.with_sites(count), statements.OPEN)
    if opened is None:
        return None
    who = f"The coordinator with {count} site{'s' if count > 1 else ''}"
    beyond = statements.find(audit, "rlwe", statements.with_sites(audit.threshold), statements.OPEN)
    limit = ""
    if beyond is not None and audit.threshold > count:
        limit = (
            f" With {audit.threshold} sites, which is beyond the promise, {_of(beyond.measure)}."
        )
    if len(audit.sites) == 2:
        text = "With two sites, the sum less its own is the other's. Nothing is promised here."
        return Verdict(who, "Reads the other's update", text, READS)
    if opened.measure.value > 0:
        text = f"It opened {_of(opened.measure)} single updates of other sites.{limit}"
        return Verdict(who, "Opens single updates", text, READS)
    promise = (
        f"The design promises this while no more than {count} of the sites help it and operators "
        "compared the roster's fingerprint."
        if audit.colluding
        else "The plan promises nothing here (c = 0): these tries failed, others may not."
    )
    text = (
        f"It opened {_of(opened.measure)} single updates of other sites; it has their sum. "
        f"{promise}{limit}"
    )
    tone = NOTHING_FOUND if audit.colluding else NO_EVIDENCE
    return Verdict(who, "Opened no single update", text, tone)


def _of(measure: Measure) -> str:
    return f"{round(measure.value * measure.num_trials)} of {measure.num_trials}"


# -- the adapter -------------------------------------------------------------------------------


def _bound(audit: Audit, *, of_many_rows: bool = False) -> str:
    epsilon = audit.privacy.get("epsilon")
    if epsilon is None:
        return "Encryption does not change this, and no differential privacy bounds it."
    unit = audit.privacy["unit"]
    bound = f"for each {unit}, by epsilon {epsilon:.3g} at delta {audit.privacy['delta']:g}"
    text = f"Encryption does not change this; differential privacy bounds it {bound}"
    return text + (
        ", and not what many rows have in common." if of_many_rows and unit == "example" else "."
    )


def _membership(audit: Audit) -> Verdict | None:
    signals = statements.membership_signals(audit)
    if not signals:
        return None
    best = max(signals, key=lambda finding: finding.measure.value)
    area = (
        f"The best of {len(signals)} signals, chosen after the fact, tells trained rows from "
        f"others with an area under the curve of {statements.number(best.measure)}."
    )
    if best.measure.low <= 0.5:
        text = f"{area} That is no better than guessing, and no evidence that none can. "
        return Verdict(HOLDER, "No evidence either way", text + _bound(audit), NO_EVIDENCE)
    return Verdict(HOLDER, "May tell who was in the data", f"{area} {_bound(audit)}", READS)


def _secrets(audit: Audit) -> Verdict | None:
    most = statements.most_repeated(audit)
    if most is None:
        return None
    bits = f"{most.what.capitalize()}: {statements.number(most.measure)}, in bits."
    bits += statements.never_planted(audit)
    bound = _bound(audit, of_many_rows=True)
    if most.measure.low <= statements.unplanted_bits(audit):
        bits += " That is no better than for a secret never planted, and no evidence that none are "
        return Verdict(HOLDER, "Secrets: no evidence", f"{bits}kept. {bound}", NO_EVIDENCE)
    return Verdict(HOLDER, "Repeated secrets show", f"{bits} {bound}", READS)
