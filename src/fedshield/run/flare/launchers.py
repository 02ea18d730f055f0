"""How a party's FLARE process starts the process of a job: in any folder.

FLARE 2.9.0 joins a job's command line with spaces and splits it again as a shell would. A space,
a quote, a backslash or a number sign in the path of the kit or of the Python interpreter takes
it apart, and every run fails. These launchers quote each value first.
"""

from __future__ import annotations

import shlex
import sys
from typing import Any

from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.job_launcher_spec import JobProcessArgs
from nvflare.app_common.job_launcher.process_launcher import ProcessJobLauncher
from nvflare.utils.job_launcher_utils import get_client_job_args, get_server_job_args


def command_line(arguments: dict[str, tuple[str, Any]], order: list[str]) -> str:
    """The job's command line. `arguments`: FLARE's name of each -> option and value."""
    # Nothing from the folder that the party runs in may be imported.
    words = [shlex.quote(sys.executable), "-P"]
    for name in order:
        if arguments.get(name):
            option, value = arguments[name]
            # This one is several words: KEY=VALUE texts that the party was started with.
            text = str(value) if name == JobProcessArgs.OPTIONS else shlex.quote(str(value))
            words += [option, text]
    return " ".join(words)


class ClientLauncher(ProcessJobLauncher):  # type: ignore[misc]  # nvflare has no types
    """At a site."""

    def get_command(self, job_meta: dict[str, Any], fl_ctx: FLContext) -> str:
        return command_line(_arguments(fl_ctx), get_client_job_args())


class ServerLauncher(ProcessJobLauncher):  # type: ignore[misc]
    """At the coordinator."""

    def get_command(self, job_meta: dict[str, Any], fl_ctx: FLContext) -> str:
        return command_line(_arguments(fl_ctx), get_server_job_args())


def _arguments(fl_ctx: FLContext) -> dict[str, tuple[str, Any]]:
    arguments: dict[str, tuple[str, Any]] | None = fl_ctx.get_prop(FLContextKey.JOB_PROCESS_ARGS)
    if not arguments:
        raise RuntimeError("expected FLARE's arguments of the job's process, got none")
    return arguments
