"""The text of one update, word for word: the tokens found (`tokens.py`), put in order.

In a causal model the input of a later layer at one place depends on all tokens up to there, and
the rows of A's gradient in that layer are mixtures of those inputs. So a text is tried token by
token: the right one gives inputs that lie in the rows of every layer (DAGER, Petrov et al., arXiv
2405.15586, which asks this of the second layer). With more places than dimensions a single layer
tells little; here up to `DEPTH` layers are asked at once, and what the text so far explains is
taken out of all of them (`tokens.Remainder`), so that the rest is told more and more sharply. Where
they leave it open, the public base model says which continuation is likely (as in LAMP, Balunovic
et al., arXiv 2202.08827). A beam keeps the texts that may still be right.

What every party has is used: the base model, the adapter before the round, the template, and the
built-in samples, by which inputs are whitened.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedshield.audit.attacks.openings import Seen
from fedshield.audit.attacks.tokens import Remainder
from fedshield.errors import ModelError
from fedshield.model.adapter import AdapterHost
from fedshield.model.base import BaseModel
from fedshield.model.chat import Tokens
from fedshield.types import AdapterState, Float32, Float64

#: What takes a layer's input: one and the same.
INPUTS = ("q_proj", "k_proj", "v_proj")
#: Layers after the first whose inputs are asked.
DEPTH = 12
#: Texts that are kept at a time; those behind the best by more than this many nats are dropped.
BEAM, BEHIND = 12, 15.0
#: Nats of evidence for each nat of what a wrong token leaves outside the rows, and the share
#: outside that rounding accounts for.
WEIGHT, ROUNDING = 4.0, 0.01
#: The template's next words are tried where their first is not less likely than this, in nats.
LIKELY = 6.0
#: Rows that are put in order in one update.
MOST_ROWS = 4
#: A text of which the last `LATEST` tokens lie less than this within the rows has lost its way.
WITHIN, LATEST = 0.8, 16
#: Directions in which inputs vary less than this, of the largest, are not divided by.
_FLOOR = 1e-6


@dataclass(frozen=True)
class Template:
    """What all conversations have in common, as tokens: `opening` before the question, `asked`
    between question and answer, `ending` after it."""

    opening: tuple[int, ...]
    asked: tuple[int, ...]
    ending: tuple[int, ...]

    @classmethod
    def of(cls, rows: Sequence[Tokens]) -> Template:
        """Read off `rows` of one turn each, of which some are whole."""
        asked = [_prompt(row) for row in rows]
        whole = [row.input_ids for row in rows if not row.num_dropped]
        opening = _common(asked)
        rests = [ids[len(opening) :][::-1] for ids in asked]
        ending = _common([ids[::-1] for ids in whole])[::-1] if whole else ()
        return cls(opening, _common(rests)[::-1], ending)

    def next(self, tokens: Sequence[int]) -> tuple[int, ...]:
        """What of the template comes next in a text so far, sooner or later."""
        return self.ending if self.answered(tokens) else self.asked

    def answered(self, tokens: Sequence[int]) -> bool:
        """Whether the answer has begun."""
        text, size = tuple(tokens), len(self.asked)
        places = range(len(self.opening), len(text) - size + 1)
        return any(text[at : at + size] == self.asked for at in places)


@dataclass(frozen=True, eq=False)
class _Text:
    """A text so far. `score`: nats; `within`: of each token that was weighed the share of its
    inputs in the rows; `cache`: the model's keys and values; `rests`: what is left over, by layer;
    `likely`: log probability of each token of the vocabulary to come next."""

    tokens: tuple[int, ...]
    score: float
    within: tuple[float, ...]
    cache: Any = field(repr=False)
    rests: tuple[Remainder, ...] = field(repr=False)
    likely: Float64 = field(repr=False)
    ended: bool = False
    lost: bool = False


class Reader:
    """Reads updates, on a model that it has the use of. `public`: the built-in samples' rows."""

    def __init__(self, base: BaseModel, host: AdapterHost, public: Sequence[Tokens]) -> None:
        model = getattr(base.model, "base_model", base.model)
        inner = next((m for _, m in model.named_modules() if hasattr(m, "embed_tokens")), None)
        if inner is None or not hasattr(inner, "layers"):
            raise ModelError(
                f"audit tokens: expected a model of the Llama kind, got {type(model).__name__}; "
                "leave this attack out with --attacks"
            )
        self.template = Template.of(public)
        self._base, self._host, self._public = base, host, public
        self._inner: Any = inner
        self._layers: Any = inner.layers
        self._depth = min(DEPTH, len(self._layers) - 1)
        self._scales: tuple[str, tuple[Float64, ...]] = ("", ())

    def read(
        self, seen: Seen, found: Sequence[int], rows: int, longest: int
    ) -> tuple[tuple[int, ...], ...]:
        """Texts behind an update, surest first: of at most `rows` rows of at most `longest`
        tokens, made of `found` and the template's. None where layers or template do not tell."""
        if seen.start is None or not self._depth or not self.template.opening:
            return ()
        scales = self._whitening(seen.start)
        self._host.write(seen.start)
        rests = tuple(self._rests(seen, scales))
        if len(rests) < self._depth or any(len(rest.space) == 0 for rest in rests):
            return ()
        # Control tokens stand in a text only where the template puts them.
        special = set(self._base.tokenizer.all_special_ids)
        special -= {*self.template.asked[:1], *self.template.ending[:1]}
        candidates = np.array(sorted({*found} - special), dtype=np.int64)
        if not len(candidates):
            return ()
        texts: list[tuple[int, ...]] = []
        for _ in range(min(rows, MOST_ROWS)):
            best = self._search(rests, candidates, scales, longest)
            if best is None:
                break
            texts.append(best.tokens)
            if best.lost:
                break
            rests = best.rests
        return tuple(texts)

    # -- the search --------------------------------------------------------------------------

    def _search(
        self,
        rests: tuple[Remainder, ...],
        candidates: NDArray[np.int64],
        scales: tuple[Float64, ...],
        longest: int,
    ) -> _Text | None:
        """The likeliest text of one row, from the template's opening on."""
        from transformers import DynamicCache

        begin = _Text((), 0.0, (), DynamicCache(), rests, np.zeros(0))
        beam = [self._extended(begin, self.template.opening, scales)]
        done: list[_Text] = []
        while beam:
            tried: list[tuple[float, float, _Text, int]] = []
            grown: list[_Text] = []
            for text in beam:
                share, evidence = self._weigh(text, candidates, scales)
                gained = WEIGHT * evidence + text.likely[candidates]
                top = np.argsort(-gained, kind="stable")[:BEAM]
                tried += [
                    (text.score + float(gained[at]), float(share[at]), text, int(candidates[at]))
                    for at in top
                ]
                # The template's own words need not be weighed where they are likely.
                known = self.template.next(text.tokens)
                if known and text.likely[known[0]] > -LIKELY:
                    grown.append(self._extended(text, known, scales))
            tried.sort(key=lambda one: -one[0])
            for score, within, text, token in tried[:BEAM]:
                known = self.template.next(text.tokens)
                own = known[:1] == (token,) and token in self._base.tokenizer.all_special_ids
                longer = self._extended(text, known if own else (token,), scales)
                grown.append(replace(longer, score=score, within=(*text.within, within)))
            done += [one for one in grown if one.ended or len(one.tokens) >= longest]
            beam = _best([one for one in grown if not one.ended and len(one.tokens) < longest])
            if done and (not beam or _best(done + beam)[0] in done):
                break
            if beam and not any(_on_its_way(one) for one in beam):
                return _cut(beam[0], len(self.template.opening))
        found = [one for one in _best(done) if _on_its_way(one)]
        return found[0] if found else None

    def _weigh(
        self,
        text: _Text,
        candidates: NDArray[np.int64],
        scales: tuple[Float64, ...],
    ) -> tuple[Float64, Float64]:
        """Of each candidate as the next token: the share of its inputs that is in what is left
        over, over all layers, and the evidence that it is the right one, in nats."""
        from transformers import DynamicCache

        cache = DynamicCache()
        for layer in range(self._depth):
            keys, values = text.cache.layers[layer].keys, text.cache.layers[layer].values
            size = (len(candidates), -1, -1, -1)
            cache.update(keys.expand(size), values.expand(size), layer)
        inputs = self._inputs(torch.tensor(candidates[:, None]), cache)
        shares = np.stack(
            [
                rest.share((each @ scale.astype(np.float32)).astype(np.float32))
                for rest, each, scale in zip(text.rests, inputs, scales, strict=True)
            ]
        )
        outside = 1.0 - np.minimum(shares, 1.0) + ROUNDING
        evidence: Float64 = -np.log(outside).mean(axis=0)
        within: Float64 = shares.mean(axis=0)
        return within, evidence

    def _extended(self, text: _Text, tokens: tuple[int, ...], scales: tuple[Float64, ...]) -> _Text:
        """The text with more tokens, what they explain taken out; its score as if they were not
        weighed, by how likely they are."""
        cache = copy.deepcopy(text.cache)
        with self._heard(self._depth) as heard, torch.inference_mode():
            ids = torch.tensor([tokens], device=self._base.device)
            made = self._base.model(input_ids=ids, past_key_values=cache, use_cache=True)
            likely = torch.log_softmax(made.logits[0].float(), -1).cpu().numpy()
        rests = []
        for rest, each, scale in zip(text.rests, heard, scales, strict=True):
            for vector in each.astype(np.float64) @ scale:
                rest = rest.without(vector)
            rests.append(rest)
        score = text.score + sum(float(likely[at, token]) for at, token in enumerate(tokens[1:]))
        score += float(text.likely[tokens[0]]) if len(text.likely) else 0.0
        return _Text(
            text.tokens + tokens,
            score,
            text.within,
            cache,
            tuple(rests),
            likely[-1].astype(np.float64),
            ended=tokens == self.template.ending and self.template.answered(text.tokens),
        )

    # -- the model ---------------------------------------------------------------------------

    def _inputs(self, ids: torch.Tensor, cache: Any) -> list[Float32]:
        """The inputs of the attention of layers 1 to depth, float32, (tokens, width) each; no
        layer beyond is run."""
        self._inner.layers = self._layers[: self._depth + 1]
        try:
            with self._heard(self._depth) as heard, torch.inference_mode():
                self._inner(input_ids=ids.to(self._base.device), past_key_values=cache)
        finally:
            self._inner.layers = self._layers
        return heard

    @contextmanager
    def _heard(self, depth: int) -> Iterator[list[Float32]]:
        heard: list[Float32] = []

        def note(_: Any, __: Any, made: torch.Tensor) -> None:
            heard.append(made.reshape(-1, made.shape[-1]).float().cpu().numpy())

        hooks = [
            layer.input_layernorm.register_forward_hook(note)
            for layer in self._layers[1 : depth + 1]
        ]
        try:
            yield heard
        finally:
            for hook in hooks:
                hook.remove()

    def _whitening(self, start: AdapterState) -> tuple[Float64, ...]:
        """By layer, float64, (width, width): takes inputs to where they vary alike in all
        directions. About zero, not about their mean: all inputs share a large part, which would
        make every token look alike. The first place of a text is left out, being far off."""
        from transformers import DynamicCache

        digest = start.sha256()
        if self._scales[0] != digest:
            self._host.write(start)
            heard = [
                self._inputs(torch.tensor([row.input_ids]), DynamicCache()) for row in self._public
            ]
            scales = []
            for layer in range(self._depth):
                inputs = np.concatenate([each[layer][1:] for each in heard])
                moment = (inputs.T @ inputs).astype(np.float64) / len(inputs)
                values, vectors = np.linalg.eigh(moment)
                scales.append(vectors / np.sqrt(np.maximum(values, _FLOOR * values[-1])))
            self._scales = (digest, tuple(scales))
        return self._scales[1]

    def _rests(self, seen: Seen, scales: tuple[Float64, ...]) -> Iterator[Remainder]:
        """The rows of A's gradient in each layer, whitened; no more than one without any."""
        assert seen.start is not None
        spec = seen.start.spec
        for layer, scale in enumerate(scales, start=1):
            rows = [
                seen.values[place].reshape(tensor.shape)
                for tensor, place in zip(spec.tensors, spec.slices().values(), strict=True)
                if any(f"layers.{layer}.self_attn.{name}.lora_A." in tensor.name for name in INPUTS)
            ]
            together = np.concatenate(rows).astype(np.float64) if rows else np.zeros((0, 1))
            if not together.any():
                return
            yield Remainder.of(together @ scale)


