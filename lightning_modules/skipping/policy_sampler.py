"""A trained skip policy as the sampler of another method."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_modules.checkpoint import asking_for, no_file
from lightning_modules.diffusion.denoiser import Denoiser
from lightning_modules.diffusion.process import Process
from lightning_modules.diffusion.randomness import Randn
from lightning_modules.diffusion.samplers import AfterStep
from lightning_modules.skipping.policy import SkipPolicy
from lightning_modules.skipping.sampler import PolicyDecider, SkipSampler
from lightning_modules.skipping.stored_policy import stored_policy, weights_of

POLICY = "a policy that SkipDiff trained", "--model.init_args.sampler.init_args.checkpoint"
SKIPDIFF = "lightning_modules.skipdiff.SkipDiff"


class PolicySampler(SkipSampler):
    """A trained skip policy as the sampler of any method with the noise levels that the policy was trained on.

    Args:
        checkpoint: A checkpoint of `SkipDiff`. Its base is not loaded.

    Raises:
        CheckpointError: the checkpoint is unusable, or holds another method.
    """

    def __init__(self, checkpoint: str) -> None:
        with asking_for(*POLICY):
            arguments, state = stored_policy(checkpoint, SKIPDIFF)
        self.policy = SkipPolicy(**arguments["policy"].get("init_args", {}))
        self.policy.load_state_dict(weights_of(state))
        self.policy.eval().requires_grad_(False)

        self.checkpoint, self.levels = checkpoint, state["levels"]
        plan = {name: arguments[name] for name in ("coarse_steps", "fine_steps", "skip", "start") if name in arguments}
        super().__init__(PolicyDecider(self.policy), **plan)

    @classmethod
    def missing(cls, arguments: Mapping[str, Any], **_: Any) -> str | None:
        """See `look_ahead.Part.missing`: the policy."""
        return no_file(arguments["checkpoint"], *POLICY)

    def times(self, process: Process) -> tuple[Tensor, Tensor]:
        """See `SkipSampler.times`.

        Raises:
            ValueError: the steps do not fit the process, or its noise levels are not those of the policy's training.
        """
        coarse, fine = super().times(process)

        found = process.std(fine)
        if not torch.allclose(found.to(self.levels), self.levels, rtol=1e-4, atol=1e-6):
            raise ValueError(
                f"{self.checkpoint}: the policy was trained at noise levels from {float(self.levels[0]):.4g} to "
                f"{float(self.levels[-2]):.4g}, but at these times {type(process).__name__} has {float(found[0]):.4g} "
                f"to {float(found[-2]):.4g}: train a policy on this method"
            )
        return coarse, fine

    def __call__(
        self, denoiser: Denoiser, randn: Randn = torch.randn_like, after_step: AfterStep | None = None
    ) -> Tensor:
        """See `Sampler.__call__`; moves the policy to the device of the states."""
        self.policy.to(denoiser.anchor.device)
        return super().__call__(denoiser, randn, after_step)
