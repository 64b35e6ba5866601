"""ResShift's weights as its public code stores them: the network alone."""

from collections.abc import Mapping

from torch import Tensor

from lightning_modules.resshift import ResShift

WRAPPERS = ("module.", "_orig_mod.")  # what DistributedDataParallel and torch.compile put before every key
REBUILT = ("attn_mask", "relative_position_index")  # buffers in the files that follow from the configuration


def adapt(model: ResShift, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The model's state dict: keys without the wrappers' prefixes become `network.*`; rebuilt buffers are left out."""
    weights = {}
    for key, value in state.items():
        for wrapper in WRAPPERS:
            key = key.removeprefix(wrapper)
        if not key.endswith(REBUILT):
            weights[f"network.{key}"] = value
    return weights
