"""Attacks on updates, by every party in turn, and how well each did against the truth."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from fedshield.audit import stats
from fedshield.audit.attacks import dictionary, openings, order, properties, tokens
from fedshield.audit.attacks.openings import Seen
from fedshield.audit.findings import Finding, Setting
from fedshield.audit.replay import Recording, Scene
from fedshield.audit.stats import Measure
from fedshield.data.public import public_rows
from fedshield.model.chat import Tokens
from fedshield.plan.schema import Plan
from fedshield.types import Float32, Float64

SERVER = "server"
ONE_SITE = "any one site, alone"
SERVER_SUM = "server, of the sum"
#: Most tokens that a pursuit looks for in one update.
MOST = 400
#: Random draws for each update that does not open, and for each that does.
CONTROLS, CONTROLS_OPENED = 8, 2
#: Tokens are put in order where those found leave no more than this of the update unexplained.
ORDERED = 0.05
#: A row is read word for word where so many of its pairs of tokens are in what was recovered.
WORD_FOR_WORD = 0.9
NOT_OPENED = "nothing opens; the attack gets the bytes taken as numbers"


@dataclass(frozen=True, eq=False)
class Read:
    """What the token attack made of one update. Hits and tokens; ranks of tokens in the text and
    of others, 0 to 1; `given_*`: ROUGE of the template's words alone, which all know; `read`: rows
    that were read word for word, of `rows`."""

    hits: int
    present: int
    vocabulary: int
    inside: Float64
    outside: Float64
    rouge_1: float
    rouge_2: float
    given_1: float
    given_2: float
    complete: bool
    read: int
    rows: int


class Attacker:
    """What is the same for all settings: the public model, and text of each kind."""

    def __init__(
        self, plan: Plan, scene: Scene, attacks: Sequence[str], skipped: dict[str, str]
    ) -> None:
        self._plan = plan
        self._scene = scene
        self._attacks = attacks
        self._skipped = skipped
        self._start = scene.start(plan)
        self._kinds: dict[tuple[str, int], properties.Kinds] = {}

    @cached_property
    def _vocabulary(self) -> dictionary.Vocabulary:
        return dictionary.Vocabulary.of(self._scene.base)

    @cached_property
    def _public(self) -> tuple[Tokens, ...]:
        plan, tokenizer = self._plan, self._scene.base.tokenizer
        return public_rows(tokenizer, plan.seed, plan.training.max_length)

    @cached_property
    def _template(self) -> order.Template:
        return order.Template.of(self._public)

    @cached_property
    def _reader(self) -> order.Reader:
        return order.Reader(self._scene.base, self._scene.host, self._public)

    @cached_property
    def _frozen(self) -> dict[str, Float32]:
        """The A of a `core` adapter, which follows from the base model."""
        if self._plan.adapter.train != "core":
            return {}
        return self._scene.host.as_lora(self._start)

    def from_public_text(self, recording: Recording) -> list[Finding]:
        """What is named without any view: the tokens most frequent in the built-in samples."""
        counts = Counter(token for row in self._public for token in row.input_ids)
        scores = np.array([float(counts[token]) for token in range(self._vocabulary.size)])
        guess = tokens.Recovered((), scores, False, 0)
        reads = [
            scored(guess, (), rows, self._vocabulary.size, self._template)
            for rows in recording.truth.batches.values()
        ]
        if not reads:
            return []
        note = "guessed by how frequent tokens are in the built-in public samples"
        alike = [name for name, data in self._scene.data.items() if "sample:" in data.source]
        if alike:
            note += f", from which the rows of {', '.join(alike)} are as well"
        return [
            Finding("tokens", "any", "anyone, without a view", what, measure, note)
            for what, measure in summed_up(reads)[:3]
        ]

    def attack(self, setting: Setting, recording: Recording) -> list[Finding]:
        """Every party's numbers under one setting."""
        plan, names = recording.plan, recording.plan.data.site_names()
        found: list[Finding] = []
        server = openings.by_server(recording.server, plan, self._start)
        opens = not plan.scheme.traits.encrypted
        found += self._numbers(setting, SERVER, server.seen, recording, "" if opens else NOT_OPENED)
        if plan.scheme.traits.shared_key:
            found += self._coalition(setting, recording, names[:1], "")
        if plan.scheme.traits.one_time_keys:
            rules = plan.rules()
            found += self._coalition(setting, recording, names[: max(1, rules.max_colluding)], "")
            if rules.threshold < len(names):
                beyond = "beyond the promise: as many sites as open a sum"
                found += self._coalition(setting, recording, names[: rules.threshold], beyond)
            if plan.scheme.open_to == "server":
                total = openings.of_all(recording.sites[names[0]], plan)
                note = "the mean over all sites, not whose"
                found += self._numbers(setting, SERVER_SUM, total, recording, note)
            others = openings.of_the_others((recording.sites[names[0]],), plan)
            found += self._numbers(
                setting, ONE_SITE, others, recording, "the mean over all other sites, not whose"
            )
        return found

    def _coalition(
        self, setting: Setting, recording: Recording, names: Sequence[str], note: str
    ) -> list[Finding]:
        view = recording.coalition(names)
        party = f"server with {len(names)} site{'s' if len(names) > 1 else ''}"
        opening = openings.by_coalition(view, recording.plan, recording.roster)
        tried = len(opening.seen) + len(opening.refused)
        found = [
            Finding(
                "opening",
                setting.key,
                party,
                "single updates of other sites that open",
                stats.clopper_pearson(len(opening.seen), tried),
                "; ".join(filter(None, [note, *sorted(set(opening.refused))])),
            )
        ]
        seen = opening.seen
        if not seen:
            seen = openings.left_closed(view, self._start)
            note = NOT_OPENED
        return found + self._numbers(setting, party, seen, recording, note)

    # -- numbers -----------------------------------------------------------------------------

    def _numbers(
        self,
        setting: Setting,
        party: str,
        seen: Sequence[Seen],
        recording: Recording,
        note: str,
    ) -> list[Finding]:
        found: list[Finding] = []
        seen, empty = _of_rows(seen, recording)
        if empty:
            why = f"updates left out because no row was drawn: {empty}"
            note = "; ".join(filter(None, [note, why]))
            if not seen:
                self._skipped[f"{setting.key}, {party}"] = why
        if "tokens" in self._attacks and seen:
            reads = [self.read(one, recording) for one in seen]
            drawn = self.by_chance(seen, recording)
            found += [
                Finding("tokens", setting.key, party, what, measure, note)
                for what, measure in summed_up(reads, drawn)
            ]
        single = [one for one in seen if len(one.sites) == 1]
        if "properties" in self._attacks and single:
            found += self._properties(setting, party, single, note)
        return found

    def read(self, seen: Seen, recording: Recording) -> Read:
        """The token attack on one update, scored."""
        rows = _rows_of(seen, recording)
        training = recording.plan.training
        longest = training.steps * training.batch_size * training.gradient_accumulation
        most = min(MOST, longest * training.max_length * len(seen.sites))
        mixtures = dictionary.mixtures(seen, self._start.spec, self._vocabulary, self._frozen)
        found = tokens.recover(mixtures, most)
        texts: tuple[tuple[int, ...], ...] = ()
        if found.left < ORDERED:
            texts = self._reader.read(
                seen, found.tokens, longest * len(seen.sites), training.max_length
            )
        return scored(found, texts, rows, self._vocabulary.size, self._template)

    def by_chance(self, seen: Sequence[Seen], recording: Recording) -> list[Read]:
        """What the same attack makes of as many random numbers in place of the updates: chance."""
        return [
            self.read(openings.at_random(one, number), recording)
            for number, one in enumerate([*seen] * CONTROLS)
            if not one.opened or number < CONTROLS_OPENED * len(seen)
        ]

    def _properties(
        self, setting: Setting, party: str, seen: Sequence[Seen], note: str
    ) -> list[Finding]:
        names = self._plan.data.site_names()
        if self._plan.data.split != "by-site" or len(names) < 2:
            self._skipped["properties"] = "the sites are shares of one pool: there are no silos"
            return []
        hits, far = 0, []
        for one in seen:
            kinds = self._learned(one)
            hits += properties.which(one, kinds) == one.sites[0]
            far.append(properties.distance(properties.mix(one, kinds), {one.sites[0]: 1.0}))
        even = 1 - 1 / len(names)
        return [
            Finding(
                "properties", setting.key, party, "updates whose silo is named rightly",
                stats.clopper_pearson(hits, len(seen), 1 / len(names)), note,
            ),
            Finding(
                "properties", setting.key, party, "distance of the guessed mix from the true one",
                stats.mean_measure(far, even), note,
            ),
        ]  # fmt: skip

    def _learned(self, seen: Seen) -> properties.Kinds:
        """The attacker's own updates on held-out text, from the adapter that it knows."""
        start = seen.start or self._start
        key = (start.sha256(), seen.round_number)
        if key not in self._kinds:
            text = {name: data.heldout for name, data in self._scene.data.items()}
            self._kinds[key] = properties.learn(
                self._scene, self._plan, start, seen.round_number, text
            )
        return self._kinds[key]


