"""Errors of other libraries that a user can do something about: which, in one line, and what then.

Memory, disk and access fail in many words: Python's, torch's, numpy's, the kernel's, the hub's. One
place knows them, so that every command and every engine says the same, and what may cross to other
parties (`failure_code`) is a code and never `internal` for what a user caused.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from fedshield import interrupt
from fedshield.errors import CryptoError, FedShieldError, ProtocolError, ResourceError, RoundFailed

CauseCode = Literal["memory", "disk", "access"]

OUT_OF_MEMORY = (
    "lower training.batch_size (with more training.gradient_accumulation) or "
    "training.max_length, set training.gradient_checkpointing: true, or lower speed.eval_batch_size"
)
TOKEN = "accept its terms on the hub, then set HF_TOKEN (or log in with: hf auth login)"
#: As torch's allocators for CPU and CUDA, C++, the linear algebra libraries and the kernel say it.
_MEMORY_TEXT = re.compile(
    r"can't allocate memory|out of memory|std::bad_alloc|cannot allocate memory|"
    r"unable to allocate|failed to allocate|not enough memory",
    re.IGNORECASE,
)
_WANTED_BYTES = re.compile(r"tried to allocate ([\d.]+) ?([KMGT]i?B|bytes)", re.IGNORECASE)
_DISK_TEXT = re.compile(
    r"no space left on device|disk quota exceeded|\(os error (28|122)\)", re.IGNORECASE
)
_DISK_NUMBERS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_ACCESS_NUMBERS = {errno.EACCES, errno.EPERM, errno.EROFS}
_TOKEN_TEXT = re.compile(r"gated (repo|dataset)|\b40[13] client error", re.IGNORECASE)


@dataclass(frozen=True)
class Cause:
    """`sentence`: what happened and what to do; `resumable`: whether the same run can go on once
    that is done, by itself with nothing in its plan changed."""

    code: CauseCode
    sentence: str
    resumable: bool


def cause_of(error: BaseException) -> Cause | None:
    """What a user can mend of an error, or None. The errors that led to it are looked at too."""
    for link in _chain(error):
        text = str(link)
        if isinstance(link, FedShieldError):
            continue
        if isinstance(link, MemoryError) or _says_memory(link, text):
            wanted = _WANTED_BYTES.search(text)
            size = f" (tried to allocate {wanted[1]} {wanted[2]})" if wanted else ""
            return Cause("memory", f"out of memory{size}; {OUT_OF_MEMORY}", False)
        if _says_disk(link, text):
            name = link.filename if isinstance(link, OSError) else None
            where = f" for {name}" if name else ""
            return Cause("disk", f"the disk is full{where}; free some space on it", True)
        if (sentence := missing_token(link)) is not None:
            return Cause("access", sentence, True)
        if isinstance(link, OSError) and link.errno in _ACCESS_NUMBERS and link.filename:
            return Cause(
                "access",
                f"{link.filename}: expected a file that this user may use, got "
                f"{str(link.strerror).lower()}; change its owner or mode",
                True,
            )
    return None


def missing_token(error: BaseException) -> str | None:
    """What to do where the hub refuses a download for want of a token; None for other errors."""
    for link in _chain(error):
        names = {kind.__name__ for kind in type(link).__mro__}
        status = getattr(getattr(link, "response", None), "status_code", None)
        if "GatedRepoError" in names or "LocalTokenNotFoundError" in names:
            return f"expected leave to download it, got none: it is gated; {TOKEN}"
        if status in (401, 403) or ("Hf" in str(names) and _TOKEN_TEXT.search(str(link))):
            return (
                f"expected leave to download it, got HTTP status {status or '401 or 403'}: it is "
                f"private, gated or misspelt; check the name, and for such a one {TOKEN}"
            )
        if _TOKEN_TEXT.search(str(link)) and not isinstance(link, FedShieldError):
            return f"expected leave to download it, got none: it is private or gated; {TOKEN}"
    return None


def can_go_on(error: BaseException) -> bool:
    """Whether resuming the run that this ended, as it is, can end otherwise: after a stop, which
    can come as whatever a library made of it, and after an error of ours that says so."""
    if isinstance(error, FedShieldError):
        return error.resumable
    return isinstance(error, KeyboardInterrupt) or interrupt.asked() is not None


def explained(error: BaseException) -> BaseException:
    """The error itself, or a `ResourceError` in its place where it is a cause that we know."""
    if isinstance(error, FedShieldError):
        return error
    cause = cause_of(error)
    return error if cause is None else ResourceError(cause.sentence, resumable=cause.resumable)


def failure_code(error: Exception) -> str:
    """What may be told of a site's error: a code from a fixed list, never its text."""
    if isinstance(error, ProtocolError | CryptoError):
        return error.code
    if isinstance(error, RoundFailed):
        return "training"
    cause = cause_of(error)
    return "internal" if cause is None else cause.code


def _says_memory(error: BaseException, text: str) -> bool:
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    names = {kind.__name__ for kind in type(error).__mro__}
    return "OutOfMemoryError" in names or (
        isinstance(error, RuntimeError | ImportError) and bool(_MEMORY_TEXT.search(text))
    )


def _says_disk(error: BaseException, text: str) -> bool:
    if isinstance(error, OSError):
        return error.errno in _DISK_NUMBERS
    names = {kind.__name__ for kind in type(error).__mro__}
    # torch's writer and pyarrow's say it in text; safetensors has an error of its own for it.
    return bool(_DISK_TEXT.search(text)) and bool(
        names & {"SafetensorError", "RuntimeError", "ArrowException"}
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
