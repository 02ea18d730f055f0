"""The files of enrolment: JSON that is read strictly, and written whole and never over another.

Every file says in its first key what it is. Unknown, missing and repeated keys, wrong types and
oversized files are refused; no error repeats a value that could be a secret. The keys of each kind
of file are a `forms.Form`, beside what they are read for.
"""

from __future__ import annotations

import json
import os
import re
import stat
from pathlib import Path
from typing import Any, Literal

from fedshield import interrupt
from fedshield.disk import sync_folder
from fedshield.errors import UserError
from fedshield.plan.data import SITE_NAME
from fedshield.protocol.roster import COORDINATOR
from fedshield.site_names import holder_of_reserved_name

Kind = Literal[
    "card 1",
    "key 1",
    "roster 2",
    "run rosters 2",
    "keys seen 2",
    "exposure 1",
    "ledger question 1",
    "ledger answer 1",
]
KIND_KEY = "fedshield"
MAX_BYTES: dict[Kind, int] = {
    "card 1": 16 * 1024,
    "key 1": 16 * 1024,
    # Up to 64 rosters that it follows, of up to 390 sites.
    "roster 2": 8 * 1024 * 1024,
    "exposure 1": 128 * 1024,
    "run rosters 2": 16 * 1024 * 1024,
    "keys seen 2": 1024 * 1024,
    "ledger question 1": 16 * 1024,
    "ledger answer 1": 256 * 1024 * 1024,
}
#: Keys of one object: pydantic keeps a note of each that is wrong.
MAX_KEYS = 2**16
WORDS: dict[str, str] = {
    "card 1": "a card (NAME.card.json)",
    "key 1": "a key file (NAME.key)",
    "roster 2": "a roster",
    "run rosters 2": "a run folder's rosters.json",
    "keys seen 2": "a kit's keys.seen.json",
    "exposure 1": "a site's exposure (NAME.going.json or NAME.joining.json)",
    "ledger question 1": "a question (site ledger ask)",
    "ledger answer 1": "an answer (site ledger answer)",
}


class RosterError(UserError):
    """A card, key file or roster that cannot be used as it is."""


def check_name(name: str, where: str) -> None:
    """Raises `RosterError` for what neither a site nor the coordinator can be called."""
    if re.fullmatch(SITE_NAME, name) is None:
        raise RosterError(
            f"{where}: expected a name of 1 to 31 characters a-z, 0-9 and '-', the first no '-', "
            f"got {name[:40]!r}; choose another name"
        )
    if name != COORDINATOR:
        check_site_name(name, where)


def check_identity(site: str, where: str) -> None:
    """Raises `RosterError` for what no site is known as: the first key of its card (hex), or its
    name in a demonstration. It is shown to people, who decide by it."""
    if re.fullmatch(r"[0-9a-f]{64}", site) is None and re.fullmatch(SITE_NAME, site) is None:
        raise RosterError(
            f"{where}: expected sites as the 64 digits of their first keys, got {site[:40]!r}; ask "
            "for the file again"
        )


def check_site_name(name: str, where: str) -> None:
    """Raises `RosterError` for a name that is another party's."""
    if (holder := holder_of_reserved_name(name)) is not None:
        raise RosterError(
            f"{where}: expected a site's own name, got {name!r}, which is {holder}; choose another "
            "name"
        )


# -- reading -------------------------------------------------------------------------------------


def read_document(path: Path, kind: Kind) -> tuple[dict[str, Any], os.stat_result]:
    """What is in the file, without the key that says which kind it is, and the state of the file
    that was read. Raises `RosterError`."""
    wanted = WORDS[kind]
    try:
        # Without O_NONBLOCK a pipe would keep us waiting.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RosterError(f"{path}: expected {wanted}, but {reason}; check the path") from None
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise RosterError(f"{path}: expected {wanted}, got no regular file; check the path")
        raw = _read(handle, MAX_BYTES[kind] + 1)
    finally:
        os.close(handle)
    if len(raw) > MAX_BYTES[kind]:
        raise RosterError(
            f"{path}: expected {wanted} of at most {MAX_BYTES[kind]} bytes, got more; "
            "ask for the file again"
        )
    try:
        # pydantic's own JSON takes a key that is given twice, and NaN.
        value = json.loads(
            raw.decode(), object_pairs_hook=_no_repeats, parse_constant=_no_constants
        )
        # JSON can say half of a character, which no text that is signed has.
        json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        reason = "not UTF-8" if isinstance(error, UnicodeError) else str(error)
        raise RosterError(
            f"{path}: expected {wanted}, got damaged JSON ({reason[:80]}); ask for the file again"
        ) from None
    got = value.get(KIND_KEY) if isinstance(value, dict) else None
    if got != kind:
        _refuse_kind(path, kind, got)
    del value[KIND_KEY]
    return value, status


