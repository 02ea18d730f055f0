"""What happened in a run: the one value that the run report, the privacy report, the model card and
the command line take their sentences from.

It is read from summary.json. What a run did not record is empty or None here, and no sentence is
made of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedshield.plan.sections import traits_of
from fedshield.report import units
from fedshield.report.folder import mapping, sequence

#: summary.json's `parties`.
DEMONSTRATION, ENROLLED, APART = "demonstration", "enrolled", "apart"
_ENDINGS = {
    "finished": "ran to the end",
    "interrupted": "was interrupted",
    "failed": "failed",
    "": "ended without a record, as after a kill",
}
#: The same where a site tells: it hears of a run's end, not of what stopped a session.
_ENDINGS_AT_A_SITE = _ENDINGS | {"": "stopped; what stopped it was not told to this site"}


@dataclass(frozen=True)
class Session:
    """One stretch of a run, from where it began or was resumed. `ended`: '' if nobody wrote it."""

    started: str
    ended: str
    how: str
    reason: str


@dataclass(frozen=True)
class Facts:
    """What is known of a run.

    `parties`: DEMONSTRATION, ENROLLED (an enrolled roster, all keys on one machine), APART
    (each party with a kit of its own) or '' if not recorded. `own_site`: whose figures these
    are, '' for all sites'. `lost_sites`: site -> when and why. `absent`: site -> rounds whose
    sum is without it. `exposed`: sites whose updates can be had by subtracting this run's sums
    and others', and `exposed_noised` those of whom that holds with their noise. `fewest`: the
    least number of sites in a sum. `max_colluding`: None without a threshold. `fewest` and
    `resumed` are None if not recorded.
    """

    parties: str
    engine: str
    own_site: str
    sites: tuple[str, ...]
    scheme: str
    open_to: str
    weights: str
    train: str
    max_colluding: int | None
    quorums_in_words: str
    #: Whether sums are over the whole roster (`fixed`), whole batches of it
    #: (`batches`), or any set (`open`); '' where not known.
    membership: str
    privacy: Mapping[str, Any]
    rounds: int
    rounds_planned: int
    ended_early: str
    lost_sites: Mapping[str, str]
    absent: Mapping[str, tuple[int, ...]]
    exposed: tuple[str, ...]
    exposed_noised: tuple[str, ...]
    fewest: int | None
    sessions: tuple[Session, ...]
    resumed: int | None
    notes: tuple[str, ...]
    model: str

    @property
    def one_machine(self) -> bool:
        """Whether it is recorded that all parties ran on one machine."""
        return self.parties in (DEMONSTRATION, ENROLLED)

    @property
    def incomplete(self) -> bool:
        return self.rounds < self.rounds_planned


def of_summary(summary: Mapping[str, Any]) -> Facts:
    """The facts of summary.json, whatever of it is there."""
    model, rules = mapping(summary.get("model")), mapping(summary.get("quorums"))
    scheme = str(summary.get("scheme") or "")
    traits = traits_of(scheme)
    colluding = units.number(rules.get("max_colluding")) if traits.one_time_keys else None
    rounds = int(units.number(summary.get("rounds")) or 0)
    fewest, resumed = (units.number(summary.get(key)) for key in ("fewest_in_a_sum", "resumed"))
    note = f" ({model['note']})" if model.get("note") else ""
    return Facts(
        parties=str(summary.get("parties") or ""),
        engine=str(summary.get("engine") or ""),
        own_site=str(summary.get("figures_of") or ""),
        sites=tuple(str(site) for site in sequence(summary.get("sites"))),
        scheme=scheme,
        open_to=str(summary.get("open_to") or "peers"),
        weights=str(summary.get("weights") or ""),
        train=str(mapping(summary.get("adapter")).get("train") or ""),
        max_colluding=None if colluding is None else int(colluding),
        quorums_in_words=str(summary.get("quorums_in_words") or ""),
        membership=str(rules.get("membership") or ""),
        privacy=mapping(summary.get("privacy")),
        rounds=rounds,
        rounds_planned=int(units.number(summary.get("rounds_planned")) or rounds),
        ended_early=str(summary.get("ended_early") or ""),
        lost_sites={
            str(site): str(why) for site, why in mapping(summary.get("lost_sites")).items()
        },
        absent={
            str(site): tuple(int(number) for number in sequence(numbers))
            for site, numbers in mapping(summary.get("absent")).items()
        },
        exposed=tuple(str(site) for site in sequence(summary.get("exposed"))),
        exposed_noised=tuple(str(site) for site in sequence(summary.get("exposed_noised"))),
        fewest=None if fewest is None else int(fewest),
        sessions=tuple(
            Session(*(str(entry.get(key) or "") for key in ("started", "ended", "how", "reason")))
            for entry in map(mapping, sequence(summary.get("sessions")))
        ),
        resumed=None if resumed is None else int(resumed),
        notes=tuple(str(note) for note in sequence(summary.get("notes"))),
        model=f"{model.get('name') or units.ABSENT}{note}",
    )


# -- sentences -----------------------------------------------------------------------------


def who_ran(facts: Facts) -> str:
    """What is known of the parties; '' for a run that did not record it."""
    if facts.parties == DEMONSTRATION:
        return (
            "This was a demonstration: all parties were simulated on one machine, under a roster "
            "that was made for the run. Nobody compared fingerprints, and whoever controls that "
            "machine sees everything. What training draws at random came from the plan's seed, "
            "which is no secret, but for what differential privacy draws; enrolled sites draw from "
            "secrets of their own."
        )
    if facts.parties == ENROLLED:
        return (
            "All parties ran on one machine, with the keys of a countersigned roster: whoever "
            "controls that machine sees everything."
        )
    if facts.parties == APART:
        return (
            "Each party ran from a kit of its own, under a countersigned roster. Whether its "
            "operators compared the roster's fingerprint is not recorded."
        )
    return ""


def whose_figures(facts: Facts) -> str:
    """Of a site's own report, what it can know; '' where the figures are all sites'."""
    if not facts.own_site:
        return ""
    return (
        f"The figures here are this site's own ({facts.own_site}): other sites' losses, rows and "
        "bytes are not known to it."
    )


def at_whom(facts: Facts) -> str:
    """'mean over sites' or 'this site (north)'."""
    return f"this site ({facts.own_site})" if facts.own_site else "mean over sites"


def lost_words(facts: Facts) -> tuple[str, ...]:
    """A sentence for each site that was lost or is missing from a sum."""
    sentences = []
    for site in sorted({*facts.lost_sites, *facts.absent}):
        why, numbers = facts.lost_sites.get(site), facts.absent.get(site, ())
        missing = ""
        if numbers:
            missing = f"{_rounds(numbers)} without it"
        if why is not None:
            # A round that a resume repeated can have it again.
            after = f"; {_counted(numbers)} {missing}" if missing else ""
            sentences.append(f"{site} was lost at {why}{after}.")
        elif missing:
            told = "; why is not told to this site" if facts.own_site else ""
            sentences.append(f"{site}: {_counted(numbers)} {missing}{told}.")
    return tuple(sentences)


def exposed_words(facts: Facts) -> tuple[str, ...]:
    """Whose updates can be had by subtracting sums over other sites, a sentence for each kind."""
    sentences = []
    if facts.exposed:
        sentences.append(
            f"{', '.join(facts.exposed)}: exposed. This roster follows one with other sites, and "
            "each site's update of each round can be computed by whoever holds the sums before "
            "and after the site went or came, as its own signature or every site's policy allows."
        )
    if facts.exposed_noised:
        sentences.append(
            f"{', '.join(facts.exposed_noised)}: the site's update, with the noise that protects "
            "each training row, can be had as a difference of sums over other sites."
        )
    return tuple(sentences)


def _counted(numbers: tuple[int, ...]) -> str:
    return "the sum of" if len(numbers) == 1 else "the sums of"


def _rounds(numbers: tuple[int, ...]) -> str:
    """(2,) -> 'round 2 is'; (2, 3, 4, 6) -> 'rounds 2 to 4, 6 are'."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    text = ", ".join(str(first) if first == last else f"{first} to {last}" for first, last in runs)
    return f"round {text} is" if len(numbers) == 1 else f"rounds {text} are"


