"""The skip policy's weights as SkipDiff's released code stores them."""

from collections.abc import Mapping

from torch import Tensor

from lightning_modules.skipdiff import SkipDiff


def adapt(model: SkipDiff, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The model's state dict: `state_encoder.*`, `gru.*` and the heads become `policy.*`.

    The file does not say which base the policy was trained on. The model's own buffers, the fingerprint of its base
    and the noise levels among them, are therefore kept: the policy is taken to belong to the configured base.
    """
    own = {name: value for name, value in model.named_buffers() if "." not in name}
    return {**own, **{f"policy.{key}": value for key, value in state.items()}}
