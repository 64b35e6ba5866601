"""Rollouts of a skip policy: sampled images and their rewards, and the comparison with other ways to skip."""

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
    """Episodes of one batch: K decisions for each of B images.

    Attributes:
        observations: The policy's inputs, `[K,B,C,h,w]`.
        actions: The actions, int64 `[K,B]`.
        evaluation: Log-probabilities, entropies and values at the time of the rollout, `[K,B]` each.
        ran: Whether the step was run, boolean `[K,B]`; differs from the action where the step was forced.
        counted: Decisions that enter the loss, boolean `[K,B]`.
        rewards: Reward of each image, `[B]`; 0 where it is NaN or infinite, and then no decision counts.
        evaluations: Evaluations of the network for each image, `[B]`.
    """

    observations: Tensor
    actions: Tensor
    evaluation: Evaluation
    ran: Tensor
    counted: Tensor
    rewards: Tensor
    evaluations: Tensor


class Rollouts:
    """Samples batches with given decisions and computes the rewards of the images.

    Args:
        base: The method whose steps are skipped.
        plan: The sampler.
        reward: The reward of an image.
    """

    def __init__(self, base: DiffusionModule, plan: SkipSampler, reward: Reward) -> None:
        self.base, self.plan, self.reward = base, plan, reward

    def images(self, batch: Batch, deciders: Mapping[str, Decider]) -> dict[str, Tensor]:
        """Images `[B,3,H,W]` in [-1, 1] by decider, all from the same coarse chain and the same noise."""
        # The coarse chain is run once; each decider gets a fork of the same noise.
        with self.base.sampling(batch) as padded:
            started, denoiser, randn, fill = self.base.prepare(padded, self.plan)
            steps = self.plan.prepare(denoiser, randn, fill)
            states = {name: self.plan.refine(decider, steps.fork()) for name, decider in deciders.items()}
            return {name: trimmed(self.base.decode(state, started), batch) for name, state in states.items()}

    @torch.no_grad()
    def play(self, batch: Batch, policy: SkipPolicy, count_forced: bool) -> Episodes:
        """Samples a batch with random actions of the policy.

        Args:
            batch: Images with their targets; their keys seed noise and actions.
            policy: The policy.
            count_forced: Whether the forced last decision enters the loss.
        """
        decider = PolicyDecider(policy, batch["key"])
        deciders: dict[str, Decider] = {"policy": decider}
        if self.reward.relative:
            deciders["all-run"] = Pattern([True] * self.plan.decisions)

        measured = {
            name: self.reward.measure(sr, batch["hr"], batch["lr"]) for name, sr in self.images(batch, deciders).items()
        }
        all_run = self.reward.quality(measured.get("all-run", measured["policy"]))
        scores = self._scores(measured["policy"], self.plan.evaluations(decider), all_run)

        # A metric can fail on a single image; its episode is left out instead of ending the training.
        ran, finite = torch.stack(decider.ran), torch.isfinite(scores["reward"])
        counted = finite.expand_as(ran).clone()
        counted[-1] &= count_forced

        return Episodes(
            observations=torch.stack(decider.observations),
            actions=torch.stack(decider.actions),
            evaluation=decider.evaluation(),
            ran=ran,
            counted=counted,
            rewards=torch.where(finite, scores["reward"], 0.0),
            evaluations=scores["evaluations"],
        )

    @torch.no_grad()
    def compare(self, batch: Batch, chosen: Decider, sr: Tensor, table: SkipTable) -> None:
        """Adds a batch to the table: the policy, all steps, no steps, random steps, and every fixed subset.

        The random steps have the share of the batch's own decisions to run.

        Args:
            batch: Images with their targets.
            chosen: The decider with the record of the policy's decisions.
            sr: The images that these led to, `[B,3,H,W]` in [-1, 1].
            table: The table that is added to.
        """
        ran = torch.stack(chosen.ran)
        deciders: dict[str, Decider] = {
            "all-run": Pattern([True] * self.plan.decisions),
            "all-skip": Pattern([False] * self.plan.decisions),
            "random": Pattern(torch.rand(ran.shape, device=ran.device) < ran[:-1].float().mean()),
        }

        images = {"policy": sr, **self.images(batch, deciders)}
        measured = {name: self.reward.measure(image, batch["hr"], batch["lr"]) for name, image in images.items()}
        all_run = self.reward.quality(measured["all-run"])
        for name, decider in {"policy": chosen, **deciders}.items():
            table.add(name, self._scores(measured[name], self.plan.evaluations(decider), all_run))

        with self.base.sampling(batch) as padded:
            started, denoiser, randn, fill = self.base.prepare(padded, self.plan)

            def visit(subset: Sequence[bool], state: Tensor) -> None:
                image = trimmed(self.base.decode(state, started), batch)
                evaluations = torch.full_like(all_run, self.plan.coarse_steps - 1 + sum(subset))
                measurements = self.reward.measure(image, batch["hr"], batch["lr"])
                table.add_subset(subset, self._scores(measurements, evaluations, all_run))

            self.plan.visit_subsets(self.plan.prepare(denoiser, randn, fill), visit)
        table.images += len(sr)

    def _scores(self, measured: dict[str, Tensor], evaluations: Tensor, all_run: Tensor) -> dict[str, Tensor]:
        """Reward, number of evaluations and metrics, `[B]` each, by name."""
        reward = self.reward(self.reward.quality(measured), all_run=all_run, evaluations=evaluations)
        return {"reward": reward, "evaluations": evaluations, **measured}
