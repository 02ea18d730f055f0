"""A site's FLARE process, which does only what a run needs of what a server can ask.

    python -m fedshield.run.flare.site_main ...    FLARE's own arguments

FLARE's client carries out requests of the server by topic: also to read any file (`cat`, `grep`),
to delete folders and to change its logging. Whether the site's authorization.json is asked is for
the server to say in the request (FLARE 2.9.0), so it binds administrators of an honest server and
not the server. A site's keys and data lie on its machine: what is not needed is not there.
"""

from __future__ import annotations

import copy
import re
import runpy
from collections.abc import Iterable
from typing import Any

#: How FLARE numbers jobs.
_JOB = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
#: What a run, `status` and an abort ask of a site's process.
NEEDED = frozenset(
    {
        "train.check_status",
        "train.get_scopes",
        "train.deploy",
        "train.start_job",
        "train.abort",
        "train.abort_task",
        "train.notify_job_status",
        "train.shutdown",
        "scheduler.check_resource",
        "scheduler.cancel_resource",
    }
)


def needed(processors: Iterable[Any]) -> list[Any]:
    """Of FLARE's request processors copies of those whose every topic is needed, which take a job
    for a job only."""
    return [
        _for_jobs(copy.copy(processor))
        for processor in processors
        if set(processor.get_topics()) <= NEEDED
    ]


def _for_jobs(processor: Any) -> Any:
    """FLARE empties a job's folder, `flare/JOB`, before it puts the job there; a job by the name of
    `startup` or `local` would take the kit's own."""
    from nvflare.private.admin_defs import error_reply

    process = processor.process

    def guarded(request: Any, context: Any) -> Any:
        job = request.get_header("job_id")
        if job is not None and not _JOB.fullmatch(str(job)):
            return error_reply("expected the number of a job")
        return process(request, context)

    processor.process = guarded
    return processor


def main() -> None:
    """Become FLARE's client in this process."""
    from nvflare.private.fed.client.client_req_processors import ClientRequestProcessors

    listed = ClientRequestProcessors.request_processors
    listed[:] = needed(listed)
    runpy.run_module("nvflare.private.fed.app.client.client_train", run_name="__main__")


if __name__ == "__main__":
    main()
