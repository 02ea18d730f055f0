"""A site's own policy: what no plan, whoever sends it, can ask of this site.

One file in the site's kit (`NAME.policy.yaml`). It sets floors that a plan must meet, and it alone
says where this site's data and base model lie and which device trains. A plan that asks for less
protection is refused whole, with every key that falls short; nothing is adjusted in silence.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PrivateAttr, ValidationError

from fedshield.errors import PlanError, UserError
from fedshield.plan.data import MAX_SITES, SITE_NAME, PositiveInt, Section, SourcePlan
from fedshield.plan.explain import explain
from fedshield.plan.load import read_mapping
from fedshield.plan.quorum import Membership, OpenTo, Server
from fedshield.plan.schema import Plan
from fedshield.plan.sections import BUILT_IN
from fedshield.protocol.roster import Roster

POLICY_FILE = "{site}.policy.yaml"
#: Beginnings of places that are not paths: built-in samples, and sets in the local hub cache.
_NOT_PATHS = ("sample:", "hub:")
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Text = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]+$")]

#: A site's name, or with what its first key begins with, where two sites had that name.
EXPOSED = SITE_NAME.removesuffix("$") + r"(@[0-9a-f]{8,64})?$"


class PolicyError(UserError):
    """A policy that cannot be read, or a plan that this site's policy refuses."""


class PrivacyFloor(Section):
    """Least differential privacy: whose presence is hidden, and the largest epsilon (and delta)
    of the whole run. Units are not comparable: a plan must have the same one."""

    unit: Literal["example", "site"]
    max_epsilon: Annotated[float, Field(gt=0, le=1e6)]
    max_delta: Annotated[float, Field(gt=0, lt=1)] | None = None


