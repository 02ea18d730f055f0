"""Who may open what: the numbers c, T, Q and min_cohort of a federation, and the rules between
them, checked before anything runs.

    c           sites that may collude with the coordinator
    T           shares that open a sum
    Q           matching votes on the contributing set before any site answers
    min_cohort  least number of contributors of a sum
    membership  which sets of sites may be summed

The coordinator chooses who 'dropped out', so sets of sites differ at its will, and the difference
of two sums is the sum over the sites by which their sets differ. With `membership: fixed` every
sum is over the whole roster, so that there is no difference, and T = c + 1 will do. Q = c + 2 has
two honest sites see every ledger's head before a sum is opened, so that none is restored unseen.
With `batches` sums are over whole batches of at least c + 2 sites (`batches`), by the same T and Q.
With `open` any set of min_cohort sites may be summed. Two sets are then kept apart within one round
only, by quorums that share an honest site: it is for plans that protect each training row by
itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fedshield.errors import PlanError

Server = Literal["malicious", "semi-honest"]
Membership = Literal["fixed", "batches", "open"]
OpenTo = Literal["peers", "server"]


@dataclass(frozen=True)
class Rules:
    """The quorums of `num_sites` sites. Build with `resolve`, which checks them."""

    num_sites: int
    max_colluding: int
    threshold: int
    votes: int
    min_cohort: int
    server: Server = "malicious"
    membership: Membership = "fixed"

    @property
    def certificate(self) -> int:
        """Matching receipts before a site takes a result: so many that any two such sets share an
        honest site, which signs one receipt only."""
        return (self.num_sites + self.max_colluding) // 2 + 1

    @property
    def least_apart(self) -> int:
        """Fewest sites that a sum, or the difference of two, is over: what noise and shares must
        hold for."""
        return self.max_colluding + 2 if self.membership == "batches" else self.min_cohort

    def in_words(self) -> str:
        """One paragraph for the people who sign it."""
        k, c = self.num_sites, self.max_colluding
        colluding = f"up to c={c} of them and the coordinator" if c else "the coordinator"
        beyond = "1 site" if c == 0 else f"{c + 1} sites"
        vote = (
            f"{self.votes} matching votes on the set first (Q={self.votes})"
            if self.votes
            else "no vote: the coordinator is trusted to follow the protocol (Q=0)"
        )
        return (
            f"{k} sites. {'In one sum, together' if self.membership == 'open' else 'Together'}, "
            f"{colluding} learn of an honest site's update no more than a "
            f"sum that it is part of; with {beyond} colluding that no longer holds, and single "
            f"updates may be opened. A sum has at least min_cohort={self.min_cohort} contributors; "
            f"opening it takes T={self.threshold} answers, and {vote}. {self._lost_in_words()}"
        )

    def _lost_in_words(self) -> str:
        """What a round does without a site."""
        k = self.num_sites
        after = max(self.threshold, self.votes, self.certificate)
        lost_before, lost_after = k - max(self.min_cohort, after), k - after
        if self.membership == "fixed":
            after_words = (
                f"A round that loses {lost_after} after the upload still ends at the others; the "
                "resumed run repeats it, unless it was the last."
                if lost_after
                else "So it does without one that is lost after it."
            )
            return (
                "Every sum is over all of them (membership fixed): the run stops without a site "
                "that is lost before its upload, and is resumed once that is back. " + after_words
            )
        if self.membership == "batches":
            agreed = (
                "a round has one result, for any two such sums share a batch"
                if 2 * self.min_cohort > k
                else "the sites of one sum take one result, but batches that the coordinator keeps "
                "apart can each go on with a model of their own until they meet"
            )
            return (
                "Sites are in batches, and every sum is over whole ones (membership batches): who "
                "is lost before its round's update leaves has its batch sit out, and the others "
                f"go on while they are {max(self.min_cohort, self.votes, self.threshold)}; "
                f"{agreed}. The coordinator sees which batch was away."
            )
        return (
            f"Sums are over any such set (membership open): a round survives {lost_before} lost "
            f"before uploading and {lost_after} lost after, and a site's own update, noised for "
            "each training row, can be had as the difference of two sums."
        )


def default_colluding(num_sites: int) -> int:
    """c where nobody says: max(1, (K-1)//3), and none of two sites.

    >>> [default_colluding(sites) for sites in (2, 3, 7, 64)]
    [0, 1, 2, 21]
    """
    return min(max(1, (num_sites - 1) // 3), max(0, num_sites - 2))


def resolve(
    num_sites: int,
    *,
    max_colluding: int | None = None,
    threshold: int | None = None,
    votes: int | None = None,
    min_cohort: int | None = None,
    server: Server = "malicious",
    membership: Membership = "fixed",
) -> Rules:
    """The rules of a federation; what is not given takes its default.

    Against a malicious coordinator T = max(2, c + 1) and Q = c + 2, and with membership open T = Q
    = (K + c)//2 + 1 unless min_cohort = K; against a semi-honest one T = max(2, c + 1) and no vote.

    >>> rules = resolve(7)
    >>> rules.max_colluding, rules.threshold, rules.votes, rules.min_cohort
    (2, 3, 4, 7)

    Args:
        num_sites: K.
        max_colluding: c; max(1, (K-1)//3) by default.
        threshold: T, shares that open a sum.
        votes: Q, matching votes on the contributing set.
        min_cohort: least number of contributors; K with membership fixed, by default max(T, c + 2)
            with the others.
        server: what the coordinator is taken for.
        membership: which sets of sites may be summed. Batches take at least 2 (c + 2) sites.

    Raises:
        PlanError: for numbers that would let a tolerated coalition open a single update, or that no
            round could meet.
    """
    k = num_sites
    c = max(1, (k - 1) // 3) if max_colluding is None else max_colluding
    if not 0 <= c <= k - 2:
        raise PlanError(
            key="scheme.max_colluding",
            expected=f"0 to {k - 2} for {k} sites (a sum must be over at least c + 2 of them)",
            got=str(c),
            fix="with two sites each learns the other's update from the sum: set it to 0 to "
            "accept that"
            if k == 2
            else "lower it or add sites",
        )
    general = (k + c) // 2 + 1
    if membership == "fixed":
        if min_cohort not in (None, k):
            raise PlanError(
                key="scheme.min_cohort",
                expected=f"{k} to {k} with membership fixed (a sum is over all sites)",
                got=str(min_cohort),
                fix=f"leave it out for {k}",
            )
        min_cohort = k
    if membership == "batches" and k < 2 * (c + 2):
        raise PlanError(
            key="scheme.membership",
            expected=f"at least 2 (c + 2) = {2 * (c + 2)} sites for batches with c={c}",
            got=str(k),
            fix="use fixed, or lower scheme.max_colluding",
        )
    if server == "semi-honest":
        least_t, least_q = c + 1, 0
        default_t = max(2, c + 1)
    elif membership == "batches":
        # One honest voter could be a restored one, so two see all heads, as with fixed.
        least_t, least_q = c + 1, c + 2
        default_t = max(2, c + 1)
    elif (min_cohort is None and max(general, c + 2) >= k) or min_cohort == k:
        least_t, least_q = c + 1, c + 2
        default_t = max(2, c + 1)
        min_cohort = k
    else:
        least_t = least_q = default_t = general
    t = default_t if threshold is None else threshold
    where = f"{k} sites with c={c} and a {server} coordinator"
    _check_within("threshold", t, least_t, k, f"for {where}", default_t)
    default_q = 0 if server == "semi-honest" else max(t, least_q)
    q = default_q if votes is None else votes
    _check_within("votes", q, least_q, k, f"for {where}", default_q)
    least_cohort = max(t, c + 2)
    cohort = least_cohort if min_cohort is None else min_cohort
    why = f"(at least T={t} and c+2={c + 2})"
    _check_within("min_cohort", cohort, least_cohort, k, why, least_cohort)
    return Rules(k, c, t, q, cohort, server, membership)


def _check_within(name: str, value: int, least: int, most: int, why: str, default: int) -> None:
    """Raises `PlanError` for a number of `scheme` below `least` or above `most`."""
    if not least <= value <= most:
        raise PlanError(
            key=f"scheme.{name}",
            expected=f"{least} to {most} {why}",
            got=str(value),
            fix=f"leave it out for {default}",
        )
