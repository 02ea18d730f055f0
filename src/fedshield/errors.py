"""The exceptions that FedShield raises, all children of one.

    FedShieldError
    |-- UserError             the person at the keyboard can mend it; the command exits with 2
    |   |-- PlanError         the plan: an unknown key, a wrong type, an impossible combination
    |   |-- DataError         a data file: missing, malformed, empty, too few rows
    |   |-- ModelError        a base model or a run's adapter: missing, wrong kind, wrong hash
    |   |-- RunFolderError    an output folder that exists, a run that cannot be resumed
    |   `-- ResourceError     memory, disk or access that the machine does not give
    |-- ProtocolError         a message broke a rule; carries a code from a fixed list
    |-- CryptoError           a ciphertext, key or sealed box did not open or does not fit
    `-- RoundFailed           a round could not be completed; the previous model is kept

Every message is one line: what was expected, what came, what to do.
"""

from __future__ import annotations

from typing import Literal

ProtocolCode = Literal[
    "malformed",
    "version",
    "signature",
    "context",
    "sender",
    "kind",
    "round",
    "size",
    "digest",
    "layout",
    "not-in-set",
    "repeated",
    "disagree",
    "journal",
    "scheme",
    "cohort",
    "vote",
    "share",
    "budget",
    "rule",
    "ledger",
]

CryptoCode = Literal["crypto", "key-sum", "residual", "tag", "weight"]


class FedShieldError(Exception):
    """Base of every error that FedShield raises on purpose. `resumable`: whether going on with the
    run that it ended, as it is, can end otherwise."""

    resumable = True


class UserError(FedShieldError):
    """Something that the user can mend. The command line exits with status 2."""

    resumable = False


class PlanError(UserError):
    """A plan that cannot be run as written. Of one key of it: `key`, what was `expected`, what it
    `got` and what to do (`fix`); the message is made of these. `key` is '' for a plan that is wrong
    in another way, which the message says."""

    def __init__(
        self, message: str = "", *, key: str = "", expected: str = "", got: str = "", fix: str = ""
    ) -> None:
        self.key, self.expected, self.got, self.fix = key, expected, got, fix
        if key:
            message = f"{key}: expected {expected}, got {got}" + (f"; {fix}" if fix else "")
        super().__init__(message)


class InvalidKey(ValueError):
    """A value that a section of a plan or file cannot have. Raised in a section's own check, from
    where pydantic carries it to whoever reads the file (`plan.explain`). `key`: below the section,
    dotted; '' for the section itself."""

    def __init__(self, key: str, got: object, expected: str, fix: str = "") -> None:
        super().__init__(key)
        self.key, self.got, self.expected, self.fix = key, str(got), expected, fix


class DataError(UserError):
    """Training or held-out data that cannot be used as they are."""


class ModelError(UserError):
    """A base model or adapter that cannot be loaded as asked."""


class RunFolderError(UserError):
    """An output folder or run folder in the wrong state."""


class ResourceError(UserError):
    """Memory, disk or access that the machine does not give; see `causes`."""

    def __init__(self, message: str, *, resumable: bool) -> None:
        super().__init__(message)
        self.resumable = resumable


class ProtocolError(FedShieldError):
    """A message that breaks the protocol. `code` is from a fixed list, so that it can cross
    to other parties without carrying anything of the site's."""

    def __init__(self, code: ProtocolCode, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code: ProtocolCode = code


class CryptoError(FedShieldError):
    """A key, ciphertext or sealed box that does not open or does not fit. `code` is what may be
    told to other parties: why a sum was rejected, and nothing of its contents."""

    def __init__(self, message: str, code: CryptoCode = "crypto") -> None:
        super().__init__(message)
        self.code: CryptoCode = code


class RoundFailed(FedShieldError):
    """A round that could not be completed. The previous adapter stays in force."""

    def __init__(self, message: str, *, resumable: bool = True) -> None:
        super().__init__(message)
        self.resumable = resumable