def _read(handle: int, limit: int) -> bytes:
    parts: list[bytes] = []
    while limit > 0 and (part := os.read(handle, limit)):
        parts.append(part)
        limit -= len(part)
    return b"".join(parts)


def _refuse_kind(path: Path, kind: Kind, got: object) -> None:
    wanted = WORDS[kind]
    if got == "key 1":
        raise RosterError(
            f"{path}: expected {wanted}, got a private key file; never send it to anyone, and "
            "make new keys if it has left its site"
        )
    if (kind, got) == ("roster 2", "roster 1"):
        raise RosterError(
            f"{path}: expected a roster that says how boxes are sealed ('roster 2'), got one from "
            "before, for X25519 alone ('roster 1'); make it anew from the same cards (fedshield "
            "roster init, fedshield roster add) and have every site sign it"
        )
    if (kind, got) == ("keys seen 2", "keys seen 1"):
        raise RosterError(
            f"{path}: expected all keys of each party ('keys seen 2'), got a file from before, "
            "with the last ones only; compare the fingerprint of roster.json with the one that you "
            "signed (fedshield roster verify), then delete the file: it is made anew"
        )
    if isinstance(got, str) and got in WORDS:
        raise RosterError(f"{path}: expected {wanted}, got {WORDS[got]}; give the other file")
    if isinstance(got, str) and got.split(" ")[0] == kind.split(" ")[0]:
        raise RosterError(
            f"{path}: expected version {kind!r}, got {got[:40]!r}; all parties need the same "
            "version of FedShield"
        )
    raise RosterError(f"{path}: expected {wanted}, got something else; check the path")


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(pairs) > MAX_KEYS:
        raise ValueError(f"more than {MAX_KEYS} keys in one object")
    keys: dict[str, Any] = {}
    for key, value in pairs:
        if key in keys:
            raise ValueError(f"the key {key[:40]!r} is there twice")
        keys[key] = value
    return keys


def _no_constants(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


# -- writing -------------------------------------------------------------------------------------


def to_text(kind: Kind, fields: dict[str, Any]) -> str:
    return json.dumps({KIND_KEY: kind, **fields}, indent=1) + "\n"


def write_new(path: Path, text: str, mode: int) -> None:
    """Write a file that is not there yet, with `mode` from its first moment, synced to disk; whole
    or not at all.

    Args:
        path: of the file, which no link may stand for.
        text: all of it.
        mode: its permission bits.

    Raises:
        RosterError: where it is there already or cannot be written, and on a file system without
            modes.
    """
    with interrupt.held():
        _write_new(path, text, mode)


def _write_new(path: Path, text: str, mode: int) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        handle = os.open(path, flags, mode)
    except OSError as error:
        raise _cannot_write(path, error) from None
    try:
        try:
            if os.fstat(handle).st_mode & 0o777 & ~mode:
                raise RosterError(
                    f"{path}: expected a file system that keeps file modes (it must be "
                    f"{mode:04o}), got one that does not; choose another --out"
                )
            raw = text.encode()
            while raw:
                raw = raw[os.write(handle, raw) :]
            os.fsync(handle)
        finally:
            os.close(handle)
        sync_folder(path.parent)
    except BaseException as error:
        path.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise _cannot_write(path, error) from None
        raise


def _cannot_write(path: Path, error: OSError) -> RosterError:
    if isinstance(error, FileExistsError):
        return RosterError(
            f"{path}: expected no file there yet, found one, and it is never overwritten; "
            "move it away or choose another --out"
        )
    return RosterError(
        f"{path}: expected a place to write to, but {error.strerror}; choose another --out"
    )
