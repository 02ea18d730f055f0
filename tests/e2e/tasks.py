"""A limit of tasks (threads and processes together) that binds who is started under it.

RLIMIT_NPROC needs no right to set. It counts all threads of a user, and it does not bind root:
where the tests run as root, what is limited runs as a user of its own, who may read and write as
root does.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from fedshield.run.flare.limits import _tasks_of

#: Takes every task that there is from the line on that it reads, and lets none go.
_HOG = """
import sys, threading
if not sys.stdin.readline():
    sys.exit()
held, threads = threading.Event(), 0
while threads < int(sys.argv[1]):
    try:
        threading.Thread(target=held.wait, daemon=True).start()
        threads += 1
    except RuntimeError:
        held.wait(0.002)
"""
#: Besides, so that the user of its own reads and writes what root's tests made, in folders that are
#: root's; none of these lifts the limit.
_RIGHTS = "+dac_override,+fowner"
#: In the environment of what is limited: its user writes nothing beside the installed source.
NO_FILES = {"PYTHONDONTWRITEBYTECODE": "1"}


class Limited:
    """At most `tasks` more than the user has now."""

    def __init__(self, tasks: int) -> None:
        self.is_root = os.geteuid() == 0
        self.user = _free_user() if self.is_root else os.geteuid()
        self.limit = tasks + _tasks_of(self.user)

    def before(self) -> list[str]:
        """The words before a command that is to be bound."""
        words = ["prlimit", f"--nproc={self.limit}", "--"]
        if not self.is_root:
            return words
        user = str(self.user)
        become = ["setpriv", "--reuid", user, "--regid", user, "--clear-groups"]
        rights = ["--inh-caps", _RIGHTS, "--ambient-caps", _RIGHTS]
        return [*become, "--securebits", "+no_setuid_fixup", *rights, *words]

    def own(self, folder: Path) -> None:
        """A kit is its user's own."""
        if self.is_root:
            for path in (folder, *folder.rglob("*")):
                os.chown(path, self.user, self.user, follow_symlinks=False)

    def hog(self) -> subprocess.Popen[bytes]:
        """A program of the same user's that takes what is left when it is told to."""
        return subprocess.Popen(
            [*self.before(), sys.executable, "-c", _HOG, str(self.limit)],
            stdin=subprocess.PIPE,
            env=dict(os.environ) | NO_FILES,
        )

    def used_up(self) -> bool:
        return _tasks_of(self.user) >= self.limit


def _free_user() -> int:
    """One who runs nothing."""
    return next(user for user in range(64_000, 65_000) if not _tasks_of(user))
