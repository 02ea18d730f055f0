"""What an audit says in words: who learns what under which assumption, and what is not protected.

Every sentence is scoped: it names a party and a scheme, and has a number of this audit behind it or
a source. A sentence whose number was not measured is not said.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fedshield.audit.findings import Audit, Finding
from fedshield.audit.on_updates import ONE_SITE, SERVER, SERVER_SUM
from fedshield.audit.stats import Measure

SHARE = "share of the text's tokens that are named"
SILO = "updates whose silo is named rightly"
OPEN = "single updates of other sites that open"
READ = "rows that are read word for word"
CONTROL = "exposure, secrets 0 times"
WITHOUT_A_VIEW = "anyone, without a view"


@dataclass(frozen=True)
class Learns:
    """One row of 'who learns what'. `evidence`: numbers of this audit."""

    scheme: str
    party: str
    learns: str
    assumption: str
    evidence: str


def number(measure: Measure) -> str:
    """'0.67 [0.60, 0.74]', with what chance gives."""
    text = f"{measure.value:.2f} [{measure.low:.2f}, {measure.high:.2f}]"
    return text if measure.chance is None else f"{text}, chance {measure.chance:.2f}"


def find(audit: Audit, setting: str, party: str, what: str) -> Finding | None:
    """The one finding of that name, if it was measured."""
    for one in audit.findings:
        if (one.setting, one.party) == (setting, party) and one.what.startswith(what):
            return one
    return None


def who_learns_what(audit: Audit) -> list[Learns]:
    """A row for each party that was tried, with its numbers."""
    rows = [
        Learns("plain", SERVER, "Every site's update, and from it what attacks on updates give.",
               "None: nothing is hidden from it.", _evidence(audit, "plain", SERVER)),
        Learns("pruning alone", SERVER, "Every kept value of every site's update.",
               "None: pruning hides nothing from it; it leaves values out.",
               _evidence(audit, "pruned", SERVER)),
        Learns("differential privacy alone", SERVER, "Every noised value of every site's update.",
               "None: noise bounds what an update tells of one row, and hides nothing else.",
               _evidence(audit, "noised", SERVER)),
        Learns("ckks", SERVER, "Who sends, when, and how many bytes; no value.",
               "It follows the protocol and no site helps it; ring-LWE at the named parameters.",
               _evidence(audit, "ckks", SERVER)),
        Learns("ckks", with_sites(1), "Every other site's update.",
               "None: every site holds the run's key.", _evidence(audit, "ckks", with_sites(1))),
    ]  # fmt: skip
    c, t = max(1, audit.colluding), audit.threshold
    two = len(audit.sites) == 2
    opens = audit.settings.get("open_to") == "server"
    sees = "Who sends, when, and how many bytes; no value, not even the sum."
    if opens:
        sees = "Who sends, when, how many bytes, and the sum of every round; no single update."
    follows = ""
    if audit.settings.get("server") == "semi-honest":
        follows = "It follows the protocol, as `server: semi-honest` says: there are no votes. "
    helped = "The sum over the other sites of the one opened set; no single update."
    bound = f"No more sites than c = {audit.colluding} collude; operators compared the roster's "
    bound += "fingerprint; and as above."
    if two:
        helped = "The other site's update: the sum less its own. This is beyond the promise."
    bound = follows + bound
    if audit.colluding == 0:
        bound = "None: c = 0 promises nothing once a site helps the server."
    others = (
        "The other site's update, every round: the sum less its own."
        if two
        else "The mean update of all other sites together, every round, and from it tokens of "
        "their texts, without whose they are."
    )
    rows += [
        Learns("rlwe", SERVER, sees, follows + "Ring-LWE, ML-KEM-768 or X25519, and the other "
               "primitives of SECURITY.md; fresh randomness.", _evidence(audit, "rlwe", SERVER)),
        Learns("rlwe", SERVER_SUM, "The mean update of all sites, every round, and from it tokens "
               "of their texts, without whose they are.",
               "None: the plan opens each sum to the server (`open_to: server`).",
               _evidence(audit, "rlwe", SERVER_SUM)),
        Learns("rlwe", with_sites(c), helped, bound, _evidence(audit, "rlwe", with_sites(c))),
        Learns("rlwe", with_sites(t), "Every other site's update: this is beyond the promise.",
               f"T = {t} or more sites collude.", _evidence(audit, "rlwe", with_sites(t))),
        Learns("every scheme", ONE_SITE, others,
               "None: every site opens the sum; that is what training together is.",
               _evidence(audit, "rlwe", ONE_SITE)),
    ]  # fmt: skip
    return [row for row in rows if row.evidence]


def with_sites(count: int) -> str:
    """The party's name: the server with so many sites."""
    return f"server with {count} site{'s' if count != 1 else ''}"


