"""One kit, one process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fedshield.run.flare.lock import LOCK_FILE, locked
from fedshield.run.flare.provision import ProvisionError

#: Locks the kit, becomes another program, and that one starts a child as FLARE starts its jobs:
#: with every handle that may be inherited. It says the child's process id, and waits.
HOLDER = """
import os, sys
from pathlib import Path
from fedshield.run.flare.lock import lock_kit
lock_kit(Path(sys.argv[1]), "site north")
program = '''
import os, sys
child = os.posix_spawn(sys.executable, [sys.executable, "-c", "import sys; sys.stdin.read()"],
                       os.environ, setsid=True)
print(child, flush=True)
os.waitpid(child, 0)
'''
os.execv(sys.executable, [sys.executable, "-c", program])
"""


def test_the_lock_outlives_exec_and_dies_with_the_process_whatever_its_children_do(
    tmp_path: Path,
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        child = int(holder.stdout.readline())
        try:
            told = f"process {holder.pid} runs it; one kit is for one process"
            with pytest.raises(ProvisionError, match=told), locked(tmp_path, "site north"):
                pass
            holder.send_signal(signal.SIGKILL)
            holder.wait()
            os.kill(child, 0)  # it lives, and has the handle
            with locked(tmp_path, "site north"):
                assert (tmp_path / LOCK_FILE).read_text() == f"{os.getpid()}\n"
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_kit_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / LOCK_FILE).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ProvisionError, match="expected a file that this user can lock"):
        locked(tmp_path, "site north").__enter__()
    assert not (tmp_path / "elsewhere").exists()
