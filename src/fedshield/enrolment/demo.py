"""A demonstration roster: one operator makes every key, so it protects nobody, and says so in
what is signed."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from fedshield.disk import sync_folder
from fedshield.enrolment.cards import PRIVATE_MODE, PUBLIC_MODE, KeyFile
from fedshield.enrolment.files import RosterError, write_new
from fedshield.enrolment.signed_roster import SignedRoster
from fedshield.enrolment.terms import Allowed, Asked
from fedshield.plan.batches import Batches
from fedshield.protocol.roster import COORDINATOR

ROSTER_FILE = "roster.json"


def demonstration(
    sites: Sequence[str],
    asked: Asked | None = None,
    allowed: Allowed | None = None,
    batches: Batches = (),
) -> tuple[SignedRoster, dict[str, KeyFile]]:
    """A roster that all sites have signed, and everyone's keys by name.

    Args:
        sites: their names.
        asked: the numbers; the defaults if left out.
        allowed: what a plan may ask; the defaults if left out.
        batches: with membership batches; cut by name if none are given.

    Raises:
        RosterError: for names or numbers that no roster has.
    """
    names = [*sites, COORDINATOR]
    keys = {name: KeyFile.make(name) for name in names}
    cards = tuple(keys[name].card() for name in sites)
    roster = SignedRoster(
        keys[COORDINATOR].card(),
        cards,
        asked or Asked(),
        allowed or Allowed(),
        demo=True,
        named_batches=batches,
    )
    roster.rules()
    for name in sites:
        roster = roster.countersigned(keys[name], [other for other in sites if other != name])
    return roster, keys


def write_demonstration(
    folder: Path,
    sites: Sequence[str],
    asked: Asked | None = None,
    allowed: Allowed | None = None,
    batches: Batches = (),
) -> SignedRoster:
    """A new folder with `roster.json`, and everyone's key file and card; whole or not at all.

    Args:
        folder: not there yet.
        sites: their names.
        asked: the numbers; the defaults if left out.
        allowed: what a plan may ask; the defaults if left out.
        batches: with membership batches; cut by name if none are given.

    Raises:
        RosterError: as of `demonstration`, and where the folder is there or cannot be written.
    """
    roster, keys = demonstration(sites, asked, allowed, batches)
    if os.path.lexists(folder):
        raise RosterError(
            f"{folder}: expected no folder there yet, found one; choose another --out"
        )
    try:
        part = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise RosterError(
            f"{folder}: expected a place to write to, but {error.strerror}; choose another --out"
        ) from None
    try:
        for name, key_file in keys.items():
            write_new(part / f"{name}.key", key_file.to_text(), PRIVATE_MODE)
            write_new(part / f"{name}.card.json", key_file.card().to_text(), PUBLIC_MODE)
        write_new(part / ROSTER_FILE, roster.to_text(), PUBLIC_MODE)
        os.rename(part, folder)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    sync_folder(folder.parent)
    return roster