def _evidence(audit: Audit, setting: str, party: str) -> str:
    parts = [
        (OPEN, "updates opened"),
        (SHARE, "tokens named"),
        (READ, "rows read word for word"),
        (SILO, "silo named"),
    ]
    found = [(find(audit, setting, party, what), words) for what, words in parts]
    return "; ".join(f"{words} {number(one.measure)}" for one, words in found if one)


def how_to_read(audit: Audit) -> Iterator[str]:
    """What a number is to be compared with, and where one shows less than it seems to."""
    clear = find(audit, "plain", SERVER, SHARE)
    guessed = find(audit, "any", WITHOUT_A_VIEW, SHARE)
    if clear is None:
        return
    yield (
        "Chance, for tokens, is what the same attack makes of random numbers of the same size. It "
        "is no half and no zero: some tokens are in most texts. It is measured on one draw of "
        "them: a number a little above or below it, by about its interval, tells nothing."
    )
    floor = clear.measure.chance or 0.0
    if guessed is not None:
        floor = max(floor, guessed.measure.value)
        yield (
            f"With no view at all, {guessed.note}, anyone names a share of "
            f"{number(guessed.measure)}. A view tells something only beyond that."
        )
    if clear.measure.low <= floor:
        yield (
            f"Without any protection the token attack names a share of {number(clear.measure)}: no "
            "more of this plan's texts than a guess names. So its failure under "
            "encryption is no evidence for encryption in this run: that rests on the assumptions "
            "in the table, and on docs/results/privacy.md, where the same attack reads the "
            "updates of other settings."
        )
    if audit.privacy.get("unit") != "site" and any(
        one.setting == "any" and one.attack in ("membership", "canaries") for one in audit.findings
    ):
        yield (
            "Attacks on the released adapter were made on one that was trained without encryption: "
            "it is the adapter of every scheme, up to the rounding of its integers."
        )
    silo, hidden = find(audit, "plain", SERVER, SILO), find(audit, "rlwe", SERVER, SILO)
    if silo is not None and hidden is not None and silo.measure.beats_chance:
        yield (
            f"Which silo an update comes from: {number(silo.measure)} without protection, "
            f"{number(hidden.measure)} from what the server has under rlwe."
            + (
                " Less than chance is worse than guessing, and no evidence of anything."
                if hidden.measure.high < (hidden.measure.chance or 0.0)
                else ""
            )
        )


