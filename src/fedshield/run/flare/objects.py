"""What FLARE makes in the coordinator's and in each site's process, from a job's JSON.

FLARE writes constructor arguments into the job by attribute name, so they hold nothing secret: the
plan, and the run's name. Keys, roster and the site's own rules come from its kit.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nvflare.collab import collab

from fedshield.errors import RoundFailed
from fedshield.run.admission import Reply
from fedshield.run.flare.conduct import conduct
from fedshield.run.flare.kit import Kit
from fedshield.run.flare.link import FlareSites
from fedshield.run.flare.receptions import forget_in_one_thread

if TYPE_CHECKING:
    from fedshield.run.site import SiteProcess


def aborted_in(context: Any) -> Callable[[], bool]:
    """Whether FLARE was told to end the job. Asked from threads that have no context of their
    own."""
    return lambda: bool(context.is_aborted())


class CoordinatorApp:
    """`plan`: the plan's JSON, speed and output included; `run`: the run's name."""

    def __init__(self, plan: str, run: str) -> None:
        self.plan = plan
        self.run = run

    @collab.main
    def coordinate(self) -> None:
        forget_in_one_thread()
        kit = Kit.here("coordinator")
        proxies = {proxy.name: proxy for proxy in collab.clients}
        plan = kit.read_plan(self.plan)
        sites = FlareSites(proxies, plan.speed, aborted_in(collab.context))
        folder = kit.run_folder(self.run, plan)
        if kit.simulated:
            conduct(plan, kit, sites, folder.path)
            return
        job = collab.fl_ctx.get_job_id()
        # FLARE hands this folder to whoever submitted the job.
        handed = Path(collab.workspace.get_run_dir(job))
        with kit.at_work(folder, job):
            reason = conduct(plan, kit, sites, folder.path, handed)
            if reason:
                # So that FLARE, too, does not call the job completed.
                raise RoundFailed(reason)


class SiteApp:
    """What it publishes returns and never raises, so that no text of the site's crosses."""

    def __init__(self, plan: str, run: str) -> None:
        self.plan = plan
        self.run = run

    @collab.init
    def prepare(self) -> None:
        forget_in_one_thread()
        # Here and not above: the coordinator's process has no use for torch.
        from fedshield.run.site import SiteProcess

        self._name = collab.site_name
        self._site: SiteProcess | None = None
        self._refused = ""
        try:
            kit = Kit.here(self._name)
            plan = kit.read_plan(self.plan)
            folder = kit.take_part(self.run, plan)
            if not kit.simulated:
                self._lock = kit.take_up(folder, collab.fl_ctx.get_job_id())
            self._site = SiteProcess(self._name, plan, folder, kit, kit)
        except Exception as error:
            self._refused = Kit.tell(self._name, error)

    @collab.final
    def end(self) -> None:
        """The job is over, finished or not."""
        if self._site is not None:
            self._site.ended()

    @collab.publish
    def handle(self, method: str, data: bytes) -> dict[str, Any]:
        return self._answer(lambda site: site.handle(method, data))

    def _answer(self, ask: Any) -> dict[str, Any]:
        reply = Reply(code=self._refused) if self._site is None else ask(self._site)
        return {"data": reply.data, "code": reply.code}
