"""What each scheme protects and what it does not, in words for the report.

Every sentence stays within the design of the scheme: nothing here is measured, and the
page says so. An unknown scheme is described as unprotected, never the other way round.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from fedshield.report import units


@dataclass(frozen=True)
class Sight:
    """One row of the 'who could see what' table."""

    party: str
    could: str
    could_not: str


@dataclass(frozen=True)
class Protection:
    """How one scheme is described. Unless `protected`, the page opens with a warning."""

    title: str
    protected: bool
    sentence: str
    paragraph: str
    limits: tuple[str, ...]
    sights: tuple[Sight, ...]


_METADATA = (
    "Not hidden by the scheme: which sites take part, when, how large their messages are, and "
    "whether a round was accepted."
)
_ADAPTER = (
    "The released adapter can itself leak training data, for example through membership "
    "inference. This run used no differential privacy, so that leak is not bounded."
)
_SITES_CAN_SPOIL = (
    "Any site can spoil or poison a round by training badly; encryption does not prevent that."
)
_HOLDER = Sight(
    "Anyone who holds the adapter",
    "The adapter, whatever it answers, and what can be inferred from it, such as whether a known "
    "text was in the training data.",
    "No stated bound: this run used no differential privacy.",
)

_PLAIN = Protection(
    title="No protection",
    protected=False,
    sentence="None: the coordinator could read every update of every site.",
    paragraph=(
        "This run used the scheme 'plain'. Updates were sent as readable numbers, so there was no "
        "protection of one site's update from the coordinator: it could read, keep and analyse "
        "each of them. An update can reveal parts of the text it was trained on. The scheme "
        "'plain' is for comparison and for tests; do not use it on data that the coordinator may "
        "not learn about."
    ),
    limits=(
        "The coordinator reads every update of every site in every round.",
        "Updates can be turned back into parts of the training text (gradient inversion).",
        _METADATA,
        _SITES_CAN_SPOIL,
        _ADAPTER,
    ),
    sights=(
        Sight(
            "The coordinator alone",
            "Every site's update in every round, the averaged adapter, and who took part, when "
            "and with how many bytes.",
            "Training rows as such: they are not sent. What updates reveal of them is open.",
        ),
        Sight(
            "One site",
            "Its own data and update, and the averaged adapter of every round.",
            "The single updates of other sites, as long as the coordinator does not pass them on.",
        ),
        Sight(
            "One site together with the coordinator",
            "Every site's update in every round.",
            "Training rows as such: they are not sent.",
        ),
        _HOLDER,
    ),
)

_CKKS = Protection(
    title="CKKS, one key for the run",
    protected=True,
    sentence=(
        "The coordinator added encrypted updates and held no key; but any one site together with "
        "the coordinator could read the updates of every site."
    ),
    paragraph=(
        "Sites encrypted their updates with CKKS before sending them. The coordinator holds no "
        "key: it adds ciphertexts and cannot read an update or the sum. Every site, however, "
        "holds the one key of the run, so any one site together with the coordinator can read "
        "every site. The scheme assumes a semi-honest coordinator, one that follows the protocol "
        "and only looks. Sites round their values to a fixed grid before they encrypt, and the "
        "opened sum to the same grid, so that openings carry no CKKS noise."
    ),
    limits=(
        "Any one site together with the coordinator can read every site's update.",
        "Semi-honest coordinator only: a malicious one could return one site's ciphertext as "
        "'the sum', and the sites would decrypt it and install it.",
        "Whoever recorded the ciphertexts and later obtains the run's key can read them.",
        "The process that holds the key parses the bytes that the coordinator sends.",
        _METADATA,
        _SITES_CAN_SPOIL,
        _ADAPTER,
    ),
    sights=(
        Sight(
            "The coordinator alone",
            "Ciphertexts, and who took part, when and with how many bytes. If it breaks the "
            "protocol: see the limits.",
            "A site's update, or the sum, while it has neither the key nor the released adapter.",
        ),
        Sight(
            "One site",
            "Its own data and update, and the opened sum of every round. It holds the key, so "
            "also any update whose ciphertext reaches it.",
            "The single updates of other sites, as long as their ciphertexts do not reach it.",
        ),
        Sight(
            "One site together with the coordinator",
            "Every site's update in every round.",
            "Training rows as such: they are not sent. What updates reveal of them is open.",
        ),
        _HOLDER,
    ),
)

_RLWE = Protection(
    title="RLWE, one-time keys, opened by a threshold of sites",
    protected=True,
    sentence=(
        "Updates were added under one-time keys and only the sum over one agreed set of sites is "
        "meant to be opened, under the assumptions stated below."
    ),
    paragraph=(
        "Each site encrypted its update with a key used once. The coordinator added the "
        "ciphertexts, and enough sites had to answer before the sum over one agreed set of sites "
        "could be opened. The design aims at this: if the operators compared the roster's "
        "fingerprint over a channel that the coordinator does not carry, and no more sites than "
        "the roster declares collude with the coordinator, then together they learn no more "
        "about an honest site in a round than the sum over the honest sites of that set. "
        "This rests on the hardness of RLWE, on fresh randomness at every site, and on correct "
        "software; it is a design argument, not something that this run measured. A sum that "
        "opened was checked against keyed tags, so it is the exact sum of what the sites encoded."
    ),
    limits=(
        "Without the comparison of fingerprints, or with more colluding sites than declared, the "
        "statement above does not hold.",
        "The coordinator with any one site learns the sum, as does every site; the released "
        "adapter gives it to anyone.",
        "Sums over many rounds with changing membership, very small groups and side knowledge "
        "can still single out a site.",
        "Keys are exchanged with X25519: a break of it opens recorded rounds, and it is not "
        "post-quantum on its own.",
        "The composition has had no outside review. The code is not fully constant-time, and "
        "Python cannot be relied on to wipe memory.",
        "Any site can spoil, poison or stop a round.",
        _METADATA,
        _ADAPTER,
    ),
    sights=(
        Sight(
            "The coordinator alone",
            "Ciphertexts, and who took part, when and with how many bytes.",
            "A site's update; nor the sum, until a site or a released adapter gives it.",
        ),
        Sight(
            "One site",
            "Its own data and update, and the opened sum of every round.",
            "The single updates of other sites, beyond what the sum less its own update shows.",
        ),
        Sight(
            "One site together with the coordinator",
            "The opened sum, and so the sum over the other sites.",
            "The single update of another site, if the roster declares at least one colluding "
            "site and its fingerprint was compared.",
        ),
        _HOLDER,
    ),
)

_SCHEMES = {"plain": _PLAIN, "ckks": _CKKS, "rlwe": _RLWE}


def describe(
    scheme: str,
    num_sites: int,
    *,
    quorums: str = "",
    open_to: str = "peers",
    privacy: Mapping[str, Any] | None = None,
) -> Protection:
    """The words for `scheme`, with what a group of one or two sites does to any scheme.

    `quorums`: the run's quorums in words (rlwe); `open_to`: who received the shares of the sum;
    `privacy`: summary.json's, None where no unit was protected."""
    described = _described(scheme, num_sites, quorums, open_to)
    return described if not privacy else _with_privacy(described, privacy)


