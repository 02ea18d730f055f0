"""What each scheme protects and what it does not, in words for reports.

Every sentence stays within the design of the scheme: nothing here is measured, and the page says
so. What a run's own settings add is in `protection.py`.
"""

from __future__ import annotations

from dataclasses import dataclass


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


METADATA = (
    "Not hidden by the scheme: which sites take part, when, how large their messages are, and "
    "whether a round was accepted."
)
COUNTS_PUBLIC = (
    "The plan makes weights public: the coordinator and every site were told how many rows each "
    "site counts for."
)
COUNTS_OF_TWO = "With two sites the total of their rows tells each the other's number."
OWN_ADAPTERS = (
    "Each site's adapter holds a matrix B of its own (share-a), trained on its rows alone. It was "
    "not sent; whoever is given that adapter has it, and no sum hides it."
)
ADAPTER = (
    "The released adapter can itself leak training data, for example through membership "
    "inference. This run used no differential privacy, so that leak is not bounded."
)
SITES_CAN_SPOIL = (
    "Any site can spoil or poison a round by training badly; encryption does not prevent that."
)
HOLDER = Sight(
    "Anyone who holds the adapter",
    "The adapter, whatever it answers, and what can be inferred from it, such as whether a known "
    "text was in the training data.",
    "No stated bound: this run used no differential privacy.",
)

PLAIN = Protection(
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
        METADATA,
        SITES_CAN_SPOIL,
        ADAPTER,
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
        HOLDER,
    ),
)

CKKS = Protection(
    title="CKKS, one key for all sites",
    protected=True,
    sentence=(
        "The coordinator added encrypted updates and held no key; but any one site together with "
        "the coordinator could read the updates of every site."
    ),
    paragraph=(
        "Sites encrypted their updates with CKKS before sending them. The coordinator holds no "
        "key: it adds ciphertexts and cannot read an update or the sum. Every site, however, "
        "holds the one key of a session, so any one site together with the coordinator can read "
        "every site. The scheme assumes a semi-honest coordinator, one that follows the protocol "
        "and only looks. Sites round their values to a fixed grid before they encrypt, and the "
        "opened sum to the same grid, so that openings carry no CKKS noise."
    ),
    limits=(
        "Any one site together with the coordinator can read every site's update.",
        "Semi-honest coordinator only: a malicious one could return one site's ciphertext as "
        "'the sum', and the sites would decrypt it and install it.",
        "Whoever recorded the ciphertexts and later obtains the session's key can read them.",
        "The process that holds the key parses the bytes that the coordinator sends.",
        METADATA,
        SITES_CAN_SPOIL,
        ADAPTER,
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
        HOLDER,
    ),
)

RLWE = Protection(
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
        "Sums over many rounds, very small groups and side knowledge can still single out a site.",
        "Shares of keys are sealed under ML-KEM-768 and X25519 together: a break of both, not of "
        "one, opens recorded rounds. Signatures are not post-quantum.",
        "The composition has had no outside review. The code is not fully constant-time, and "
        "Python cannot be relied on to wipe memory.",
        "Any site can spoil, poison or stop a round.",
        METADATA,
        ADAPTER,
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
        HOLDER,
    ),
)

SCHEMES = {"plain": PLAIN, "ckks": CKKS, "rlwe": RLWE}
