"""SkipDiff: a policy trained by reinforcement learning skips sampling steps of a trained method (AAAI 2024, 28195)."""

import hashlib
from collections.abc import Mapping
from functools import partial
from typing import Any, cast

import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor, nn

from datamodules.batch import Batch
from lightning_modules.base import DiffusionModule
from lightning_modules.checkpoint import CheckpointError, asking_for, first_mismatches, no_file
from lightning_modules.config import load_method
from lightning_modules.diffusion.samplers import Sampler
from lightning_modules.skipping.policy import SkipPolicy
from lightning_modules.skipping.ppo import Evaluation, Loss, Objective, moments
from lightning_modules.skipping.reward import Reward
from lightning_modules.skipping.rollouts import Episodes, Rollouts
from lightning_modules.skipping.sampler import PolicyDecider, Skip, SkipSampler
from lightning_modules.skipping.stored_policy import stored_policy, weights_of
from lightning_modules.skipping.table import Decisions, SkipTable
from lightning_modules.super_resolver import SuperResolver

BASE = "a trained diffusion method", "--model.init_args.base_checkpoint"
START = "a policy that SkipDiff trained", "--model.init_args.policy_weights"
SCALE_ITERATIONS = 10  # first iterations, over which the standard deviation of the advantage is averaged


class SkipDiff(SuperResolver):
    """Trains a skip policy on a frozen method with PPO, and super-resolves with the trained policy.

    A training step samples one batch of episodes: the coarse chain, then fine steps that the policy runs or skips
    at random, then the reward of the images. PPO makes `epochs` passes over these episodes, and its gradients flow
    through all decisions of an episode. REINFORCE is `epochs=1` with an `Objective` of `clip=inf` and
    `value_weight=0`. Lightning counts optimizer steps, so `max_steps` is batches times `epochs` times `minibatches`.

    Differences from the released code: a skipped image stays at its own noise level, the forced last decision does not
    enter the loss, rewards are not discounted, advantages are standardized instead of returns, network evaluations are
    subtracted from the reward, and the network runs only on the images that do not skip.
    `configs/skipdiff_official.yaml` restores the released behaviour, and names what remains different.

    Args:
        base_checkpoint: Checkpoint of a trained diffusion method, whose weights are not changed.
        policy: The actor-critic network.
        reward: The reward of an image.
        objective: The PPO loss.
        coarse_steps: See `SkipSampler`.
        fine_steps: See `SkipSampler`.
        skip: See `SkipSampler`.
        start: See `SkipSampler`.
        epochs: Passes over each batch of episodes.
        minibatches: Number of optimizer steps in a pass; each takes a part of the images.
        gradient_clip: Largest norm of the gradient; None for no limit.
        count_forced: Let the forced last decision enter the loss, as released.
        advantage_floor: Smallest divisor when advantages are standardized, as a share of their standard deviation
            averaged over the first ten iterations.
        table_images: Number of test images, in each process of the run, on which the policy is compared with running
            all steps, no steps, random steps and every fixed subset; 0 for no comparison.
        optimizer: From the policy's parameters to an optimizer.
        policy_weights: A checkpoint of this class, whose policy training starts from, as the released code demands one
            (a published file: `lightning import`). None for a policy that decides at random at first.

    Raises:
        CheckpointError: the base's checkpoint is unusable.
        ValueError: the base is not a diffusion method, or its process cannot be sampled in these numbers of steps.
    """

    watches_sampling = True  # the decisions of the policy
    base_fingerprint: Tensor
    levels: Tensor
    advantage_scale: Tensor

    def __init__(
        self,
        base_checkpoint: str,
        policy: SkipPolicy,
        reward: Reward,
        objective: Objective = Objective(),
        coarse_steps: int = 10,
        fine_steps: int = 100,
        skip: Skip = "respaced",
        start: float | None = None,
        epochs: int = 4,
        minibatches: int = 1,
        gradient_clip: float | None = 0.5,
        count_forced: bool = False,
        advantage_floor: float = 0.1,
        table_images: int = 100,
        optimizer: OptimizerCallable = torch.optim.Adam,
        policy_weights: str | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.automatic_optimization = False  # one batch of episodes takes several optimizer steps

        self.base_checkpoint = base_checkpoint
        self.base = frozen_base(base_checkpoint)
        self.policy, self.reward, self.objective = policy, reward, objective
        self.greedy = PolicyDecider(policy)
        self.plan = SkipSampler(self.greedy, coarse_steps, fine_steps, skip, start)

        self.epochs, self.minibatches, self.gradient_clip = epochs, minibatches, gradient_clip
        self.count_forced, self.advantage_floor, self.table_images = count_forced, advantage_floor, table_images
        self.optimizer, self.policy_weights = optimizer, policy_weights

        # Stored beside the policy: it is refused on another base, and PolicySampler compares the noise levels.
        self.register_buffer("base_fingerprint", fingerprint(self.base))
        self.register_buffer("levels", self.base.process.std(self.plan.times(self.base.process)[1]).float())
        self.register_buffer("advantage_scale", torch.zeros(2))  # sum over the first iterations, their number

        self.rollouts = Rollouts(self.base, self.plan, reward)
        self.table = SkipTable()
        self.decisions = Decisions()

    @classmethod
    def missing(cls, arguments: Mapping[str, Any], *, fresh: bool, **_: Any) -> str | None:
        """See `look_ahead.Part.missing`: the base, and the policy where training begins with one."""
        policy = arguments.get("policy_weights") if fresh else None
        return no_file(arguments["base_checkpoint"], *BASE) or (policy and no_file(policy, *START))

    def setup(self, stage: str) -> None:
        """Reads the policy that training starts from, and the weights of scores where images are rewarded.

        That is in training, and in the test's table.

        Raises:
            CheckpointError: the policy's checkpoint is unusable, or its policy is of another shape.
            WeightsError: weights of a score are missing or damaged.
            MissingPackageError: a package that a score needs is not installed.
        """
        if stage == "fit" or (stage == "test" and self.table_images):
            self.reward.load()
        if stage != "fit" or self.policy_weights is None or self.trainer.ckpt_path is not None:
            return

        with asking_for(*START):
            _, state = stored_policy(self.policy_weights, f"{SkipDiff.__module__}.{SkipDiff.__qualname__}")
        try:
            self.policy.load_state_dict(weights_of(state))
        except RuntimeError as error:
            raise CheckpointError(
                f"{self.policy_weights}: does not fit the policy as configured: {first_mismatches(error)}"
            ) from error

    # The interface of SuperResolver.

    @property
    def stride(self) -> int:
        """The stride of the base."""
        return self.base.stride

    @property
    def smallest(self) -> int:
        """The smallest side that the base accepts, in pixels."""
        return self.base.smallest

    def enlarge(self, batch: Batch, sampler: Sampler | None) -> Tensor:
        """Images `[B,3,H,W]` of the base, sampled with the policy's more likely action at each decision."""
        return self.base.enlarge(batch, sampler or self.plan)

    def protocol(self) -> str:
        """The name of the skip sampler, such as "skip-respaced-10-100"."""
        return self.plan.name(self.base.process)

    def preview(self, batch: Batch) -> dict[str, Tensor]:
        """The pictures of the base."""
        return self.base.preview(batch)

    def train(self, mode: bool = True) -> "SkipDiff":
        """Sets the mode of the policy; the base always stays in eval mode."""
        super().train(mode)
        self.base.eval()
        return self

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Loads the policy.

        Raises:
            ValueError: the policy was trained on another base, or its tensors do not fit.
        """
        stored = state_dict.get("base_fingerprint", self.base_fingerprint)
        if not torch.equal(stored.cpu(), self.base_fingerprint.cpu()):
            raise ValueError(
                f"the policy was trained on another base than {self.base_checkpoint}: the weights of its own have the "
                f"SHA-256 {_hex(stored)}..., these {_hex(self.base_fingerprint)}... Give its own base as "
                "--model.init_args.base_checkpoint, or train a policy for this base. To use the policy on another base "
                "all the same, make it that method's sampler (PolicySampler): --config configs/sampler/skip_policy.yaml"
            )
        return super().load_state_dict(state_dict, strict, assign)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The configured optimizer over the policy's parameters."""
        return self.optimizer(self.policy.parameters())

    def sharded_parts(self) -> dict[nn.Module, tuple[str, ...]]:
        """The policy alone: each process evaluates the base as often as its own images want."""
        return {self.policy: ("step", "sequence")}

    # Training.

    def training_step(self, batch: Batch, batch_idx: int) -> STEP_OUTPUT:
        """Samples one batch of episodes, with new noise in each iteration, and updates the policy.

        Logs the reward, the evaluations, how often each step runs and the terms of the loss.
        """
        keys = [f"{key}/iteration {self.global_step}" for key in batch["key"]]
        episodes = self.rollouts.play(cast(Batch, {**batch, "key": keys}), self.policy, self.count_forced)
        losses = self.learn(episodes)
        self._log_training(episodes, losses)
        return {"loss": losses[-1].total.detach()}

    def learn(self, episodes: Episodes) -> list[Loss]:
        """Makes `epochs` passes over a batch of episodes; returns the loss of each optimizer step."""
        optimizer = cast(torch.optim.Optimizer, self.optimizers())

        # The reward is terminal: only the last decision of an episode has one.
        rewards = torch.zeros_like(episodes.evaluation.value)
        rewards[-1] = episodes.rewards
        targets = self.objective.targets(rewards, episodes.counted)
        floor = self._advantage_floor(targets, episodes)

        losses = []
        for _ in range(self.epochs):
            part = self.step_draws.of_all(partial(parts, count=self.minibatches), rewards.shape[1]).to(rewards.device)
            for rows in ((part == number).nonzero()[:, 0] for number in range(self.minibatches)):
                # Whole episodes are replayed, so that gradients pass through the policy's recurrent state.
                now = Evaluation.of(*self.policy.sequence(episodes.observations[:, rows]), episodes.actions[:, rows])
                loss = self.objective.loss(
                    now,
                    old_logprob=episodes.evaluation.logprob[:, rows],
                    targets=targets[:, rows],
                    counted=episodes.counted[:, rows],
                    floor=floor,
                )

                optimizer.zero_grad()
                self.manual_backward(loss.total)
                if self.gradient_clip is not None:
                    nn.utils.clip_grad_norm_(self.policy.parameters(), self.gradient_clip)
                optimizer.step()
                losses.append(loss)
        return losses

    def _advantage_floor(self, targets: Tensor, episodes: Episodes) -> float:
        """`advantage_floor` times the standard deviation of the advantage, averaged over the first iterations."""
        if self.advantage_scale[1] < SCALE_ITERATIONS:
            raw = (targets - episodes.evaluation.value)[episodes.counted]
            self.advantage_scale += torch.stack([moments(raw, correction=0)[1], raw.new_ones(())])
        return self.advantage_floor * float(self.advantage_scale[0] / self.advantage_scale[1])

    def _log_training(self, episodes: Episodes, losses: list[Loss]) -> None:
        first, last = losses[0], losses[-1]
        scores = {
            "loss": last.total,
            "reward": episodes.rewards.mean(),
            "evaluations": episodes.evaluations.float().mean(),
            "entropy": episodes.evaluation.entropy[episodes.counted].mean(),
            "value_loss": last.value,
            "explained_variance": first.explained_variance,
            "kl": last.kl,
            "clipped": last.clipped,
            "first_ratio_deviation": first.ratio_deviation,
            "without_reward": 1 - episodes.counted[0].float().mean(),
        }

        # The last step always runs, so it has no rate.
        rates = {f"run_rate/{k}": rate for k, rate in enumerate(episodes.ran[:-1].float().mean(dim=1))}
        for name, value in {**scores, **rates}.items():
            self.log(f"train/{name}", value, prog_bar=name in ("reward", "evaluations"))

    # Validation and test.

    def on_validation_batch_end(self, outputs: Any, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Records the decisions of the policy."""
        self.decisions.record(self.greedy)

    def on_validation_epoch_end(self) -> None:
        """Logs a summary of the policy's decisions."""
        self._log_decisions("val")

    def on_test_batch_end(self, outputs: Any, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Records the decisions of the policy, and compares its images with those of other ways to skip."""
        self.decisions.record(self.greedy)
        if self.table.images < self.table_images:
            self.rollouts.compare(batch, self.greedy, outputs["sr"], self.table)

    def on_test_epoch_start(self) -> None:
        """Empties the table."""
        self.table.reset()

    def on_test_epoch_end(self) -> None:
        """Logs a summary of the policy's decisions; prints and logs the table."""
        self._log_decisions("test")
        self.table.gather()
        if not self.table.images:
            return

        for name, row in self.table.rows().items():
            self.log(f"test/reward/{name}", row["reward"], sync_dist=True)
        if self.trainer.is_global_zero:
            self.table.print()

    def _log_decisions(self, stage: str) -> None:
        if self.base.region is not None:
            self.log(f"{stage}/never_diffused", self.base.never_diffused)
        for name, value in self.decisions.summary(self.plan).items():
            self.log(f"{stage}/{name}", value, sync_dist=True)


def parts(images: int, count: int) -> Tensor:
    """Which of `count` parts each image falls into at random, `[images]`; of each `count` in turn one into each part.

    So parts are equally large on every process whose number of images is a multiple of `count`.
    """
    blocks = -(-images // count)
    return torch.rand(blocks, count).argsort(dim=1).flatten()[:images]


def frozen_base(path: str) -> DiffusionModule:
    """The trained method at `path`, frozen.

    Raises:
        CheckpointError: the checkpoint is unusable.
        ValueError: it holds a method that is not a `DiffusionModule`.
    """
    with asking_for(*BASE):
        base = load_method(path)
    if not isinstance(base, DiffusionModule):
        raise ValueError(f"{path}: holds a {type(base).__name__}, which takes no sampling steps that could be skipped")
    return base.requires_grad_(False)


def fingerprint(module: nn.Module) -> Tensor:
    """SHA-256 of all weights and their names, uint8 `[32]`."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return torch.tensor(list(digest.digest()), dtype=torch.uint8)


def _hex(digest: Tensor) -> str:
    return bytes(digest.tolist())[:6].hex()
