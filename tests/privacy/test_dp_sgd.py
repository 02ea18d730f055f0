"""DP-SGD on the adapter: rows taken apart, cut, sampled and noised as the accountant assumes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from fedshield.crypto.rlwe.sampling import Stream
from fedshield.errors import ModelError
from fedshield.model.adapter import AdapterHost, initial_state
from fedshield.model.builtin import tiny
from fedshield.model.chat import Tokens
from fedshield.model.loss import row_losses
from fedshield.plan.sections import AdapterPlan
from fedshield.privacy import dp_sgd
from fedshield.privacy.dp_sgd import SENSITIVITY, PrivateGradient, bounded_sum, poisson_rows
from fedshield.types import AdapterState

PAD = 0


def host_of(train: str = "ab", targets: tuple[str, ...] = ("q_proj", "down_proj")) -> AdapterHost:
    adapter = AdapterPlan(rank=4, alpha=8.0, dropout=0.0, targets=targets, train=train)  # type: ignore[arg-type]
    host = AdapterHost(tiny.build(), adapter, "00" * 32)
    # B is zero at first and A then has no gradient: start from anywhere else.
    values = np.random.default_rng(1).normal(0, 0.1, host.spec.num_values).astype(np.float32)
    host.write(AdapterState(values, host.spec))
    return host


def rows(count: int, seed: int = 0) -> list[Tokens]:
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        length, prompt = int(rng.integers(6, 20)), int(rng.integers(1, 4))
        ids = [int(one) for one in rng.integers(1, 200, length)]
        found.append(Tokens(tuple(ids), (*[-100] * prompt, *ids[prompt:]), 0))
    return found


def private(host: AdapterHost, data: list[Tokens], **changes: Any) -> PrivateGradient:
    chosen: dict[str, Any] = {
        "clip_norm": 1.0,
        "noise_multiplier": 1.0,
        "rate": 1.0,
        "batch_size": 3,
        "of_loss": (PAD, "cpu", True),
        "about": b"",
    }
    host.model.eval()
    return PrivateGradient(host.model, host.trainable(), data, **(chosen | changes))


def one_by_one(host: AdapterHost, data: list[Tokens]) -> list[list[torch.Tensor]]:
    """Each row's gradient by itself, by autograd."""
    found = []
    for row in data:
        parameters = host.trainable()
        loss = row_losses(host.model, [row], PAD, "cpu", True).sum()
        found.append([one.clone() for one in torch.autograd.grad(loss, parameters)])
    return found


@pytest.mark.parametrize("train", ["ab", "core"])
@pytest.mark.parametrize("targets", [("q_proj", "down_proj"), ("all-linear",)])
def test_rows_of_a_pass_are_taken_apart(train: str, targets: tuple[str, ...]) -> None:
    host, data = host_of(train, targets), rows(4)
    found, loss = private(host, data)._gradients(data)
    alone = one_by_one(host, data)
    for number, parameter in enumerate(host.trainable()):
        assert found[number].shape == (4, *parameter.shape)
        for row in range(4):
            assert torch.allclose(found[number][row], alone[row][number], atol=1e-5, rtol=1e-4)
        assert found[number].abs().max() > 1e-6
    losses = row_losses(host.model, data, PAD, "cpu", True)
    assert loss == pytest.approx(float(losses.sum().detach()), rel=1e-5)


@pytest.mark.parametrize("factor", ["lora_A", "lora_B"])
def test_only_what_is_trained_is_looked_at(factor: str) -> None:
    """`b` and `alternate` train one of the two."""
    host, data = host_of(), rows(3)
    names = [one.name for one in host.spec.tensors if f".{factor}." in one.name]
    parameters = host.trainable(names)
    host.model.eval()
    found = PrivateGradient(
        host.model, parameters, data, clip_norm=1e6, noise_multiplier=1e-7, rate=1.0,
        batch_size=8, of_loss=(PAD, "cpu", True), about=b"",
    )  # fmt: skip
    found.step()
    assert len(parameters) == len(names)
    assert all(one.grad is not None for one in parameters)
    others = [one for one in host._parameters.values() if not one.requires_grad]
    assert others
    assert all(one.grad is None for one in others)


def test_without_noise_or_clip_it_is_the_mean_gradient() -> None:
    host, data = host_of(), rows(7)
    loss = private(host, data, clip_norm=1e3, noise_multiplier=1e-7).step()
    alone = one_by_one(host, data)
    for number, parameter in enumerate(host.trainable()):
        mean = torch.stack([row[number] for row in alone]).mean(dim=0)
        assert parameter.grad is not None
        # Steps of clip / 2^20, each row towards zero.
        assert torch.allclose(parameter.grad, mean, atol=1.5e-3, rtol=1e-3)
    assert loss is not None
    expected = float(row_losses(host.model, data, PAD, "cpu", True).mean().detach())
    assert loss == pytest.approx(expected, rel=1e-5)