class Policy(Section):
    """The floors of one site. A key that is left out has the strictest default that a plan with
    all defaults meets; `None` is no floor beyond what `quorum.resolve` demands of every plan."""

    data_path: Text
    heldout_path: Text | None = None
    ledger_path: Text
    model_path: Text
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = "auto"
    schemes: Annotated[tuple[Literal["rlwe", "ckks", "plain"], ...], Field(min_length=1)] = (
        "rlwe",
    )
    servers: Annotated[tuple[Server, ...], Field(min_length=1)] = ("malicious",)
    open_to: Annotated[tuple[OpenTo, ...], Field(min_length=1)] = ("peers",)
    weights: Annotated[tuple[Literal["private", "public", "equal"], ...], Field(min_length=1)] = (
        "private",
        "equal",
    )
    memberships: Annotated[tuple[Membership, ...], Field(min_length=1)] = ("fixed",)
    min_colluding: Annotated[int, Field(ge=0, lt=MAX_SITES)] | None = None
    min_threshold: Annotated[int, Field(ge=1, le=MAX_SITES)] | None = None
    min_cohort: Annotated[int, Field(ge=2, le=MAX_SITES)] | None = None
    min_bits: Annotated[int, Field(ge=2, le=16)] | None = None
    max_rounds: PositiveInt | None = None
    model_names: Annotated[tuple[Text, ...], Field(min_length=1)] | None = None
    model_sha256: Annotated[tuple[Digest, ...], Field(min_length=1)] | None = None
    privacy: PrivacyFloor | None = None
    exposes: tuple[Annotated[str, Field(pattern=EXPOSED)], ...] = ()
    demonstration: bool = False

    _base_dir: Path = PrivateAttr(default_factory=Path.cwd)

    @classmethod
    def read(cls, path: Path) -> Policy:
        """The policy in a YAML or JSON file; relative paths start from its folder. Raises
        `PolicyError`: the key, what was expected and what is there."""
        try:
            raw = read_mapping(path, "policy")
            policy = cls.model_validate_json(json.dumps(raw, ensure_ascii=False).encode())
        except ValidationError as error:
            raise PolicyError(f"{path}: {explain(error, cls)}") from None
        except PlanError as error:
            raise PolicyError(str(error)) from None
        except (TypeError, ValueError) as error:
            raise PolicyError(
                f"{path}: expected text, numbers, lists and mappings, but {error}; mend it"
            ) from None
        policy._base_dir = path.resolve().parent
        return policy

    def sha256(self) -> str:
        """Digest of the policy's keys, with defaults written out: what an audit log names."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    # -- refusing ----------------------------------------------------------------------------

    def violations(
        self, plan: Plan, roster: Roster | None, base_model_sha256: str | None
    ) -> tuple[str, ...]:
        """Every key of the plan (or roster) that falls short, a line each, the gravest first.

        Args:
            plan: as it was sent.
            roster: of the session.
            base_model_sha256: hex. It and `roster` are None where they are not known yet; what
                needs them is then not checked, so an engine asks again with both before anything is
                trained.
        """
        found = [*self._protection(plan), *self._quorums(plan, roster)]
        found += [*self._model(plan, base_model_sha256), *self._privacy(plan)]
        if self.max_rounds is not None and plan.rounds > self.max_rounds:
            found.append(_line("rounds", f"at most {self.max_rounds}", plan.rounds, "max_rounds"))
        if plan.data.split != "by-site":
            found.append(
                f"data.split: expected by-site, got {plan.data.split}: a pool is dealt out from "
                "one place, and this site's data stay where its policy says"
            )
        return tuple(found)

    def check(self, plan: Plan, roster: Roster | None, base_model_sha256: str | None) -> None:
        """Whether the plan meets every floor.

        Args:
            plan: as it was sent.
            roster: of the session.
            base_model_sha256: hex. It and `roster` are None where they are not known yet; what
                needs them is then not checked, so an engine asks again with both before anything is
                trained.

        Raises:
            PolicyError: the first key that falls short in full, and the others by name.
        """
        found = self.violations(plan, roster, base_model_sha256)
        if not found:
            return
        others = ", ".join(line.partition(":")[0] for line in found[1:])
        more = f" (and {len(found) - 1} more: {others})" if others else ""
        raise PolicyError(
            f"this site's policy refuses the plan: {found[0]}{more}; agree on another plan, or "
            "have the site's operator change its policy"
        )

    def _protection(self, plan: Plan) -> list[str]:
        scheme, found = plan.scheme, []
        if scheme.name not in self.schemes:
            found.append(_line("scheme.name", _one_of(self.schemes), scheme.name, "schemes"))
        # ckks holds against a coordinator that follows the protocol only, plain against none.
        server = scheme.server if scheme.traits.one_time_keys else "semi-honest"
        if server not in self.servers:
            got: str = server
            if not scheme.traits.one_time_keys:
                got = f"{server} (all that {scheme.name} holds in)"
            found.append(_line("scheme.server", _one_of(self.servers), got, "servers"))
        opened = scheme.open_to if scheme.traits.encrypted else "server"
        if opened not in self.open_to:
            found.append(_line("scheme.open_to", _one_of(self.open_to), opened, "open_to"))
        if scheme.membership not in self.memberships:
            found.append(
                _line(
                    "scheme.membership",
                    _one_of(self.memberships),
                    scheme.membership,
                    "memberships",
                )
            )
        if scheme.weights not in self.weights:
            found.append(_line("scheme.weights", _one_of(self.weights), scheme.weights, "weights"))
        bits = plan.encoding.bits
        if scheme.traits.one_time_keys and self.min_bits is not None and bits < self.min_bits:
            found.append(_line("encoding.bits", f"at least {self.min_bits}", bits, "min_bits"))
        return found

    def _quorums(self, plan: Plan, roster: Roster | None) -> list[str]:
        rules, found = plan.rules(), []
        floors = (
            ("scheme.max_colluding", self.min_colluding, rules.max_colluding, "min_colluding"),
            ("scheme.threshold", self.min_threshold, rules.threshold, "min_threshold"),
            ("scheme.min_cohort", self.min_cohort, rules.min_cohort, "min_cohort"),
        )
        for key, least, got, name in floors:
            if least is not None and got < least:
                found.append(_line(key, f"at least {least}", got, name))
        if roster is None:
            return found
        # The difference of two sums over whole batches can be over one of them.
        batch = min(roster.batches, key=len, default=())
        if self.min_cohort is not None and 0 < len(batch) < self.min_cohort:
            small = f"a batch of {len(batch)} ({', '.join(batch)}), whose own sum can be had"
            wanted = f"at least {self.min_cohort} in each batch"
            found.append(_line("roster", wanted, small, "min_cohort"))
        if roster.rules != rules or roster.names() != plan.data.site_names():
            found.append(
                "roster: expected the plan's sites and quorums, got others; use the plan's roster"
            )
        if roster.demo and not self.demonstration:
            found.append(
                _line("roster", "one that its sites signed", "a demonstration", "demonstration")
            )
        return found

    def _model(self, plan: Plan, base_model_sha256: str | None) -> list[str]:
        found, name, here = [], plan.model.name, self.model_place()
        if self.model_names is not None and name not in self.model_names:
            found.append(_line("model.name", _one_of(self.model_names), name[:60], "model_names"))
        # Names of folders and of hubs are each site's own; those of built-in models are not.
        if name in BUILT_IN and here in BUILT_IN and name != here:
            found.append(_line("model.name", f"{here}, which this site has", name, "model_path"))
        known, got = self.model_sha256, base_model_sha256
        if known is not None and got is not None and got not in known:
            shown = _one_of(tuple(digest[:16] for digest in known))
            found.append(_line("base model", f"the SHA-256 {shown}", got[:16], "model_sha256"))
        return found

    def _privacy(self, plan: Plan) -> list[str]:
        floor = self.privacy
        if floor is None:
            return []
        section = plan.privacy
        unit = None if section.unit == "none" else section.unit
        # What the run may spend at most; a plan without a limit promises none.
        epsilon = section.max_epsilon if section.epsilon is None else section.epsilon
        delta = section.delta_in_force
        if unit != floor.unit or not _at_most(epsilon, floor.max_epsilon):
            wanted = f"differential privacy of each {floor.unit}, epsilon <= {floor.max_epsilon:g}"
            got = "none" if unit is None or epsilon is None else f"unit {unit}, epsilon {epsilon}"
            return [_line("privacy", wanted, got, "privacy")]
        if floor.max_delta is not None and not _at_most(delta, floor.max_delta):
            return [_line("privacy.delta", f"at most {floor.max_delta:g}", delta, "privacy")]
        return []

    # -- what comes from here and never from a plan ------------------------------------------

    def local_plan(self, plan: Plan, site: str) -> Plan:
        """The plan to load this site's model and data by: its paths and device are the policy's.

        What is agreed stays the `plan` that was given: contexts, messages and training use that
        one. `columns`, `split` and numbers of rows are the plan's. Raises `PolicyError` for a
        site that is not in the plan.
        """
        if site not in plan.data.sites:
            raise PolicyError(
                f"data.sites: expected the site {site} with a source of its own, got "
                f"{', '.join(plan.data.site_names())}; agree on a plan with it"
            )
        heldout = self.heldout_path
        source = plan.data.sites[site].model_copy(
            update={
                "source": self._place(self.data_path),
                "heldout_source": None if heldout is None else self._place(heldout),
            }
        )
        sites: dict[str, SourcePlan] = {**plan.data.sites, site: source}
        here = plan.model_copy(
            update={
                "data": plan.data.model_copy(update={"sites": sites}),
                "model": plan.model.model_copy(
                    # A revision and a config of the plan's belong to the plan's model.
                    update={"name": self.model_place(), "revision": None, "config": None}
                ),
                "speed": plan.speed.model_copy(update={"device": self.device}),
            }
        )
        return here.with_base_dir(self._base_dir)

    def not_used(self, plan: Plan, site: str) -> tuple[str, ...]:
        """What of the plan `local_plan` puts this policy's own in place of, though the plan says
        another: one sentence each."""
        sentences = []
        source = plan.data.sites.get(site)
        if source is not None and source.heldout_source is not None and self.heldout_path is None:
            sentences.append(
                f"data.sites.{site}.heldout_source of the plan is not used, and this site's policy "
                "has no heldout_path: the last rows of data_path are held out"
            )
        if plan.speed.device not in ("auto", self.device):
            sentences.append(
                f"speed.device {plan.speed.device} of the plan is not used: this site's policy "
                f"says {self.device}"
            )
        for key in ("revision", "config"):
            if getattr(plan.model, key) is not None:
                sentences.append(
                    f"model.{key} of the plan is not used: this site's policy says which model "
                    "(model_path)"
                )
        return tuple(sentences)

    def model_place(self) -> str:
        """Where the base model lies: an absolute path, or the name of a built-in or cached one."""
        path = self._base_dir / Path(self.model_path).expanduser()
        return str(path) if path.exists() else self.model_path

    def ledger_place(self) -> Path:
        """Where the ledger of this site's records lies: an absolute path."""
        return self._base_dir / Path(self.ledger_path).expanduser()

    def _place(self, text: str) -> str:
        if text.startswith(_NOT_PATHS):
            return text
        return str(self._base_dir / Path(text).expanduser())


def _line(key: str, expected: str, got: object, policy_key: str) -> str:
    return f"{key}: expected {expected}, got {got} (policy: {policy_key})"


def _one_of(values: tuple[str, ...]) -> str:
    return values[0] if len(values) == 1 else "one of " + ", ".join(values)


def _at_most(value: object, most: float) -> bool:
    return isinstance(value, int | float) and 0 < value <= most
