"""Proximal policy optimization as mathematics: returns, advantages and the clipped loss (arXiv:1707.06347).

Everything is `[K,B]`: K decisions of B episodes. `counted` marks the decisions that the policy is responsible for.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


def discounted_returns(rewards: Tensor, gamma: float) -> Tensor:
    """`G_k = r_k + gamma G_{k+1}` along the first dimension of `rewards [K,B]`."""
    returns = torch.empty_like(rewards)
    following = torch.zeros_like(rewards[0])
    for k in reversed(range(len(rewards))):
        following = rewards[k] + gamma * following
        returns[k] = following
    return returns


def standardize(values: Tensor, counted: Tensor, *, correction: int, eps: float, floor: float = 0.0) -> Tensor:
    """Shifts and scales by the mean and standard deviation of the counted entries.

    Args:
        values: `[K,B]`.
        counted: `[K,B]` boolean.
        correction: 1 divides the squares by the number of entries less one.
        eps: added to the standard deviation.
        floor: least divisor. Without one, a policy that has converged divides by almost nothing and is thrown off.
    """
    chosen = values[counted]
    return (values - chosen.mean()) / (chosen.std(correction=correction).clamp(min=floor) + eps)


@dataclass(frozen=True)
class Evaluation:
    """What the current policy says about recorded decisions: each `[K,B]`."""

    logprob: Tensor
    entropy: Tensor
    value: Tensor

    @classmethod
    def of(cls, logits: Tensor, value: Tensor, actions: Tensor) -> "Evaluation":
        """From logits `[K,B,A]`, values `[K,B]` and the actions `[K,B]` that were taken."""
        logprobs = logits.log_softmax(-1)
        entropy = -(logprobs.exp() * logprobs).sum(-1)
        return cls(logprob=logprobs.gather(-1, actions[..., None])[..., 0], entropy=entropy, value=value)


@dataclass(frozen=True)
class Loss:
    """The scalar to minimize and, detached, what tells whether the update is healthy."""

    total: Tensor
    policy: Tensor
    value: Tensor
    entropy: Tensor
    kl: Tensor  # estimate of KL(old || new): mean of ratio - 1 - log ratio
    clipped: Tensor  # fraction of counted decisions whose ratio the clip cuts
    ratio_deviation: Tensor  # largest |ratio - 1|; zero in a first epoch whose policy sees what the rollout saw
    explained_variance: Tensor  # 1 - Var(target - value) / Var(target); 0 where the targets do not vary


@dataclass(frozen=True)
class Objective:
    """The loss of one update. REINFORCE with a learned baseline is `clip=inf` and one epoch.

    Attributes:
        clip: half-width of the interval that the probability ratio is cut to.
        gamma: discount. 1 by default: the reward is terminal, and the released 0.7 shows the first of ten decisions
            0.04 of it.
        value_weight: weight of the critic's squared error. 0 leaves the critic untrained and out of the advantage:
            plain REINFORCE.
        entropy_weight: weight of the entropy bonus.
        normalize: `advantage` standardizes G - V over the counted decisions; `return` standardizes all returns together
            before V is subtracted, as released, which teaches the critic little but the clock.
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
        """What the critic learns, `[K,B]`: the returns of `rewards [K,B]`, standardized if `normalize` says so."""
        returns = discounted_returns(rewards, self.gamma)
        return standardize(returns, counted, correction=1, eps=1e-5) if self.normalize == "return" else returns

    def advantage(self, targets: Tensor, value: Tensor, counted: Tensor, floor: float = 0.0) -> Tensor:
        """How much better than expected each decision turned out, `[K,B]`, without a gradient."""
        raw = targets - value.detach() if self.value_weight > 0 else targets
        if self.normalize == "return":
            return raw
        return standardize(raw, counted, correction=0, eps=1e-8, floor=floor)

    def loss(
        self, now: Evaluation, *, old_logprob: Tensor, targets: Tensor, counted: Tensor, floor: float = 0.0
    ) -> Loss:
        """The clipped loss over the counted decisions.

        Args:
            now: the current policy's evaluation of the recorded decisions.
            old_logprob: `[K,B]`, log-probabilities at the time of the rollout.
            targets: `[K,B]`, from `targets`.
            counted: `[K,B]` boolean: decisions that enter policy, value and entropy terms.
            floor: least divisor of the advantage.
        """
        advantage = self.advantage(targets, now.value, counted, floor)[counted]
        log_ratio = (now.logprob - old_logprob)[counted]
        ratio = log_ratio.exp()
        kept = ratio.clamp(1 - self.clip, 1 + self.clip)
        policy = -torch.minimum(ratio * advantage, kept * advantage).mean()
        error = (now.value - targets)[counted]
        value, entropy = error.square().mean(), now.entropy[counted].mean()
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