def test_every_row_is_cut_and_counted() -> None:
    rng = np.random.default_rng(4)
    scales = np.array([1e-3, 0.5, 3.0, 1e12], dtype=np.float64)
    tensors = [
        torch.tensor(rng.standard_normal((4, *shape)) * scales[:, None, None], dtype=torch.float32)
        for shape in ((5, 3), (2, 8))
    ]
    for row in range(4):
        alone = bounded_sum([one[row : row + 1] for one in tensors], 1.0).values.numpy()
        assert sum(int(one) ** 2 for one in alone) <= SENSITIVITY**2
        flat = np.concatenate([one[row].numpy().ravel() for one in tensors]).astype(np.float64)
        wanted = flat * min(1.0, 1 / np.linalg.norm(flat)) * SENSITIVITY
        assert np.abs(alone - wanted).max() <= 2 + 2.0**-12 * np.abs(wanted).max()
    whole = bounded_sum(tensors, 1.0)
    parts = [bounded_sum([one[row : row + 1] for one in tensors], 1.0) for row in range(4)]
    assert torch.equal(whole.values, sum((one.values for one in parts[1:]), parts[0].values))
    assert whole.num_rows == 4


def test_the_count_in_whole_numbers_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    """Were the float arithmetic wrong by a hundredth, a row left too long would be zeros."""
    tensors = [torch.tensor([[3.0, 4.0], [0.3, 0.4]])]
    monkeypatch.setattr(dp_sgd, "_ROOM", 1.01)
    found = bounded_sum(tensors, 1.0).values
    assert torch.equal(found, bounded_sum([tensors[0][1:]], 1.0).values)
    assert float(found.double().norm()) > 0.5 * SENSITIVITY


def test_a_row_without_a_finite_gradient_counts_as_zeros() -> None:
    good = torch.ones(1, 2, 2)
    for bad in (math.nan, math.inf):
        tensors = [torch.cat([good, torch.tensor([[[bad, 1.0], [1.0, 1.0]]])])]
        assert torch.equal(bounded_sum(tensors, 1.0).values, bounded_sum([good], 1.0).values)


def test_a_step_moves_by_one_row_no_more_than_the_clip() -> None:
    """The guarantee itself: with equal noise, a row more or less changes the sum by at most C."""
    host, data = host_of(), rows(5)

    def summed(some: list[Tokens]) -> torch.Tensor:
        found = private(host, some, clip_norm=0.05, batch_size=8)
        gradients, _ = found._gradients(some)
        return bounded_sum(gradients, 0.05).values

    for left_out in range(5):
        others = data[:left_out] + data[left_out + 1 :]
        moved = (summed(data) - summed(others)).double().norm()
        # What float32 beside other rows can move is told in docs/privacy.md.
        assert float(moved) <= SENSITIVITY * (1 + 1e-4)
        assert float(moved) > 0.5 * SENSITIVITY


def test_rows_are_drawn_each_by_itself() -> None:
    stream = Stream(bytes(32), "test", 0)
    drawn = np.zeros((4000, 20), dtype=bool)
    for at in range(4000):
        drawn[at, poisson_rows(20, 0.3, stream)] = True
    share, slack = drawn.mean(axis=0), 5 * math.sqrt(0.3 * 0.7 / 4000)
    assert np.abs(share - 0.3).max() < slack
    # The number drawn varies as that of independent ones does: not batches of one size.
    assert abs(drawn.sum(axis=1).var() / (20 * 0.3 * 0.7) - 1) < 0.15
    assert np.abs(np.corrcoef(drawn.T) - np.eye(20)).max() < 0.09
    assert poisson_rows(4, 1.0, stream) == [0, 1, 2, 3]
    assert poisson_rows(4, 1e-19, stream) == []


def test_the_noise_is_of_the_stated_size_whatever_was_drawn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without any row there is a gradient all the same, of noise alone."""
    host, data = host_of(), rows(10)
    monkeypatch.setattr(dp_sgd, "poisson_rows", lambda *_: [])
    found = private(host, data, noise_multiplier=2.0, clip_norm=0.5, rate=0.4)
    noise = []
    for _ in range(4):
        assert found.step() is None
        noise += [one.grad.numpy().ravel().copy() for one in host.trainable()]
    values = np.concatenate(noise)
    wanted = 2.0 * 0.5 / (0.4 * 10)
    assert abs(values.std() / wanted - 1) < 5 / math.sqrt(2 * values.size)
    assert abs(values.mean()) < 5 * wanted / math.sqrt(values.size)


def test_two_steps_never_share_noise_or_rows() -> None:
    host, data = host_of(), rows(6)
    grads = []
    for _ in range(2):
        private(host, data).step()
        grads.append(torch.cat([one.grad.ravel().clone() for one in host.trainable()]))
    assert not torch.equal(grads[0], grads[1])


def test_layers_that_do_not_keep_rows_apart_are_refused() -> None:
    host, data = host_of(), rows(2)
    layer = host.model.get_base_model().model.layers[0].mlp.down_proj.lora_A["default"]
    forward = layer.forward
    layer.forward = lambda x: forward(x)
    with (
        pytest.raises(ModelError, match=r"expected layers that see \(rows, tokens, width\)"),
        dp_sgd._caught([layer], 2, {}),
    ):
        layer(torch.ones(6, layer.in_features))
    outside = torch.nn.Parameter(torch.zeros(3))
    with pytest.raises(ModelError, match="expected every trained tensor in a layer"):
        dp_sgd._layers_of(host.model, [outside])
    unused = private(host, data)
    unused._layers = unused._layers[:-1]
    with pytest.raises(ModelError, match="expected every trained tensor to be used"):
        unused.step()


def test_the_initial_state_still_moves_everything_but_a() -> None:
    """B is zero at first, so that A's gradient is: the noise moves it nevertheless."""
    host, data = host_of(), rows(4)
    host.write(initial_state(host.spec, 3))
    private(host, data).step()
    assert all(float(one.grad.abs().max()) > 0 for one in host.trainable())