def not_protected(audit: Audit) -> Iterator[str]:
    """What no scheme here protects, each with its number or its source."""
    two = len(audit.sites) == 2
    guess = find(audit, "any", WITHOUT_A_VIEW, SHARE)
    guessed = guess.measure.value if guess else 0.0
    alone = find(audit, "rlwe", ONE_SITE, SHARE)
    if alone:
        yield (
            "From the other sites: the sum. Of the tokens of the other sites' texts of a round one "
            f"site alone named a share of {number(alone.measure)}."
            + _no_evidence(alone.measure, guessed)
            + (" With two sites the sum less one's own is the other's." if two else "")
        )
    total = find(audit, "rlwe", SERVER_SUM, SHARE)
    if total:
        yield (
            "From the coordinator: the sum of every round, which the plan opens to it (`open_to: "
            f"server`). Of the tokens of all sites' texts it named {number(total.measure)}."
            + _no_evidence(total.measure, guessed)
        )
    colluding = find(audit, "ckks", with_sites(1), OPEN)
    if colluding:
        which = "" if audit.run_scheme == "ckks" else ", which this plan does not use"
        yield (
            f"Under ckks{which}, from any site that helps the server: everything "
            f"(updates opened {number(colluding.measure)})."
        )
    beyond = find(audit, "rlwe", with_sites(audit.threshold), OPEN)
    if beyond:
        yield (
            f"Under rlwe, from {audit.threshold} or more sites that help the server: everything "
            f"(updates opened {number(beyond.measure)})."
        )
    member = membership_signals(audit)
    if member:
        best = max(member, key=lambda one: one.measure.value)
        signal = best.what.partition(", ")[2]
        sure = find(audit, best.setting, best.party, f"TPR at 1 % FPR, {signal}")
        named = ""
        if sure is not None:
            named = (
                f" At about 1 % of wrong alarms it names a share of {number(sure.measure)} of the "
                "trained rows."
            )
        yield (
            "From holders of the released adapter: whether a text was trained on. The best of "
            f"{len(member)} signals ({signal}) has AUC {number(best.measure)}; the best is chosen "
            f"after the fact.{named}{_no_evidence(best.measure)} Encryption does not change this; "
            "differential privacy does (docs/results/privacy.md)."
        )
    most = most_repeated(audit)
    if most is not None:
        yield (
            f"From holders of the released adapter: repeated secrets. {most.what.capitalize()}: "
            f"{number(most.measure)}, in bits ({most.note}).{never_planted(audit)}"
            + (
                ""
                if most.measure.low > unplanted_bits(audit)
                else " That is no better than for a secret never planted: no evidence either way."
            )
        )
    epsilon = audit.privacy.get("epsilon")
    if epsilon is None:
        yield "No differential privacy in this plan: what the adapter gives away has no bound."
    else:
        yield (
            f"Differential privacy bounds what the sums and the adapter tell about one "
            f"{audit.privacy['unit']} (epsilon {epsilon:.3g}, delta {audit.privacy['delta']:g}), "
            "does not make it nothing, and says nothing about what many have in common "
            "(docs/privacy.md)."
        )
    yield "From the coordinator: who takes part, when, sizes, accept or reject (SECURITY.md)."
    yield (
        "Over many rounds sums can single out a site, of one set of sites by side knowledge, of "
        "several sets by subtraction (So et al., arXiv 2106.03328): not measured here."
    )
    yield (
        "Attacks only get better: a number at chance says that these attacks found nothing, not "
        "that none can. Against the encrypting schemes it is their assumption that says so."
    )


def _no_evidence(measure: Measure, guessed: float = 0.0) -> str:
    """Said of an attack that a guess does not lose to."""
    guess = max(measure.chance or 0.0, guessed)
    if measure.low > guess:
        return ""
    than = "worse than" if measure.high < guess else "no better than"
    return f" That is {than} guessing ({guess:.2f}): no evidence either way."


def membership_signals(audit: Audit) -> list[Finding]:
    """The area under the curve of each signal of membership."""
    return [
        finding
        for finding in audit.findings
        if finding.attack == "membership" and finding.what.startswith("AUC")
    ]


def most_repeated(audit: Audit) -> Finding | None:
    """The exposure of the secrets that were planted most often."""
    shown = [finding for finding in audit.findings if finding.what.startswith("exposure")]
    return shown[-1] if shown else None


def unplanted_bits(audit: Audit) -> float:
    """What the exposure of a planted secret must exceed to show anything: that of secrets which no
    row has, as measured, and their mean in theory."""
    most, control = most_repeated(audit), _control(audit)
    chance = (most.measure.chance or 0.0) if most is not None else 0.0
    return max(chance, control.measure.value if control is not None else 0.0)


def _control(audit: Audit) -> Finding | None:
    """The exposure of secrets that were planted nowhere."""
    return next((one for one in audit.findings if one.what.startswith(CONTROL)), None)


def never_planted(audit: Audit) -> str:
    """What a planted secret's exposure is to be compared with, one sentence after a space."""
    control = _control(audit)
    if control is None:
        return ""
    return f" Secrets that no row has: {number(control.measure)}."


def privacy_line(audit: Audit) -> str:
    """Epsilon and delta, or that there are none."""
    if "epsilon" not in audit.privacy:
        return "none in this plan: no epsilon and no delta"
    found = audit.privacy
    return (
        f"of each {found['unit']}: epsilon {found['epsilon']:.4g} at delta {found['delta']:g} "
        f"after {found['uploads']} rounds; {found['mechanism']}; noise multiplier "
        f"{found['noise_multiplier']:.4g}, clip norm {found['clip_norm']:g}; neighbours: "
        f"{found['neighbours']}"
    )
