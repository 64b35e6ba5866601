"""Weights of RRDB networks, from SRDiff's public code (its pretrained encoders) or from Real-ESRGAN's releases."""

from collections.abc import Mapping

from torch import Tensor

from lightning_modules.published import basicsr_names
from lightning_modules.rrdb import RRDBRegressor


def adapt(model: RRDBRegressor, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The model's state dict: the bare network of the file becomes `network.*`."""
    return {f"network.{key}": value for key, value in basicsr_names.rrdb(state).items()}