def _rows_of(seen: Seen, recording: Recording) -> list[Tokens]:
    """The rows that an update is of."""
    batches = recording.truth.batches
    return [row for site in seen.sites for row in batches.get((site, seen.round_number), ())]


def _of_rows(seen: Sequence[Seen], recording: Recording) -> tuple[list[Seen], int]:
    """The updates that are of any row, and how many are not: rows that are drawn by chance
    (`privacy.unit: example`) may be none, and there is nothing to find then."""
    found = [one for one in seen if _rows_of(one, recording)]
    return found, len(seen) - len(found)


def scored(
    found: tokens.Recovered,
    texts: Sequence[tuple[int, ...]],
    rows: Sequence[Tokens],
    vocabulary: int,
    template: order.Template,
) -> Read:
    """An answer beside the rows that were trained on: of the best-ranked tokens as many count as
    there are different ones in the rows, so that precision and recall are one. `texts`: what was
    put in order. ROUGE is of what follows the template's opening, which every row has; recovered
    are the texts, the template's other words and all tokens named."""
    present = sorted({token for row in rows for token in row.input_ids})
    inside = np.zeros(vocabulary, dtype=np.bool_)
    inside[present] = True
    scores = found.scores if found.scores.size else np.zeros(vocabulary)
    best = np.argsort(-scores, kind="stable")
    named = tuple(best[: len(present)].tolist()) if found.scores.size else ()
    after = len(template.opening)
    own = [row.input_ids[after:] for row in rows]
    wanted = [token for text in own for token in text]
    ordered = [text[after:] for text in texts]
    given = (*template.asked, *template.ending)
    got = [token for text in ordered for token in text]
    got += given if not ordered else ()
    got += [token for token in named if token not in set(got)]
    ranks = np.argsort(np.argsort(scores, kind="stable")) / max(1, vocabulary - 1)
    if not found.scores.size:
        ranks = np.full(vocabulary, 0.5)
    return Read(
        hits=len(set(named) & set(present)),
        present=len(present),
        vocabulary=vocabulary,
        inside=ranks[inside],
        outside=ranks[~inside],
        rouge_1=tokens.rouge(wanted, got, 1),
        rouge_2=tokens.rouge(wanted, got, 2),
        given_1=tokens.rouge(wanted, given, 1),
        given_2=tokens.rouge(wanted, given, 2),
        complete=found.complete,
        read=sum(
            any(tokens.rouge(text, one, 2) >= WORD_FOR_WORD for one in ordered) for text in own
        ),
        rows=len(own),
    )


