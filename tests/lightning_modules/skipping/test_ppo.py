import math

import pytest
import torch
from torch import Tensor

from lightning_modules.skipping.ppo import Evaluation, Objective, discounted_returns, standardize


def decisions(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits [6,5,2], values, actions and rewards [6,5]."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(6, 5, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    values = torch.randn(6, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    actions = torch.randint(2, (6, 5), generator=generator)
    rewards = torch.zeros(6, 5, dtype=torch.float64)
    rewards[-1] = torch.randn(5, generator=generator, dtype=torch.float64)
    return logits, values, actions, rewards


def test_returns_discount_what_follows() -> None:
    rewards = torch.tensor([[1.0], [0.0], [4.0]])
    assert discounted_returns(rewards, 0.5).flatten().tolist() == [2.0, 2.0, 4.0]
    assert discounted_returns(rewards, 1.0).flatten().tolist() == [5.0, 4.0, 4.0]


def test_standardize_looks_at_counted_entries_only_and_keeps_its_floor() -> None:
    values = torch.tensor([[1.0, 3.0], [100.0, -100.0]])
    counted = torch.tensor([[True, True], [False, False]])
    scaled = standardize(values, counted, correction=0, eps=0.0)
    assert scaled[0].tolist() == [-1.0, 1.0]
    assert standardize(values, counted, correction=0, eps=0.0, floor=10.0)[0].tolist() == pytest.approx([-0.1, 0.1])


def test_reinforce_is_the_special_case_without_clip_and_critic() -> None:
    logits, values, actions, rewards = decisions()
    counted = torch.ones_like(rewards, dtype=torch.bool)
    objective = Objective(clip=math.inf, value_weight=0.0, entropy_weight=0.0)
    now = Evaluation.of(logits, values, actions)
    targets = objective.targets(rewards, counted)
    loss = objective.loss(now, old_logprob=now.logprob.detach(), targets=targets, counted=counted)
    (gradient,) = torch.autograd.grad(loss.total, logits)

    returns = rewards.sum(0).expand_as(rewards)
    advantage = (returns - returns.mean()) / returns.std(correction=0)
    taken = logits.log_softmax(-1).gather(-1, actions[..., None])[..., 0]
    (expected,) = torch.autograd.grad(-(advantage * taken).mean(), logits)
    torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-9)


def test_a_ratio_beyond_the_clip_pulls_no_further() -> None:
    logits, values, actions, rewards = decisions()
    counted = torch.ones_like(rewards, dtype=torch.bool)
    objective = Objective(clip=0.2, value_weight=0.0, entropy_weight=0.0)
    now = Evaluation.of(logits, values, actions)
    targets = objective.targets(rewards, counted)
    advantage = objective.advantage(targets, now.value, counted)
    # Every decision has become likelier by a factor of two: where that was right, it is enough.
    loss = objective.loss(now, old_logprob=now.logprob.detach() - math.log(2), targets=targets, counted=counted)
    (gradient,) = torch.autograd.grad(loss.total, logits)
    moved = gradient.abs().sum(-1) > 0
    assert torch.equal(moved, advantage < 0)
    assert loss.clipped == 1


def test_decisions_that_are_not_counted_get_no_gradient() -> None:
    logits, values, actions, rewards = decisions()
    counted = torch.ones_like(rewards, dtype=torch.bool)
    counted[-1] = False
    objective = Objective()
    now = Evaluation.of(logits, values, actions)
    targets = objective.targets(rewards, counted)
    loss = objective.loss(now, old_logprob=now.logprob.detach(), targets=targets, counted=counted)
    for gradient in torch.autograd.grad(loss.total, (logits, values)):
        assert gradient[-1].abs().max() == 0
        assert gradient[:-1].abs().min() > 0


def test_a_first_epoch_reports_no_change() -> None:
    logits, values, actions, rewards = decisions()
    counted = torch.ones_like(rewards, dtype=torch.bool)
    now = Evaluation.of(logits, values, actions)
    loss = Objective().loss(now, old_logprob=now.logprob.detach(), targets=rewards, counted=counted)
    assert loss.ratio_deviation == 0 and loss.kl == 0 and loss.clipped == 0


