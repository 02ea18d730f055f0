"""One local round: exact repeats, every row in turn, and a loss over the answers alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch

from fedshield.data.sites import SiteData
from fedshield.errors import ModelError, RoundFailed
from fedshield.model.adapter import AdapterHost, initial_state
from fedshield.model.builtin import tiny
from fedshield.model.chat import Tokens, tokenise
from fedshield.plan.schema import Plan
from fedshield.privacy import dp_sgd
from fedshield.privacy.discrete_gaussian import DiscreteGaussian
from fedshield.seeds import SiteRandomness
from fedshield.site.train import LocalTrainer, rows_of_round
from fedshield.types import AdapterState, Float32
from fedshield.update.prune import trained_tensors

MakePlan = Callable[..., Plan]

WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa"]
PAD = 256


def rows(number: int, start: int = 0) -> tuple[Tokens, ...]:
    """Conversations of different lengths, each different in its first tokens."""
    tokenizer = tiny.tokenizer()
    return tuple(
        tokenise(
            tokenizer,
            [
                {"role": "user", "content": f"{k}: " + "spell " * (k % 3) + WORDS[k % 10]},
                {"role": "assistant", "content": " ".join(WORDS[k % 10][: 1 + k % 9])},
            ],
            200,
        )
        for k in range(start, start + number)
    )


@dataclass
class Bench:
    """A trainer on the tiny model, and the rows of each batch that the model was given."""

    plan: Plan
    site: str = "hospital"
    num_rows: int = 10
    pad_token: int = PAD
    train_rows: tuple[Tokens, ...] = ()
    randomness: SiteRandomness | None = None
    steps: list[tuple[int, int, float]] = field(default_factory=list)
    seen: list[list[int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.train_rows = self.train_rows or rows(self.num_rows)
        self.heldout = rows(5, start=50)
        self.host = AdapterHost(tiny.build(), self.plan.adapter, "ab" * 32)
        self.host.model.eval()
        data = SiteData("test", self.train_rows, self.heldout, 0, "", 0, 0, 0, 0, (), bytes(32))
        self.trainer = LocalTrainer(
            self.site,
            self.plan,
            data,
            self.host,
            self.pad_token,
            "cpu",
            self.randomness or SiteRandomness.of_demonstration(self.plan.seed, self.site),
            on_step=lambda *said: self.steps.append(said),
        )
        self.host.model.register_forward_pre_hook(self._watch, with_kwargs=True)

    def _watch(self, _: Any, __: Any, inputs: dict[str, Any]) -> None:
        known = {tokens.input_ids: place for place, tokens in enumerate(self.train_rows)}
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        batch = [tuple(row[keep == 1].tolist()) for row, keep in zip(ids, mask, strict=True)]
        self.seen.append([known.get(row, -1) for row in batch])

    @property
    def start(self) -> AdapterState:
        """B is not zero, so that A has gradients too."""
        state = initial_state(self.host.spec, 3)
        noise = np.random.default_rng(1).standard_normal(state.values.size).astype(np.float32)
        return AdapterState(state.values + np.float32(0.03) * noise, self.host.spec)

    def train(self, round_number: int = 1, state: AdapterState | None = None) -> Float32:
        return self.trainer.train(state or self.start, round_number)[0].values


def reference(bench: Bench, state: AdapterState, batch: Sequence[Tokens]) -> tuple[float, Float32]:
    """Mean loss per response token and its gradient: one row at a time, all logits, float64."""
    host = AdapterHost(tiny.build(), bench.plan.adapter, "ab" * 32)
    host.write(state)
    host.model.double().eval()
    total, count = torch.zeros((), dtype=torch.float64), 0
    for tokens in batch:
        logits = host.model(input_ids=torch.tensor([tokens.input_ids])).logits[0]
        chances = logits.log_softmax(-1)
        for place, label in enumerate(tokens.labels):
            if label != -100:
                total = total - chances[place - 1, label]
                count += 1
    loss = total / count
    loss.backward()
    gradient = np.concatenate([p.grad.numpy().reshape(-1) for p in host.trainable()])
    return loss.item(), gradient


# -- repeating -----------------------------------------------------------------------------


def test_a_round_repeats_bit_by_bit_whatever_ran_before(make_plan: MakePlan) -> None:
    plan = make_plan({"adapter.dropout": 0.3})
    bench = Bench(plan)
    torch.manual_seed(1)
    first = bench.train(round_number=2)
    bench.train(round_number=3)
    bench.trainer.evaluate(bench.start)
    torch.manual_seed(2)
    assert bench.train(round_number=2).tobytes() == first.tobytes()
    assert Bench(plan).train(round_number=2).tobytes() == first.tobytes()
    assert first.tobytes() != bench.start.values.tobytes()


def test_seed_site_and_round_each_change_a_round(make_plan: MakePlan) -> None:
    # One row: the order cannot differ, only the dropout.
    keys = {"adapter.dropout": 0.3, "training.lr_schedule": "constant"}
    plan = make_plan(keys)
    found = {
        Bench(plan, num_rows=1).train(1).tobytes(),
        Bench(plan, num_rows=1).train(2).tobytes(),
        Bench(plan, num_rows=1, site="bank").train(1).tobytes(),
        Bench(make_plan(keys | {"seed": 8}), num_rows=1).train(1).tobytes(),
    }
    assert len(found) == 4


def test_the_global_random_state_is_left_alone(make_plan: MakePlan) -> None:
    bench = Bench(make_plan({"adapter.dropout": 0.3}))
    np.random.seed(4)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    bench.train()
    bench.trainer.evaluate(bench.start)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()


def test_a_round_leaves_the_model_as_it_found_it(make_plan: MakePlan) -> None:
    bench = Bench(make_plan())
    base = {
        name: p.clone() for name, p in bench.host.model.named_parameters() if "lora" not in name
    }
    bench.train()
    assert not bench.host.model.training
    for name, parameter in bench.host.model.named_parameters():
        assert parameter.grad is None
        if name in base:
            assert torch.equal(parameter, base[name])


# -- rows ----------------------------------------------------------------------------------


def batches(plan: Plan, rounds: Sequence[int], **keys: Any) -> list[list[int]]:
    bench = Bench(plan, **keys)
    for number in rounds:
        bench.train(number)
    return bench.seen


def test_every_row_comes_once_an_epoch_across_rounds(make_plan: MakePlan) -> None:
    plan = make_plan({"training": {"steps": 2, "batch_size": 3, "learning_rate": 1e-3}})
    seen = [row for batch in batches(plan, range(1, 11)) for row in batch]
    assert len(seen) == 60
    # 6 rows a round, 10 an epoch: rounds 1 to 5 are three epochs.
    for at in range(0, 60, 30):
        assert sorted(seen[at : at + 30]) == sorted([*range(10)] * 3)
    assert len(set(seen[:6])) == 6
    assert sorted(seen[:10]) == list(range(10))
    assert seen[:30] != seen[30:]  # in another order each time


def test_rounds_go_on_where_the_last_one_stopped(make_plan: MakePlan) -> None:
    training = {"batch_size": 3, "learning_rate": 1e-3}
    short = make_plan({"training": {**training, "steps": 2}})
    assert batches(short, [4]) == batches(short, range(1, 7))[6:8]  # also after a resume
    # The same rows as in one long round, which takes them in an order of its own.
    whole = make_plan({"training": {**training, "steps": 12}})
    long = [row for batch in batches(whole, [1]) for row in batch]
    rounds = [row for batch in batches(short, range(1, 7)) for row in batch]
    for at in range(0, 30, 10):
        assert sorted(long[at : at + 10]) == [*range(10)]
    assert sorted(long) == sorted(rounds)
    half = {**training, "steps": 3, "gradient_accumulation": 2}
    assert len(batches(make_plan({"training": half}), [1, 2])) == 12


def test_a_sites_order_is_its_own_and_repeats(make_plan: MakePlan) -> None:
    """Two sites with equal rows, and whoever knows plan, seed, round and adapter."""
    plan = make_plan()
    sha256, base, other_base = plan.sha256(), "ab" * 32, "cd" * 32

    def order(randomness: SiteRandomness, number: int = 1, start: str = base) -> tuple[int, ...]:
        return tuple(rows_of_round(plan, 1000, randomness, number, start))

    site = SiteRandomness.of_site(b"s" * 32, sha256)
    assert order(SiteRandomness.of_site(b"s" * 32, sha256)) == order(site)
    others = [
        SiteRandomness.of_site(b"t" * 32, sha256),
        SiteRandomness.of_site(b"s" * 32, make_plan({"seed": 8}).sha256()),
        # What the plan alone gives away.
        SiteRandomness.of_demonstration(plan.seed, "hospital"),
        SiteRandomness.of_site(bytes(32), sha256),
    ]
    found = [order(site, 2), order(site, 1, other_base), *map(order, others)]
    assert order(site) not in found
    assert len(set(found)) == len(found)
    # Rows of a round that is made again from another adapter are the same, in another order.
    assert sorted(order(site, 1, other_base)) == sorted(order(site))
    assert sorted(order(others[0])) != sorted(order(site))


def test_training_draws_from_nothing_else(make_plan: MakePlan) -> None:
    """Sites with one secret train alike whatever their names; with another, otherwise."""
    keys = {"adapter.dropout": 0.3}

    def trained(secret: bytes, site: str = "hospital", seed: int = 7) -> bytes:
        plan = make_plan(keys | {"seed": seed})
        drawn = SiteRandomness.of_site(secret, "00" * 32)
        return Bench(plan, site=site, num_rows=1, randomness=drawn).train(1).tobytes()

    assert trained(b"s" * 32) == trained(b"s" * 32, "bank", 8)
    assert trained(b"s" * 32) != trained(b"t" * 32)


def test_the_adapter_that_a_round_starts_from_changes_its_dropout(make_plan: MakePlan) -> None:
    bench = Bench(make_plan({"adapter.dropout": 0.3}), num_rows=1)
    asked: list[int] = []
    manual_seed = torch.manual_seed
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "manual_seed", lambda seed: manual_seed(asked.append(seed) or seed))
        moved = AdapterState(bench.start.values * np.float32(1.01), bench.host.spec)
        for state in (bench.start, bench.start, moved):
            bench.train(1, state)
    assert asked[0] == asked[1] != asked[2]


def test_sites_and_seeds_have_their_own_order(make_plan: MakePlan) -> None:
    plan = make_plan()
    found = [
        batches(plan, [1]),
        batches(plan, [2]),
        batches(plan, [1], site="bank"),
        batches(make_plan({"seed": 8}), [1]),
    ]
    assert len({str(part) for part in found}) == 4


def test_fewer_rows_than_a_batch_are_gone_through_again(make_plan: MakePlan) -> None:
    seen = batches(make_plan(), [1], num_rows=3)
    assert [len(batch) for batch in seen] == [4, 4, 4]
    flat = [row for batch in seen for row in batch]
    assert all(sorted(flat[at : at + 3]) == [0, 1, 2] for at in range(0, 12, 3))


# -- the loss and its gradient -------------------------------------------------------------


@pytest.mark.parametrize("cut_logits", [True, False])
def test_one_step_is_down_the_gradient_of_the_mean_over_response_tokens(
    make_plan: MakePlan, cut_logits: bool
) -> None:
    plan = make_plan(
        {
            "rounds": 2,
            "training.steps": 1,
            "training.optimizer": "sgd",
            "training.max_grad_norm": None,
            "training.learning_rate": 0.5,
            "training.min_learning_rate": 0.1,
        }
    )
    for number, rate in ((1, 0.5), (2, 0.3)):  # halfway down the cosine
        bench = Bench(plan)
        bench.trainer._can_cut_logits = cut_logits
        update, loss = bench.trainer.train(bench.start, number)
        batch = [bench.train_rows[row] for row in bench.seen[0]]
        assert len({tokens.num_response for tokens in batch}) > 1
        expected, gradient = reference(bench, bench.start, batch)
        assert loss == pytest.approx(expected, rel=1e-5)
        step = (update.values.astype(np.float64) - bench.start.values) / -rate
        np.testing.assert_allclose(step, gradient, rtol=1e-3, atol=2e-6)
        assert np.abs(gradient).max() > 1e-3
        assert update.start.sha256() == bench.start.sha256()
        assert update.num_examples == 10


def test_what_follows_the_answer_has_no_loss(make_plan: MakePlan) -> None:
    tokens = rows(1)[0]
    longer = Tokens((*tokens.input_ids, 65, 66, 67), (*tokens.labels, -100, -100, -100), 0)
    plan = make_plan({"training.steps": 1})
    losses = [
        Bench(plan, train_rows=given).trainer.train(Bench(plan).start, 1)[1]
        for given in ((tokens,), (longer,))
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_padding_does_not_matter(make_plan: MakePlan) -> None:
    plan = make_plan({"training.optimizer": "sgd", "training.learning_rate": 0.3})
    one, two = Bench(plan), Bench(plan, pad_token=7)
    np.testing.assert_allclose(one.train(), two.train(), rtol=0, atol=1e-7)
    assert one.trainer.evaluate(one.start) == pytest.approx(two.trainer.evaluate(one.start))


def test_accumulated_batches_are_one_large_batch(make_plan: MakePlan) -> None:
    keys = {"training.optimizer": "sgd", "training.learning_rate": 0.5}
    large = Bench(make_plan(keys | {"training.batch_size": 8}))
    small = Bench(make_plan(keys | {"training.gradient_accumulation": 2}))
    one, two = large.train(), small.train()
    assert [len(batch) for batch in large.seen] == [8] * 3
    assert [len(batch) for batch in small.seen] == [4] * 6
    assert np.abs(one - large.start.values).max() > 1e-2
    np.testing.assert_allclose(one, two, rtol=0, atol=2e-6)
    # Each step's loss is over its whole batch as well.
    np.testing.assert_allclose([s[2] for s in large.steps], [s[2] for s in small.steps], rtol=1e-5)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradient_checkpointing_changes_nothing_but_memory(
    make_plan: MakePlan, dropout: float
) -> None:
    keys = {"training.optimizer": "sgd", "training.learning_rate": 0.5, "adapter.dropout": dropout}
    plain = Bench(make_plan(keys))
    saving = Bench(make_plan(keys | {"training.gradient_checkpointing": True}))
    saved: list[bool] = []
    layer = saving.host.model.get_base_model().model.layers[0]
    layer.self_attn.register_forward_pre_hook(lambda *_: saved.append(torch.is_grad_enabled()))
    one, two = plain.train(), saving.train()
    assert len(saved) == 6  # each step's forward, and again on its way back
    np.testing.assert_allclose(one, two, rtol=0, atol=1e-7)
    np.testing.assert_allclose([s[2] for s in plain.steps], [s[2] for s in saving.steps], rtol=1e-6)
    assert saving.trainer.evaluate(saving.start) == plain.trainer.evaluate(plain.start)


def test_rounds_leave_no_hooks_behind(make_plan: MakePlan) -> None:
    bench = Bench(make_plan({"training.gradient_checkpointing": True, "training.steps": 1}))

    def hooks() -> int:
        return sum(len(module._forward_hooks) for module in bench.host.model.modules())

    bench.train(1)
    first = hooks()
    bench.train(2)
    data = SiteData("", bench.train_rows, bench.heldout, 0, "", 0, 0, 0, 0, (), bytes(32))
    drawn = SiteRandomness.of_demonstration(bench.plan.seed, "bank")
    other = LocalTrainer("bank", bench.plan, data, bench.host, PAD, "cpu", drawn)  # same model
    other.train(bench.start, 2)
    assert hooks() == first


def test_a_model_that_cannot_checkpoint_is_named(
    make_plan: MakePlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import LlamaForCausalLM

    monkeypatch.setattr(LlamaForCausalLM, "supports_gradient_checkpointing", False)
    with pytest.raises(ModelError, match="got LlamaForCausalLM; set it to false"):
        Bench(make_plan({"training.gradient_checkpointing": True}))


# -- learning ------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "muon"])
def test_the_loss_falls(make_plan: MakePlan, optimizer: str) -> None:
    rate = {"adamw": 0.02, "sgd": 2.0, "muon": 0.05}[optimizer]
    keys = {"rounds": 20, "training.optimizer": optimizer, "training.learning_rate": rate}
    bench = Bench(make_plan(keys))
    state = initial_state(bench.host.spec, 3)
    before, losses = bench.trainer.evaluate(state), []
    for number in range(1, 5):
        update, loss = bench.trainer.train(state, number)
        state = AdapterState(update.values.copy(), state.spec)
        losses.append(loss)
    assert losses[-1] < losses[0] - 0.3
    assert bench.trainer.evaluate(state) < before - 0.3


def test_the_optimisers_differ_and_adamw_is_new_in_every_round(make_plan: MakePlan) -> None:
    keys = {"training.lr_schedule": "constant", "training.steps": 1, "training.batch_size": 10}
    adamw = Bench(make_plan(keys))
    sgd = Bench(make_plan(keys | {"training.optimizer": "sgd"}))
    start = adamw.start.values
    first = adamw.train(1) - start
    # AdamW's first step is the rate times the gradient's sign; with old moments it is not.
    # (Where the gradient is near AdamW's epsilon, the step is shorter.)
    moved = np.abs(first[np.abs(first) > 1e-6])
    assert np.quantile(np.abs(moved - 0.01), 0.99) < 2e-4
    np.testing.assert_allclose(adamw.train(2) - start, first, rtol=0, atol=1e-5)
    assert np.abs(sgd.train(1) - start - first).max() > 1e-3


def test_the_step_is_no_longer_than_the_largest_gradient_norm(make_plan: MakePlan) -> None:
    keys = {
        "training.optimizer": "sgd",
        "training.steps": 1,
        "training.learning_rate": 1.0,
        "training.max_grad_norm": 0.05,
    }
    bench = Bench(make_plan(keys))
    clipped = bench.train() - bench.start.values
    free = Bench(make_plan(keys | {"training.max_grad_norm": None}))
    whole = free.train() - free.start.values
    assert np.linalg.norm(whole) > 0.1
    assert np.linalg.norm(clipped) == pytest.approx(0.05, rel=1e-3)
    np.testing.assert_allclose(
        clipped / np.linalg.norm(clipped), whole / np.linalg.norm(whole), rtol=0, atol=1e-4
    )


@pytest.mark.parametrize("train", ["ab", "core"])
def test_a_step_of_muon_is_an_orthogonal_matrix_as_long_as_adamws(
    make_plan: MakePlan, train: str
) -> None:
    """Whatever the gradient's size, here that of two batches and a clipped one: all singular
    values are alike (within what its iteration leaves, 0.5 to 1.3) and the root mean square is
    0.2 rates (arXiv 2502.16982)."""
    keys = {"training.steps": 1, "training.optimizer": "muon", "adapter.train": train}
    for norm in (None, 1e-3):
        bench = Bench(make_plan(keys | {"training.max_grad_norm": norm}))
        moved = bench.train() - bench.start.values
        rate = bench.plan.training.learning_rate
        for name, place in bench.host.spec.slices().items():
            if train == "ab" and "lora_A" in name:
                continue  # B is zero at the start: A has no gradient
            shape = next(one.shape for one in bench.host.spec.tensors if one.name == name)
            step = moved[place].reshape(shape) / (0.2 * rate * max(shape) ** 0.5)
            singular = np.linalg.svd(step, compute_uv=False)
            large = singular[singular > 0.05]  # the gradient of few tokens has few directions
            assert large.size >= 1
            assert 0.5 < large.max() < 1.3
            assert np.median(large) > 0.4


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "muon"])
def test_weight_decay_pulls_towards_zero(make_plan: MakePlan, optimizer: str) -> None:
    keys = {"training.optimizer": optimizer, "training.steps": 1, "training.learning_rate": 0.01}
    free, decayed = (
        Bench(make_plan(keys | {"training.weight_decay": decay, "training.max_grad_norm": 1e-9}))
        for decay in (0.0, 0.5)
    )
    pulled = decayed.train() - free.train()
    np.testing.assert_allclose(pulled, -0.01 * 0.5 * free.start.values, rtol=0, atol=2e-6)


def test_every_step_is_told_and_the_mean_returned(make_plan: MakePlan) -> None:
    bench = Bench(make_plan())
    _, loss = bench.trainer.train(bench.start, 1)
    assert [(step, steps) for step, steps, _ in bench.steps] == [(1, 3), (2, 3), (3, 3)]
    assert loss == pytest.approx(np.mean([told for _, _, told in bench.steps]))


def test_a_loss_that_is_no_number_fails_the_round_and_no_other(make_plan: MakePlan) -> None:
    bench = Bench(make_plan())
    good = bench.train(2)
    broken = bench.start.values.copy()
    broken[0] = np.nan
    with pytest.raises(RoundFailed) as caught:
        bench.train(2, AdapterState(broken, bench.host.spec))
    message = str(caught.value)
    assert message.startswith("hospital: the loss became nan in step 1 of round 2")
    assert message.endswith("lower training.learning_rate")
    assert not bench.host.model.training
    assert bench.train(2).tobytes() == good.tobytes()


# -- measuring -----------------------------------------------------------------------------


def test_the_heldout_loss_is_the_mean_per_response_token(make_plan: MakePlan) -> None:
    bench = Bench(make_plan({"adapter.dropout": 0.5}))
    expected, _ = reference(bench, bench.start, bench.heldout)
    assert bench.trainer.evaluate(bench.start) == pytest.approx(expected, rel=1e-5)


def test_the_heldout_loss_does_not_hang_on_the_batch_size(make_plan: MakePlan) -> None:
    found = []
    for size in (1, 2, 3, 5, 64):
        bench = Bench(make_plan({"speed.eval_batch_size": size}))
        found.append(bench.trainer.evaluate(bench.start))
        assert len(bench.seen[0]) == min(size, 5)
    assert found == pytest.approx([found[0]] * 5, rel=1e-6)


def test_the_state_that_is_measured_is_the_one_given(make_plan: MakePlan) -> None:
    bench = Bench(make_plan())
    first = bench.trainer.evaluate(bench.start)
    other = bench.trainer.evaluate(initial_state(bench.host.spec, 9))
    assert other != first
    bench.train()
    assert bench.trainer.evaluate(bench.start) == first


# -- what local algorithms add to gradients ----------------------------------------------------

STEPS = {
    "rounds": 2,
    "training.optimizer": "sgd",
    "training.max_grad_norm": None,
    "training.learning_rate": 0.5,
    "training.lr_schedule": "constant",
}


def test_fedprox_pulls_towards_where_the_round_began(make_plan: MakePlan) -> None:
    """The second step's gradient has mu (w - w_0) on top: Li et al., MLSys 2020."""
    keys = STEPS | {"training.local_algorithm": "fedprox", "training.proximal": 0.25}
    # As many rows as a batch has: each step takes all.
    start = Bench(make_plan(keys), num_rows=4).start
    first = Bench(make_plan(keys | {"training.steps": 1}), num_rows=4).train(1, start)
    plain = Bench(make_plan(STEPS | {"training.steps": 1}), num_rows=4).train(1, start)
    assert first.tobytes() == plain.tobytes()  # it has not moved yet
    bench = Bench(make_plan(keys | {"training.steps": 2}), num_rows=4)
    second = bench.train(1, start)
    after_one = AdapterState(first.copy(), start.spec)
    _, gradient = reference(bench, after_one, [bench.train_rows[row] for row in bench.seen[1]])
    pull = 0.25 * (first.astype(np.float64) - start.values)
    assert np.abs(pull).max() > 1e-3
    found = (second.astype(np.float64) - first) / -0.5
    np.testing.assert_allclose(found, gradient + pull, rtol=1e-3, atol=2e-6)
    off = Bench(make_plan(keys | {"training.steps": 2, "training.proximal": 0.0}))
    without = Bench(make_plan(STEPS | {"training.steps": 2}))
    assert off.train(1, start).tobytes() == without.train(1, start).tobytes()


