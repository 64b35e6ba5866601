"""Where float64 numbers live: on their device, or on the CPU where a device has none, as Apple's GPUs have not.

The clock of the processes, their coefficients and YODA's map are float64 and few; they never leave the CPU or are cast
on the way (`process.expand`). What is large and float64 goes through one of the two functions here.
"""

import torch
from torch import Tensor

WITHOUT = {"mps"}  # types of devices that have no float64


def widest(device: torch.device | str) -> torch.dtype:
    """The widest floating-point type of a device: float64, or float32 where it has none."""
    return torch.float32 if torch.device(device).type in WITHOUT else torch.float64


def in_float64(x: Tensor) -> Tensor:
    """`x` in float64 where it is, or on the CPU if its device has no float64."""
    return (x.cpu() if x.device.type in WITHOUT else x).double()
