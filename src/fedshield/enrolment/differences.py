"""What a roster that is to follow another changes, in sentences for whoever reviews it.

Any card can name keys that it replaces. Only against the roster that the reviewer agreed to before
does it show whether they are that party's.
"""

from __future__ import annotations

from fedshield.enrolment.cards import Card
from fedshield.enrolment.signed_roster import SignedRoster
from fedshield.plan import batches as batching


def differences(before: SignedRoster, after: SignedRoster) -> tuple[str, ...]:
    """Nothing where both have one content."""
    earlier = {card.name: card for card in (before.coordinator, *before.sites)}
    later = {card.name: card for card in (after.coordinator, *after.sites)}
    told = [f"{name}: is not in it any more" for name in sorted(earlier.keys() - later.keys())]
    told += [_of_new(later[name], after) for name in sorted(later.keys() - earlier.keys())]
    for name in sorted(earlier.keys() & later.keys()):
        if earlier[name].content() != later[name].content():
            told.append(_of_card(earlier[name], later[name]))
    for what, old, new in (
        ("batches", batching.in_words(before.batches()), batching.in_words(after.batches())),
        ("rules", before.rules().in_words(), after.rules().in_words()),
        ("allowed", before.allowed.in_words(), after.allowed.in_words()),
        ("base model", before.model_sha256.hex() or "any", after.model_sha256.hex() or "any"),
        ("departure", before.lineage.departure, after.lineage.departure),
        ("demonstration", str(before.demo), str(after.demo)),
    ):
        if old != new:
            told.append(f"{what}: was {old or 'none'}; is {new or 'none'}")
    return tuple(told)


def _of_new(card: Card, after: SignedRoster) -> str:
    key = card.public.hex()[:16]
    others = ", ".join(sorted(site[:16] for site in after.lineage.namesakes(card, after.demo)))
    if not others:
        return f"{card.name}: new, with key {key}"
    return (
        f"{card.name}: ANOTHER KEY {key} than the site of that name had before it left ({others}), "
        "which did not sign it: it may be anyone's; confirm it only if its operator read the "
        "fingerprint to you"
    )


def _of_card(earlier: Card, later: Card) -> str:
    old, new = earlier.public.hex()[:16], later.public.hex()[:16]
    if earlier.public == later.public:
        return f"{later.name}: the same key {new} on another card"
    if later.follows(earlier):
        return f"{later.name}: a new key {new}, signed by its key there ({old})"
    return (
        f"{later.name}: ANOTHER KEY {new}, which its key there ({old}) did not sign: it may be "
        "anyone's; confirm it only if its operator read the fingerprint to you"
    )
