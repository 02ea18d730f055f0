"""The certificates and TLS keys of a kit: in date, readable, private, and a pair.

A certificate that has ended stops every connection, and the transport then tries for ever without
a word to anyone. So its end is announced `ANNOUNCE_DAYS` before.
"""

from __future__ import annotations

import datetime
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from fedshield.checks import Finding

#: Days before a certificate's end from which it is announced.
ANNOUNCE_DAYS = 60
#: What to do about a certificate of a kit that has ended, or will soon.
RENEW = "renew it: fedshield site renew KIT, or fedshield server renew FOLDER"
_CERTIFICATE = b"BEGIN CERTIFICATE"


@dataclass(frozen=True)
class EndingCertificate:
    """`ends`: UTC; `days_left`: whole days, negative once it has ended."""

    path: Path
    ends: datetime.datetime
    days_left: int

    def in_words(self) -> str:
        when = f"{self.ends:%Y-%m-%d}"
        if self.days_left < 0:
            return f"{self.path}: ended on {when}; {RENEW}"
        return f"{self.path}: ends on {when}, in {self.days_left} days; {RENEW}"


def certificates_ending(
    folder: Path, now: datetime.datetime, days: int = ANNOUNCE_DAYS
) -> tuple[EndingCertificate, ...]:
    """Certificates below `folder` that end within `days` of `now` (with a time zone), the first
    to end first. Files that cannot be read are told of by `certificates_unread`."""
    ending: list[EndingCertificate] = []
    for path, chain in _chains(folder):
        if isinstance(chain, str):
            continue
        end = min(certificate.not_valid_after_utc for certificate in chain)
        if end - now < datetime.timedelta(days=days):
            ending.append(EndingCertificate(path, end, (end - now).days))
    return tuple(sorted(ending, key=lambda certificate: certificate.ends))


def certificates_unread(folder: Path) -> tuple[str, ...]:
    """A sentence on each certificate below `folder` whose end nobody can tell."""
    return tuple(f"{path}: {chain}" for path, chain in _chains(folder) if isinstance(chain, str))


def _chains(folder: Path) -> Iterator[tuple[Path, list[x509.Certificate] | str]]:
    """The certificates in each file below `folder` that is to have some, or why there are none."""
    for path in sorted(path for path in folder.rglob("*") if path.suffix in (".crt", ".pem")):
        try:
            data = path.read_bytes()
            if path.suffix == ".crt" or _CERTIFICATE in data:
                yield path, x509.load_pem_x509_certificates(data)
        except OSError as error:
            yield path, f"cannot be read ({error.strerror}); make it readable"
        except ValueError:
            yield path, f"expected a certificate (PEM), got other bytes; {RENEW}"


def is_pair(certificate: Path, key: Path) -> bool:
    """Whether the certificate is of this private key; both PEM. Raises `OSError`, `ValueError`."""
    public = x509.load_pem_x509_certificate(certificate.read_bytes()).public_key()
    private = serialization.load_pem_private_key(key.read_bytes(), password=None)
    form = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return public.public_bytes(*form) == private.public_key().public_bytes(*form)


def certificates(folder: Path, now: datetime.datetime) -> Iterator[Finding]:
    """Every certificate and private key below `folder`: readable, in date, keys mode 0600."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix in (".crt", ".pem", ".key"))
    seen = 0
    for path in paths:
        name = f"certificate {path.relative_to(folder)}"
        try:
            data = path.read_bytes()
        except OSError as error:
            todo = "make it readable for this user"
            yield Finding(name, "FAILED", "a readable file", str(error.strerror), todo)
            continue
        if b"PRIVATE KEY" in data or path.suffix == ".key":
            yield _private(path, folder)
            yield from _pair(path, folder)
        if _CERTIFICATE in data or path.suffix == ".crt":
            seen += 1
            yield _certificate(name, data, now)
    if not seen:
        todo = "install the kit, or give its folder"
        yield Finding("certificates", "FAILED", f"some below {folder}", "none", todo)


def _private(path: Path, folder: Path) -> Finding:
    mode = stat.S_IMODE(path.stat().st_mode)
    wide = bool(mode & ~0o600)
    return Finding(
        f"key {path.relative_to(folder)}",
        "FAILED" if wide else "ok",
        "mode 0600 or narrower",
        f"{mode:04o}",
        f"run: chmod 600 {path}" if wide else "",
    )


def _pair(key: Path, folder: Path) -> Iterator[Finding]:
    """Nothing for a key without a certificate of its name beside it, and for a pair."""
    certificate = key.with_suffix(".crt")
    if not certificate.exists():
        return
    try:
        fits = is_pair(certificate, key)
    except (OSError, ValueError):
        return  # what is wrong with either is a finding of its own
    if not fits:
        name = f"certificate {certificate.relative_to(folder)}"
        todo = "a renewal was cut off: run fedshield site install or server renew again"
        yield Finding(name, "FAILED", f"one of {key.name}", "one of another key", todo)


def _certificate(name: str, data: bytes, now: datetime.datetime) -> Finding:
    try:
        found = x509.load_pem_x509_certificates(data)
    except ValueError:
        return Finding(name, "FAILED", "a certificate (PEM)", "something else", "restore it")
    start = max(one.not_valid_before_utc for one in found)
    end = min(one.not_valid_after_utc for one in found)
    expected, dates = "in date", f"{start:%Y-%m-%d} to {end:%Y-%m-%d}"
    if now < start:
        todo = "set the clock, or wait"
        return Finding(name, "FAILED", expected, f"not valid yet: {dates}", todo)
    if now > end:
        todo = f"set the clock if it is ahead, else {RENEW}"
        return Finding(name, "FAILED", expected, f"expired: {dates}", todo)
    if end - now < datetime.timedelta(days=ANNOUNCE_DAYS):
        left = (end - now).days
        return Finding(name, "warning", expected, f"{left} days left: {dates}", RENEW)
    return Finding(name, "ok", expected, dates)
