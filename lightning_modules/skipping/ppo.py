"""Proximal policy optimization: returns, advantages and the clipped loss (arXiv:1707.06347).

Tensors are `[K,B]`, for K decisions in each of B episodes. `counted` is a boolean mask of the decisions that enter the
loss; a forced decision, for example, does not.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, distributed


def discounted_returns(rewards: Tensor, gamma: float) -> Tensor:
    """Returns `G_k = r_k + gamma G_{k+1}` of rewards, both `[K,B]`."""
    returns = torch.empty_like(rewards)
    following = torch.zeros_like(rewards[0])
    for k in reversed(range(len(rewards))):
        following = rewards[k] + gamma * following
        returns[k] = following
    return returns


def standardize(values: Tensor, counted: Tensor, *, correction: int, eps: float, floor: float = 0.0) -> Tensor:
    """Shifts and scales by the mean and standard deviation of the counted entries, those of all processes together.

    Args:
        values: `[K,B]`.
        counted: Boolean `[K,B]`.
        correction: 1 for the unbiased variance, which divides by the number of entries minus 1; 0 divides by it.
        eps: Added to the standard deviation.
        floor: Smallest standard deviation to divide by. When a policy has converged, advantages are almost equal, and
            dividing by their own deviation would amplify noise.
    """
    mean, std = moments(values[counted], correction)
    return (values - mean) / (std.clamp(min=floor) + eps)


def moments(values: Tensor, correction: int) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation, scalars, of the values `[N]` that all processes of a run have together."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return values.mean(), values.std(correction=correction)
    sums = torch.stack([values.new_tensor(values.numel()), values.sum()]).double()
    distributed.all_reduce(sums)
    mean = sums[1] / sums[0]
    squares = (values.double() - mean).square().sum()
    distributed.all_reduce(squares)
    return mean.to(values), (squares / (sums[0] - correction)).sqrt().to(values)


def mean_of_all(values: Tensor) -> Tensor:
    """This process's share of the mean of the values `[N]` that all processes have together, times their number.

    So the average over processes, which DDP takes of gradients, is that mean, however many values each has.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return values.mean()
    count = values.new_tensor(values.numel())
    distributed.all_reduce(count)
    return values.sum() * distributed.get_world_size() / count


@dataclass(frozen=True)
class Evaluation:
    """A policy's outputs for recorded decisions, each `[K,B]`.

    Attributes:
        logprob: Log-probability of the action that was taken.
        entropy: Entropy of the distribution of actions, in nats.
        value: The critic's estimate of the return.
    """

    logprob: Tensor
    entropy: Tensor
    value: Tensor

    @classmethod
    def of(cls, logits: Tensor, value: Tensor, actions: Tensor) -> "Evaluation":
        """The evaluation for logits `[K,B,A]`, values `[K,B]` and the actions `[K,B]` that were taken."""
        logprobs = logits.log_softmax(-1)
        entropy = -(logprobs.exp() * logprobs).sum(-1)
        return cls(logprob=logprobs.gather(-1, actions[..., None])[..., 0], entropy=entropy, value=value)


@dataclass(frozen=True)
class Loss:
    """The scalar to minimize, its terms, and diagnostics of the update; all but `total` are detached.

    Attributes:
        total: `policy - entropy_weight * entropy + value_weight * value`.
        policy: The clipped policy loss.
        value: Mean squared error of the critic.
        entropy: Mean entropy.
        kl: Estimate of KL(old || new), the mean of `ratio - 1 - log(ratio)`.
        clipped: Fraction of the counted decisions whose ratio is clipped.
        ratio_deviation: Largest `|ratio - 1|`; 0 before the first update of a batch.
        explained_variance: `1 - Var(target - value) / Var(target)`; 0 if all targets are equal.
    """

    total: Tensor
    policy: Tensor
    value: Tensor
    entropy: Tensor
    kl: Tensor
    clipped: Tensor
    ratio_deviation: Tensor
    explained_variance: Tensor


@dataclass(frozen=True)
class Objective:
    """The PPO loss of one update. REINFORCE with a learned baseline is `clip=inf` and one epoch.

    Attributes:
        clip: The probability ratio is clipped to `[1 - clip, 1 + clip]`.
        gamma: Discount factor. 1 by default: the reward is terminal, and with the released 0.7 only 0.04 of it reaches
            the first of ten decisions.
        value_weight: Weight of the critic's squared error. With 0 the critic is not trained and not subtracted from the
            returns: plain REINFORCE.
        entropy_weight: Weight of the entropy bonus.
        normalize: `advantage` standardizes G - V over the counted decisions. `return` standardizes the returns of all
            decisions together before V is subtracted, as released; then the critic learns little more than the index
            of the decision.

    Raises:
        ValueError: `clip` is not positive, or `gamma` is outside [0, 1].
    """

    clip: float = 0.2
    gamma: float = 1.0
    value_weight: float = 0.5
    entropy_weight: float = 0.01
    normalize: Literal["advantage", "return"] = "advantage"

    def __post_init__(self) -> None:
        if not (self.clip > 0 and 0 <= self.gamma <= 1):
            raise ValueError(f"clip must be positive and gamma in [0, 1], got {self.clip} and {self.gamma}")

    def targets(self, rewards: Tensor, counted: Tensor) -> Tensor:
        """Targets of the critic, `[K,B]`: the returns of rewards `[K,B]`, standardized with `normalize="return"`."""
        returns = discounted_returns(rewards, self.gamma)
        return standardize(returns, counted, correction=1, eps=1e-5) if self.normalize == "return" else returns

    def advantage(self, targets: Tensor, value: Tensor, counted: Tensor, floor: float = 0.0) -> Tensor:
        """Advantages `[K,B]`: targets minus the critic's values, standardized by default; without a gradient."""
        raw = targets - value.detach() if self.value_weight > 0 else targets
        if self.normalize == "return":
            return raw
        return standardize(raw, counted, correction=0, eps=1e-8, floor=floor)

    def loss(
        self, now: Evaluation, *, old_logprob: Tensor, targets: Tensor, counted: Tensor, floor: float = 0.0
    ) -> Loss:
        """The clipped loss over the counted decisions.

        Args:
            now: The current policy's evaluation of the recorded decisions.
            old_logprob: Log-probabilities at the time of the rollout, `[K,B]`.
            targets: Targets of the critic, `[K,B]`, see `targets`.
            counted: Decisions that enter the policy, value and entropy terms, boolean `[K,B]`.
            floor: Smallest standard deviation that advantages are divided by.
        """
        # The policy term: pessimistic, so that moving the ratio out of the interval is never rewarded.
        advantage = self.advantage(targets, now.value, counted, floor)[counted]
        log_ratio = (now.logprob - old_logprob)[counted]
        ratio = log_ratio.exp()
        kept = ratio.clamp(1 - self.clip, 1 + self.clip)
        policy = -mean_of_all(torch.minimum(ratio * advantage, kept * advantage))

        error = (now.value - targets)[counted]
        value, entropy = mean_of_all(error.square()), mean_of_all(now.entropy[counted])
        total = policy - self.entropy_weight * entropy + self.value_weight * value

        spread = targets[counted].var(correction=0)
        return Loss(
            total=total,
            policy=policy.detach(),
            value=value.detach(),
            entropy=entropy.detach(),
            kl=(ratio - 1 - log_ratio).mean().detach(),
            clipped=(ratio != kept).float().mean(),
            ratio_deviation=(ratio - 1).abs().max().detach(),
            explained_variance=1 - error.detach().var(correction=0) / spread if spread > 0 else spread,
        )