@pytest.mark.parametrize(("train", "round_number"), [("ab", 1), ("b", 1), ("alternate", 2)])
def test_scaffold_adds_its_correction_to_every_gradient(
    make_plan: MakePlan, train: str, round_number: int
) -> None:
    """y - rate (g - c_i + c), of what the round trains: Karimireddy et al., ICML 2020."""
    keys = STEPS | {
        "training.local_algorithm": "scaffold",
        "training.steps": 2,
        "adapter.train": train,
    }
    bench = Bench(make_plan(keys))
    start = bench.start
    noise = np.random.default_rng(2).standard_normal(start.values.size)
    correction = (0.01 * noise).astype(np.float32)
    trained = np.zeros(start.values.size, dtype=bool)
    for name, place in start.spec.slices().items():
        factor = {"ab": "lora_", "b": "lora_B", "alternate": "lora_A"}[train]
        trained[place] = factor in name
    values, none = start.values.astype(np.float64), AdapterState(start.values.copy(), start.spec)
    found = bench.trainer.train(start, round_number, correction)[0].values
    for batch in bench.seen:
        now = AdapterState(values.astype(np.float32), start.spec)
        _, gradient = reference(bench, now, [bench.train_rows[row] for row in batch])
        values = np.where(trained, values - 0.5 * (gradient + correction), values)
    np.testing.assert_allclose(found, values, rtol=0, atol=5e-6)
    assert found[~trained].tobytes() == start.values[~trained].tobytes()
    zero = bench.trainer.train(none, round_number, np.zeros_like(correction))[0].values
    assert zero.tobytes() == bench.train(round_number, start).tobytes()
    assert np.abs(zero - found).max() > 1e-3