def _described(scheme: str, num_sites: int, quorums: str, open_to: str) -> Protection:
    known = _SCHEMES.get(scheme)
    if known is not None and scheme == "rlwe":
        known = _with_quorums(known, quorums, open_to)
    if known is None:
        base = Protection(
            title="Unknown scheme: treat as unprotected",
            protected=False,
            sentence="This report knows no description of the scheme: treat it as unprotected.",
            paragraph=(
                f"The run names the scheme '{scheme}', which this version of the report cannot "
                "describe. Nothing is claimed about it: treat the updates as readable."
            ),
            limits=(_METADATA, _SITES_CAN_SPOIL, _ADAPTER),
            sights=(_HOLDER,),
        )
    else:
        base = known
    if num_sites == 1:
        small = "With one site there is nothing to add to: the opened sum is that site's update."
    elif num_sites == 2:
        small = (
            "With two sites, each can work out the other's update by subtracting its own from "
            "the sum; no aggregation scheme prevents that."
        )
    else:
        return base
    return replace(
        base,
        protected=False,
        sentence=f"{base.sentence} {small}",
        limits=(small, *base.limits),
    )


def _with_privacy(base: Protection, privacy: Mapping[str, Any]) -> Protection:
    """The same where outputs were noised: what is bounded, and what still is not."""
    bound = privacy_words(privacy)
    unit = {"example": "training row", "site": "site's whole contribution"}.get(
        str(privacy.get("unit")), "unit"
    )
    limits = tuple(
        f"Differential privacy bounds what the released adapter tells about one {unit} ({bound}), "
        "and nothing more: not many rows or sites together, and not the losses and counts of this "
        "report, which are exact and for the operator."
        if limit == _ADAPTER
        else limit
        for limit in base.limits
    )
    sights = tuple(
        replace(sight, could_not=f"What depends on one {unit}, beyond {bound}.")
        if sight == _HOLDER
        else sight
        for sight in base.sights
    )
    return replace(base, limits=limits, sights=sights)


def privacy_words(privacy: Mapping[str, Any]) -> str:
    """Epsilon and delta of a run, in words."""
    epsilon, delta = (units.number(privacy.get(key)) for key in ("epsilon", "delta"))
    if epsilon is None or delta is None:
        return units.ABSENT
    return f"epsilon {epsilon:.3g} at delta {delta:g}, for each {privacy.get('unit')}"


def _with_quorums(base: Protection, quorums: str, open_to: str) -> Protection:
    """The threshold scheme with the numbers of this run."""
    paragraph = f"{base.paragraph} Quorums of this run: {quorums}" if quorums else base.paragraph
    demo = (
        "All parties of this run were simulated on one machine, with a demonstration roster made "
        "for it: nobody compared fingerprints, and whoever controls that machine sees everything."
    )
    limits = (demo, *base.limits)
    if open_to == "server":
        limits = (
            "The plan opens to the server: the coordinator receives the shares of each sum, and "
            "can open it.",
            *limits,
        )
    return replace(base, paragraph=paragraph, limits=limits)
