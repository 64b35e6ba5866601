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