def test_the_correction_counts_in_the_gradients_norm(make_plan: MakePlan) -> None:
    """So that a control variate, which is a mean gradient, stays below the clip of both."""
    keys = STEPS | {
        "training.local_algorithm": "scaffold",
        "training.steps": 1,
        "training.max_grad_norm": 0.05,
    }
    bench = Bench(make_plan(keys))
    correction = np.full(bench.host.spec.num_values, 3.0, np.float32)
    moved = bench.trainer.train(bench.start, 1, correction)[0].values - bench.start.values
    assert np.linalg.norm(moved) == pytest.approx(0.5 * 0.05, rel=1e-3)


@pytest.mark.parametrize(("train", "tensors"), [("b", "lora_B"), ("core", "core")])
def test_only_what_a_round_trains_moves(make_plan: MakePlan, train: str, tensors: str) -> None:
    bench = Bench(make_plan({"adapter.train": train}))
    start = initial_state(bench.host.spec, 3)
    moved = bench.train(1, start) != start.values
    for name, place in start.spec.slices().items():
        assert moved[place].any() == (tensors in name)


# -- each row protected ----------------------------------------------------------------------

PRIVATE = {"unit": "example", "clip_norm": 0.1, "noise_multiplier": 1.0}


@pytest.mark.parametrize("train", ["ab", "b", "alternate", "share-a", "core"])
@pytest.mark.parametrize("round_number", [1, 2])
def test_private_training_moves_what_the_round_trains_and_nothing_else(
    make_plan: MakePlan, train: str, round_number: int
) -> None:
    """A gradient that is made by hand can miss the optimiser without any error."""
    plan = make_plan({"privacy": PRIVATE, "adapter.train": train})
    bench = Bench(plan)
    start = bench.start
    update, loss = bench.trainer.train(start, round_number)
    wanted = set(trained_tensors(train, start.spec, round_number))
    for name, place in start.spec.slices().items():
        moved = np.abs(update.values[place] - start.values[place])
        # By how much is for the noise to say, which no seed repeats: small steps may cancel.
        assert (moved > 0).mean() > 0.9 if name in wanted else not moved.any(), name
    assert np.isfinite(loss)
    assert not bench.host.model.training


