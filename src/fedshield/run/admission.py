"""Who a party is in a run, what lets a plan run there, and what of its errors others are told."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from fedshield.causes import failure_code
from fedshield.crypto.keys import SiteKey
from fedshield.errors import UserError
from fedshield.plan.schema import Plan
from fedshield.protocol.roster import Roster


@dataclass(frozen=True)
class Reply:
    """`data` if `code` is empty; `code`: from a fixed list, safe to tell others."""

    data: bytes = b""
    code: str = ""


@dataclass(frozen=True)
class Party:
    """Who this site is in a run."""

    roster: Roster
    key: SiteKey = field(repr=False)
    example_cap: int | None = None
    policy_sha256: str = ""


class Admission(Protocol):
    """What lets a plan run at this site, or refuses it with a `UserError`."""

    @property
    def simulated(self) -> bool: ...

    @property
    def keys(self) -> Path | None: ...

    def local(self, plan: Plan) -> Plan: ...

    def not_used(self, plan: Plan) -> tuple[str, ...]: ...

    def ledger_path(self) -> Path: ...

    def admit(self, plan: Plan, base_model_sha256: str | None) -> Party: ...


class NotApproved(UserError):
    """A plan that this site's operator has not approved, as it is to be run."""


def refusal_code(error: Exception) -> str:
    """What may be told of a site's error."""
    if isinstance(error, NotApproved):
        return "not-approved"
    return "refused" if isinstance(error, UserError) else failure_code(error)
