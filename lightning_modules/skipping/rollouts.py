"""Batches that are sampled with skipped steps, rewarded, and compared with other ways to skip."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from datamodules.batch import Batch
from lightning_modules.base import DiffusionModule
from lightning_modules.skipping.policy import SkipPolicy
from lightning_modules.skipping.ppo import Evaluation
from lightning_modules.skipping.reward import Reward
from lightning_modules.skipping.sampler import Decider, Pattern, PolicyDecider, SkipSampler
from lightning_modules.skipping.table import SkipTable
from lightning_modules.super_resolver import trimmed


@dataclass(frozen=True)
class Episodes:
    """What one batch went through. `[K,B]` unless stated otherwise, K decisions of B images."""

    observations: Tensor  # [K,B,C,h,w]
    actions: Tensor
    evaluation: Evaluation
    ran: Tensor
    counted: Tensor  # decisions that the policy answers for
    rewards: Tensor  # of the images, [B]; 0 where there is none
    evaluations: Tensor  # of the network, [B]


class Rollouts:
    """Samples batches under deciders and pays for the images.

    Args:
        base: The method whose steps are skipped.
        plan: The sampler.
        reward: What is paid.
    """

    def __init__(self, base: DiffusionModule, plan: SkipSampler, reward: Reward) -> None:
        self.base, self.plan, self.reward = base, plan, reward

    def images(self, batch: Batch, deciders: Mapping[str, Decider]) -> dict[str, Tensor]:
        """Images `[B,3,H,W]` in [-1, 1] by decider, all from one coarse chain and the same noise."""
        with self.base.sampling(batch) as padded:
            started, denoiser, randn, fill = self.base.prepare(padded, self.plan)
            steps = self.plan.prepare(denoiser, randn, fill)
            states = {name: self.plan.refine(decider, steps.fork()) for name, decider in deciders.items()}
            return {name: trimmed(self.base.decode(state, started), batch) for name, state in states.items()}

    @torch.no_grad()
    def play(self, batch: Batch, policy: SkipPolicy, count_forced: bool) -> Episodes:
        """Samples a batch under actions drawn from the policy, as its key says.

        Args:
            batch: Images with their targets.
            policy: The policy.
            count_forced: Whether the policy answers for the forced last decision.
        """
        decider = PolicyDecider(policy, greedy=False)
        deciders: dict[str, Decider] = {"policy": decider}
        if self.reward.relative:
            deciders["all-run"] = Pattern([True] * self.plan.decisions)
        measured = {name: self.reward.measure(sr, batch["hr"]) for name, sr in self.images(batch, deciders).items()}
        all_run = self.reward.quality(measured.get("all-run", measured["policy"]))
        paid = self._paid(measured["policy"], self.plan.evaluations(decider), all_run)
        ran, rewarded = torch.stack(decider.ran), torch.isfinite(paid["reward"])
        counted = rewarded.expand_as(ran).clone()
        counted[-1] &= count_forced
        return Episodes(
            observations=torch.stack(decider.observations),
            actions=torch.stack(decider.actions),
            evaluation=decider.evaluation(),
            ran=ran,
            counted=counted,
            rewards=torch.where(rewarded, paid["reward"], 0.0),
            evaluations=paid["evaluations"],
        )

    @torch.no_grad()
    def compare(self, batch: Batch, chosen: Decider, sr: Tensor, table: SkipTable) -> None:
        """Adds a batch to the table: the policy, all steps, none, as many at random, and every fixed subset.

        Args:
            batch: Images with their targets.
            chosen: What the policy decided.
            sr: The images it led to, `[B,3,H,W]` in [-1, 1].
            table: Where to.
        """
        ran = torch.stack(chosen.ran)
        deciders: dict[str, Decider] = {
            "all-run": Pattern([True] * self.plan.decisions),
            "all-skip": Pattern([False] * self.plan.decisions),
            "random": Pattern(torch.rand(ran.shape, device=ran.device) < ran[:-1].float().mean()),
        }
        images = {"policy": sr, **self.images(batch, deciders)}
        measured = {name: self.reward.measure(image, batch["hr"]) for name, image in images.items()}
        all_run = self.reward.quality(measured["all-run"])
        for name, decider in {"policy": chosen, **deciders}.items():
            table.add(name, self._paid(measured[name], self.plan.evaluations(decider), all_run))

        with self.base.sampling(batch) as padded:
            started, denoiser, randn, fill = self.base.prepare(padded, self.plan)

            def visit(subset: Sequence[bool], state: Tensor) -> None:
                image = trimmed(self.base.decode(state, started), batch)
                evaluations = torch.full_like(all_run, self.plan.coarse_steps - 1 + sum(subset))
                measurements = self.reward.measure(image, batch["hr"])
                table.add_subset(subset, self._paid(measurements, evaluations, all_run))

            self.plan.visit_subsets(self.plan.prepare(denoiser, randn, fill), visit)
        table.images += len(sr)

    def _paid(self, measured: dict[str, Tensor], evaluations: Tensor, all_run: Tensor) -> dict[str, Tensor]:
        """Reward, evaluations and measurements, `[B]` each."""
        reward = self.reward(self.reward.quality(measured), all_run=all_run, evaluations=evaluations)
        return {"reward": reward, "evaluations": evaluations, **measured}
