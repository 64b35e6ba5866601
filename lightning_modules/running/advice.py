"""What is said of a training before it begins, where its config is allowed and yet hardly what was meant."""

from collections.abc import Mapping
from typing import Any

EPSILON = "lightning_modules.diffusion.parameterization.Epsilon"
CLEAN = "lightning_modules.diffusion.parameterization.Clean"
ENOUGH = 20_000  # steps, below which a network that predicts noise is not expected to reach bicubic


def unlikely_to_reach_bicubic(config: Mapping[str, Any]) -> str | None:
    """A warning of a training from scratch that predicts the noise and is too short for that; None of any other.

    An error of the predicted noise is multiplied by std / alpha in the clean image, which is large early in sampling.
    The published trainings take hundreds of thousands of steps to make it small.

    Args:
        config: Of `lightning fit`, parsed, as plain values.
    """
    arguments = (config.get("model") or {}).get("init_args") or {}
    form = (arguments.get("parameterization") or {}).get("class_path")
    steps = (config.get("trainer") or {}).get("max_steps") or -1
    trained_before = config.get("ckpt_path") or arguments.get("base_checkpoint")
    if form != EPSILON or trained_before or not 0 < steps < ENOUGH:
        return None
    return (
        f"the network learns to predict the noise, from scratch and in {steps} steps only; its pictures are likely to "
        "stay below plain bicubic (after five minutes on a CPU SRDiff had 28.5 dB in this form and 31.5 dB predicting "
        f"the clean image). For a short training give --model.init_args.parameterization {CLEAN}, as "
        f"configs/quickstart.yaml does; the published form wants far more than {ENOUGH} steps"
    )
