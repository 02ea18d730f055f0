"""Whether a site is ready for a run: one finding for each thing that would stop it later.

Nothing is changed, trained or sent, and nothing is downloaded. What was not given is not checked,
and said so.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedshield.certificates import certificates
from fedshield.checks import Finding, State
from fedshield.data.sites import load_sites
from fedshield.doctor.machine import (
    clock,
    context,
    disk,
    ledger,
    memory,
    packages,
    refusal,
)
from fedshield.doctor.model import trial
from fedshield.enrolment import KeyFile, Policy, SignedRoster
from fedshield.errors import DataError, UserError
from fedshield.model.base import inspect
from fedshield.model.chat import Tokens, use_template
from fedshield.plan.floors import cap_note
from fedshield.plan.schema import Plan
from fedshield.run import probe
from fedshield.run.flare.environment import proxy_note, wanted_proxy
from fedshield.run.parties import check_roster
from fedshield.run.settings import data_setup

CONNECT_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Site:
    """What to examine; None is not examined. `connect`: HOST:PORT texts; `certificates`: a folder
    that is searched; `clock`: the right time, ISO 8601; `out`: where run folders go."""

    plan: Plan | None = None
    name: str | None = None
    policy: Path | None = None
    roster: Path | None = None
    key: Path | None = None
    connect: tuple[str, ...] = ()
    certificates: Path | None = None
    clock: str | None = None
    out: Path = Path()
    now: datetime.datetime | None = None


def examine(site: Site) -> Iterator[Finding]:
    """Findings as they come, the quick ones first."""
    now = site.now or datetime.datetime.now(datetime.UTC)
    yield from packages()
    yield from clock(now, site.clock)
    yield disk(site.out, site.plan)
    for text in site.connect:
        yield from proxy(text)
        answer = port(text)
        yield answer
        if site.certificates is not None and answer.state == "ok":
            yield tls(text, site.certificates)
    if site.certificates is not None:
        yield from certificates(site.certificates, now)
    if site.key is not None:
        yield key_file(site.key, site.name)
    if site.roster is not None:
        yield roster(site.roster, site.key)
    if site.plan is None:
        if site.policy is not None:
            yield from policy_file(site.policy)
        return
    room = memory(site.plan)
    yield room
    yield from context(site.plan)
    yield from _plan(site, site.plan, may_load=room.state != "FAILED")


def not_examined(site: Site) -> tuple[str, ...]:
    unasked = site.policy is not None and site.plan is not None and site.name is None
    given = {
        "ports (--connect)": site.connect,
        "certificates (--certificates)": site.certificates,
        "the key file (--key)": site.key,
        "the roster (--roster)": site.roster,
        "the policy (--policy)": site.policy,
        "whether the policy takes the plan (--plan)": site.plan or not site.policy,
        "where the policy has data and model (--site)": not unasked,
        "plan, model and memory (--plan)": site.plan,
        "data (--plan and --site)": site.plan and site.name,
    }
    return tuple(what for what, value in given.items() if not value)


# -- what it was given -----------------------------------------------------------------------


def port(text: str) -> Finding:
    host, number = probe.endpoint(text)
    expected = "a connection"
    try:
        took = probe.connect(host, number, CONNECT_TIMEOUT_S)
    except OSError as error:
        why = error.strerror or str(error) or type(error).__name__
        todo = "check name and port, that the server runs, and that the firewall lets you out"
        return Finding(f"port {text}", "FAILED", expected, why, todo)
    return Finding(f"port {text}", "ok", expected, f"connected in {took * 1000:.0f} ms")


def proxy(text: str) -> Iterator[Finding]:
    """What becomes of proxy variables, where some are set."""
    host, _ = probe.endpoint(text)
    note = proxy_note(os.environ, host)
    if note is None:
        return
    expected = "a direct connection, or a proxy that was asked for"
    if wanted_proxy(os.environ) is None:
        yield Finding("proxy", "ok", expected, note)
    else:
        todo = "the checks of port and TLS connect directly, not through the proxy"
        yield Finding("proxy", "warning", expected, note, todo)


def tls(text: str, folder: Path) -> Finding:
    """Both sides' certificates, tried on each other with those of the kit below `folder`."""
    name, expected = f"TLS {text}", "each side accepts the other's certificate"
    files = probe.tls_files(folder)
    if files is None:
        todo = "give the folder of the start-up kit"
        return Finding(name, "FAILED", expected, f"no rootCA.pem with client.crt in {folder}", todo)
    try:
        version = probe.handshake(*probe.endpoint(text), files, CONNECT_TIMEOUT_S)
    except OSError as error:
        why = str(error.strerror or error) or type(error).__name__
        todo = "check the clock, that the kit is this consortium's, and that nothing is in between"
        return Finding(name, "FAILED", expected, why, todo)
    return Finding(name, "ok", expected, version)


def key_file(path: Path, name: str | None) -> Finding:
    expected = "a key file of mode 0600" + (f" of {name}" if name else "")
    try:
        found = KeyFile.read(path)
    except UserError as error:
        return refusal("key file", expected, error)
    if name is not None and found.name != name:
        return Finding(
            "key file", "FAILED", expected, f"one of {found.name}", "give the other file"
        )
    return Finding("key file", "ok", expected, f"{found.name}, {found.key.public.hex()[:16]}")


def roster(path: Path, key: Path | None) -> Finding:
    """Ready, and with this site's key in it."""
    expected = "ready" + (", with this key in it" if key else "")
    try:
        own = None if key is None else KeyFile.read(key).key
        signed = SignedRoster.read(path)
        standing = signed.check_ready(own)
    except UserError as error:
        return refusal("roster", expected, error)
    state: State = "warning" if signed.demo else "ok"
    words = "a demonstration: protects nobody" if signed.demo else standing.in_words()
    return Finding("roster", state, expected, words, "enrol the sites" if signed.demo else "")