def resumed_words(facts: Facts) -> str:
    """'never', 'once' or 'N times'."""
    if facts.resumed is None:
        return units.ABSENT
    return {0: "never", 1: "once"}.get(facts.resumed, f"{facts.resumed} times")


def session_words(facts: Facts) -> tuple[str, ...]:
    """A sentence for each session of a run that was resumed; none otherwise."""
    if not facts.resumed:
        return ()
    endings = _ENDINGS_AT_A_SITE if facts.own_site else _ENDINGS
    missing = facts.resumed + 1 - len(facts.sessions)
    sentences = []
    if missing > 0:
        sentences.append(f"Of {units.plural(missing, 'earlier session')} nothing was recorded.")
    for number, session in enumerate(facts.sessions, start=max(0, missing) + 1):
        until = f" to {session.ended}" if session.ended else ""
        why = f": {session.reason.rstrip('.')}" if session.reason else ""
        ended = endings.get(session.how, session.how)
        sentences.append(f"Session {number}, {session.started}{until}, {ended}{why}.")
    return tuple(sentences)


def time_words(facts: Facts) -> str:
    """What the wall time counts."""
    at = "at this site" if facts.own_site else ""
    if not facts.resumed:
        return f"one session {at}".strip()
    return (
        f"sum of {facts.resumed + 1} sessions {at}".strip()
        + "; of one that stopped, what it had written down"
    )


def sent_words(facts: Facts) -> str:
    """What sites sent, beyond ciphertexts' form."""
    counts = {
        "private": "adapter updates and, encrypted as well, how many rows they count for",
        "public": "adapter updates and, readable to the coordinator, how many rows they count for",
        "equal": "adapter updates, which all count the same,",
    }
    if facts.weights == "private" and not traits_of(facts.scheme).encrypted:
        return "adapter updates and how many rows they count for"
    return counts.get(facts.weights, "adapter updates and counts")
