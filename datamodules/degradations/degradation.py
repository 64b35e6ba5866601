"""What every degradation is: a pure function of the sharp image and of a small recipe that its key determines."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

Recipe = dict[str, Any]  # plain numbers, strings and lists: JSON keeps it exactly


class Degradation(ABC):
    """Makes low-resolution images on the device of the sharp ones, each image with parameters of its own.

    The work is split in two so that any training step can be repeated. `recipe` draws everything random for one image
    from a counter-based generator keyed by (seed, key, epoch) and sees no pixels; `apply` draws nothing and sees no
    keys. So the batch, the rank and the worker of an image do not matter. A validation set always passes epoch 0 and
    seed 0, so that its low-resolution images are a function of the key alone.

    In training, `hr = degradation.target(hr)` comes first, then `lr = degradation(hr, keys=..., epoch=..., seed=...)`.
    The data module does the latter's two steps itself, since a training batch can span two epochs.

    Attributes:
        scale: how many times smaller the low-resolution image is, per side.
    """

    def __init__(self, scale: int) -> None:
        if scale < 1:
            raise ValueError(f"scale: {scale} is not a factor by which an image can shrink; give 1 or more")
        self.scale = scale

    def target(self, hr: Tensor) -> Tensor:
        """What a network is trained to restore, `[B,3,H,W]` in [0,1]: `hr` itself unless a subclass sharpens it."""
        return hr

    def recipe(self, key: str, *, epoch: int, seed: int) -> Recipe:
        """Everything random about the degradation of image `key` in `epoch`; empty where nothing is random."""
        return {}

    @abstractmethod
    def apply(self, hr: Tensor, recipes: Sequence[Recipe]) -> Tensor:
        """Degrades `hr` (`[B,3,H,W]` in [0,1]) by one recipe per image; `[B,3,H/scale,W/scale]` in [0,1], float32."""

    def __call__(self, hr: Tensor, *, keys: Sequence[str], epoch: int, seed: int) -> Tensor:
        """Degrades `hr` (`[B,3,H,W]` in [0,1]) to `[B,3,H/scale,W/scale]` in [0,1], float32.

        Args:
            hr: sharp images on any device.
            keys: one name per image, such as "div2k/0801".
            epoch: the same image is degraded differently in each epoch; constant in validation.
            seed: the experiment's seed for data.

        Raises:
            ValueError: `hr` is not such a batch, its sides are not multiples of `scale`, or there are more or fewer
                keys than images.
        """
        if hr.ndim != 4 or hr.shape[1] != 3 or not hr.is_floating_point():
            raise ValueError(f"hr: expected [B,3,H,W] floats in [0,1], got {list(hr.shape)} {hr.dtype}")
        if len(keys) != len(hr):
            raise ValueError(f"keys: {len(keys)} names for {len(hr)} images; each image needs its own")
        self.check_size(*hr.shape[-2:], key=keys[0] if keys else "")
        return self.apply(hr.float(), [self.recipe(key, epoch=epoch, seed=seed) for key in keys])

    def check_size(self, height: int, width: int, *, key: str) -> None:
        """Raises a ValueError that names `key` where an image of this size cannot be degraded."""
        if height % self.scale or width % self.scale:
            fit = f"{height - height % self.scale}x{width - width % self.scale}"
            raise ValueError(f"{key}: {height}x{width} does not divide by scale {self.scale}; crop it to {fit}")


def generator(key: str, *, epoch: int, seed: int) -> np.random.Generator:
    """A counter-based generator (Philox) whose stream is a function of (seed, key, epoch), on any machine."""
    digest = hashlib.blake2b(f"{seed}/{epoch}/{key}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(digest, dtype="<u8")))