def _on_its_way(text: _Text) -> bool:
    latest = text.within[-LATEST:]
    return len(latest) < LATEST or float(np.mean(latest)) >= WITHIN


def _cut(text: _Text, opening: int) -> _Text | None:
    """What was read before a text lost its way; None if that is nothing. What the rest explains
    stays taken out, so a search that begins again would find no more."""
    kept = text.tokens[:-LATEST]
    return replace(text, tokens=kept, lost=True) if len(kept) > opening else None


def _best(texts: Sequence[_Text]) -> list[_Text]:
    """Best first, and only those not far behind. Texts of different lengths are compared by what
    they gained over what the best gains with each token weighed."""
    if not texts:
        return []
    rate = max(text.score / max(1, len(text.within)) for text in texts)
    worth = {id(text): text.score - rate * len(text.within) for text in texts}
    ordered = sorted(texts, key=lambda text: -worth[id(text)])
    least = worth[id(ordered[0])] - BEHIND
    return [text for text in ordered[:BEAM] if worth[id(text)] >= least]


def _prompt(row: Tokens) -> tuple[int, ...]:
    answered = next((at for at, label in enumerate(row.labels) if label != -100), len(row.labels))
    return row.input_ids[:answered]


def _common(texts: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The longest beginning that all have."""
    found: list[int] = []
    for column in zip(*texts, strict=False):
        if len(set(column)) > 1:
            break
        found.append(column[0])
    return tuple(found)
