"""A trained policy in a checkpoint, which another run starts from or another method samples with."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lightning_modules.checkpoint import CheckpointError, model_config, read_checkpoint


def stored_policy(checkpoint: str, method: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Arguments and state dict of a method that trains a policy.

    Args:
        checkpoint: The file.
        method: Class path of the method, `SkipDiff`.

    Raises:
        CheckpointError: the checkpoint is unusable, or holds another method.
    """
    content = read_checkpoint(checkpoint)
    config = model_config(content, checkpoint)
    if config["class_path"] != method:
        raise CheckpointError(f"{checkpoint}: holds {config['class_path']}, not a skip policy (SkipDiff)")
    return config["init_args"], content["state_dict"]


def weights_of(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The policy's own tensors, which are named `policy.*` in the method's state dict."""
    return {key.removeprefix("policy."): value for key, value in state.items() if key.startswith("policy.")}
