"""Relay Diffusion's weights as its public code stores them: the network alone."""

from collections.abc import Mapping

from torch import Tensor

from lightning_modules.published import adm_names
from lightning_modules.relay import Relay


def adapt(model: Relay, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The model's state dict: the network becomes `network.*`.

    Raises:
        ValueError: the network resamples with another filter than the 2x2 box.
    """
    return {f"network.{key}": value for key, value in adm_names.unet(state).items()}