def summed_up(reads: Sequence[Read], drawn: Sequence[Read] = ()) -> list[tuple[str, Measure]]:
    """Reads of several updates as numbers with intervals. `drawn`: of random numbers in place of
    the updates, from which chance is taken then; of ROUGE chance is what the template's words give.
    Tokens of one update are not drawn independently, so the intervals of the share are somewhat too
    narrow."""
    hits, present = sum(one.hits for one in reads), sum(one.present for one in reads)
    chance, even = sum(one.present / one.vocabulary * one.present for one in reads) / present, 0.5
    if drawn:
        chance = sum(one.hits for one in drawn) / sum(one.present for one in drawn)
        even = stats.auc(
            np.concatenate([one.inside for one in drawn]),
            np.concatenate([one.outside for one in drawn]),
        )
    inside = np.concatenate([one.inside for one in reads])
    outside = np.concatenate([one.outside for one in reads])
    if outside.size > 20_000:  # enough for an interval, and a vocabulary is long
        outside = np.random.default_rng(0).choice(outside, 20_000, replace=False)
    return [
        ("share of the text's tokens that are named", stats.wilson(hits, present, chance)),
        (
            "area under the curve, tokens in the text against others",
            replace(stats.auc_measure(inside, outside), chance=even),
        ),
        (
            "ROUGE-1 of the text, over tokens",
            stats.mean_measure(
                [one.rouge_1 for one in reads], float(np.mean([one.given_1 for one in reads]))
            ),
        ),
        (
            "ROUGE-2 of the text, over tokens",
            stats.mean_measure(
                [one.rouge_2 for one in reads], float(np.mean([one.given_2 for one in reads]))
            ),
        ),
        (
            "rows that are read word for word",
            stats.clopper_pearson(sum(one.read for one in reads), sum(one.rows for one in reads)),
        ),
        (
            "updates that the attack explains whole",
            stats.clopper_pearson(sum(one.complete for one in reads), len(reads)),
        ),
    ]