def test_explained_variance_is_one_for_a_perfect_critic() -> None:
    logits, _, actions, rewards = decisions()
    counted = torch.ones_like(rewards, dtype=torch.bool)
    objective = Objective()
    targets = objective.targets(rewards, counted)
    now = Evaluation.of(logits, targets + 3, actions)
    loss = objective.loss(now, old_logprob=now.logprob.detach(), targets=targets, counted=counted)
    assert loss.explained_variance == pytest.approx(1.0)


@pytest.mark.parametrize(("clip", "gamma"), [(0.0, 1.0), (0.2, 1.5)])
def test_senseless_coefficients_are_refused(clip: float, gamma: float) -> None:
    with pytest.raises(ValueError, match="clip must be positive and gamma"):
        Objective(clip=clip, gamma=gamma)


def test_the_loss_is_the_sum_of_its_terms() -> None:
    """One decision in each of four episodes, by hand."""
    probabilities = torch.tensor([[[0.25, 0.75], [0.5, 0.5], [0.9, 0.1], [0.2, 0.8]]], dtype=torch.float64)
    values = torch.tensor([[1.0, 3.0, 2.0, 0.0]], dtype=torch.float64)
    now = Evaluation.of(probabilities.log(), values, torch.tensor([[1, 0, 1, 1]]))
    assert now.logprob.exp()[0].tolist() == pytest.approx([0.75, 0.5, 0.1, 0.8])
    entropies = [-sum(p * math.log(p) for p in row) for row in probabilities[0].tolist()]
    assert now.entropy[0].tolist() == pytest.approx(entropies)

    targets = torch.tensor([[2.0, 1.0, 1.0, 2.0]], dtype=torch.float64)
    old = torch.tensor([[0.5, 0.5, 0.2, 0.5]], dtype=torch.float64).log()  # ratios 1.5, 1, 0.5 and 1.6
    raw = torch.tensor([1.0, -2.0, -1.0, 2.0], dtype=torch.float64)
    advantage = (raw / raw.std(correction=0)).tolist()  # of mean 0
    # What raises the reward is held at 1.2; what lowers it counts at 0.8 where it has become rarer than that.
    policy = -(1.2 * advantage[0] + advantage[1] + 0.8 * advantage[2] + 1.2 * advantage[3]) / 4
    value, entropy = (1 + 4 + 1 + 4) / 4, sum(entropies) / 4

    objective = Objective(clip=0.2, value_weight=0.5, entropy_weight=0.1)
    loss = objective.loss(now, old_logprob=old, targets=targets, counted=torch.ones(1, 4, dtype=torch.bool))
    assert loss.policy.item() == pytest.approx(policy)
    assert (loss.value.item(), loss.entropy.item()) == (pytest.approx(value), pytest.approx(entropy))
    assert loss.total.item() == pytest.approx(policy + 0.5 * value - 0.1 * entropy)
    assert loss.kl.item() == pytest.approx(sum(r - 1 - math.log(r) for r in (1.5, 1.0, 0.5, 1.6)) / 4)
    assert (loss.clipped.item(), loss.ratio_deviation.item()) == (0.75, pytest.approx(0.6))
    assert loss.explained_variance.item() == pytest.approx(1 - 2.5 / 0.25)


def test_released_returns_are_standardized_together_before_the_critic() -> None:
    rewards = torch.tensor([[0.0, 0.0], [1.0, 3.0]], dtype=torch.float64)
    counted = torch.ones_like(rewards, dtype=torch.bool)
    objective = Objective(gamma=0.5, normalize="return")
    returns = torch.tensor([[0.5, 1.5], [1.0, 3.0]], dtype=torch.float64)
    wanted = (returns - 1.5) / (returns.std(correction=1) + 1e-5)
    targets = objective.targets(rewards, counted)
    torch.testing.assert_close(targets, wanted)
    values = torch.full_like(rewards, 0.25)
    torch.testing.assert_close(objective.advantage(targets, values, counted), wanted - 0.25)


def test_the_critic_learns_from_its_own_term_alone() -> None:
    logits, values, actions, rewards = decisions()
    counted = torch.ones_like(rewards, dtype=torch.bool)
    now = Evaluation.of(logits, values, actions)
    targets = Objective().targets(rewards, counted)
    loss = Objective(value_weight=0.5).loss(now, old_logprob=now.logprob.detach(), targets=targets, counted=counted)
    (gradient,) = torch.autograd.grad(loss.total, values)
    torch.testing.assert_close(gradient, (values.detach() - targets) / values.numel())
