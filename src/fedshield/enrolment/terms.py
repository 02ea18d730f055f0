"""The terms of a roster, in the names of the options that give them: the numbers that decide who
may open what, and the settings that a plan may have."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass

from fedshield.enrolment.files import RosterError
from fedshield.enrolment.forms import Form, MaybeNumber, Text, Texts
from fedshield.errors import PlanError
from fedshield.plan.data import MAX_SITES
from fedshield.plan.quorum import Membership, Rules, Server, resolve

#: The plan's schemes, the default first.
SCHEMES = ("rlwe", "ckks", "plain")
SERVERS: tuple[Server, ...] = ("malicious", "semi-honest")
MEMBERSHIPS: tuple[Membership, ...] = ("fixed", "batches", "open")
_NUMBERS = ("max_colluding", "threshold", "votes", "min_cohort")
#: Least and largest of each number that may be asked for.
_RANGES = {
    "max_colluding": (0, MAX_SITES - 2),
    "threshold": (1, MAX_SITES),
    "votes": (0, MAX_SITES),
    "min_cohort": (2, MAX_SITES),
    "min_bits": (2, 16),
    "max_examples": (1, 2**31 - 1),
}


def _check_range(key: str, value: int | None) -> None:
    least, most = _RANGES[key]
    if value is not None and not least <= value <= most:
        raise RosterError(
            f"{_option(key)}: expected {least} to {most}, got {str(value)[:20]}; give another or "
            "leave it out"
        )


def _option(key: str) -> str:
    return "--" + key.replace("_", "-")


@dataclass(frozen=True)
class Asked:
    """The numbers that were asked for; None is what `quorum.resolve` makes of the others."""

    max_colluding: int | None = None
    threshold: int | None = None
    votes: int | None = None
    min_cohort: int | None = None
    server: Server = "malicious"
    membership: Membership = "fixed"

    def __post_init__(self) -> None:
        for key in _NUMBERS:
            _check_range(key, getattr(self, key))
        if self.server not in SERVERS:
            raise RosterError(
                f"--server: expected {' or '.join(SERVERS)}, got {str(self.server)[:40]!r}; "
                "leave it out for malicious"
            )
        if self.membership not in MEMBERSHIPS:
            raise RosterError(
                f"--membership: expected {', '.join(MEMBERSHIPS[:-1])} or {MEMBERSHIPS[-1]}, got "
                f"{str(self.membership)[:40]!r}; leave it out for fixed"
            )

    def rules(self, num_sites: int) -> Rules:
        """Raises `RosterError` in the words of the command's options."""
        try:
            return resolve(num_sites, **dataclasses.asdict(self))
        except PlanError as error:
            text = re.sub(r"^scheme\.(\w+)", lambda found: _option(found[1]), str(error))
            raise RosterError(f"{text} (given when the roster was made)") from None


class AskedForm(Form):
    """The numbers in a roster's file."""

    max_colluding: MaybeNumber
    threshold: MaybeNumber
    votes: MaybeNumber
    min_cohort: MaybeNumber
    server: Text
    membership: Text

    def asked(self) -> Asked:
        """Raises `RosterError` in the words of the options."""
        return Asked(**self.model_dump())


@dataclass(frozen=True)
class Allowed:
    """What a plan may ask of the sites of this roster. `min_bits`: least `encoding.bits`;
    `max_examples`: what a site's example count is capped at; None for no such limit."""

    schemes: tuple[str, ...] = ("rlwe",)
    min_bits: int | None = None
    max_examples: int | None = None

    def __post_init__(self) -> None:
        unknown = [name for name in self.schemes if name not in SCHEMES]
        if unknown or not self.schemes or len(set(self.schemes)) < len(self.schemes):
            raise RosterError(
                f"--allow-scheme: expected some of {', '.join(SCHEMES)}, each once, got "
                f"{', '.join(name[:40] for name in self.schemes)!r}; leave it out for rlwe"
            )
        _check_range("min_bits", self.min_bits)
        _check_range("max_examples", self.max_examples)

    def in_words(self) -> str:
        words = f"schemes {', '.join(sorted(self.schemes))}"
        if self.min_bits is not None:
            words += f"; at least {self.min_bits} bits a value"
        if self.max_examples is not None:
            words += f"; at most {self.max_examples} examples a site"
        if "ckks" in self.schemes:
            words += "; ckks: any ONE site together with the coordinator reads every site's update"
        if "plain" in self.schemes:
            words += "; plain: NO protection, the coordinator reads every update"
        return words


class AllowedForm(Form):
    """What a plan may ask, in a roster's file."""

    schemes: Texts
    min_bits: MaybeNumber
    max_examples: MaybeNumber

    def allowed(self) -> Allowed:
        """Raises `RosterError` in the words of the options."""
        return Allowed(**self.model_dump())