def policy_file(path: Path) -> Iterator[Finding]:
    """Alone: whether it takes a plan is asked with one."""
    expected = "one that can be read"
    try:
        found = Policy.read(path)
    except UserError as error:
        yield refusal("policy", expected, error)
        return
    yield Finding("policy", "ok", expected, f"read ({found.sha256()[:16]})")
    yield ledger(found, path.parent)


def _plan(site: Site, plan: Plan, *, may_load: bool) -> Iterator[Finding]:
    """Model, data and policy: what comes from the policy is looked for where it says. Weights are
    loaded where memory allows it."""
    here, policy = plan, None
    if site.policy is not None:
        try:
            policy = Policy.read(site.policy)
            here = plan if site.name is None else policy.local_plan(plan, site.name)
        except UserError as error:
            yield refusal("policy", "one that can be read", error)
            return
        yield ledger(policy, site.policy.parent)
    try:
        tokenizer, digest = inspect(here.model, here.base_dir, here.speed.device)
    except UserError as error:
        yield refusal("model", "a base model on this machine", error)
        tokenizer, digest = None, None
    signed = None if site.roster is None else _readable(site.roster)
    if signed is not None and site.roster is not None:
        yield _agreed(plan, signed, site.roster)
    if digest is not None:
        yield _model(here.model.name, digest, signed, policy)
    if policy is not None:
        yield from _policy(policy, plan, signed, digest)
    if tokenizer is None:
        return
    rows: tuple[Tokens, ...] = ()
    if site.name is not None:
        cap = None if signed is None else signed.allowed.max_examples
        about_data, rows = data(here, site.name, tokenizer, cap)
        yield about_data
    if may_load:
        yield trial(here, rows)


def _agreed(plan: Plan, signed: SignedRoster, path: Path) -> Finding:
    """The plan's sites, scheme, quorums and bits, as the roster has them; the model has a finding
    of its own."""
    expected = "a plan that the roster allows"
    try:
        check_roster(plan, signed, None, path)
    except UserError as error:
        return refusal("plan and roster", expected, error)
    return Finding("plan and roster", "ok", expected, f"{plan.scheme.name}, allowed")


def _model(name: str, digest: str, signed: SignedRoster | None, policy: Policy | None) -> Finding:
    agreed = [signed.model_sha256.hex()] if signed is not None and signed.model_sha256 else []
    allowed = list(policy.model_sha256 or ()) if policy is not None else []
    known = [one for one in (agreed, allowed) if one]
    wanted = "the agreed SHA-256" if known else "any: neither roster nor policy names a SHA-256"
    if all(digest in one for one in known):
        return Finding("model", "ok", wanted, f"{name}, {digest}")
    shown = " and ".join(", ".join(value[:16] for value in one) for one in known)
    todo = "get the model's files that were agreed on"
    return Finding("model", "FAILED", f"SHA-256 {shown}", f"{name}, {digest[:16]}", todo)


def _policy(
    policy: Policy, plan: Plan, signed: SignedRoster | None, digest: str | None
) -> Iterator[Finding]:
    known = None if signed is None else signed.to_roster()
    # Without a threshold the rule is the whole roster, whatever was agreed for rlwe.
    if known is not None and not plan.scheme.traits.one_time_keys:
        known = replace(known, rules=plan.rules())
    lines = policy.violations(plan, known, digest)
    for line in lines:
        todo = "agree on another plan, or change the policy"
        yield Finding("policy", "FAILED", "a plan that it takes", line, todo)
    if not lines:
        yield Finding("policy", "ok", "a plan that it takes", f"taken ({policy.sha256()[:16]})")


def data(
    plan: Plan, name: str, tokenizer: Any, cap: int | None = None
) -> tuple[Finding, tuple[Tokens, ...]]:
    """The site's rows, read, split and tokenised as a run would, and what is to be said of them.
    `cap`: the roster's `max_examples`."""
    expected, whole = f"readable rows of {name}", plan
    try:
        if plan.data.split == "by-site":
            if name not in plan.data.sites:
                raise DataError(f"data.sites: expected {name}, got {', '.join(plan.data.sites)}")
            only = {name: plan.data.sites[name]}
            part = plan.data.model_copy(update={"sites": only})
            plan = plan.model_copy(update={"data": part}).with_base_dir(plan.base_dir)
        use_template(tokenizer, plan.model.chat_template)
        found = load_sites(data_setup(plan), tokenizer)[name]
    except (UserError, KeyError) as error:
        return refusal("data", expected, error), ()
    rows = f"{len(found.train)} to train on, {len(found.heldout)} held out"
    left = found.skipped_rows + found.no_response_rows
    more = f"; {left} left out, {found.truncated_rows} cut" if left + found.truncated_rows else ""
    counted = cap_note(whole, name, len(found.train), cap)
    notes = "".join(f"; {note}" for note in (*found.notes, *([counted] if counted else [])))
    todo = "look at them: fedshield data shows rows, the run's report counts them too"
    state: State = "warning" if left or notes else "ok"
    finding = Finding("data", state, expected, rows + more + notes, todo if left or notes else "")
    return finding, (*found.train, *found.heldout)


def _readable(path: Path) -> SignedRoster | None:
    """None for one that is told of as the roster's own finding."""
    try:
        signed = SignedRoster.read(path)
        signed.rules()
    except UserError:
        return None
    return signed