@pytest.mark.parametrize(
    "changes",
    [
        {"training.local_algorithm": "fedprox"},
        {"training.optimizer": "sgd"},
        {"training.gradient_accumulation": 2},
        {"training.max_grad_norm": None},
    ],
)
def test_private_training_goes_with_the_other_settings(
    make_plan: MakePlan, changes: dict[str, Any]
) -> None:
    bench = Bench(make_plan({"privacy": PRIVATE, **changes}))
    update, _ = bench.trainer.train(bench.start, 1)
    assert np.isfinite(update.values).all()
    assert np.abs(update.values - bench.start.values).max() > 0


def test_private_training_learns_where_noise_is_little(
    make_plan: MakePlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: rows are really looked at. Every row in every step, and a thousandth of the
    noise, so that what is left to chance cannot decide."""

    def little(deviation: float) -> DiscreteGaussian:
        return DiscreteGaussian(deviation / 1000)

    monkeypatch.setattr(dp_sgd, "DiscreteGaussian", little)
    monkeypatch.setattr(dp_sgd, "poisson_rows", lambda count, *_: list(range(count)))
    keys = {"privacy": {**PRIVATE, "clip_norm": 1.0}, "training.steps": 12, "rounds": 1}
    bench = Bench(make_plan(keys))
    update, _ = bench.trainer.train(bench.start, 1)
    before = bench.trainer.evaluate(bench.start)
    after = bench.trainer.evaluate(AdapterState(update.values, bench.start.spec))
    assert after < before - 1


def test_private_training_draws_rows_and_noise_that_the_seed_does_not_know(
    make_plan: MakePlan,
) -> None:
    benches = [Bench(make_plan({"privacy": PRIVATE}), num_rows=40) for _ in range(2)]
    updates = [bench.trainer.train(bench.start, 1)[0].values for bench in benches]
    assert not np.array_equal(*updates)
    assert benches[0].seen != benches[1].seen
    # Passes are of at most batch_size rows; how many rows a step draws varies.
    assert max(len(batch) for batch in benches[0].seen) <= 4
