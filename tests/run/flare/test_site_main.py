"""What a coordinator can have a site's process do, past FLARE's own commands."""

from __future__ import annotations

import contextlib
import runpy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from nvflare.apis.fl_context import FLContext
from nvflare.fuel.sec.audit import AuditService
from nvflare.private.admin_defs import Message
from nvflare.private.defs import new_cell_message
from nvflare.private.fed.client.admin import FedAdminAgent
from nvflare.private.fed.client.client_req_processors import ClientRequestProcessors

from fedshield.enrolment import Policy, keygen
from fedshield.run.flare import parties, site_main

LISTED = list(ClientRequestProcessors.request_processors)


class Engine:
    @contextlib.contextmanager
    def new_context(self) -> Iterator[FLContext]:
        yield FLContext()


class Cell:
    def register_request_cb(self, **_: Any) -> None:
        pass


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`asked(processors, topic, body)`: what a site answers to a server that leaves out of its
    request that the site's rules be asked."""
    monkeypatch.setattr(AuditService, "the_auditor", None)
    AuditService.initialize(str(tmp_path / "audit.log"))

    def ask(processors: list[Any], topic: str, body: str) -> str:
        agent = FedAdminAgent("admin_agent", Cell(), Engine())
        for processor in processors:
            agent.register_processor(processor)
        reply = agent._dispatch_request(new_cell_message({}, Message(topic, body)))
        return str(reply.payload.body)

    yield ask
    AuditService.close()


def test_a_server_cannot_read_a_sites_key(tmp_path: Path, asked: Any) -> None:
    """FLARE's client alone would hand it out, whatever the site's authorization.json says."""
    key, _ = keygen("north", tmp_path / "kit")
    secret = key.read_text().split('"private_key": "')[1][:128]
    assert secret in asked(LISTED, "sys.shell", f"cat {key}")
    answer = asked(site_main.needed(LISTED), "sys.shell", f"cat {key}")
    assert secret not in answer
    assert "invalid_request" in answer


def test_a_server_can_ask_only_for_what_a_run_needs() -> None:
    left = {topic for part in site_main.needed(LISTED) for topic in part.get_topics()}
    assert left == site_main.NEEDED
    gone = {topic for part in LISTED for topic in part.get_topics()} - left
    assert {"sys.shell", "train.delete_run", "sys.configure_site_log", "sys.report_env"} <= gone


def test_a_site_starts_with_that_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[str] = []
    keygen("north", tmp_path)
    for name in ("check_server", "lock_kit", "use_launcher", "_check", "_say_of_proxies"):
        monkeypatch.setattr(parties, name, lambda *_: None)
    monkeypatch.setattr(Policy, "read", lambda _: None)
    monkeypatch.setattr(parties, "server_address", lambda _: ("fl.example.org", 8502))
    monkeypatch.setattr(parties, "_become", lambda _, module, *rest: started.append(module))
    start: Callable[..., object] = parties.start_site
    start(tmp_path, lambda _: None)
    assert started == [site_main.__name__]


def test_what_is_not_needed_is_gone_before_flare_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ClientRequestProcessors, "request_processors", list(LISTED))
    listed: list[list[Any]] = []
    monkeypatch.setattr(
        runpy,
        "run_module",
        lambda name, run_name: listed.append([*ClientRequestProcessors.request_processors]),
    )
    site_main.main()
    topics = {topic for part in listed[0] for topic in part.get_topics()}
    assert topics == site_main.NEEDED


@pytest.mark.parametrize("job", ["local", "startup", "transfer", "..", ""])
def test_a_job_has_a_jobs_number(job: str) -> None:
    """FLARE would empty that folder of the kit for it."""
    (deploy,) = [part for part in LISTED if part.get_topics() == ["train.deploy"]]
    (guarded,) = site_main.needed([deploy])
    request = Message("train.deploy", b"")
    request.set_header("job_id", job)
    assert "expected the number of a job" in str(guarded.process(request, None).body)
    request.set_header("job_id", "0f56bb7b-9497-4a0b-ae37-a276e49f44ba")
    with pytest.raises(TypeError, match="engine must be"):
        guarded.process(request, None)
