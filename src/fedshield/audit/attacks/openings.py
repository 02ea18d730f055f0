"""What a view lets its holder open: the updates that attacks then work on.

Under `plain` the server reads every update. Under `ckks` the server with any one site does: that
site has the run's key. Under `rlwe` the server with fewer than T sites has too few shares of a
one-time key; what it has is the sum, from which the colluding sites subtract their own. Where
nothing opens, an attack is given the bytes themselves, taken as numbers: all that there is.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from fedshield.audit.views import AdapterView, CoalitionView, ServerView, SiteView, Upload
from fedshield.crypto import shares as sharing
from fedshield.crypto.plain import PlainScheme
from fedshield.crypto.rlwe.adder import RlweAdder
from fedshield.crypto.scheme import SiteScheme
from fedshield.errors import CryptoError
from fedshield.plan.schema import Plan
from fedshield.protocol.roster import Roster
from fedshield.seeds import SiteRandomness
from fedshield.site.ciphers import EncryptedSum, OneTimeKeys, SharedKey
from fedshield.site.interfaces import Contribution
from fedshield.site.round import SiteModel
from fedshield.site.schemes import parameters_of
from fedshield.site.settings import exchange_schedule
from fedshield.types import (
    AdapterSpec,
    AdapterState,
    Bool,
    Float32,
    Selection,
    SiteMemory,
)
from fedshield.update import encode_grid
from fedshield.update.prune import num_sent


@dataclass(frozen=True, eq=False)
class Seen:
    """An update as a party has it.

    `sites`: whose it is, or over whom it is the weighted mean; `values`: float32, (num_values,),
    the difference from the global adapter, zero where it is not known; `known`: bool, the same
    shape; `start`: the global adapter before it, None where the party does not know it; `opened`:
    whether these are numbers that were opened, or bytes taken for numbers.
    """

    sites: tuple[str, ...]
    round_number: int
    values: Float32 = field(repr=False)
    known: Bool = field(repr=False)
    start: AdapterState | None = field(repr=False)
    opened: bool


@dataclass(frozen=True)
class Opening:
    """What came of opening single updates. `refused`: why not, one text for each that did not."""

    seen: tuple[Seen, ...]
    refused: tuple[str, ...] = ()


# -- parties ---------------------------------------------------------------------------------


def by_server(view: ServerView, plan: Plan, start: AdapterState) -> Opening:
    """Single updates as the server has them. `start`: the first adapter, which follows from the
    plan, as the server knows."""
    if not plan.scheme.traits.encrypted:
        return Opening(_follow(view, plan, start, PlainScheme()))
    return Opening(tuple(as_numbers(one, start.spec, start) for one in view.uploads()))


def by_coalition(view: CoalitionView, plan: Plan, roster: Roster) -> Opening:
    """Single updates of the other sites as the server and `view.sites` have them together."""
    first = view.sites[0]
    start = first.states[0]
    scheme = first.keys.scheme if plan.scheme.traits.encrypted else PlainScheme()
    if scheme is not None:
        found = _follow(view.server, plan, start, scheme)
        return Opening(tuple(one for one in found if one.sites[0] not in view.names))
    seen: list[Seen] = []
    refused: list[str] = []
    for upload in view.server.uploads():
        if upload.site in view.names:
            continue
        try:
            seen.append(_with_shares(upload, view, plan, roster))
        except CryptoError as error:
            refused.append(str(error))
    return Opening(tuple(seen), tuple(refused))


def left_closed(view: CoalitionView, start: AdapterState) -> tuple[Seen, ...]:
    """What a coalition that opens nothing has of the other sites' updates: their bytes, as the
    server has them."""
    return tuple(
        as_numbers(one, start.spec, start)
        for one in view.server.uploads()
        if one.site not in view.names
    )


def of_the_others(sites: tuple[SiteView, ...], plan: Plan) -> tuple[Seen, ...]:
    """The weighted mean over all other sites, of each round: what these sites (one is enough,
    and no server is needed) get by subtracting their own from the sum that all sites open."""
    first = sites[0]
    names = tuple(view.site for view in sites)
    others = tuple(name for name in plan.data.site_names() if name not in names)
    found: list[Seen] = []
    for number, selection in sorted(first.selections.items()):
        before = first.states[number - 1]
        total = _mean(first, number, plan)
        left = 1.0
        for view in sites:
            total = total - np.float32(view.weights[number]) * _difference(
                view.sent[number], before, selection, plan
            )
            left -= view.weights[number]
        if not others or left <= 0:
            continue
        known = _travelled(selection)
        values = np.where(known, total / np.float32(left), np.float32(0)).astype(np.float32)
        found.append(Seen(others, number, values, known, before, True))
    return tuple(found)


def of_all(view: SiteView, plan: Plan) -> tuple[Seen, ...]:
    """The weighted mean over all sites, of each round: what whoever opens the sum has, which with
    `open_to: server` is the server."""
    found: list[Seen] = []
    for number, selection in sorted(view.selections.items()):
        known = _travelled(selection)
        mean = np.where(known, _mean(view, number, plan), np.float32(0))
        before = view.states[number - 1]
        found.append(Seen(plan.data.site_names(), number, mean, known, before, True))
    return tuple(found)


def by_holder(view: AdapterView, start: AdapterState) -> Seen:
    """The whole run as one update: the released adapter less the first one."""
    values = (view.state.values - start.values).astype(np.float32)
    return Seen((), 0, values, np.ones(values.size, dtype=np.bool_), start, True)


# -- opening ---------------------------------------------------------------------------------


def as_numbers(upload: Upload, spec: AdapterSpec, start: AdapterState) -> Seen:
    """An upload that does not open: its bytes as 16-bit numbers about zero, repeated to length.
    A party that can read nothing still knows the first adapter."""
    raw = b"".join(upload.blocks)
    numbers = np.frombuffer(raw[: len(raw) // 2 * 2], dtype="<u2").astype(np.float32)
    numbers = np.resize(numbers / np.float32(32768) - np.float32(1), spec.num_values)
    known = np.ones(spec.num_values, dtype=np.bool_)
    return Seen((upload.site,), upload.round_number, numbers, known, start, False)


def at_random(seen: Seen, seed: int) -> Seen:
    """The control of `as_numbers`: as many numbers, drawn, not received."""
    drawn = np.random.default_rng(seed).integers(0, 1 << 16, seen.values.size)
    return replace(seen, values=(drawn / 32768 - 1).astype(np.float32))


def _follow(
    view: ServerView, plan: Plan, start: AdapterState, scheme: SiteScheme
) -> tuple[Seen, ...]:
    """Every single update, by whoever can open both them and the sums: round by round what
    travels follows from the sums before, as it does at a site."""
    names = plan.data.site_names()
    # Nothing is encoded here, so no grid is needed.
    cipher = SharedKey(scheme, len(names), grid_bits=None)
    nothing = SiteRandomness(bytes(32))  # what does not train rounds nothing
    model = SiteModel("", plan, _NoWork(), _Nowhere(), start, 0, None, None, randomness=nothing)
    uploads: dict[int, list[Upload]] = {}
    for upload in view.uploads():
        uploads.setdefault(upload.round_number, []).append(upload)
    found: list[Seen] = []
    for number, blocks in sorted(view.aggregates().items()):
        selection = model.selection()
        count = num_sent(exchange_schedule(plan), start.spec, number)
        layout = cipher.update_layout(selection.sha256(), count)
        for upload in uploads[number]:
            single = encode_grid.decode_sum(scheme.open(upload.blocks, layout.num_slots), layout)
            mine = single.values[: selection.size] / single.reserved[encode_grid.WEIGHT]
            found.append(_seen(upload, mine.astype(np.float32), selection, model.state, plan))
        opened = cipher.decrypt(blocks, layout)
        _, install = model.opened(opened, number, 0.0, tuple(one.site for one in uploads[number]))
        install()
    return tuple(found)


def _with_shares(upload: Upload, view: CoalitionView, plan: Plan, roster: Roster) -> Seen:
    """A single update of `rlwe`, from the shares of its key that the coalition's sites hold.
    Raises `CryptoError` if they are too few."""
    first, number = view.sites[0], upload.round_number
    packing = parameters_of(plan)
    cipher = OneTimeKeys(packing, first.keys.group_key, bytes(32))
    selection = first.selections[number]
    count = num_sent(exchange_schedule(plan), selection.spec, number)
    layout = cipher.update_layout(selection.sha256(), count)
    held = {
        roster.index(site.site): site.shares[number][upload.site]
        for site in view.sites
        if upload.site in site.shares.get(number, {})
    }
    opened_shares = sharing.open_sum(held, cipher.share_shape(layout, roster.rules), 1)
    # The same blocks, widened as if they were a sum of one.
    adder = RlweAdder(packing)
    blocks = [adder.result(adder.add(None, block)) for block in upload.blocks]
    single = EncryptedSum(blocks, layout, 1, upload.context)
    opened = cipher.decrypt(single, opened_shares, first.parts[number])
    mine = opened.values[: selection.size] / opened.reserved[encode_grid.WEIGHT]
    return _seen(upload, mine.astype(np.float32), selection, first.states[number - 1], plan)


def _mean(view: SiteView, number: int, plan: Plan) -> Float32:
    """The opened mean of a round's differences, (num_values,): the federated optimiser's step
    undone, by what it keeps."""
    moved = view.states[number].values - view.states[number - 1].values
    rules = plan.aggregation
    if plan.adapter.exchange == "parameters":
        return moved
    if rules.optimizer == "fedavg":
        return (moved / np.float32(rules.learning_rate)).astype(np.float32)
    new = view.momenta[number]
    if rules.optimizer == "fedadagrad":
        return new
    old = view.momenta.get(number - 1, np.zeros_like(new))
    gain = 1.0 if rules.optimizer == "fedavgm" else 1.0 - rules.momentum
    mean: Float32 = ((new - np.float32(rules.momentum) * old) / np.float32(gain)).astype(np.float32)
    return mean


def _seen(
    upload: Upload, mine: Float32, selection: Selection, before: AdapterState, plan: Plan
) -> Seen:
    values = np.zeros(selection.spec.num_values, dtype=np.float32)
    values[selection.indices] = mine
    known = _travelled(selection)
    if plan.pruning.mask == "local":
        known &= values != 0  # a pruned place is a zero among others
    difference = _difference(values, before, selection, plan)
    return Seen(
        (upload.site,),
        upload.round_number,
        np.where(known, difference, np.float32(0)),
        known,
        before,
        True,
    )


def _difference(sent: Float32, before: AdapterState, selection: Selection, plan: Plan) -> Float32:
    """What was sent as a difference from the global adapter."""
    if plan.adapter.exchange == "delta":
        return sent
    return np.where(_travelled(selection), sent - before.values, np.float32(0))


def _travelled(selection: Selection) -> Bool:
    known = np.zeros(selection.spec.num_values, dtype=np.bool_)
    known[selection.indices] = True
    return known


class _NoWork:
    """A follower has no data."""

    num_examples = 1

    def train(self, state: AdapterState, round_number: int, correction: Float32 | None = None):  # type: ignore[no-untyped-def]
        raise AssertionError("a follower does not train")

    def evaluate(self, state: AdapterState) -> float:
        raise AssertionError("a follower has no rows")


class _Nowhere:
    """A follower keeps nothing."""

    def save(self, completed_rounds: int, state: AdapterState, memory: SiteMemory) -> None:
        return None

    def keep(self, contribution: Contribution) -> None:
        return None

    def kept(self) -> Contribution | None:
        return None
